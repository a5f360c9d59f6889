"""The C++ compiler and CUDA's headers: finding them, asking them, and saying what went wrong in one line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from vitslim.errors import CheckFailedError, MissingDependencyError

_LONGEST_LINE = 300


def find_compiler() -> Path | None:
    """``$CXX``, else g++, c++ or clang++ of the search path."""
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        found = shutil.which(name) if name else None
        if found is not None:
            return Path(found)
    return None


def required_compiler() -> Path:
    """The C++ compiler that there is.

    Raises:
        MissingDependencyError: there is none.
    """
    compiler = find_compiler()
    if compiler is None:
        raise MissingDependencyError(
            "no C++ compiler was found (CXX, g++, c++, clang++); install one, nvcc and a GPU are not needed, or do "
            "without: vitslim.plugin.register_ahead_of_time has TensorRT bake the same kernel into the engine"
        )
    return compiler


def compiler_version(compiler: Path) -> str:
    """The first line of what it says of itself."""
    return _run([str(compiler), "--version"]).stdout.partition("\n")[0]


def cuda_headers() -> Path:
    """The folder of the CUDA driver's header, beside torch or of a toolkit.

    Raises:
        MissingDependencyError: there is none.
    """
    # The CUDA packages beside torch share the namespace `nvidia`.
    spec = find_spec("nvidia")
    roots = [] if spec is None else [Path(root) for root in spec.submodule_search_locations or ()]
    beside_torch = [folder for root in roots for folder in sorted(root.iterdir(), reverse=True)]
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for folder in (*beside_torch, *map(Path, homes), Path("/usr/local/cuda")):
        if (folder / "include" / "cuda.h").is_file():
            return folder / "include"
    raise MissingDependencyError(
        "cuda.h was not found; it comes with torch's CUDA builds (package nvidia-cuda-runtime) and with the CUDA "
        "toolkit: set CUDA_HOME"
    )


def compile_or_explain(command: Sequence[str], source: str) -> None:
    """Run one compiler command.

    Raises:
        CheckFailedError: it failed; the message has the first line that says why.
    """
    done = _run(command)
    if done.returncode != 0:
        raise CheckFailedError(
            f"{Path(command[0]).name} failed on {source}: {useful_line(done.stderr + done.stdout)}; it wants C++17 "
            "and, for the plugin, whole TensorRT headers; CXX names another compiler"
        )


def useful_line(log: str) -> str:
    """The first line of a compiler's log that names an error, else the last that says anything."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b(fatal error|error|undefined reference|No space left)\b", line)]
    line = (errors or lines[-1:] or ["it said nothing"])[0]
    return line if len(line) <= _LONGEST_LINE else line[:_LONGEST_LINE] + " …"


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise MissingDependencyError(f"{command[0]} cannot be run ({error.strerror}); check the compiler") from error

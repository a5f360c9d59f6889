"""nvcc: finding it, asking it, and saying what went wrong in one line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vitslim.errors import ConfigError, MissingDependencyError

_LONGEST_LINE = 300
_USUAL_PLACE = "/usr/local/cuda/bin/nvcc"
_ARCHITECTURE = re.compile(r"(?:sm_|compute_)?(\d{2,3}[af]?)")


def find_nvcc() -> Path | None:
    """Nvcc of ``$CUDA_HOME`` or ``$CUDA_PATH``, else of the search path, else of /usr/local/cuda."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    on_path = shutil.which("nvcc")
    candidates = [*(Path(home) / "bin" / "nvcc" for home in homes), on_path, _USUAL_PLACE]
    for candidate in candidates:
        if candidate is not None and os.access(candidate, os.X_OK):
            return Path(candidate)
    return None


def required_nvcc() -> Path:
    """The nvcc that there is.

    Raises:
        MissingDependencyError: there is none.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise MissingDependencyError(
            "nvcc was not found (CUDA_HOME, PATH, /usr/local/cuda); install NVIDIA's CUDA toolkit, no GPU is needed to "
            "compile, or do without: vitslim.plugin.register_ahead_of_time compiles the same kernel with the NVRTC "
            "that comes with torch"
        )
    return nvcc


def nvcc_version(nvcc: Path) -> str:
    """As in ``13.0``."""
    found = re.search(r"release (\d+\.\d+)", _run([str(nvcc), "--version"]).stdout)
    return found[1] if found else "unknown"


def checked_architectures(nvcc: Path, wanted: Sequence[str]) -> tuple[str, ...]:
    """Compute capabilities in rising order, written as ``90``.

    Args:
        wanted: ``90``, ``9.0`` or ``sm_90``.

    Raises:
        ConfigError: none, one that is not written so, or one that this nvcc does not know.
    """
    names: list[str] = []
    for text in wanted:
        match = _ARCHITECTURE.fullmatch(text.strip().replace(".", ""))
        if match is None:
            raise ConfigError(f"architecture {text!r}: wanted compute capabilities such as 80,86,90")
        names.append(match[1])
    if not names:
        raise ConfigError("no architecture was given; wanted compute capabilities such as 80,86,90")
    known = re.findall(r"sm_(\d+[af]?)", _run([str(nvcc), "--list-gpu-code"]).stdout)
    base = {re.sub(r"\D", "", name) for name in known}
    unknown = [name for name in names if re.sub(r"\D", "", name) not in base]
    if unknown:
        raise ConfigError(
            f"architecture {', '.join(unknown)} is not known to nvcc {nvcc_version(nvcc)}, which compiles for "
            f"{', '.join(sorted(base, key=int))}; choose from these or use another CUDA toolkit"
        )
    return tuple(sorted(set(names), key=lambda name: int(re.sub(r"\D", "", name))))


def compile_or_explain(command: Sequence[str], source: str) -> None:
    """Run one compiler command.

    Raises:
        MissingDependencyError: it failed; the message has the first line that says why.
    """
    done = _run(command)
    if done.returncode != 0:
        raise MissingDependencyError(
            f"nvcc failed on {source}: {useful_line(done.stderr + done.stdout)}; check that the host compiler fits "
            f"this CUDA toolkit (nvcc takes another by NVCC_CCBIN) and, for the plugin, the TensorRT headers"
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
        raise MissingDependencyError(
            f"{command[0]} cannot be run ({error.strerror}); check the CUDA toolkit"
        ) from error

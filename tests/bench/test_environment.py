import getpass
import importlib
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vitslim.bench import environment
from vitslim.bench.code import MEASURING, TRAINING, code_digest
from vitslim.bench.environment import _ASK_FOR_GPUS


def test_it_names_hardware_load_and_versions():
    found = environment()
    assert found["torch"] == torch.__version__.split("+")[0]
    assert found["timm"]
    assert found["python"] == platform.python_version()
    assert found["cores"] >= found["cores_usable"] >= 1
    assert found["cpu"]
    assert len(found["gpu"]) == torch.cuda.device_count()


def test_it_fits_json_and_does_not_say_whose_machine_it_is():
    text = json.dumps(environment())
    for private in (platform.node(), str(Path.home()), str(Path.cwd())):
        assert not private or private not in text
    assert f'"{getpass.getuser()}"' not in text
    assert "/root" not in text
    assert "/home" not in text


def test_a_process_that_does_not_use_the_gpu_does_not_open_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(index: int) -> Any:
        raise AssertionError("a CUDA context in this process")

    def child(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[0] == sys.executable
        return subprocess.CompletedProcess(command, 0, stdout='[["GPU A", 85899345920, 9, 0]]\n')

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", refuse)
    monkeypatch.setattr(subprocess, "run", child)
    assert environment()["gpu"] == [{"name": "GPU A", "memory_gib": 80.0, "compute_capability": "9.0"}]


def test_the_child_that_looks_at_the_gpus_answers_as_torch_does() -> None:
    asked = subprocess.run([sys.executable, "-c", _ASK_FOR_GPUS], capture_output=True, text=True, check=True)
    assert len(json.loads(asked.stdout)) == torch.cuda.device_count()


@pytest.mark.gpu
def test_a_new_process_stays_without_a_context() -> None:
    code = "from vitslim.bench import environment; import torch; assert environment()['gpu']; "
    code += "assert not torch.cuda.is_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.129.03  Release Build  (dvs-builder@U16)",
    ],
)
def test_the_driver_is_named(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "version").write_text(f"{line}\nGCC version:  gcc version 12.2.0\n")
    module = importlib.import_module("vitslim.bench.environment")  # the package's name is the function's
    monkeypatch.setattr(module, "_DRIVER", tmp_path / "version")
    assert environment()["driver"] == "535.129.03"
    monkeypatch.setattr(module, "_DRIVER", tmp_path / "absent")
    assert environment()["driver"] is None


def test_other_code_has_another_digest(tmp_path: Path):
    for name in ("kernels/a.py", "plugin/a.cu", "report/page.py", "kernels/a.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    found = [code_digest(tmp_path)]
    for name in ("report/page.py", "kernels/a.pyc"):
        (tmp_path / name).write_text("2")
        assert code_digest(tmp_path) == found[0]
    for name in ("kernels/a.py", "plugin/a.cu"):
        (tmp_path / name).write_text("2")
        found.append(code_digest(tmp_path))
    assert len(set(found)) == 3
    assert code_digest() == code_digest()


def test_what_a_model_learns_depends_on_other_code_than_how_fast_it_runs(tmp_path: Path):
    def digests() -> tuple[str, str]:
        return code_digest(tmp_path), code_digest(tmp_path, TRAINING, (".py",))

    (tmp_path / "kernels").mkdir()
    (tmp_path / "bench").mkdir()
    (tmp_path / "pipeline").mkdir()
    before = digests()
    for name, differs in {
        "kernels/a.py": (True, True),
        "kernels/a.cu": (True, False),
        "bench/clock.py": (True, False),
        "pipeline/baselines.py": (True, True),
    }.items():
        (tmp_path / name).write_text("1")
        after = digests()
        assert tuple(old != new for old, new in zip(before, after, strict=True)) == differs, name
        before = after


def test_every_place_of_the_code_is_there():
    package = Path(importlib.import_module("vitslim").__file__ or "").parent
    assert [part for part in (*MEASURING, *TRAINING) if not (package / part).exists()] == []

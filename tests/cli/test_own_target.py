"""A target from a package outside of vitslim, through the command line and Python."""

import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.targets.serving import small
from vitslim import checkpoint, export, list_targets, open_runner
from vitslim.errors import ConfigError
from vitslim.targets import TARGETS

SIDECAR = """
import json
import shutil
import tempfile
from pathlib import Path

from vitslim import checkpoint
from vitslim.runtime import TorchRunner
from vitslim.targets import ExportRequest, Opening, Target, Written, register_target


@register_target("sidecar")
class SidecarTarget(Target):
    title = "weights beside their config"
    suffix = ".weights"

    def write(self, request: ExportRequest, *, note: str = "") -> Written:
        request.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(request.model(), folder, overwrite=True)
            shutil.copy(Path(folder, "model.safetensors"), request.path)
            shutil.copy(Path(folder, "config.json"), request.path.with_suffix(".json"))
        return Written(file=request.path.name, precision=request.precision, notes=[f"note: {note}"] if note else [])

    def load(self, path: Path, how: Opening) -> TorchRunner:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(path, Path(folder, "model.safetensors"))
            shutil.copy(path.with_suffix(".json"), Path(folder, "config.json"))
            return TorchRunner(checkpoint.load(folder), device=how.device, name=how.name or path.stem)
"""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package as pip leaves it behind, and a registry that has not looked yet."""
    place = tmp_path / "site"
    (place / "sidecar-1.dist-info").mkdir(parents=True)
    (place / "sidecar-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: sidecar\nVersion: 1\n")
    (place / "sidecar-1.dist-info" / "entry_points.txt").write_text("[vitslim.targets]\nsidecar = sidecar_target\n")
    (place / "sidecar_target.py").write_text(SIDECAR)
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(sys.modules, "sidecar_target", raising=False)
    monkeypatch.setattr(TARGETS, "_entries", dict(TARGETS._entries))
    monkeypatch.setattr(TARGETS, "_is_complete", False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model."""
    checkpoint.save(small("skipat", layers=(1,)), tmp_path / "student")
    return tmp_path / "student"


def test_a_target_of_another_package_is_one_like_all_others(folder: Path, vitslim: Command) -> None:
    said = vitslim("export", folder, "--to", "sidecar", "--set", "note=hello")
    assert said.code == 0, said.err
    assert "note: hello" in said.err
    assert "exists; pass --overwrite" in vitslim("export", folder, "--to", "sidecar").error
    found = vitslim("verify", folder, "--images", 3, "--batch", "1,2", "--json").document
    assert [(check["artifact"], check["batch"], check["passed"]) for check in found["checks"]] == [
        ("model.weights", 1, True),
        ("model.weights", 2, True),
    ]
    words = ("--backend", "torch,sidecar", "--batch", 1, "--rounds", 5, "--json")
    timed = vitslim("bench", folder, *words)
    assert timed.code == 0, timed.err
    assert {(row["model"], row["backend"]) for row in timed.document["rows"]} == {
        (model, backend) for model in ("dense", "student") for backend in ("torch", "sidecar")
    }
    assert all(row["file_mib"] > 0 for row in timed.document["rows"] if row["backend"] == "sidecar")


def test_python_takes_it_by_its_name(folder: Path) -> None:
    assert export(folder, to="sidecar").file == "model.weights"
    with open_runner(folder / "export" / "model.weights") as runner:
        assert runner.backend == "torch"
    info = {one.name: one for one in list_targets()}["sidecar"]
    assert (info.suffix, info.backends, info.missing) == (".weights", ["sidecar"], [])
    with pytest.raises(ConfigError, match="target 'sidecar' takes no opset; its options are note"):
        export(folder, folder / "x.weights", to="sidecar", opset=18)
    with pytest.raises(ConfigError, match="target 'sidecar' is not written in fp16; wanted fp32"):
        export(folder, folder / "x.weights", to="sidecar", precision="fp16")


def test_a_file_whose_weights_changed_fails_the_check(folder: Path, vitslim: Command) -> None:
    assert vitslim("export", folder, "--to", "sidecar").code == 0
    model = checkpoint.load(folder)
    model.get_parameter("head.bias").data += 1
    checkpoint.save(model, folder, overwrite=True)
    outcome = vitslim("verify", folder, folder / "export" / "model.weights", "--images", 3)
    assert outcome.code == 1
    assert "model.weights" in outcome.error

"""What Model-Optimizer made goes through the gate; it and TensorRT are stood in for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command
from tests.targets.serving import small
from tests.targets.test_quantization import stand_in
from vitslim import checkpoint
from vitslim.bench.clock import cpu_clock
from vitslim.errors import CheckpointError, UnsupportedModelError
from vitslim.pipeline import export, quantizing
from vitslim.pipeline.gate import Judged
from vitslim.targets import Backend, ExportRequest, Timing
from vitslim.targets.onnx.target import OnnxTarget

DATA = "fractals:classes=10,train_per_class=2,val_per_class=4,image_size=32"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoint.save(small("evo_vit"), tmp_path_factory.mktemp("quantizing") / "student")
    export(folder)
    return folder


@pytest.fixture
def student(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "student")


def test_a_file_is_judged_where_it_runs_and_says_what_is_not_proven(student: Path, tmp_path: Path) -> None:
    found = quantizing.quantize(student, DATA, precision="int8", python=stand_in(tmp_path), max_drop=100.0)
    assert found.path == str(student / "export" / "quantized" / "model-int8.onnx")
    assert Path(found.path).is_file()
    assert (found.failures, found.latency_ms) == ([], {})
    assert found.file is not None
    assert found.file.images == 40
    assert found.loss == pytest.approx(100 * ((found.model.top1 or 0) - (found.file.top1 or 0)))
    (note,) = found.notes
    assert note.startswith("its speed is not proven: ")
    proof = json.loads(Path(f"{found.path}.proof.json").read_text())
    assert (proof["written"]["quantizers"], proof["notes"]) == (1, [note])


def test_a_file_that_loses_too_much_is_kept_aside_with_exit_code_1(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vitslim: Command
) -> None:
    monkeypatch.setattr(Judged, "points", lambda *_: 7.5)
    words = ("--data", DATA, "--precision", "int8", "--modelopt-python", stand_in(tmp_path), "--max-drop", "2")
    outcome = vitslim("quantize", student, *words)
    assert outcome.code == 1
    said = " ".join(outcome.err.split())
    assert "it loses 7.50 points of accuracy; 2 are allowed; the file is kept aside as" in said
    assert "7.50 points lost on 40 images; 2 are allowed" in said
    assert "note: its speed is not proven" in said
    quantized = student / "export" / "quantized"
    assert [one.name for one in quantized.iterdir()] == ["rejected"]
    assert (quantized / "rejected" / "model-int8.onnx").is_file()


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        ("no operator TRT_FP8QuantizeLinear", None),
        ("Type Error: float16 and float", UnsupportedModelError),
    ],
)
def test_what_onnx_runtime_does_not_run_is_not_proven(
    error: str,
    verdict: type[Exception] | None,
    student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: Path) -> None:
        raise CheckpointError(error)

    monkeypatch.setattr(quantizing, "OrtRunner", refuse)
    asked: dict[str, Any] = {"precision": "fp8", "python": stand_in(tmp_path)}
    if verdict is not None:
        with pytest.raises(verdict, match="try --others fp32"):
            quantizing.quantize(student, DATA, **asked)
        assert not list((student / "export").rglob("*fp8*"))
        return
    found = quantizing.quantize(student, DATA, **asked)
    assert (found.file, found.loss, found.failures) == (None, None, [])
    assert found.notes[0].startswith("its accuracy is not proven: ONNX Runtime does not run the file: no operator")


class Engines(OnnxTarget):
    """Stands for TensorRT: what is built from a file is the file, and each batch size is built anew."""

    backends = (Backend("ort", per_batch=True),)

    def __init__(self) -> None:
        super().__init__()
        self.built: list[tuple[str, str]] = []

    def write(self, request: ExportRequest, **options: Any) -> Any:
        self.built.append((request.precision, "model" if request.source is None else request.source.name))
        if request.source is None:
            return super().write(request, **options)
        return shutil.copyfile(request.source, request.path)

    def timing_options(self, how: Timing) -> dict[str, Any]:
        return {}


def test_engines_are_timed_beside_those_in_half_precision(student: Path) -> None:
    judged = Judged(checkpoint.load(student), DATA)
    target, made = Engines(), student / "export" / "model.onnx"
    notes = list[str]()
    file, times = quantizing.proven_as(target, made, judged, "fp8", "fp16", notes, device="cpu", clock=cpu_clock)
    assert file.agreement == 1.0
    assert {batch: {*found} for batch, found in times.items()} == {1: {"fp8", "fp16"}, 8: {"fp8", "fp16"}}
    assert ("fp16", "model.onnx") in target.built
    assert ("bf16", "model") in target.built  # which ONNX Runtime does not run, so it is no rival
    assert len(notes) == 2
    assert all(note.startswith("it was not timed beside bf16: ") for note in notes)

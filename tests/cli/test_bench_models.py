"""bench MODEL."""

import builtins
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command
from vitslim.files import read_json


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a library look as if it were not installed."""
    real = builtins.__import__

    def hide(*names: str) -> None:
        def fail(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.split(".")[0] in names:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", fail)

    return hide


QUICK = ("--rounds", 5, "--threads", 1)
ROW = {
    "model",
    "backend",
    "precision",
    "batch",
    "latency_ms_p50",
    "latency_ms_p90",
    "throughput_img_s",
    "speedup_vs_dense",
    "params",
    "macs",
}


def test_a_student_is_benchmarked_beside_its_dense_model(copied: Path, vitslim: Command) -> None:
    words = ("--baseline", "dense", "--backend", "torch,ort", "--batch", "1,2", *QUICK, "--json")
    outcome = vitslim("bench", copied, *words)
    assert outcome.code == 0, outcome.err
    found = outcome.document
    assert {"environment", "rows"} <= set(found)
    assert {(row["model"], row["backend"], row["batch"]) for row in found["rows"]} == {
        (model, backend, batch) for model in ("dense", "copied") for backend in ("torch", "ort") for batch in (1, 2)
    }
    assert all(set(row) >= ROW for row in found["rows"])
    assert all(row["speedup_vs_dense"] == 1.0 for row in found["rows"] if row["model"] == "dense")
    assert read_json(copied / "bench.json") == found


def test_a_result_that_could_not_be_written_is_refused_before_it_is_measured(
    student: Path, tmp_path: Path, vitslim: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitslim.pipeline.benchmark", None)
    (tmp_path / "file").write_text("")
    outcome = vitslim("bench", student, "--out", tmp_path / "file" / "b.json", *QUICK)
    assert outcome.code == 2
    assert f"{tmp_path / 'file'} is a file" in outcome.error


def test_the_table_names_machine_and_baseline(student: Path, dense: Path, tmp_path: Path, vitslim: Command) -> None:
    words = ("--baseline", dense, "--backend", "torch", "--batch", 1, "--out", tmp_path / "b.json", *QUICK)
    outcome = vitslim("bench", student, *words)
    assert outcome.code == 0, outcome.err
    assert "speed-up against 'dense' with fused attention in the same run" in outcome.out
    assert {row["model"] for row in read_json(tmp_path / "b.json")["rows"]} == {"dense", "student"}
    assert not (student / "bench.json").exists()


def test_two_folders_of_one_name_get_a_row_each(student: Path, copied: Path, tmp_path: Path, vitslim: Command) -> None:
    other = Path(shutil.copytree(student, tmp_path / "other" / "copied"))
    words = ("--backend", "torch", "--batch", 1, "--out", tmp_path / "b.json", *QUICK)
    assert vitslim("bench", copied, other, *words).code == 0
    assert {row["model"] for row in read_json(tmp_path / "b.json")["rows"]} == {"dense", str(copied), str(other)}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--backend", "tensorflow"], 2, "backends.0"),
        (["--precision", "fp8"], 2, "precisions.0"),
        (["--batch", "x"], 2, "--batch 'x': wanted whole numbers"),
        (["--baseline", "deit_smal"], 2, "unknown model 'deit_smal'; did you mean"),
    ],
)
def test_a_benchmark_that_cannot_run_is_one_line(
    words: list[str], code: int, message: str, student: Path, vitslim: Command
) -> None:
    outcome = vitslim("bench", student, *words)
    assert (outcome.code, message in outcome.error) == (code, True), outcome.err


def test_a_benchmark_without_its_only_backend_is_a_missing_dependency(
    student: Path, tmp_path: Path, vitslim: Command, without: Any
) -> None:
    without("onnxruntime")
    outcome = vitslim("bench", student, "--backend", "ort", "--batch", 1, "--out", tmp_path / "b.json", *QUICK)
    assert outcome.code == 3
    assert "nothing could be measured: ort fp32" in outcome.error
    assert not (tmp_path / "b.json").exists()

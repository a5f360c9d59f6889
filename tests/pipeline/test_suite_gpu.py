"""The suite and the accuracy benchmark on a real GPU, with tiny models."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline.test_accuracy import MODELS, TINY
from vitslim.pipeline.suite import Suite

pytestmark = pytest.mark.gpu

PRESET: dict[str, Any] = {
    "device": "cuda",
    "rounds": 10,
    "energy": True,
    "models": {"tiny": {"name": "builtin", "options": {"depth": 4, "embed_dim": 64, "num_heads": 2}}},
    "competitors": {
        "evo-vit": {"convert": [{"method": "evo_vit"}]},
        "skipat": {"convert": [{"method": "skipat"}]},
        "sparsifiner": {"convert": [{"method": "sparsifiner"}]},
        "sret": {"convert": [{"method": "sret"}]},
    },
    "groups": [
        {
            "models": ["tiny"],
            "sizes": [64],
            "precisions": ["bf16"],
            "backends": ["compiled-graph", "torch", "train"],
            "batches": [8],
            "competitors": ["evo-vit", "skipat", "sparsifiner", "sret", "depth-drop", "lower-resolution"],
        },
    ],
}


def test_every_competitor_is_compiled_recorded_and_timed(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(PRESET))
    report = Suite("suite", tmp_path / "out", preset=str(tmp_path / "own.yaml")).run()
    assert [one.status for one in report.cases] == ["measured"] * 3
    for one in report.cases:
        assert one.skipped == []
        assert {row.model for row in one.rows} == {"dense", *one.case.competitors}
        assert all(row.peak_memory_mib for row in one.rows)
        assert all(row.power_w for row in one.rows) or any("energy" in note for note in one.notes)
        assert one.peaks is not None
        assert one.peaks.tflops > 1
    assert all(0 < row.roofline_share < 1 for row in report.cases[0].rows)


def test_images_are_drawn_and_students_trained_on_the_gpu(tmp_path: Path) -> None:
    gpu = ("device=cuda", "groups.0.precisions=[bf16]", "groups.0.backends=[compiled-graph]")
    held = Suite("accuracy", tmp_path / "out", quick=True, overrides=(*TINY, *gpu))
    stopped = held.run(minutes=0.25)
    report = held.run()
    assert list(report.accuracy) == MODELS
    assert list(stopped.accuracy) == MODELS[: len(stopped.accuracy)]
    assert {row.model for row in report.cases[0].rows} == {one.timed_as for one in report.trained}

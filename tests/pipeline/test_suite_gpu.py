"""The suite and the accuracy benchmark on a real GPU, with tiny models."""

from pathlib import Path

import pytest

from tests.pipeline.test_accuracy import MODELS, TINY
from vitslim.pipeline.suite import SuitePreset, run_accuracy, run_suite

pytestmark = pytest.mark.gpu

PRESET = SuitePreset.model_validate(
    {
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
)


def test_every_competitor_is_compiled_recorded_and_timed(tmp_path: Path) -> None:
    report = run_suite(tmp_path / "out", preset=PRESET)
    assert [case.status for case in report.pieces] == ["measured"] * 3
    for case in report.pieces:
        assert case.skipped == []
        assert {row.model for row in case.rows} == {"dense", *case.piece.competitors}
        assert all(row.peak_memory_mib for row in case.rows)
        assert all(row.power_w for row in case.rows) or any("energy" in note for note in case.notes)
        assert case.ceilings is not None
        assert case.ceilings.tflops > 1
    graph = report.pieces[0]
    assert all(0 < row.roofline_share < 1 for row in graph.rows)


def test_images_are_drawn_and_students_trained_on_the_gpu(tmp_path: Path) -> None:
    overrides = (*TINY, "device=cuda", "speed.precisions=[bf16]", "speed.backends=[compiled-graph]")
    stopped = run_accuracy(tmp_path / "out", preset="cpu", quick=True, overrides=overrides, minutes=0.25)
    report = run_accuracy(tmp_path / "out", preset="cpu", quick=True, overrides=overrides)
    assert [row.model for row in report.rows] == MODELS
    assert [row.model for row in stopped.rows] == MODELS[: len(stopped.rows)]
    assert all(row.speed for row in report.rows)
    assert report.drawn_images_per_second > report.rows[0].trained_images_per_second

"""Evo-ViT as an ONNX file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.variants import dense, images_for
from vitslim.methods import convert
from vitslim.runtime import OrtRunner
from vitslim.targets.onnx.export import export_onnx

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

FORBIDDEN = {"NonZero", "ScatterElements", "ScatterND", "Scatter", "GatherElements", "Loop", "If", "Where"}


@pytest.mark.parametrize(
    ("name", "options", "sorts"),
    [
        # A dense block and two that select: two stages; one stage where every block selects; one stage where the second
        # block takes over the order of the first. And the natural order at the end.
        ("vit_plain", {}, 3),
        pytest.param(
            *("vit_plain", {"stages": (1,), "placeholders": "slow_fast", "schedule": "layer"}, 3),
            marks=pytest.mark.slow,
        ),
        ("eva_mixed_rotary", {"stages": (1,), "placeholders": "slow_fast"}, 2),
        pytest.param("beit_both_biases", {"stages": (1,)}, 2, marks=pytest.mark.slow),
    ],
)
def test_the_graph_sorts_once_per_selection_and_never_scatters(
    name: str, options: dict[str, Any], sorts: int, tmp_path: Path
) -> None:
    model = convert(dense(name, depth=3), "evo_vit", **options)
    record = export_onnx(model, tmp_path / "model.onnx")
    assert record.operators["TopK"] == sorts
    assert not FORBIDDEN & set(record.operators)
    check_numbers(model, tmp_path / "model.onnx")


def test_equal_scores_are_settled_alike_in_every_runtime(tmp_path: Path) -> None:
    model = convert(dense("vit_plain", depth=2), "evo_vit", stages=(1,))
    with torch.no_grad():
        # Keys that are all the same leave the class row flat.
        model.blocks[0].attn.qkv.weight[48:96] = 0.0
    export_onnx(model, tmp_path / "model.onnx")
    check_numbers(model, tmp_path / "model.onnx")


@torch.no_grad()
def check_numbers(model: nn.Module, path: Path) -> None:
    with OrtRunner(path) as runner:
        for batch in (1, 3):
            images = images_for(model, batch=batch)
            torch.testing.assert_close(runner.run(images), model(images), atol=2e-5, rtol=1e-4)

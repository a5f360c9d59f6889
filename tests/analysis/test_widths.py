"""Which blocks can go, and how much neurons and heads matter."""

import copy

import pytest
import torch

from tests.variants import ALL, dense, images_for
from vitslim.analysis.widths import drop_order, measure_blocks


def test_a_block_that_does_nothing_has_no_influence_and_goes_first() -> None:
    idle = copy.deepcopy(dense("vit_plain"))
    with torch.no_grad():
        for layer in (idle.blocks[2].attn.proj, idle.blocks[2].mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
    images = [images_for(idle, batch=8)]
    found = measure_blocks(idle, images)
    assert found.influence[2] == pytest.approx(0, abs=1e-6)  # rounding of the cosine
    assert min(found.influence[0], found.influence[1], found.influence[3]) > 1e-4
    assert drop_order(idle, lambda: images, found.influence, "kl") == [2, 1]


def test_a_neuron_counts_by_what_it_moves() -> None:
    model = copy.deepcopy(dense("vit_plain"))
    with torch.no_grad():
        model.blocks[1].mlp.fc2.weight[:, 48:] = 0.0
    found = measure_blocks(model, [images_for(model, batch=8)])
    parts = found.mlp_importance[1]
    assert len(parts) == 64
    assert parts == sorted(parts, reverse=True)
    # A quarter of the neurons is left.
    assert parts[15] > 0
    assert parts[16:] == [0.0] * 48


@pytest.mark.parametrize("name", ALL)
def test_every_model_has_one_figure_for_each_group_of_heads(name: str) -> None:
    found = measure_blocks(dense(name), [images_for(dense(name))])
    adapter_groups = [block.attn.num_heads // getattr(block.attn, "num_kv_groups", 1) for block in dense(name).blocks]
    assert [len(heads) for heads in found.heads_importance] == adapter_groups
    assert all(value >= 0 for heads in found.heads_importance for value in heads)

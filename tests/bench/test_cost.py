import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from vitslim.bench import count_macs, count_parameters
from vitslim.bench.cost import _fused_attention_on_cpu, weightless_copy
from vitslim.methods import convert

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 10}
n, p, d = 17, 16, 48  # tokens, patches, width of the small model


def block_macs(tokens: int, width: int) -> int:
    # qkv 3d², projection d², MLP 8d² per token, and Q Kᵀ and A V with n² d each.
    return 12 * tokens * width**2 + 2 * tokens**2 * width


def test_the_count_is_the_formula_of_a_dense_vit(dense):
    embedding = p * d * 3 * 8 * 8
    assert count_macs(dense) == embedding + 4 * block_macs(n, d) + 10 * d


@pytest.mark.parametrize(
    ("name", "gmac"), [("deit_tiny", 1.254), ("deit_small", 4.599), ("deit_base", 17.56)]
)  # METHODS.md, section 1
def test_deit_at_224_without_weights(name, gmac):
    with torch.device("meta"):
        model = timm.create_model(f"{name}_patch16_224")
    assert count_macs(model) / 1e9 == pytest.approx(gmac, abs=5e-3 if gmac > 10 else 5e-4)


@pytest.mark.parametrize(
    ("name", "gmac", "parameters"),
    [("deit_tiny", 1.175, 5.77), ("deit_small", 4.439, 22.16), ("deit_base", 17.24, 86.79)],
)  # SkipAt on blocks 3..8: METHODS.md, section 1
def test_skipat_at_224_as_the_authors_code_counts(name, gmac, parameters):
    with torch.device("meta"):
        dense = timm.create_model(f"{name}_patch16_224")
    model = convert(dense, "skipat", layers=range(3, 9))
    assert count_macs(model) / 1e9 == pytest.approx(gmac, abs=5e-3 if gmac > 10 else 5e-4)
    assert count_parameters(model) / 1e6 == pytest.approx(parameters, abs=5e-3)


def test_a_skipped_block_costs_its_skip_function_in_place_of_attention(dense):
    model = convert(dense, "skipat", layers=(2,), expansion=2.0)
    # Φ: d→2d and back per patch, a depthwise 5x5 on 2d channels; the channel attention is sums of shifts.
    phi = p * 4 * d**2 + p * 25 * 2 * d
    attention = 4 * n * d**2 + 2 * n**2 * d
    assert count_macs(model) == count_macs(dense) - attention + phi


def test_fused_and_unfused_attention_count_the_same(dense):
    fused = count_macs(dense)
    for block in dense.blocks:
        block.attn.fused_attn = False
    try:
        assert count_macs(dense) == fused
    finally:
        for block in dense.blocks:
            block.attn.fused_attn = True


def test_the_fused_cpu_kernel_is_counted_with_queries_and_keys_of_different_number():
    query, key = torch.randn(2, 3, 10, 8), torch.randn(2, 3, 7, 8)
    counter = FlopCounterMode(display=False, custom_mapping=_fused_attention_on_cpu())
    with torch.no_grad(), counter:
        F.scaled_dot_product_attention(query, key, key)
    assert counter.get_total_flops() == 2 * 2 * 3 * (10 * 8 * 7 + 10 * 7 * 8)


@pytest.mark.parametrize(
    "model",
    [
        lambda: Eva(**SIZE, use_rot_pos_emb=True, swiglu_mlp=True),
        lambda: Beit(**SIZE, use_rel_pos_bias=True),
        lambda: convert(Eva(**SIZE, use_rot_pos_emb=True).eval(), "skipat", layers=range(1, 3)),
    ],
)
def test_other_families_count_and_stay_as_they_are(model):
    model = model().train()
    before = [(parameter.device, parameter.data_ptr()) for parameter in model.parameters()]
    assert count_macs(model) > 4 * 12 * p * d**2 * 0.9
    assert [(parameter.device, parameter.data_ptr()) for parameter in model.parameters()] == before
    assert model.training


def test_a_larger_image_costs_more_when_the_model_takes_it():
    model = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, img_size=64)
    assert count_macs(model, (128, 128)) > 3.5 * count_macs(model)


def test_a_weightless_copy_has_no_memory_and_no_foreign_hooks(dense):
    handle = dense.register_forward_hook(lambda *_: pytest.fail("the hook of someone else ran"))
    try:
        copy = weightless_copy(dense)
        assert all(tensor.is_meta for tensor in (*copy.parameters(), *copy.buffers()))
        count_macs(dense)
    finally:
        handle.remove()


def test_a_shared_parameter_counts_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert count_parameters(model) == 9 + 3 + 3

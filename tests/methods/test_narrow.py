"""Dropped blocks, narrow MLPs, fewer heads: what is left is the dense model's, costs what the plan says, and is refused
where it cannot be."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.variants import ALL, NOT_DESCRIBABLE, dense, images_for, lively_
from vitslim import checkpoint
from vitslim.bench import count_macs, count_parameters
from vitslim.errors import ConfigError, UnsupportedModelError
from vitslim.methods import convert
from vitslim.methods.widths import allotted, even
from vitslim.plans import DenseMlp, check, cost, plan_json, read_plan
from vitslim.targets import verify
from vitslim.targets.onnx.export import export_onnx
from vitslim.trunk import build, plan_of, trunk_of

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "depth": ("depth", {"layers": (1, 2)}),
    "stand-in": ("depth", {"layers": (1, 2), "stand_in": True}),
    "mlp": ("mlp", {"keep": 0.5}),
    "linear": ("mlp", {"layers": (1, 3), "form": "linear"}),
    "heads": ("heads", {"keep": 0.5}),
}
TRICKY = ["vit_inner_norms", "vit_gated", "eva_mixed_rotary", "eva_packed_swiglu", "eva_grouped_queries"]
TRICKY += ["eva_post_norm", "beit_both_biases", "beit_absolute"]


def converted(name: str, form: str) -> nn.Module:
    method, options = FORMS[form]
    return convert(dense(name), method, **options)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_fewer_units_are_the_dense_model_with_the_others_silenced(name: str) -> None:
    model = copy.deepcopy(dense(name))
    adapter = trunk_of(converted(name, "mlp")).adapter
    for block in model.blocks:
        if isinstance(getattr(block.attn, "norm", None), nn.LayerNorm) or isinstance(block.mlp.norm, nn.LayerNorm):
            pytest.skip("a norm over the units mixes them; its statistics follow the units that are left")
        neurons, heads = adapter.neuron_norms(block), adapter.head_norms(block)
        block.mlp.fc2.weight[:, neurons.argsort()[: len(neurons) // 2]] = 0.0
        groups = heads.unflatten(0, (-1, adapter.heads_per_group(block))).sum(1)
        silent = groups.argsort()[: len(groups) - max(1, round(0.5 * len(groups)))]
        block.attn.proj.weight.unflatten(1, (len(groups), -1))[:, silent] = 0.0
    narrow = convert(convert(dense(name), "mlp", keep=0.5, align=1), "heads", keep=0.5)
    images = images_for(model)
    assert narrow.blocks[0].attn.num_heads < model.blocks[0].attn.num_heads
    # The same sums without their zeros, in another order.
    torch.testing.assert_close(narrow(images), model(images), atol=1e-4, rtol=1e-4)
    said = cost(plan_of(narrow))
    assert said.macs < count_macs(model)
    assert (said.macs, said.parameters) == (count_macs(narrow), count_parameters(narrow))


@torch.no_grad()
def test_a_stand_in_that_is_not_fitted_is_a_dropped_block() -> None:
    images = images_for(dense("vit_layer_scale"))
    assert torch.equal(converted("vit_layer_scale", "stand-in")(images), converted("vit_layer_scale", "depth")(images))
    blocks = dense("vit_layer_scale").blocks
    tokens = torch.randn(2, 17, 48)
    assert torch.equal(converted("vit_layer_scale", "depth").blocks(tokens), blocks[3](blocks[0](tokens)))


@pytest.mark.parametrize("name", [name for name in TRICKY if name not in NOT_DESCRIBABLE])
@torch.no_grad()
def test_all_forms_together_are_saved_and_loaded_alike(name: str, tmp_path: Path) -> None:
    model = converted(name, "stand-in")
    for method, options in (("mlp", {"keep": 0.5}), ("heads", {"keep": 0.5})):
        model = convert(model, method, **options)
    lively_(nn.ParameterList(trunk_of(model).new_parameters().values()))
    loaded = checkpoint.load(checkpoint.save(model, tmp_path / "model"))
    images = images_for(model)
    assert torch.equal(loaded(images), model(images))
    said = cost(plan_of(loaded))
    assert (said.macs, said.parameters) == (count_macs(loaded), count_parameters(loaded))
    assert read_plan(plan_json(plan_of(model))) == plan_of(model)


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("vit_four_registers", "eva_mixed_rotary")),
        "beit_both_biases",
    ],
)
def test_onnxruntime_computes_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = convert(convert(converted(name, "stand-in"), "mlp", layers=(0,)), "heads", layers=(0,))
    lively_(nn.ParameterList(trunk_of(model).new_parameters().values()))
    export_onnx(model, tmp_path / "model.onnx")
    report = verify(model, tmp_path / "model.onnx", images_for(model, batch=3))
    assert report.passed, report.failures()


@pytest.mark.compiled
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_the_whole_model_is_one_graph(form: str) -> None:
    for name in ("vit_inner_norms", "eva_mixed_rotary", "beit_both_biases"):
        torch.compiler.reset()
        model, images = converted(name, form), images_for(dense(name))
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("depth", {"layers": (1, 4)}, "block 4 is not there; choose from 0, 1, 2, 3"),
        ("depth", {"layers": (0, 1, 2, 3)}, "no step is left"),
        ("depth", {"layers": (1,), "keep": 2}, "named already"),
        ("depth", {"keep": 1}, "choose from 2..4"),
        ("depth", {"layers": "auto"}, "needs an analysis"),
        ("mlp", {"layers": (7,)}, "block 7 is not there"),
        ("mlp", {"widths": (8, 8)}, "2 numbers for 4 blocks"),
        ("mlp", {"widths": (8, 8, 8, 999)}, "999 neurons: the MLP of block 3 has 192"),
        ("mlp", {"widths": "auto"}, "needs an analysis"),
        ("mlp", {"form": "linear", "widths": (8,)}, "has no neurons"),
        ("heads", {"widths": (4, 1, 1, 1)}, "4 heads: block 0 has 3"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(method: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        convert(dense("vit_plain"), method, **options)


def test_heads_that_share_keys_go_together() -> None:
    with pytest.raises(ConfigError, match="3 heads share their keys and values; choose a multiple of 3"):
        convert(dense("eva_grouped_queries"), "heads", layers=(1,), widths=(2,))


def test_a_second_conversion_of_the_same_part_is_refused() -> None:
    with pytest.raises(ConfigError, match="the attention of block 1 is not dense any more"):
        convert(convert(dense("vit_plain"), "skipat", layers=(1,)), "heads", layers=(1,))
    staged = convert(dense("vit_plain"), "evo_vit", stages=(2,))
    with pytest.raises(ConfigError, match="tokens are selected"):
        convert(staged, "depth", layers=(2,))


def test_what_was_narrowed_cannot_be_widened_by_a_plan() -> None:
    narrow = converted("vit_plain", "mlp")
    plan = plan_of(narrow)
    wide = plan.with_steps({1: plan.steps[1].but(mlp=DenseMlp())})
    assert check(wide) == []
    with pytest.raises(ConfigError, match="wants the 192 neurons of block 1, which an earlier conversion dropped"):
        build(wide, narrow)


def test_two_steps_of_one_block_have_one_width() -> None:
    plan = plan_of(converted("vit_plain", "mlp"))
    twice = plan.model_copy(update={"steps": (plan.steps[0], plan.steps[0].but(mlp=DenseMlp()), *plan.steps[1:])})
    assert "give both the same width" in " ".join(check(twice))


def test_an_mlp_that_no_adapter_knows_is_refused() -> None:
    model = copy.deepcopy(dense("vit_plain"))
    model.blocks[0].mlp = type("Other", (type(model.blocks[0].mlp),), {})(48, 192)
    with pytest.raises(UnsupportedModelError, match="no adapter narrows a Other"):
        convert(model, "mlp")


def test_widths_follow_one_threshold_on_importance() -> None:
    # The second block's weakest half outweighs the first block's highest.
    assert allotted([8, 8], [[1.0, 0.5], [4.0, 2.0]], keep=0.5) == [1, 8]
    assert allotted([8, 8], [[1.0, 0.5], [4.0, 2.0]], keep=0.75) == [4, 8]
    assert allotted([8, 8], [[1.0, 0.5], [4.0, 2.0]], keep=0.75, align=3) == [6, 8]
    assert even([192, 10], keep=0.5, align=8) == [96, 8]


def test_without_an_analysis_the_middle_goes() -> None:
    assert plan_of(convert(dense("vit_plain"), "depth")).dropped == (1,)
    deep = dense("vit_plain", depth=12)
    assert plan_of(convert(deep, "depth")).dropped == (4, 5, 6, 7)
    assert plan_of(convert(deep, "depth", keep=3)).depth == 3

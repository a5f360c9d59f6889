"""What SkipAt does with the blocks of a model."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.variants import SIZE, dense, images_for, lively_
from vitslim.errors import ConfigError
from vitslim.methods import METHODS, convert, planned
from vitslim.methods.layers import parse_layers
from vitslim.methods.skipat import ReuseAttention, SkipAtConfig, SkipFunction
from vitslim.models import DenseTrace, trace
from vitslim.trunk import Stream, Trunk, build, plan_of, trunk_of


def skipat(model: nn.Module, **options: Any) -> nn.Module:
    """A converted model whose skip functions are far from the identity."""
    converted = convert(model, "skipat", **options)
    lively_(nn.ParameterList(trunk_of(converted).new_parameters().values()))
    return converted


def attention_outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """ẑ of every step of one forward."""
    caught: list[Tensor] = []
    handles = [
        step.attention.register_forward_hook(lambda attention, args, output: caught.append(output[0]))
        for step in trunk_of(model).steps
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return caught


@pytest.mark.parametrize(("size", "millions"), [("tiny", 5.77), ("small", 22.16), ("base", 86.79)])
def test_live_parameters_are_those_of_the_authors_model(size: str, millions: float) -> None:
    # METHODS.md section 1: blocks 3..8 of 12 skipped, dead parameters not counted.
    with torch.device("meta"):
        model = timm.create_model(f"deit_{size}_patch16_224")
    count = sum(parameter.numel() for parameter in convert(model, "skipat").parameters())
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize("layers", [(1, 2, 3), (1, 3), (2,)])
@pytest.mark.parametrize("name", ["vit_four_registers", "distilled", "vit_oblong", "eva_dinov3", "beit_own_bias"])
def test_each_skipped_block_reads_the_step_before_and_each_computed_one_starts_anew(
    name: str, layers: tuple[int, ...]
) -> None:
    model = skipat(dense(name), layers=layers)
    z = attention_outputs(model, images_for(model))
    trunk = trunk_of(model)
    prefix, grid = trunk.layout.prefix, trunk.layout.grid
    source = None
    for index, step in enumerate(trunk.steps):
        if index in layers:
            phi = step.attention.phi
            assert torch.equal(z[index][:, prefix:], phi(z[index - 1][:, prefix:], grid))
            # The prefix rows pass by Φ: the same vectors in all blocks since the last computed one.
            assert torch.equal(z[index][:, :prefix], z[source][:, :prefix])
        else:
            source = index
    assert len({id(step.attention.phi) for step in trunk.steps if isinstance(step.attention, ReuseAttention)}) == len(
        layers
    )


@torch.no_grad()
def test_the_model_equals_a_plain_loop_over_the_blocks() -> None:
    source, images = dense("vit_layer_scale"), images_for(dense("vit_layer_scale"))
    model = skipat(source, layers=(1, 2))
    tokens, z = source._pos_embed(source.patch_embed(images)), torch.empty(0)
    for index, block in enumerate(source.blocks):
        if index in (1, 2):
            phi = trunk_of(model).steps[index].attention.phi
            z = torch.cat([z[:, :1], phi(z[:, 1:], (4, 4))], dim=1)
        else:
            z = block.attn(block.norm1(tokens))
        tokens = tokens + block.ls1(z)
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
    torch.testing.assert_close(model(images), source.forward_head(source.norm(tokens)))


@torch.no_grad()
def test_identity_reuse_has_no_parameters_and_passes_the_source_on() -> None:
    model = convert(dense("vit_plain"), "skipat", layers=(1, 2), identity=True)
    z = attention_outputs(model, images_for(model))
    assert torch.equal(z[1], z[0])
    assert torch.equal(z[2], z[0])
    assert trunk_of(model).new_parameters() == {}


@pytest.mark.parametrize("expansion", [0.25, 0.5, 1.0])
@torch.no_grad()
def test_a_narrow_conversion_starts_as_identity_reuse_exactly(expansion: float) -> None:
    images = images_for(dense("vit_plain"))
    narrow = convert(dense("vit_plain"), "skipat", layers=(1, 2), expansion=expansion)
    reuse = convert(dense("vit_plain"), "skipat", layers=(1, 2), identity=True)
    assert torch.equal(narrow(images), reuse(images))


@torch.no_grad()
def test_the_papers_form_starts_close_to_identity_reuse() -> None:
    images = images_for(dense("vit_plain"))
    paper = convert(dense("vit_plain"), "skipat", layers=(1, 2))(images)
    reuse = convert(dense("vit_plain"), "skipat", layers=(1, 2), identity=True)(images)
    # Twice through a Φ that is at most 1.2 % off (see test_skip_function.py).
    assert (paper - reuse).norm() / reuse.norm() < 0.03


def test_a_scratch_start_is_not_the_identity() -> None:
    torch.manual_seed(0)
    phi = trunk_of(convert(dense("vit_plain"), "skipat", layers=(1,), init="scratch")).steps[1].attention.phi
    patches = torch.randn(2, 16, 48)
    assert (phi(patches, (4, 4)) - patches).norm() / patches.norm() > 0.5


@pytest.mark.parametrize(("depth", "layers"), [(12, range(3, 9)), (4, (1, 2)), (2, (1,)), (24, range(6, 18)), (1, ())])
def test_the_default_is_the_middle_half(depth: int, layers: Any) -> None:
    with torch.device("meta"):
        model = VisionTransformer(**{**SIZE, "depth": depth})
    converted = convert(model, "skipat")
    assert skipped(converted) == list(layers)


def skipped(model: nn.Module) -> list[int]:
    return [index for index, step in enumerate(plan_of(model).steps) if step.attention.kind == "reuse"]


@pytest.mark.parametrize(
    "layers", [range(1, 4), [3, 1, 2], (1, 2, 3), {1, 2, 3}, "1-3", "1,2-3", " 3, 1-2 ", iter([1, 2, 3])]
)
def test_layers_may_be_a_range_a_list_or_text(layers: Any) -> None:
    assert SkipAtConfig(layers=layers).layers == (1, 2, 3)


@given(st.lists(st.integers(0, 40), unique=True))
def test_layers_written_as_text_are_read_back(layers: list[int]) -> None:
    assert parse_layers(",".join(map(str, layers))) == tuple(sorted(layers))
    assert parse_layers(layers) == tuple(sorted(layers))


@pytest.mark.parametrize(
    "recommended", [{"layers": [1, 3], "reason": "alike"}, SimpleNamespace(layers=[1, 3])], ids=["data", "report"]
)
@pytest.mark.parametrize("options", [{}, {"layers": "auto"}])
def test_an_analysis_decides_the_layers_that_are_left_to_it(recommended: Any, options: dict[str, Any]) -> None:
    @dataclass(frozen=True)
    class Report:
        recommended: Any

    model = convert(dense("vit_plain"), "skipat", **options, analysis=Report(recommended))
    assert skipped(model) == [1, 3]
    assert skipped(convert(dense("vit_plain"), "skipat", layers="paper", analysis=Report(recommended))) == [1, 2]


def test_the_plan_names_what_every_step_does() -> None:
    steps = plan_of(convert(dense("vit_plain"), "skipat", layers=(2,), expansion=0.25)).steps
    assert [step.attention.describe() for step in steps] == ["dense", "dense", "reuse (expansion 0.25)", "dense"]
    # The identity has no room in a narrow hidden layer.
    assert steps[2].attention.residual
    identity = plan_of(convert(dense("vit_plain"), "skipat", layers=(2,), identity=True))
    assert identity.steps[2].attention.describe() == "reuse (identity)"


def test_layers_are_named_as_in_the_dense_model() -> None:
    plan = plan_of(dense("vit_plain"))
    shallow = plan.model_copy(update={"steps": (plan.steps[0], *plan.steps[2:])})
    changed = planned(METHODS.get("skipat"), SkipAtConfig(layers=(2,)), shallow)
    assert [(step.block, step.attention.kind) for step in changed.steps] == [(0, "dense"), (2, "reuse"), (3, "dense")]
    # Φ of block 2 reads what block 0 gives, and starts to learn from it.
    assert trunk_of(build(changed, dense("vit_plain"))).steps[1].attention.source == 0
    with pytest.raises(ConfigError, match=r"skipat.layers: block 1 was dropped by an earlier conversion"):
        planned(METHODS.get("skipat"), SkipAtConfig(layers=(1,)), shallow)


@given(
    depth=st.integers(2, 5),
    heads=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    expansion=st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.0]),
    registers=st.integers(0, 3),
    data=st.data(),
)
@torch.no_grad()
def test_every_shape_converts_and_keeps_the_computed_blocks(
    depth: int, heads: int, grid: tuple[int, int], expansion: float, registers: int, data: st.DataObject
) -> None:
    layers = data.draw(st.sets(st.integers(1, depth - 1)))
    size = {"img_size": (grid[0] * 4, grid[1] * 4), "patch_size": 4, "embed_dim": 8 * heads, "num_heads": heads}
    model = lively_(VisionTransformer(**size, depth=depth, reg_tokens=registers, num_classes=3, mlp_ratio=2.0)).eval()
    converted = convert(model, "skipat", layers=layers, expansion=expansion, kernel_size=3)
    images = images_for(model, batch=1)
    assert skipped(converted) == sorted(layers)
    assert converted(images).isfinite().all()
    dense_blocks = trace(model, images)
    first = min(layers, default=depth)
    kept = converted.forward_intermediates(images, intermediates_only=True, output_fmt="NLC")[:first]
    for got, expected in zip(kept, dense_blocks.block_outputs, strict=False):
        assert torch.equal(got, expected[:, 1 + registers :])


def seen(name: str = "vit_plain") -> DenseTrace:
    return trace(dense(name), images_for(dense(name)))


def with_z(found: DenseTrace, z: list[Tensor]) -> DenseTrace:
    return DenseTrace(**{**vars(found), "z": z})


def test_the_local_loss_is_zero_where_phi_is_perfect() -> None:
    found = seen()
    trunk = trunk_of(convert(dense("vit_plain"), "skipat", layers=(1, 3), expansion=0.5))
    losses = trunk.local_loss(with_z(found, [found.z[0]] * 4))
    assert {index: float(loss.detach()) for index, loss in losses.items()} == {1: 0.0, 3: 0.0}


def test_the_local_loss_is_one_for_a_constant() -> None:
    found = seen()
    trunk = trunk_of(convert(dense("vit_plain"), "skipat", layers=(1,)))
    phi = trunk.steps[1].attention.phi
    with torch.no_grad():
        for parameter in phi.parameters():
            parameter.zero_()
        # σ(0) = ½ stands behind the last map.
        phi.reduce.bias.copy_(2 * found.z[1][:, 1:].mean(dim=(0, 1)))
    torch.testing.assert_close(trunk.local_loss(found)[1], torch.tensor(1.0))


def test_the_local_loss_reads_the_dense_models_own_z_and_stays_in_its_step() -> None:
    found = seen()
    model = skipat(dense("vit_plain"), layers=(1, 2))
    trunk = trunk_of(model)
    losses = trunk.local_loss(found)
    assert list(losses) == [1, 2]
    losses[2].backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {
        f"blocks.steps.2.attention.phi.{name}" for name, _ in trunk.steps[2].attention.phi.named_parameters()
    }


def test_the_local_loss_falls_in_training() -> None:
    found = seen("eva_dinov3")
    trunk = trunk_of(convert(dense("eva_dinov3"), "skipat", layers=(1, 2)))
    optimizer = torch.optim.Adam(trunk.new_parameters().values(), lr=1e-3)
    values: list[float] = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = torch.stack(list(trunk.local_loss(found).values())).sum()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.8 * values[0]


def test_identity_reuse_has_nothing_to_fit() -> None:
    assert trunk_of(convert(dense("vit_plain"), "skipat", layers=(1,), identity=True)).local_loss(seen()) == {}


def test_the_gradient_flows_through_the_chain_to_the_source() -> None:
    model = skipat(dense("vit_plain"), layers=(1, 2, 3))
    model.forward_features(images_for(model)).square().mean().backward()
    assert model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_reuse_asked_without_a_source_says_so() -> None:
    trunk: Trunk = trunk_of(convert(dense("vit_plain"), "skipat", layers=(1,)))
    with pytest.raises(ConfigError, match="the first step must attend"):
        trunk.take(trunk.steps[1], torch.randn(1, 17, 48), Stream(layout=trunk.layout), {})


@torch.no_grad()
def test_the_prefix_map_starts_as_reuse_and_maps_the_prefix_rows_alone() -> None:
    model = dense("vit_four_registers")
    images = images_for(model)
    plain = convert(model, "skipat", layers=(1, 2), identity=True)
    mapped = convert(model, "skipat", layers=(1, 2), identity=True, prefix="linear")
    torch.testing.assert_close(mapped(images), plain(images), rtol=0, atol=0)
    attention = mapped.blocks.steps[1].attention
    attention.prefix_map.weight.mul_(2.0)
    source = torch.randn(2, 5 + 16, 48)
    z = attention.predict(source, 5, (4, 4))
    torch.testing.assert_close(z[:, :5], 2 * source[:, :5])
    torch.testing.assert_close(z[:, 5:], source[:, 5:], rtol=0, atol=0)


def test_a_prefix_map_costs_one_square_matrix_and_a_bias_per_skipped_block() -> None:
    plain, mapped = (
        convert(dense("vit_plain"), "skipat", layers=(1, 2), prefix=prefix) for prefix in ("reuse", "linear")
    )
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (plain, mapped)]
    assert sizes[1] - sizes[0] == 2 * (48 * 48 + 48)
    assert plan_of(mapped).steps[1].attention.describe() == "reuse (expansion 2, prefix mapped)"


def test_a_model_without_prefix_has_nothing_to_map() -> None:
    with pytest.raises(ConfigError, match=r"skipat: step 1: prefix='linear': this model has no prefix tokens"):
        convert(dense("vit_no_class_token"), "skipat", layers=(1,), prefix="linear")


def test_phi_never_reads_the_prefix_rows() -> None:
    reuse = ReuseAttention(lively_(SkipFunction(8)), None, source=0)
    source = torch.randn(1, 3 + 16, 8)
    other = source.clone()
    other[:, :3] = 100.0
    with torch.no_grad():
        assert torch.equal(reuse.predict(source, 3, (4, 4))[:, 3:], reuse.predict(other, 3, (4, 4))[:, 3:])
        assert torch.equal(reuse.predict(other, 3, (4, 4))[:, :3], other[:, :3])

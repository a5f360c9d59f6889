"""Shared matrices, what each step keeps for itself, and how that follows copies, casts and merging."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.variants import dense, images_for, lively_
from vitslim.errors import ConfigError
from vitslim.methods import convert
from vitslim.methods.recursion import (
    Recursive,
    ScaledBlock,
    SharedBlock,
    SharedLinear,
    identity_projection,
    linear_maps,
    merged_view,
    view_of,
)
from vitslim.methods.sret import merge_residuals
from vitslim.models import adapter_for, trace
from vitslim.models.sret_parts import NonLinearProjection
from vitslim.trunk import BoundBlock, plan_of, trunk_of

# Two orders of summation in float32 over rows of unit scale.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def shared_linear(rank: int, bias: bool = True) -> tuple[nn.Linear, SharedLinear]:
    torch.manual_seed(0)
    shared = nn.Linear(12, 8, bias=False)
    own = SharedLinear(shared, nn.Parameter(torch.randn(8)) if bias else None, rank)
    lively_(own)
    return shared, own


@pytest.mark.parametrize("rank", [0, 3, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_a_shared_map_is_the_map_of_its_weight(rank: int, bias: bool) -> None:
    shared, own = shared_linear(rank, bias)
    tokens = torch.randn(2, 5, 12)
    torch.testing.assert_close(own(tokens), F.linear(tokens, own.weight, own.bias), **CLOSE)
    torch.testing.assert_close(own.merged()(tokens), own(tokens), **CLOSE)
    if rank:
        torch.testing.assert_close(own.weight, shared.weight + own.up @ own.down)
    else:
        assert own.weight is shared.weight


def test_only_residual_and_bias_are_registered() -> None:
    _, own = shared_linear(3)
    assert set(own.state_dict()) == {"bias", "up", "down"}
    assert (own.up.shape, own.down.shape) == ((8, 3), (3, 12))
    assert set(shared_linear(0, bias=False)[1].state_dict()) == set()
    # No more than the smaller side.
    assert shared_linear(99)[1].rank == 8


@pytest.mark.parametrize("through", ["call", "weight"])
def test_gradients_reach_the_shared_matrix_and_the_residual(through: str) -> None:
    shared, own = shared_linear(3)
    tokens = torch.randn(2, 5, 12)
    mapped = own(tokens) if through == "call" else F.linear(tokens, own.weight, own.bias)
    mapped.square().sum().backward()
    for parameter in (shared.weight, own.up, own.down, own.bias):
        assert parameter.grad.abs().sum() > 0


def test_a_full_residual_imitates_any_matrix() -> None:
    _, own = shared_linear(8)
    wanted = torch.randn(8, 12)
    own.imitate_(wanted)
    torch.testing.assert_close(own.weight.detach(), wanted, **CLOSE)


def test_the_reference_follows_a_copy_of_the_whole() -> None:
    shared, own = shared_linear(3)
    both = copy.deepcopy(nn.ModuleList([own, shared]))
    copied, copied_shared = both
    assert copied._shared[0] is copied_shared
    assert copied_shared is not shared


def test_the_reference_sees_what_is_put_in_its_place() -> None:
    shared, own = shared_linear(0)
    whole = nn.ModuleList([shared, own])
    other = {name: torch.zeros_like(value) for name, value in whole.state_dict().items()}
    whole.load_state_dict(other, assign=True)
    assert not own.weight.any()
    whole.to("meta")
    assert own.weight.is_meta


def view(name: str, rank: int = 4) -> tuple[nn.Module, SharedBlock, nn.Module]:
    block = dense(name).blocks[1]
    shared = SharedBlock({path: linear.weight.detach().clone() for path, linear in linear_maps(block).items()})
    seen = view_of(block, shared, rank)
    for path, linear in linear_maps(block).items():
        seen.get_submodule(path).imitate_(linear.weight)
    return block, shared, seen


@pytest.mark.parametrize("name", ["vit_inner_norms", "vit_gated", "eva_eva02", "eva_packed_swiglu", "beit_own_bias"])
@torch.no_grad()
def test_a_view_of_its_own_matrices_is_the_block(name: str) -> None:
    block, shared, seen = view(name)
    found = trace(dense(name), images_for(dense(name)))
    tokens, context = found.block_inputs[1], found.contexts[1]
    torch.testing.assert_close(seen(tokens, **context), block(tokens, **context), **CLOSE)
    assert torch.equal(view(name, rank=0)[2](tokens, **context), block(tokens, **context))
    # Matrices are in the shared block alone, all else in the view alone.
    paths = {f"{path}.weight" for path in linear_maps(block)}
    assert set(shared.state_dict()) == paths
    own = {key for key in seen.state_dict() if not key.endswith((".up", ".down"))}
    assert own == set(block.state_dict()) - paths
    merged = merged_view(seen)
    assert set(merged.state_dict()) == set(block.state_dict())
    assert type(merged) is type(block)
    torch.testing.assert_close(merged(tokens, **context), block(tokens, **context), **CLOSE)


@pytest.mark.parametrize("name", ["vit_layer_scale", "vit_post_norm", "eva_post_norm", "beit_own_bias"])
@torch.no_grad()
def test_learnable_coefficients_scale_trunk_and_branches(name: str) -> None:
    model = dense(name)
    found = trace(model, images_for(model))
    adapter, block, tokens = adapter_for(model), model.blocks[1], found.block_inputs[1]
    scaled = ScaledBlock(adapter, block, coefficients=torch.tensor([0.5, 2.0, 3.0, 0.25]))
    plain = BoundBlock(adapter, block)
    z = found.z[1]
    attended = 0.5 * tokens + 2.0 * (plain.add_attention(tokens, z) - tokens)
    torch.testing.assert_close(scaled.add_attention(tokens, z), attended, **CLOSE)
    mixed = 3.0 * tokens + 0.25 * (plain.add_mlp(tokens) - tokens)
    torch.testing.assert_close(scaled.add_mlp(tokens), mixed, atol=5e-5, rtol=1e-4)
    ones = ScaledBlock(adapter, block, coefficients=torch.ones(4))
    assert torch.equal(ones.add_attention(tokens, z), plain.add_attention(tokens, z))
    assert torch.equal(ones.add_mlp(tokens), plain.add_mlp(tokens))


def test_a_projection_starts_as_the_identity() -> None:
    projection, tokens = identity_projection(48, 2.0), torch.randn(2, 17, 48)
    assert isinstance(projection, NonLinearProjection)
    assert torch.equal(projection(tokens), tokens)
    projection(tokens).square().mean().backward()
    assert projection.coefficient2.bias.grad.abs() > 0


def recursive(model: nn.Module, **options: object) -> nn.Module:
    return convert(model, "sret", **options)


def weights_of(model: nn.Module, step: int) -> Recursive:
    found = trunk_of(model).steps[step].weights
    assert isinstance(found, Recursive)
    return found


def test_both_steps_of_a_pair_read_one_matrix() -> None:
    model = recursive(dense("vit_plain"))
    one, other = (weights_of(model, step).own.mlp.fc1 for step in (1, 2))
    assert one._shared[0] is other._shared[0] is model.blocks.get_submodule("1.mlp.fc1")
    assert one.bias is not other.bias
    # timm's way of asking for a block gives the block as its step sees it.
    assert model.blocks[2] is weights_of(model, 2).own
    assert next(iter(model.blocks)).attn is model.blocks[0].attn


def test_the_average_is_shared_under_the_first_name() -> None:
    blocks, model = dense("vit_plain").blocks, recursive(dense("vit_plain"))
    average = (blocks[1].attn.qkv.weight + blocks[2].attn.qkv.weight) / 2
    torch.testing.assert_close(model.state_dict()["blocks.1.attn.qkv.weight"], average.detach())
    assert not [name for name in model.state_dict() if name.startswith("blocks.2.")]


def test_a_stepwise_pick_is_shared_under_its_own_name() -> None:
    before = dense("vit_plain").state_dict()
    after = recursive(dense("vit_plain"), groups=((0, 1), (2, 3)), shared="stepwise").state_dict()
    # Even steps from the first to the last block pick 0 and 3.
    names = {name for name in after if name.startswith("blocks.") and "steps" not in name}
    assert names == {f"blocks.{b}.{p}.weight" for b in (0, 3) for p in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert all(torch.equal(after[name], before[name]) for name in names)


def test_norms_biases_scales_and_tables_stay_with_each_step() -> None:
    before = dense("beit_own_bias").state_dict()
    after = recursive(dense("beit_own_bias"), rank=0).state_dict()
    for step in (1, 2):
        for part in ("norm1.weight", "attn.q_bias", "attn.relative_position_bias_table", "gamma_1", "mlp.fc2.bias"):
            assert torch.equal(after[f"blocks.steps.{step}.weights.own.{part}"], before[f"blocks.{step}.{part}"])


def test_frozen_matrices_stay_frozen() -> None:
    frozen = copy.deepcopy(dense("vit_plain")).requires_grad_(False)
    trained = {name for name, value in recursive(frozen).named_parameters() if value.requires_grad}
    assert trained == {name for name in recursive(frozen).state_dict() if name.endswith((".up", ".down"))}
    assert not any(value.requires_grad for value in recursive(frozen, merged=True).parameters())


@pytest.mark.parametrize("name", ["vit_layer_scale", "eva_mixed_rotary", "beit_both_biases"])
@torch.no_grad()
def test_merging_keeps_the_numbers_and_gives_dense_names_back(name: str) -> None:
    model, images = recursive(dense(name)), images_for(dense(name))
    merged = merge_residuals(model)
    torch.testing.assert_close(merged(images), model(images), atol=1e-4, rtol=1e-3)
    assert set(merged.state_dict()) == set(dense(name).state_dict())
    assert torch.equal(model(images), recursive(dense(name))(images))
    assert trunk_of(merged).history[0].options["merged"] is True
    assert not [part for part in merged.modules() if isinstance(part, SharedLinear)]
    again = recursive(dense(name), merged=True)
    assert torch.equal(again(images), merged(images))


@torch.no_grad()
def test_merging_leaves_what_is_no_residual() -> None:
    model = recursive(dense("vit_plain"), nll=True, slices=(1, 4), recursions=2)
    lively_(nn.ParameterList(trunk_of(model).new_parameters().values()))
    merged, images = merge_residuals(model), images_for(model)
    torch.testing.assert_close(merged(images), model(images), atol=1e-3, rtol=1e-3)
    steps = plan_of(merged).steps
    assert [step.attention for step in steps] == [step.attention for step in plan_of(model).steps]
    assert [step.home for step in trunk_of(merged).steps] == [0, 1, 1, 2, 2, 3]
    assert steps[2].weights.describe() == "merged from 1, 2, rank 4, application 2, nll, lrc"


def test_merging_wants_something_to_merge() -> None:
    with pytest.raises(ConfigError, match="dense; convert it first"):
        merge_residuals(dense("vit_plain"))
    with pytest.raises(ConfigError, match="nothing to merge: no steps share matrices"):
        merge_residuals(convert(dense("vit_plain"), "skipat"))
    with pytest.raises(ConfigError, match="nothing to merge: already merged"):
        merge_residuals(recursive(dense("vit_plain"), merged=True))


def test_the_local_loss_is_nought_at_full_rank_and_falls_when_fitted() -> None:
    model, images = dense("vit_layer_scale"), images_for(dense("vit_layer_scale"))
    found = trace(model, images)
    with torch.no_grad():
        full = trunk_of(recursive(model, rank="full")).local_loss(found)
    assert full.keys() == {1, 2}
    assert all(float(loss) < 1e-9 for loss in full.values())
    student = recursive(model, rank=2)
    trunk = trunk_of(student)
    optimizer = torch.optim.Adam(trunk.new_parameters().values(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = torch.stack(list(trunk.local_loss(found).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    # The shared matrices are the dense model's to change, not the warm start's.
    assert not {"1.mlp.fc1.weight"} & trunk.new_parameters().keys()


def test_a_local_loss_of_one_is_to_add_no_more_than_a_constant() -> None:
    model, images = dense("vit_plain"), images_for(dense("vit_plain"))
    found = trace(model, images)
    student = recursive(model, rank="full", lrc=True)
    with torch.no_grad():
        for step in (1, 2):
            weights_of(student, step).lrc.copy_(torch.tensor([1.0, 0.0, 1.0, 0.0]))
    for step, loss in trunk_of(student).local_loss(found).items():
        added = found.block_outputs[step] - found.block_inputs[step]
        expected = added.square().sum() / (added - added.mean(dim=(0, 1))).square().sum()
        torch.testing.assert_close(loss.detach(), expected)


@torch.no_grad()
def test_a_block_whose_attention_was_dropped_is_fitted_by_its_mlp() -> None:
    model = convert(dense("vit_plain"), "skipat", layers=(1, 2), identity=True)
    losses = trunk_of(recursive(model, rank="full")).local_loss(trace(dense("vit_plain"), images_for(model)))
    assert all(float(loss) < 1e-9 for loss in losses.values())


def test_a_copied_model_shares_nothing_with_its_source() -> None:
    model = recursive(dense("vit_plain"))
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.blocks.get_submodule("1.mlp.fc1").weight.zero_()
    assert weights_of(model, 1).own.mlp.fc1._shared[0].weight.any()
    assert not weights_of(copied, 1).own.mlp.fc1._shared[0].weight.any()

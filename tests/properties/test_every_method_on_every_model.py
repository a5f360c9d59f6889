"""What must hold for every method on every kind of block; methods come from their registry."""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.methods.cases import CASES
from tests.variants import ALL, BUILDERS, CHARACTERISTIC, ONE_PER_ADAPTER, dense, images_for, lively_
from vitslim.bench import count_macs, count_parameters
from vitslim.errors import ConfigError
from vitslim.methods import METHODS, convert, planned, read_options
from vitslim.models import adapter_for, trace
from vitslim.models.stream_width import stream_maps
from vitslim.plans import ModelPlan, check, cost, plan_json, read_plan
from vitslim.plans.place import parts_used
from vitslim.trunk import Trunk, build, is_converted, plan_of, trunk_of

# timm's own resizing of relative position biases: warned of by torch, numbers unharmed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.searchsorted:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing:UserWarning"),
]

# One form for each axis: attention, tokens, weights, widths, and the steps that there are.
LEADING = [form for form in ("skipat", "evo_vit", "sret", "mlp", "depth") if form in CASES]


@cache
def planned_of(name: str, case: str) -> ModelPlan | None:
    """The plan, where the variant can have it."""
    method = METHODS.get(CASES[case].method)
    try:
        return planned(method, read_options(method, CASES[case].options), plan_of(dense(name)))
    except ConfigError:
        return None


@cache
def converted(name: str, case: str) -> nn.Module:
    """The variant, converted, with new parameters that all matter. Shared between tests: never change it."""
    model = convert(dense(name), CASES[case].method, **CASES[case].options)
    lively_(nn.ParameterList(trunk_of(model).new_parameters().values()))
    return model


def can_have(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, case) for name, case in dict.fromkeys(pairs) if planned_of(name, case) is not None]


def in_turn(cases: Sequence[str], names: Sequence[str], shift: int = 0) -> list[tuple[str, str]]:
    """As many pairs as the longer of the two has members, both in turn."""
    count = max(len(cases), len(names))
    return [(names[(turn + shift) % len(names)], cases[turn % len(cases)]) for turn in range(count)]


ALIKE = can_have(in_turn(LEADING, ONE_PER_ADAPTER))
"""For what the trunk does alike whatever its steps do: each axis once, each kind of block once."""
NARROW = can_have(in_turn(list(CASES), ONE_PER_ADAPTER))
"""For what asks something of each form, and of its block no more than to be called: each form once."""
PAIRS = can_have([*NARROW, *product(ONE_PER_ADAPTER, LEADING)])
"""Each form once, and each axis on each kind of block."""
ANYWHERE = can_have([*NARROW, *product(ALL, LEADING[:1]), *in_turn(LEADING[1:4], CHARACTERISTIC)])
"""For what asks much of a block: SkipAt, which needs least of a model, on every variant, the other axes in turn on the
characteristic ones, each form once."""
WIDE = can_have([*ANYWHERE, *product(CHARACTERISTIC, LEADING), *product(ONE_PER_ADAPTER, CASES)])
"""Each axis on all characteristic variants, each form on each kind of block."""


def on(pairs: list[tuple[str, str]], usual: list[tuple[str, str]]) -> pytest.MarkDecorator:
    """A test of the usual pairs, and of the others when there is time."""
    marked = [pytest.param(*pair, marks=() if pair in usual else pytest.mark.slow) for pair in pairs]
    return pytest.mark.parametrize(("name", "case"), marked)


on_alike, on_narrow, on_wide = on(PAIRS, ALIKE), on(PAIRS, NARROW), on(WIDE, ANYWHERE)


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def test_forms_are_refused_on_the_variants_that_cannot_have_them_alone() -> None:
    tried = set(product(ONE_PER_ADAPTER, CASES))
    fixed_stream = {
        name for name in ONE_PER_ADAPTER if not adapter_for(dense(name)).narrows_stream(dense(name).blocks[0])
    }
    assert len(fixed_stream) < len(ONE_PER_ADAPTER)
    assert tried - set(WIDE) == {("eva_mixed_rotary", "sret, repeated"), *product(sorted(fixed_stream), ["width"])}


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_the_dense_plan_is_the_dense_model_bit_for_bit(name: str) -> None:
    model, images = dense(name), images_for(dense(name))
    same = build(plan_of(model), model)
    assert is_converted(same)
    assert torch.equal(first(same(images)), first(model(images)))
    assert torch.equal(same.forward_features(images), model.forward_features(images))
    # Registration order may differ, the set of names may not.
    assert set(same.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("method", METHODS.names())
@pytest.mark.parametrize("name", CHARACTERISTIC)
def test_the_neutral_setting_leaves_the_plan_as_it_is(method: str, name: str) -> None:
    entry, plan = METHODS.get(method), plan_of(dense(name))
    assert planned(entry, read_options(entry, entry.neutral), plan) == plan


@on_wide
def test_the_cost_of_a_plan_is_what_counting_its_model_gives(name: str, case: str) -> None:
    model = converted(name, case)
    found = cost(plan_of(model))
    assert (found.macs, found.parameters) == (count_macs(model), count_parameters(model))
    assert sum(step.parameters for step in found.steps) == count_parameters(trunk_of(model))


@on_wide
@torch.no_grad()
def test_a_plan_goes_through_plain_data_and_brings_the_model_back(name: str, case: str) -> None:
    model, images = converted(name, case), images_for(converted(name, case))
    plan = read_plan(plan_json(plan_of(model)))
    assert plan == plan_of(model)
    assert check(plan) == []
    again = build(plan, dense(name), weights_follow=True)
    again.load_state_dict(model.state_dict())
    assert torch.equal(first(again(images)), first(model(images)))


@on_wide
def test_pretrained_names_and_values_stay_and_only_unused_parts_go(name: str, case: str) -> None:
    before = dense(name).state_dict()
    model = convert(dense(name), CASES[case].method, **CASES[case].options)
    after, trunk, plan = model.state_dict(), trunk_of(model), plan_of(model)
    new = set(after) - set(before)
    around = {id(linear.weight) for linear in stream_maps(model)}
    assert len(around) == (0 if plan.width is None else 2)
    new -= {key for key, value in model.named_parameters() if id(value) in around}
    assert {key for key, _ in model.named_parameters()} & new == {f"blocks.{key}" for key in trunk.new_parameters()}
    assert all(key.startswith("blocks.steps.") for key in new)
    if any(step.weights.kind != "own" for step in plan.steps):
        return
    adapter, idle = trunk.adapter, list[str]()
    for block in range(plan.model.depth):
        parts = parts_used([step for step in plan.steps if step.block == block])
        used = {
            *(adapter.attention_parts if "attention" in parts else ()),
            *(set(adapter.attention_add_parts) - set(adapter.attention_parts) if "attention_add" in parts else ()),
            *(adapter.mlp_parts if "mlp" in parts else ()),
        }
        every = {*adapter.attention_parts, *adapter.attention_add_parts, *adapter.mlp_parts}
        idle += [f"blocks.{block}.{part}" for part in every - used]
    gone = {key for key in before if any(key == part or key.startswith(f"{part}.") for part in idle)}
    assert set(before) - set(after) == gone
    same_size = plan.image_size == plan.model.image_size
    narrowed = any(place.mlp.hidden(12) != 12 or place.attention.heads(3) != 3 for place in plan.steps)
    if same_size and not narrowed and plan.width is None:
        kept = {key for key in after if key in before and key.startswith("blocks.")}
        assert all(torch.equal(after[key], before[key]) for key in kept)


@on_wide
def test_every_parameter_is_reached_by_the_gradient(name: str, case: str) -> None:
    student = copy.deepcopy(converted(name, case)).train()
    teacher = copy.deepcopy(dense(name)).train()
    for model in (student, teacher):
        torch.manual_seed(0)
        images = images_for(model)
        # All tokens are read: the readout of a class token alone leaves the last patch rows without a say.
        loss = model.forward_features(images).square().mean() + first(model(images)).square().mean()
        loss.backward()
    assert loss.isfinite()
    idle_before = {key for key, value in teacher.named_parameters() if value.grad is None}
    trunk = trunk_of(student)
    # Some are beyond its reach and say so; then the imitation of the dense model fits them.
    apart = trunk.parameters_fitted_apart()
    if apart:
        sum(trunk.local_loss(trace(dense(name), images_for(dense(name)))).values()).backward()
    idle = {key for key, value in student.named_parameters() if value.grad is None}
    # DDP waits for ever for a parameter without gradient; timm itself has none of its own in most variants.
    assert idle <= idle_before
    for key, parameter in trunk.new_parameters().items():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


@on_narrow
@torch.no_grad()
def test_a_conversion_changes_the_outputs_and_stays_finite(name: str, case: str) -> None:
    model = converted(name, case)
    logits, before = first(model(images_for(model))), first(dense(name)(images_for(dense(name))))
    assert logits.shape == before.shape
    assert logits.isfinite().all()
    assert not torch.equal(logits, before)


@on_alike
@torch.no_grad()
def test_a_deep_copy_is_independent(name: str, case: str) -> None:
    model = converted(name, case)
    copied, images = copy.deepcopy(model), images_for(model)
    logits = model(images)
    assert torch.equal(copied(images), logits)
    lively_(copied, seed=1)
    assert torch.equal(model(images), logits)
    assert not torch.equal(copied(images), logits)
    # The trunk reads the grid of its own model's patch embedding.
    assert trunk_of(copied)._patch_embed[0] is copied.patch_embed


@on_narrow
@torch.no_grad()
def test_half_precision_runs(name: str, case: str) -> None:
    model = copy.deepcopy(converted(name, case))
    logits = model.bfloat16()(images_for(model).bfloat16())
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    assert {value.dtype for value in model.half().parameters()} == {torch.float16}


@pytest.mark.parametrize(("name", "case"), in_turn(LEADING, ["vit_layer_scale", "eva_post_norm", "beit_absolute"]))
def test_training_with_drop_path_follows_the_seed(name: str, case: str) -> None:
    model = copy.deepcopy(converted(name, case)).train()
    images = images_for(model, batch=8)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(images)

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    drawn(0).square().mean().backward()


def test_training_with_the_dense_plan_draws_as_the_dense_model_does() -> None:
    model = copy.deepcopy(dense("vit_layer_scale")).train()
    same, images = build(plan_of(model), model), images_for(model, batch=8)
    assert same.training
    torch.manual_seed(0)
    expected = model(images)
    torch.manual_seed(0)
    assert torch.equal(same(images), expected)


@on_alike
def test_gradient_checkpointing_changes_no_loss_and_no_gradient(name: str, case: str) -> None:
    images = images_for(converted(name, case))

    def learned(checkpointing: bool, through: Callable[[nn.Module], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        model = copy.deepcopy(converted(name, case)).train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(0)
        loss = through(model)
        loss.backward()
        return loss, {key: value.grad for key, value in model.named_parameters() if value.grad is not None}

    for through in (
        lambda model: first(model(images)).square().mean(),
        lambda model: model.forward_intermediates(images, intermediates_only=True)[-1].square().mean(),
    ):
        loss, gradients = learned(False, through)
        again, gradients_again = learned(True, through)
        assert torch.equal(loss, again)
        assert gradients.keys() == gradients_again.keys()
        for key, gradient in gradients.items():
            # The same numbers, added up in another order.
            torch.testing.assert_close(gradients_again[key], gradient, atol=1e-6, rtol=1e-4)


@on_alike
def test_conversions_influence_neither_their_source_nor_each_other(name: str, case: str) -> None:
    source, images = dense(name), images_for(dense(name))
    before, blocks = copy.deepcopy(source.state_dict()), [type(block) for block in source.blocks]
    logits = source(images)
    results, states = list[Tensor](), list[dict[str, Tensor]]()
    for _ in range(2):
        torch.manual_seed(3)
        model = convert(source, CASES[case].method, **CASES[case].options)
        results.append(first(model(images_for(model))))
        states.append(model.state_dict())
    # The same seed gives the same conversion.
    assert torch.equal(*results)
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert not {value.data_ptr() for value in model.parameters()} & {value.data_ptr() for value in source.parameters()}
    lively_(model, seed=2)
    assert torch.equal(source(images), logits)
    assert [type(block) for block in source.blocks] == blocks
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    assert not is_converted(source)


@on_alike
@torch.no_grad()
def test_intermediates_agree_with_the_features(name: str, case: str) -> None:
    model = converted(name, case)
    images, plan = images_for(model), plan_of(model)
    features, every = model.forward_intermediates(images, return_prefix_tokens=False, output_fmt="NLC")
    assert torch.equal(features, model.forward_features(images))
    assert len(every) == len(model.blocks) == plan.depth
    prefix = trunk_of(model).layout.prefix
    assert torch.equal(model.norm(features_before_norm(model, images))[:, prefix:], features[:, prefix:])
    assert torch.equal(features_before_norm(model, images)[:, prefix:], every[-1])
    chosen = model.forward_intermediates(images, indices=[0, 1], intermediates_only=True, output_fmt="NLC")
    early = model.forward_intermediates(
        images, indices=[0, 1], intermediates_only=True, output_fmt="NLC", stop_early=True
    )
    for index, got, stopped in zip([0, 1], chosen, early, strict=True):
        assert torch.equal(got, every[index])
        assert torch.equal(stopped, every[index])
    # timm's own feature map has the grid's shape.
    assert model.forward_intermediates(images, indices=1, intermediates_only=True)[0].shape[2:] == plan.grid
    if plan.steps[0].is_dense and plan.image_size == plan.model.image_size:
        before = dense(name).forward_intermediates(
            images, indices=[0], intermediates_only=True, return_prefix_tokens=False, output_fmt="NLC"
        )
        assert torch.equal(every[0], before[0])


def features_before_norm(model: nn.Module, images: Tensor) -> Tensor:
    caught: list[Tensor] = []
    handle = model.blocks.register_forward_hook(lambda module, args, output: caught.append(output))
    watched = model.norm.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    model.forward_features(images)
    handle.remove()
    watched.remove()
    return caught[-1]


@on_alike
@torch.no_grad()
def test_the_classifier_can_be_replaced(name: str, case: str) -> None:
    model = copy.deepcopy(converted(name, case))
    images = images_for(model)
    features = model.forward_features(images)
    model.reset_classifier(7)
    assert first(model(images)).shape == (2, 7)
    assert torch.equal(model.forward_features(images), features)


@on_narrow
@torch.no_grad()
def test_the_input_size_can_be_changed(name: str, case: str) -> None:
    rows, columns = dense(name).patch_embed.patch_size
    size = (6 * rows, 4 * columns)
    model, sized = copy.deepcopy(converted(name, case)), copy.deepcopy(dense(name))
    images = torch.randn(2, 3, *size)
    for one in (model, sized):
        one.set_input_size(size)
    assert trunk_of(model).layout.grid == (6, 4)
    assert model(images).isfinite().all()
    same = build(plan_of(dense(name)), dense(name))
    same.set_input_size(size)
    assert torch.equal(same(images), sized(images))
    # Converting first and resizing after is resizing first and converting after, where both have the same choices.
    late = convert(sized, CASES[case].method, **CASES[case].options)
    if plan_of(late).steps == plan_of(model).steps and plan_of(late).image_size == size:
        late.load_state_dict(model.state_dict())
        assert torch.equal(late(images), model(images))


@on_alike
@torch.no_grad()
def test_later_blocks_can_be_pruned(name: str, case: str) -> None:
    model = copy.deepcopy(converted(name, case))
    images = images_for(model)
    expected = model.forward_intermediates(images, indices=[1], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([1]) == [1]
    assert isinstance(model.blocks, Trunk)
    assert len(model.blocks) == 2
    assert not [key for key in model.state_dict() if key.startswith(("blocks.3.", "blocks.steps.3."))]
    assert torch.equal(model.forward_intermediates(images, indices=[1], intermediates_only=True)[0], expected)
    assert model(images).isfinite().all()


@on([pair for pair in PAIRS if not pair[0].startswith("beit")], NARROW)
@torch.no_grad()
def test_attention_masks_reach_the_attention(name: str, case: str) -> None:
    model = converted(name, case)
    images, count = images_for(model), trunk_of(model).layout.tokens
    mask = torch.randn(count, count, generator=torch.Generator().manual_seed(0)) * 3
    assert not torch.allclose(model.forward_features(images, attn_mask=mask), model.forward_features(images))
    if plan_of(model).image_size == plan_of(model).model.image_size:
        same, source = build(plan_of(dense(name)), dense(name)), dense(name)
        for given in ({"attn_mask": mask}, {"is_causal": True}):
            assert torch.equal(same.forward_features(images, **given), source.forward_features(images, **given))


@on_narrow
@torch.no_grad()
def test_only_the_steps_that_attend_compute_attention(name: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = converted(name, case), list[int]()
    fused = F.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return fused(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    model.forward_features(images_for(model))
    steps = plan_of(model).steps
    # A sliced step attends twice: patches within their slices, the prefix to all.
    expected = sum(step.attention.attends + (step.attention.kind == "sliced") for step in steps)
    assert len(calls) == expected


@torch.no_grad()
def test_steps_refuse_to_be_run_twice_or_out_of_order() -> None:
    model = converted("vit_plain", "skipat")
    tokens = torch.randn(1, 17, 48)
    steps = list(model.blocks)
    with pytest.raises(ConfigError, match="step 1 was called before step 0; steps of a trunk are called in order"):
        steps[1](tokens)
    steps[0](tokens)
    with pytest.raises(ConfigError, match="step 0 was called twice in one loop; iterate over the blocks anew"):
        steps[0](tokens)


@pytest.mark.parametrize("case", [case for case in CASES if planned_of("eva_mixed_rotary", case) is not None])
@torch.no_grad()
def test_running_the_steps_by_hand_is_calling_the_trunk(case: str) -> None:
    model = converted("eva_mixed_rotary", case)
    tokens, ropes = model._pos_embed(model.patch_embed(images_for(model)))
    tokens = model.norm_pre(tokens)
    for step, rope in zip(model.blocks, ropes, strict=False):
        tokens = step(tokens, rope=rope)
    assert torch.equal(model.norm(tokens), model.forward_features(images_for(model)))


@on_narrow
def test_conversion_works_without_any_real_tensor(name: str, case: str) -> None:
    with torch.device("meta"):
        model = BUILDERS[name]()
    slim = convert(model, CASES[case].method, **CASES[case].options)
    assert all(value.is_meta for value in (*slim.parameters(), *slim.buffers()))
    expected = {key: value.shape for key, value in converted(name, case).state_dict().items()}
    assert {key: value.shape for key, value in slim.state_dict().items()} == expected


@pytest.mark.parametrize("case", list(CASES))
def test_new_parameters_take_the_precision_of_the_blocks(case: str) -> None:
    model = convert(copy.deepcopy(dense("vit_plain")).bfloat16(), CASES[case].method, **CASES[case].options)
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


# Each form has ONNX files of its own in tests/targets and tests/methods.
@on_alike
def test_export_gives_the_same_numbers(name: str, case: str) -> None:
    model = converted(name, case)
    images, batch = images_for(model), torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    more = images_for(model, batch=3, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(more), model(more))

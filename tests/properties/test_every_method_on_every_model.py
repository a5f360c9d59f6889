"""What must hold for every method on every kind of block; methods come from tests/methods/cases.py."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.methods.cases import CASES, MethodCase
from tests.variants import ALL, BUILDERS, CHARACTERISTIC, ONE_PER_ADAPTER, dense, images_for, lively_
from vitslim.errors import ConfigError
from vitslim.methods import convert, list_methods
from vitslim.models import trace
from vitslim.trunk import Trunk, is_converted, trunk_of


@cache
def converted(name: str, case: str) -> nn.Module:
    """The variant, converted, with new parameters that all matter. Shared between tests: never change it."""
    model = convert(dense(name), CASES[case].method, **CASES[case].options)
    lively_(nn.ParameterList(trunk_of(model).new_parameters().values()))
    return model


def forms(names: list[str]) -> list[tuple[str, str]]:
    """Pairs of variant and form of a method.

    SkipAt, the method that needs least of a model, walks every variant; the first form of each other method the
    characteristic ones, all further forms one per adapter.
    """
    first = {case.method: form for form, case in reversed(CASES.items())}
    leading = set(first.values()) - {"skipat"}
    return [
        (name, form)
        for form in CASES
        for name in names
        if form == "skipat" or (form in leading and name in CHARACTERISTIC) or name in ONE_PER_ADAPTER
    ]


@pytest.fixture(params=forms(ALL), ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def name(pair: tuple[str, str]) -> str:
    return pair[0]


@pytest.fixture
def case(pair: tuple[str, str]) -> str:
    return pair[1]


def forms_with(kept: str) -> list[tuple[str, str]]:
    """All pairs whose form has this property as the suite states it."""
    return [(name, form) for name, form in forms(ALL) if kept not in CASES[form].apart]


def neutral(model: nn.Module, case: MethodCase) -> nn.Module:
    return convert(model, case.method, **case.neutral)


def test_every_method_is_in_the_suite() -> None:
    assert {case.method for case in CASES.values()} == set(list_methods())


@torch.no_grad()
def test_the_neutral_setting_is_the_dense_model_bit_for_bit(name: str, case: str) -> None:
    model, images = dense(name), images_for(dense(name))
    same = neutral(model, CASES[case])
    assert is_converted(same)
    assert torch.equal(same(images), model(images))
    assert torch.equal(same.forward_features(images), model.forward_features(images))
    # Registration order may differ, the set of names may not.
    assert set(same.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize(("name", "case"), forms_with("values"))
def test_pretrained_names_and_values_stay_and_only_unused_attention_goes(name: str, case: str) -> None:
    before = dense(name).state_dict()
    model = convert(dense(name), CASES[case].method, **CASES[case].options)
    after, trunk = model.state_dict(), trunk_of(model)
    new = {f"blocks.{key}" for key in trunk.new_parameters()}
    assert set(after) - set(before) == new
    assert all(torch.equal(value, before[key]) for key, value in after.items() if key in before)
    attending = {step.block for step in trunk.steps if step.mixing.uses_attention}
    idle = set(range(len(dense(name).blocks))) - attending
    unused = tuple(f"blocks.{block}.{part}." for block in idle for part in trunk.adapter.attention_parts)
    assert set(before) - set(after) == {key for key in before if unused and key.startswith(unused)}


def test_a_conversion_changes_the_outputs_and_stays_finite(name: str, case: str) -> None:
    images = images_for(dense(name))
    logits = converted(name, case)(images)
    assert logits.shape == dense(name)(images).shape
    assert logits.isfinite().all()
    assert not torch.equal(logits, dense(name)(images))


def test_every_parameter_is_reached_by_the_gradient(name: str, case: str) -> None:
    student = copy.deepcopy(converted(name, case)).train()
    teacher = copy.deepcopy(dense(name)).train()
    images = images_for(student)
    for model in (student, teacher):
        torch.manual_seed(0)
        # All tokens are read: the readout of a class token alone leaves the last patch rows without a say.
        loss = model.forward_features(images).square().mean() + first(model(images)).square().mean()
        loss.backward()
    idle_before = {key for key, value in teacher.named_parameters() if value.grad is None}
    trunk = trunk_of(student)
    # Some are beyond its reach and say so; then the imitation of the dense model fits them.
    apart = trunk.parameters_fitted_apart()
    if apart:
        sum(trunk.local_loss(trace(dense(name), images)).values()).backward()
    idle = {key for key, value in student.named_parameters() if value.grad is None}
    # DDP waits for ever for a parameter without gradient; timm itself has none of its own in most variants.
    assert idle <= idle_before
    for key, parameter in trunk.new_parameters().items():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def test_a_deep_copy_is_independent(name: str, case: str) -> None:
    model, images = converted(name, case), images_for(dense(name))
    twin = copy.deepcopy(model)
    logits = model(images)
    assert torch.equal(twin(images), logits)
    lively_(twin, seed=1)
    assert torch.equal(model(images), logits)
    assert not torch.equal(twin(images), logits)
    # The trunk reads the grid of its own model's patch embedding.
    assert trunk_of(twin)._patch_embed[0] is twin.patch_embed


def test_half_precision_runs(name: str, case: str) -> None:
    model = copy.deepcopy(converted(name, case))
    logits = model.bfloat16()(images_for(model).bfloat16())
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    assert {value.dtype for value in model.half().parameters()} == {torch.float16}


@pytest.mark.parametrize(("name", "case"), forms(["vit_layer_scale", "eva_post_norm", "beit_absolute"]))
def test_training_with_drop_path_follows_the_seed(name: str, case: str) -> None:
    model = copy.deepcopy(converted(name, case)).train()
    images = images_for(model, batch=8)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(images)

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    drawn(0).square().mean().backward()


@pytest.mark.parametrize("case", list(CASES))
def test_training_with_the_neutral_setting_draws_as_the_dense_model_does(case: str) -> None:
    model = copy.deepcopy(dense("vit_layer_scale")).train()
    same, images = neutral(model, CASES[case]), images_for(model, batch=8)
    assert same.training
    torch.manual_seed(0)
    expected = model(images)
    torch.manual_seed(0)
    assert torch.equal(same(images), expected)


def test_gradient_checkpointing_changes_no_loss_and_no_gradient(name: str, case: str) -> None:
    images = images_for(dense(name))

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


def test_conversions_influence_neither_their_source_nor_each_other(name: str, case: str) -> None:
    source, images = dense(name), images_for(dense(name))
    before, blocks = copy.deepcopy(source.state_dict()), [type(block) for block in source.blocks]
    logits = source(images)
    one = convert(source, CASES[case].method, **CASES[case].options)
    other = neutral(source, CASES[case])
    lively_(one, seed=2)
    assert torch.equal(other(images), logits)
    assert torch.equal(source(images), logits)
    assert [type(block) for block in source.blocks] == blocks
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    assert not is_converted(source)
    shared = {value.data_ptr() for value in one.parameters()} & {value.data_ptr() for value in source.parameters()}
    assert not shared


def test_the_same_seed_gives_the_same_conversion(name: str, case: str) -> None:
    images, states, logits = images_for(dense(name)), [], []
    for _ in range(2):
        torch.manual_seed(3)
        model = convert(dense(name), CASES[case].method, **CASES[case].options)
        states.append(model.state_dict())
        logits.append(model(images))
    assert torch.equal(*logits)
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@torch.no_grad()
def test_intermediates_agree_with_the_features(name: str, case: str) -> None:
    model, images = converted(name, case), images_for(dense(name))
    depth = len(model.blocks)
    features, every = model.forward_intermediates(images, return_prefix_tokens=False, output_fmt="NLC")
    assert torch.equal(features, model.forward_features(images))
    assert len(every) == depth
    prefix = trunk_of(model).layout.prefix
    assert torch.equal(model.norm(features_before_norm(model, images))[:, prefix:], features[:, prefix:])
    assert torch.equal(features_before_norm(model, images)[:, prefix:], every[-1])
    chosen = model.forward_intermediates(images, indices=[0, 2], intermediates_only=True, output_fmt="NLC")
    early = model.forward_intermediates(
        images, indices=[0, 2], intermediates_only=True, output_fmt="NLC", stop_early=True
    )
    for index, got, stopped in zip([0, 2], chosen, early, strict=True):
        assert torch.equal(got, every[index])
        assert torch.equal(stopped, every[index])
    # Block 0 stands before all that a method may change, and timm's own feature map has the grid's shape.
    rows, columns = trunk_of(model).layout.grid
    assert torch.equal(
        model.forward_intermediates(images, indices=[0], intermediates_only=True)[0],
        dense(name).forward_intermediates(images, indices=[0], intermediates_only=True)[0],
    )
    assert model.forward_intermediates(images, indices=1, intermediates_only=True)[0].shape[2:] == (rows, columns)


def features_before_norm(model: nn.Module, images: Tensor) -> Tensor:
    caught: list[Tensor] = []
    handle = model.blocks.register_forward_hook(lambda module, args, output: caught.append(output))
    watched = model.norm.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    model.forward_features(images)
    handle.remove()
    watched.remove()
    return caught[-1]


def test_the_classifier_can_be_replaced(name: str, case: str) -> None:
    model, images = copy.deepcopy(converted(name, case)), images_for(dense(name))
    features = model.forward_features(images)
    model.reset_classifier(7)
    assert first(model(images)).shape == (2, 7)
    assert torch.equal(model.forward_features(images), features)


@pytest.mark.parametrize(("name", "case"), forms([name for name in ALL if name != "vit_hybrid"]))
# timm's own resizing of relative position biases: warned of by torch, numbers unharmed.
@pytest.mark.filterwarnings("ignore:torch.searchsorted:UserWarning")
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing:UserWarning")
@torch.no_grad()
def test_the_input_size_can_be_changed(name: str, case: str) -> None:
    rows, columns = dense(name).patch_embed.patch_size
    size = (6 * rows, 4 * columns)
    images = torch.randn(2, 3, *size)
    sized = copy.deepcopy(dense(name))
    sized.set_input_size(size)
    same, model = neutral(dense(name), CASES[case]), copy.deepcopy(converted(name, case))
    for one in (same, model):
        one.set_input_size(size)
        assert trunk_of(one).layout.grid == (6, 4)
    assert torch.equal(same(images), sized(images))
    assert model(images).isfinite().all()
    # Converting first and resizing after is resizing first and converting after.
    late = convert(sized, CASES[case].method, **CASES[case].options)
    late.load_state_dict(model.state_dict())
    assert torch.equal(late(images), model(images))


@torch.no_grad()
def test_later_blocks_can_be_pruned(name: str, case: str) -> None:
    model, images = copy.deepcopy(converted(name, case)), images_for(dense(name))
    expected = model.forward_intermediates(images, indices=[1], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([1]) == [1]
    assert isinstance(model.blocks, Trunk)
    assert len(model.blocks) == 2
    assert not [key for key in model.state_dict() if key.startswith(("blocks.3.", "blocks.steps.3."))]
    assert torch.equal(model.forward_intermediates(images, indices=[1], intermediates_only=True)[0], expected)
    assert model(images).isfinite().all()


@pytest.mark.parametrize(
    ("name", "case"), forms([name for name in ALL if not name.startswith(("beit", "distilled", "test"))])
)
@torch.no_grad()
def test_attention_masks_reach_the_attention(name: str, case: str) -> None:
    model, images = dense(name), images_for(dense(name))
    count = trunk_of(converted(name, case)).layout.tokens
    mask = torch.randn(count, count, generator=torch.Generator().manual_seed(0)) * 3
    same = neutral(model, CASES[case])
    assert torch.equal(same.forward_features(images, attn_mask=mask), model.forward_features(images, attn_mask=mask))
    assert torch.equal(same.forward_features(images, is_causal=True), model.forward_features(images, is_causal=True))
    masked = converted(name, case).forward_features(images, attn_mask=mask)
    assert not torch.allclose(masked, converted(name, case).forward_features(images))


@pytest.mark.parametrize(("name", "case"), forms_with("attention calls"))
@torch.no_grad()
def test_only_the_steps_that_attend_compute_attention(name: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    fused = F.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return fused(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    images = images_for(dense(name))
    model = converted(name, case)
    dense(name).forward_features(images)
    assert len(calls) == len(dense(name).blocks)
    calls.clear()
    model.forward_features(images)
    assert len(calls) == sum(step.mixing.uses_attention for step in trunk_of(model).steps)


@pytest.mark.parametrize("case", list(CASES))
@torch.no_grad()
def test_steps_refuse_to_be_taken_twice_or_out_of_order(case: str) -> None:
    model = converted("vit_plain", case)
    tokens = torch.randn(1, 17, 48)
    steps = list(model.blocks)
    with pytest.raises(ConfigError, match="step 1 was called before step 0; steps of a trunk are walked in order"):
        steps[1](tokens)
    steps[0](tokens)
    with pytest.raises(ConfigError, match="step 0 was called twice in one walk; iterate over the blocks anew"):
        steps[0](tokens)


@pytest.mark.parametrize("case", list(CASES))
@torch.no_grad()
def test_walking_the_steps_by_hand_is_calling_the_trunk(case: str) -> None:
    model = converted("eva_mixed_rotary", case)
    walked, ropes = model._pos_embed(model.patch_embed(images_for(model)))
    for step, rope in zip(model.blocks, ropes, strict=True):
        walked = step(walked, rope=rope)
    assert torch.equal(model.norm(walked), model.forward_features(images_for(model)))


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


@pytest.mark.parametrize(("name", "case"), forms(ONE_PER_ADAPTER))
def test_export_gives_the_same_numbers(name: str, case: str) -> None:
    model, images = converted(name, case), images_for(dense(name))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    more = images_for(model, batch=3, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(more), model(more))

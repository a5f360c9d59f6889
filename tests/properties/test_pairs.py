"""What must hold for two methods on one model: supported pairs do the work of both, the others are refused."""

import copy
from functools import cache
from itertools import combinations, permutations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.methods.cases import SPARSE
from tests.variants import dense, images_for, lively_
from vitslim.bench import count_macs
from vitslim.checkpoint import load, save
from vitslim.errors import VitslimError
from vitslim.methods import convert, list_methods, pair_support, support_cells
from vitslim.methods.support import FAMILIES, FORMS, PairSupport
from vitslim.models import trace
from vitslim.targets import verify
from vitslim.targets.onnx.export import export_onnx
from vitslim.trunk import Step, plan_summary, trunk_of

# The full battery: each method in a form small enough that its savings show at 17 tokens.
METHODS: dict[str, dict[str, Any]] = {
    "skipat": {"layers": (1, 2), "expansion": 0.25, "kernel_size": 3},
    "evo_vit": {},
    # All blocks that are dense then: a skipped one has no attention to make sparse.
    "sparsifiner": {**SPARSE, "layers": None},
    "sret": {"rank": 2, "groups": ((1, 2),)},
}
# For exports, whose time grows with the number of blocks: one that attends as always, two that skip, rest or share.
FEWEST = 3
NEUTRAL: dict[str, dict[str, Any]] = {
    "skipat": {"layers": ()},
    "evo_vit": {"keep": 1.0},
    "sparsifiner": {"keep_rate": 1.0},
    "sret": {"groups": ()},
}
ORDERED, UNORDERED = list(permutations(METHODS, 2)), list(combinations(METHODS, 2))

# One per family: register tokens, rotary positions per block, norms after the branches, biases.
VARIANTS = ["vit_four_registers", "eva_mixed_rotary", "eva_post_norm", "beit_both_biases"]
ONNX = [
    ("vit_four_registers", "skipat", "evo_vit"),
    ("eva_mixed_rotary", "evo_vit", "sparsifiner"),
    ("eva_post_norm", "skipat", "sret"),
    ("beit_both_biases", "evo_vit", "sret"),
]


@cache
def alone(name: str, method: str, **changes: int) -> nn.Module:
    return convert(dense(name, **changes), method, **METHODS[method])


@cache
def both(name: str, first: str, second: str, **changes: int) -> nn.Module:
    """Converted twice, with new parameters that all matter. Shared between tests: never change it."""
    model = convert(alone(name, first, **changes), second, **METHODS[second])
    lively_(nn.ParameterList(trunk_of(model).new_parameters().values()))
    return model


@cache
def rows() -> dict[tuple[str, str, str], PairSupport]:
    return {(row["family"], row["first"], row["second"]): row for row in pair_support()}


@cache
def alive(family: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively_(FAMILIES[family]()).eval()


def every(names: list[str], pairs: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    return [(name, *pair) for name, pair in product(names, pairs)]


on_every_pair = pytest.mark.parametrize(("name", "first", "second"), every(VARIANTS, ORDERED))
# Both orders make the same plan, which a test below proves; so one of them serves what is dear.
in_either_order = pytest.mark.parametrize(("name", "first", "second"), every(VARIANTS, UNORDERED))


def test_every_method_is_in_the_suite_and_in_the_matrix() -> None:
    assert set(METHODS) == set(NEUTRAL) == {form.method for form in FORMS.values()} == set(list_methods())
    assert len(rows()) == len(FAMILIES) * len(FORMS) ** 2


def test_the_default_forms_of_all_methods_compose_in_both_orders_on_every_family() -> None:
    for family, (first, second) in product(FAMILIES, permutations(list_methods(), 2)):
        assert rows()[family, first, second]["supported"], (family, first, second)


@pytest.mark.parametrize("family", list(FAMILIES))
@torch.no_grad()
def test_the_matrix_says_what_real_models_do(family: str) -> None:
    model, images = alive(family), images_for(alive(family))
    for first, form in FORMS.items():
        for second, then in FORMS.items():
            row = rows()[family, first, second]
            if row["supported"]:
                slim = convert(convert(model, form.method, **form.options), then.method, **then.options)
                assert slim(images).isfinite().all(), row
            else:
                with pytest.raises(VitslimError) as refusal:
                    convert(convert(model, form.method, **form.options), then.method, **then.options)
                # The reason may be that of the second method on the dense model already.
                assert " " in row["reason"]
                assert str(refusal.value) == row["reason"] or not supported_alone(model, second), row


def supported_alone(model: nn.Module, name: str) -> bool:
    try:
        convert(model, FORMS[name].method, **FORMS[name].options)
    except VitslimError:
        return False
    return True


def test_a_cell_has_the_number_of_its_reason() -> None:
    (header, *lines), notes = support_cells(pair_support())
    assert header[1:] == [line[0] for line in lines] == list(FORMS)
    cell = {(line[0], second): text for line in lines for second, text in zip(header[1:], line[1:], strict=True)}
    assert cell["skipat", "evo_vit"] == "yes"
    assert cell["sret", "sret, sliced"] == "–"
    assert cell["sret, repeated", "evo_vit"].startswith("yes [")
    assert cell["sparsifiner, pruning", "evo_vit"].startswith("no [")
    used = {number for text in cell.values() for number in text.split()[1:]}
    assert used == {note.split()[0] for note in notes}


@on_every_pair
@torch.no_grad()
def test_both_neutral_is_the_dense_model_bit_for_bit(name: str, first: str, second: str) -> None:
    model, images = dense(name), images_for(dense(name))
    same = convert(convert(model, first, **NEUTRAL[first]), second, **NEUTRAL[second])
    assert torch.equal(same(images), model(images))
    assert [entry.method for entry in trunk_of(same).history] == [first, second]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("partner", [method for method in METHODS if method != "sret"])
@torch.no_grad()
def test_sharing_at_full_rank_beside_another_method_changes_no_output(name: str, partner: str) -> None:
    images = images_for(dense(name))
    one = convert(alone(name, partner), "sret", rank="full")
    # W' + B A is W up to the rounding of a factorisation in float32, through four blocks; it must choose the same
    # tokens and keys, which is so for these seeds.
    torch.testing.assert_close(one(images), alone(name, partner)(images), atol=1e-3, rtol=1e-3)


@on_every_pair
@torch.no_grad()
def test_a_pair_does_the_work_of_both(name: str, first: str, second: str) -> None:
    model, images = both(name, first, second), images_for(dense(name))
    features = model.forward_features(images)
    assert features.isfinite().all()
    assert features.shape == dense(name).forward_features(images).shape
    for method in (first, second):
        assert not torch.allclose(features, alone(name, method).forward_features(images))


@in_either_order
@torch.no_grad()
def test_the_order_of_two_methods_does_not_matter(name: str, first: str, second: str) -> None:
    one, images = both(name, first, second), images_for(dense(name))
    other = convert(alone(name, second), first, **METHODS[first])
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(images), one(images))
    assert plan_summary(other) == plan_summary(one)


@on_every_pair
def test_every_new_parameter_is_reached(name: str, first: str, second: str) -> None:
    model = copy.deepcopy(both(name, first, second)).train()
    images, trunk = images_for(model), trunk_of(model)
    output = model(images)
    (model.forward_features(images).square().mean() + output.square().mean()).backward()
    if trunk.parameters_fitted_apart():
        sum(trunk.local_loss(trace(dense(name), images)).values()).backward()
    for key, parameter in trunk.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        if key in trunk.new_parameters():
            assert parameter.grad.abs().sum() > 0, key


@on_every_pair
@torch.no_grad()
def test_save_and_load_keep_the_outputs(tmp_path: Path, name: str, first: str, second: str) -> None:
    model, images = both(name, first, second), images_for(dense(name))
    save(model, tmp_path / "out")
    again = load(tmp_path / "out").eval()
    assert torch.equal(again(images), model(images))
    assert plan_summary(again) == plan_summary(model)


@cache
def macs_alone(name: str, method: str | None) -> int:
    return count_macs(dense(name) if method is None else alone(name, method))


@in_either_order
def test_a_pair_costs_no_more_than_promised(name: str, first: str, second: str) -> None:
    pair = count_macs(both(name, first, second))
    for method, partner in ((first, second), (second, first)):
        if method == "sret":
            # It promises fewer parameters; its residuals cost what they cost alone, or less where less is computed.
            assert pair - macs_alone(name, partner) <= macs_alone(name, "sret") - macs_alone(name, None)
        elif (method, partner) != ("sparsifiner", "evo_vit"):
            # The predictor reads the whole grid whoever rests, so beside resting patches nothing is promised for it.
            assert pair <= macs_alone(name, partner)


@in_either_order
@torch.no_grad()
def test_prefix_tokens_keep_their_places(name: str, first: str, second: str) -> None:
    model, prefix = both(name, first, second), trunk_of(both(name, first, second)).layout.prefix
    orders: list[Tensor] = []

    def watched(step: Step, args: Any, output: Any) -> None:
        tokens, stream = output
        assert tokens.shape[1] > prefix
        state = stream.token_state
        if state is not None and state.active_indices() is not None:
            orders.append(state.active_indices()[:, :prefix])

    handles = [step.register_forward_hook(watched) for step in trunk_of(model).steps]
    try:
        model(images_for(model))
    finally:
        for handle in handles:
            handle.remove()
    assert bool(orders) == ("evo_vit" in (first, second))
    assert all(torch.equal(places, torch.arange(prefix).expand(2, -1)) for places in orders)


@in_either_order
def test_export_gives_the_same_numbers(name: str, first: str, second: str) -> None:
    model, images = both(name, first, second, depth=FEWEST), images_for(dense(name))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    more = images_for(model, batch=3, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(more), model(more))


@pytest.mark.parametrize(("name", "first", "second"), ONNX)
def test_onnxruntime_computes_the_same(tmp_path: Path, name: str, first: str, second: str) -> None:
    pytest.importorskip("onnxruntime")
    model = both(name, first, second, depth=FEWEST)
    export_onnx(model, tmp_path / "model.onnx")
    report = verify(model, tmp_path / "model.onnx", images_for(model, batch=3))
    assert report.passed, report.failures()

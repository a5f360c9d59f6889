"""What must hold for several methods on one model: what the support matrix allows does the work of all of them.

Chains of methods cover every supported pair of forms at least once, each on one of the variants, in place of all pairs
on all of them.
"""

import copy
from functools import cache
from itertools import combinations, permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.variants import dense, images_for, lively_
from vitslim.bench import count_macs, count_parameters
from vitslim.checkpoint import load, save
from vitslim.errors import ConfigError
from vitslim.methods import convert, list_methods, pair_support, planned, read_options, support_cells
from vitslim.methods.support import FAMILIES, PairSupport, method_forms
from vitslim.models import trace
from vitslim.models.stream_width import covariances
from vitslim.plans import ModelPlan, cost
from vitslim.train.warm_start import on_stream_of_
from vitslim.trunk import Conversion, Step, build, is_converted, plan_of, trunk_of

# timm's own resizing of relative position biases: warned of by torch, numbers unharmed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.searchsorted:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing:UserWarning"),
]

FORMS = method_forms()
# One per family: register tokens, rotary positions per block, norms after the branches, biases.
VARIANTS = ["vit_four_registers", "eva_mixed_rotary", "eva_post_norm", "beit_both_biases"]
LONGEST = 4
Chain = tuple[str, ...]


@cache
def chained(name: str, forms: Chain) -> ModelPlan | None:
    """The plan that forms make one after the other, where they can."""
    if not forms:
        return plan_of(dense(name))
    before, (method, options) = chained(name, forms[:-1]), FORMS[forms[-1]]
    if before is None:
        return None
    history = tuple(Conversion(FORMS[form][0].name, {}) for form in forms[:-1])
    try:
        return planned(method, read_options(method, options), before, None, history)
    except ConfigError:
        return None


def covering() -> list[tuple[str, Chain]]:
    """Chains in which each supported pair of forms occurs, in some order and on some variant."""
    supported = {frozenset(pair) for pair in permutations(FORMS, 2) if any(chained(name, pair) for name in VARIANTS)}
    chains: list[tuple[str, Chain]] = []
    open_pairs = set(supported)
    while open_pairs:
        pair = min(open_pairs, key=sorted)
        turn = len(chains) % len(VARIANTS)
        name, chain = next(
            (name, order)
            for name in VARIANTS[turn:] + VARIANTS[:turn]
            for order in permutations(sorted(pair))
            if chained(name, order)
        )
        while len(chain) < LONGEST:
            new = {form: len({frozenset((form, one)) for one in chain} & open_pairs) for form in FORMS}
            most = max((form for form in FORMS if chained(name, (*chain, form))), key=new.__getitem__, default=None)
            if most is None or not new[most]:
                break
            chain = (*chain, most)
        open_pairs -= {frozenset(two) for two in combinations(chain, 2)}
        chains.append((name, chain))
    return chains


CHAINS = covering()
on_every_chain = pytest.mark.parametrize(("name", "forms"), CHAINS)


@cache
def converted(name: str, forms: Chain) -> nn.Module:
    """Converted one after the other, with new parameters that all matter. Shared between tests: never change it."""
    model = dense(name)
    for place, form in enumerate(forms, start=1):
        method, options = FORMS[form]
        if method.name == "width" and is_converted(model):
            # New modules stand on the stream that there is: it is narrowed at once with them, from the dense model.
            history = (*trunk_of(model).history, Conversion(method.name, dict(options)))
            model = build(chained(name, forms[:place]), dense(name), history=history, base=trunk_of(model).base)
        else:
            model = convert(model, method.name, **options)
    lively_(nn.ParameterList(trunk_of(model).new_parameters().values()))
    return model


@cache
def rows() -> dict[tuple[str, str, str], PairSupport]:
    return {(row["family"], row["first"], row["second"]): row for row in pair_support()}


def test_every_method_is_in_the_matrix() -> None:
    assert {method.name for method, _ in FORMS.values()} == set(list_methods())
    others = sum(FORMS[first][0] is not FORMS[second][0] for first, second in permutations(FORMS, 2))
    assert len(rows()) == len(FAMILIES) * others


def test_the_matrix_agrees_with_the_plans_of_real_models() -> None:
    for family, name in {"ViT": "vit_plain", "EVA, mixed rotary": "eva_mixed_rotary", "BEiT": "beit_own_bias"}.items():
        for first, second in permutations(FORMS, 2):
            if FORMS[first][0] is not FORMS[second][0]:
                row = rows()[family, first, second]
                assert row["supported"] == (chained(name, (first, second)) is not None), row
                assert row["supported"] or " " in row["reason"]


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


def test_the_order_of_two_methods_matters_only_where_one_changes_how_much_there_is() -> None:
    first_plan = plan_of(dense("vit_plain"))
    for first, second in combinations(FORMS, 2):
        one, other = chained("vit_plain", (first, second)), chained("vit_plain", (second, first))
        if one is not None and other is not None and one != other:
            # Stages are thirds of the steps that there are, matrices are stored for the patches that there are, ranks
            # are shares of the channels that there are.
            found = (one.depth, one.patches, one.channels)
            assert found != (first_plan.depth, first_plan.patches, first_plan.channels), (first, second)


@on_every_chain
def test_a_chain_does_the_work_of_all_and_costs_what_its_plan_says(name: str, forms: Chain) -> None:
    model, plan = converted(name, forms), chained(name, forms)
    assert plan_of(model) == plan
    assert [entry.method for entry in trunk_of(model).history] == [FORMS[form][0].name for form in forms]
    for form in forms:
        assert plan != chained(name, tuple(one for one in forms if one != form))
    found = cost(plan)
    assert (found.macs, found.parameters) == (count_macs(model), count_parameters(model))


@on_every_chain
def test_every_new_parameter_is_reached(name: str, forms: Chain) -> None:
    model = copy.deepcopy(converted(name, forms)).train()
    # Enough images that drop path leaves no branch out for all of them.
    images, trunk = images_for(model, batch=8), trunk_of(model)
    torch.manual_seed(0)
    features = model.forward_features(images)
    assert features.isfinite().all()
    (features.square().mean() + model(images).square().mean()).backward()
    if trunk.parameters_fitted_apart():
        teacher, shown = dense(name), images_for(dense(name))
        if trunk.model_plan.width is not None:
            teacher = on_stream_of_(model, teacher, covariances(teacher, [shown]))
        sum(trunk.local_loss(trace(teacher, shown)).values()).backward()
    for key, parameter in trunk.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        if key in trunk.new_parameters():
            assert parameter.grad.abs().sum() > 0, key


@on_every_chain
@torch.no_grad()
def test_save_and_load_keep_the_outputs(tmp_path: Path, name: str, forms: Chain) -> None:
    model = converted(name, forms)
    images = images_for(model)
    again = load(save(model, tmp_path / "out")).eval()
    assert plan_of(again) == plan_of(model)
    assert torch.equal(again(images), model(images))


@on_every_chain
@torch.no_grad()
def test_prefix_tokens_keep_their_indices(name: str, forms: Chain) -> None:
    model = converted(name, forms)
    prefix, states = trunk_of(model).layout.prefix, list[Tensor]()

    def watched(step: Step, args: object, output: tuple) -> None:
        tokens, stream = output
        assert tokens.shape[1] > prefix
        active = None if stream.token_state is None else stream.token_state.active_indices()
        if active is not None:
            states.append(active[:, :prefix])

    handles = [step.register_forward_hook(watched) for step in trunk_of(model).steps]
    model(images_for(model))
    for handle in handles:
        handle.remove()
    assert all(torch.equal(indices, torch.arange(prefix).expand(2, -1)) for indices in states)


@pytest.mark.parametrize("partner", ["skipat", "evo_vit", "sparsifiner"])
@torch.no_grad()
def test_sharing_at_full_rank_beside_another_method_changes_no_output(partner: str) -> None:
    alone = converted("vit_four_registers", (partner,))
    images = images_for(alone)
    # W' + B A is W up to the rounding of a factorisation in float32, through four blocks; it must choose the same
    # tokens and keys, which is so for these seeds.
    torch.testing.assert_close(convert(alone, "sret", rank="full")(images), alone(images), atol=1e-3, rtol=1e-3)


# Two seconds each: one chain per family, the others when there is time.
@pytest.mark.parametrize(
    ("name", "forms"),
    [pytest.param(*one, marks=() if turn < 4 else pytest.mark.slow) for turn, one in enumerate(CHAINS)],
)
@torch.no_grad()
def test_export_gives_the_same_numbers(name: str, forms: Chain) -> None:
    model = converted(name, forms)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images_for(model),), dynamic_shapes=({0: batch},))
    more = images_for(model, batch=3, seed=1)
    torch.testing.assert_close(program.module()(more), model(more))


@on_every_chain
def test_a_plan_is_built_in_one_go_as_step_by_step(name: str, forms: Chain) -> None:
    plan = plan_of(converted(name, forms))
    whole = build(plan, dense(name), weights_follow=True)
    shapes = {key: value.shape for key, value in whole.state_dict().items()}
    assert shapes == {key: value.shape for key, value in converted(name, forms).state_dict().items()}

"""The recursive conversion: options, exactness, grouping, many applications, refusals."""

import copy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from tests.variants import ALL, BUILDERS, ONE_PER_ADAPTER, dense, images_for, lively_
from vitslim.bench import count_macs, count_parameters
from vitslim.checkpoint import load, save
from vitslim.errors import ConfigError
from vitslim.methods import convert, method_support
from vitslim.methods.grouping import alike_groups, runs, stepwise_picks
from vitslim.methods.sret import SretConfig, merge_residuals
from vitslim.opening import open_model
from vitslim.plans import ModelPlan, check, cost
from vitslim.targets import verify
from vitslim.targets.onnx.export import export_onnx
from vitslim.trunk import build, plan_of, trunk_of

# Two orders of summation in float32, through four blocks with residuals of rounding size.
CLOSE = {"atol": 1e-4, "rtol": 1e-3}


def sret(name: str, **options: object) -> nn.Module:
    return convert(dense(name), "sret", **options)


def groups_of(model: nn.Module) -> list[tuple[int, ...]]:
    """The groups of a model, in order."""
    weights = [step.weights for step in plan_of(model).steps]
    return list(dict.fromkeys(choice.members for choice in weights if choice.kind == "shared"))


@pytest.mark.parametrize("name", [name for name in ALL if "grouped_queries" not in name])
@torch.no_grad()
def test_full_rank_is_the_dense_model_to_rounding(name: str) -> None:
    model, images = dense(name), images_for(dense(name))
    for shared in ("average", "stepwise"):
        torch.testing.assert_close(sret(name, rank="full", shared=shared)(images), model(images), **CLOSE)


@pytest.mark.parametrize("name", ONE_PER_ADAPTER)
@torch.no_grad()
def test_projections_and_coefficients_start_as_the_dense_model_bit_for_bit(name: str) -> None:
    model, images = dense(name), images_for(dense(name))
    same = sret(name, groups=((1,), (2,)), nll=True, lrc=True)
    assert torch.equal(same(images), model(images))
    assert {"steps.1.weights.lrc", "steps.2.weights.nll.mlp.fc1.weight"} <= trunk_of(same).new_parameters().keys()


@pytest.mark.parametrize("name", [name for name in ONE_PER_ADAPTER if name != "eva_mixed_rotary"])
@torch.no_grad()
def test_further_applications_start_as_the_identity_bit_for_bit(name: str) -> None:
    model, images = dense(name), images_for(dense(name))
    deep = sret(name, groups=((1,), (2,)), recursions=5)
    assert len(deep.blocks) == 12
    assert torch.equal(deep(images), model(images))
    shared = sret(name, recursions=5, lrc=True)
    assert torch.equal(shared(images), sret(name)(images))


@torch.no_grad()
def test_equal_blocks_share_without_loss() -> None:
    model = copy.deepcopy(dense("vit_plain"))
    model.blocks[2].load_state_dict(model.blocks[1].state_dict())
    images = images_for(model)
    assert torch.equal(convert(model, "sret", rank=0)(images), model(images))


@torch.no_grad()
def test_a_higher_rank_is_closer() -> None:
    model, images = dense("vit_plain"), images_for(dense("vit_plain"))
    errors = [float((sret("vit_plain", rank=rank)(images) - model(images)).norm()) for rank in (0, 8, 24, 48)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4 < errors[-2]


def test_parameters_are_those_of_the_formula() -> None:
    d, rank = 48, 4
    # A pair shares 12 d² and pays r (2 d + 2 d + 4 · 2 d + ...) for each of its four maps in both steps.
    per_step = rank * ((3 * d + d) + (d + d) + 2 * (4 * d + d))
    saved = 12 * d * d - 2 * per_step
    assert count_parameters(sret("vit_plain")) == count_parameters(dense("vit_plain")) - saved


def test_the_default_is_pairs_between_the_ends() -> None:
    with torch.device("meta"):
        model = open_model("deit_small", pretrained=False)
    small = convert(model, "sret")
    assert groups_of(small) == [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)]
    steps = plan_of(small).steps
    assert [step.home for step in trunk_of(small).steps] == [0, 1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11]
    assert steps[0].weights.describe() == "own"
    assert steps[2].weights.describe() == "shared by 1, 2, rank 32"
    assert round(count_parameters(small) / 1e6, 2) == 15.17
    assert round(count_parameters(convert(model, "sret", rank=0)) / 1e6, 2) == 13.20
    # Sharing saves no arithmetic, residuals cost some, merging takes that back.
    dense_macs = count_macs(model)
    assert count_macs(convert(model, "sret", rank=0)) == dense_macs
    assert round(count_macs(small) / 1e9, 3) == 4.986 > dense_macs / 1e9
    assert count_macs(merge_residuals(small)) == dense_macs
    assert count_parameters(merge_residuals(small)) == count_parameters(model)


@pytest.mark.parametrize(("recursions", "steps"), [(10, 102), pytest.param(100, 1002, marks=pytest.mark.slow)])
def test_a_thousand_applications_have_the_parameters_of_seven_blocks(recursions: int, steps: int) -> None:
    with torch.device("meta"):
        model = open_model("deit_small", pretrained=False)
    for rank in (0, None):
        deep = convert(model, "sret", recursions=recursions, rank=rank)
        assert len(deep.blocks) == steps
        # SReT's abstract: more than 100 or even 1000 shared layers at 13-15 M.
        assert 13e6 < count_parameters(deep) < 15.5e6


@pytest.mark.parametrize(
    ("name", "whole"), [("vit_plain", False), ("vit_plain", True), ("eva_rotary", False), ("beit_both_biases", False)]
)
def test_a_hundred_applications_learn_and_keep_little_for_the_backward(name: str, whole: bool) -> None:
    deep = sret(name, recursions=50).train()
    assert len(deep.blocks) == 102
    kept = {}
    for checkpointing in (False, True):
        # Loops over the steps obey timm's switch, the trunk as a whole its own.
        (deep.blocks if whole else deep).set_grad_checkpointing(checkpointing)
        saved: list[int] = []

        def note(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            logits = deep(images_for(deep))
        deep.zero_grad()
        logits.square().mean().backward()
        kept[checkpointing] = sum(saved)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trunk_of(deep).parameters())
    # What passes between the steps, the embedding and the head: of each step some 48 times as much is computed.
    assert kept[True] < kept[False] / 30


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_plain", "eva_rotary"])
def test_a_thousand_applications_learn(name: str) -> None:
    deep = sret(name, recursions=500).train()
    deep.set_grad_checkpointing()
    assert len(deep.blocks) == 1002
    deep(images_for(deep)).square().mean().backward()
    gradients = {key: value.grad for key, value in trunk_of(deep).new_parameters().items()}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    # The last application starts to learn as the first does.
    assert gradients["steps.1000.weights.lrc"].abs().sum() > 0


def test_what_waits_for_a_backward_holds_no_attention_output_that_nobody_reads() -> None:
    deep = sret("vit_plain", recursions=3)
    tokens = torch.randn(1, 17, 48, requires_grad=True)
    calls = list(deep.blocks)
    for call in calls:
        tokens = call(tokens)
    assert all(stream.z is None for _, stream in calls[0]._loop.entries.values())


def test_forward_intermediates_walk_every_application() -> None:
    deep, images = sret("vit_four_registers", recursions=3), images_for(dense("vit_four_registers"))
    features, every = deep.forward_intermediates(images)
    assert len(every) == 8
    assert torch.equal(deep.norm(every[-1].flatten(2).transpose(1, 2)), features[:, 5:])
    assert deep.prune_intermediate_layers([3]) == [3]
    assert len(deep.blocks) == 4
    assert torch.equal(deep.forward_intermediates(images, indices=[3], intermediates_only=True)[0], every[3])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_plain", {}),
        ("vit_no_class_token", {"groups": "0-1; 2,3", "shared": "stepwise", "rank": 0, "nll": True, "lrc": True}),
        ("eva_dinov3", {"recursions": 2, "slices": (2, 4), "seed": 5}),
        ("beit_both_biases", {"merged": True, "slices": (1, 2)}),
        ("distilled", {"recursions": 3, "merged": True}),
    ],
)
@torch.no_grad()
def test_a_saved_model_loads_again(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model, images = sret(name, **options), images_for(dense(name))
    lively_(nn.ParameterList(trunk_of(model).new_parameters().values()))
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert torch.equal(again(images), model(images))
    assert plan_of(again) == plan_of(model)


def test_file_and_memory_shrink_with_the_parameters(tmp_path: Path) -> None:
    def stored(model: nn.Module) -> tuple[int, int]:
        """Numbers in the file, and bytes of the tensors of a model read from it, each storage once."""
        save(model, tmp_path, overwrite=True)
        numbers = sum(tensor.numel() for tensor in load_file(tmp_path / "model.safetensors").values())
        again = load(tmp_path)
        memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in again.parameters()}
        assert not list(again.buffers())
        return numbers, sum(storage.nbytes() for storage in memory.values())

    plain, recursive = sret("vit_plain", groups=()), sret("vit_plain")
    saved = count_parameters(plain) - count_parameters(recursive)
    assert saved > 0
    numbers, held = stored(plain)
    assert stored(recursive) == (numbers - saved, held - 4 * saved)


@pytest.mark.parametrize("merged", [False, True])
def test_building_for_weights_from_a_file_decomposes_nothing(merged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sret("vit_plain", merged=merged)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the weights come from the file")

    monkeypatch.setattr(torch.linalg, "eigh", refuse)
    copied = build(plan_of(model), dense("vit_plain"), weights_follow=True)
    copied.load_state_dict(model.state_dict())
    assert torch.equal(copied(images_for(model)), model(images_for(model)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_four_registers", {"slices": (2, 4), "nll": True, "lrc": True}),
        pytest.param("beit_own_bias", {"recursions": 2}, marks=pytest.mark.slow),
    ],
)
def test_the_exported_file_computes_the_same(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = sret(name, **options)
    lively_(nn.ParameterList(trunk_of(model).new_parameters().values()))
    export_onnx(model, tmp_path / "model.onnx")
    assert verify(model, tmp_path / "model.onnx", images_for(model, batch=3)).passed


def test_a_file_has_two_products_and_a_sum_more_for_each_shared_map(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")

    def nodes(model: nn.Module) -> Counter[tuple[str, str]]:
        export_onnx(model, tmp_path / "model.onnx")
        return Counter((node.domain, node.op_type) for node in onnx.load(tmp_path / "model.onnx").graph.node)

    plain, recursive = nodes(dense("vit_plain")), nodes(sret("vit_plain"))
    # Four maps in each of two blocks.
    assert recursive - plain == {("", "MatMul"): 16, ("", "Add"): 8}
    assert plain - recursive == {}


def evidence(table: list[list[float | None]], as_file: bool = False) -> object:
    cka: Any = {"block": table} if as_file else SimpleNamespace(block=table)
    return SimpleNamespace(recommended={"layers": []}, cka=cka)


def neighbours(likeness: list[float]) -> list[list[float | None]]:
    """A table in which blocks are as alike as the product of the likenesses between them."""
    table = []
    for row in range(len(likeness) + 1):
        cells: list[float | None] = []
        for column in range(len(likeness) + 1):
            product = 1.0
            for place in range(min(row, column), max(row, column)):
                product *= likeness[place]
            cells.append(product)
        table.append(cells)
    return table


@pytest.mark.parametrize(("as_file", "groups"), [(False, "auto"), (True, "auto"), (False, None)])
def test_groups_follow_an_analysis(as_file: bool, groups: str | None) -> None:
    found = evidence(neighbours([0.1, 0.99, 0.2, 0.95, 0.5]), as_file)
    with torch.device("meta"):
        model = BUILDERS["vit_plain"]().__class__(img_size=32, patch_size=8, embed_dim=48, depth=6, num_heads=3)
    assert groups_of(convert(model, "sret", groups=groups, analysis=found)) == [(1, 2), (3, 4)]
    uneven = evidence(neighbours([0.1, 0.99, 0.99, 0.1, 0.5]), as_file)
    uneven_groups = groups_of(convert(model, "sret", groups=groups, analysis=uneven))
    # A block alone shares with nobody.
    assert uneven_groups == [(1, 2, 3)]
    assert groups_of(convert(model, "sret", groups="runs", analysis=uneven)) == [(1, 2), (3, 4)]


def test_auto_needs_an_analysis_of_blocks() -> None:
    with pytest.raises(ConfigError, match="groups='auto' needs an analysis"):
        sret("vit_plain", groups="auto")
    with pytest.raises(ConfigError, match=r"no cka\.block; analyze the model again"):
        sret("vit_plain", groups="auto", analysis=SimpleNamespace(recommended={"layers": []}))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(1, 4))
def test_the_cheapest_partition_is_found(likeness: list[float], count: int) -> None:
    table = neighbours(likeness)
    blocks, count = list(range(len(table))), min(count, len(table))

    def price(groups: tuple[tuple[int, ...], ...]) -> float:
        return sum(1 - table[a][b] for group in groups for a in group for b in group if a < b)

    def partitions(start: int, parts: int) -> list[tuple[tuple[int, ...], ...]]:
        if parts == 1:
            return [(tuple(blocks[start:]),)]
        ends = range(start + 1, len(blocks) - parts + 2)
        return [(tuple(blocks[start:end]), *rest) for end in ends for rest in partitions(end, parts - 1)]

    found = alike_groups(table, blocks, count)
    assert [block for group in found for block in group] == blocks
    assert len(found) == count
    assert price(found) == pytest.approx(min(map(price, partitions(0, count))))


def test_what_is_not_known_counts_as_unlike() -> None:
    assert alike_groups([[1.0, None, None], [None, 1.0, 0.5], [None, 0.5, 1.0]], [0, 1, 2], 2) == ((0,), (1, 2))


@given(st.integers(0, 20), st.integers(2, 5))
def test_runs_cover_all_in_order(count: int, size: int) -> None:
    groups = runs(range(count), size)
    assert [block for group in groups for block in group] == list(range(count))
    assert all(len(group) == size for group in groups[:-1])


def test_picks_stand_at_even_steps() -> None:
    # Ten blocks in five pairs: 1, 3.25, 5.5, 7.75, 10.
    assert stepwise_picks(runs(range(1, 11), 2)) == [1, 3, 5, 8, 10]
    assert stepwise_picks(((4, 5, 6),)) == [4]
    assert stepwise_picks(()) == []


@pytest.mark.parametrize(
    ("value", "groups"),
    [
        ("1-2; 3-4", ((1, 2), (3, 4))),
        ("1,2;", ((1, 2),)),
        ([[2, 1], range(3, 6)], ((1, 2), (3, 4, 5))),
        ("auto", "auto"),
        ((), ()),
        (None, None),
    ],
)
def test_groups_are_read_from_lists_and_text(value: object, groups: object) -> None:
    config = SretConfig(groups=value)
    assert config.groups == groups
    assert SretConfig(**config.model_dump(mode="json")) == config


def test_one_number_of_slices_serves_all_applications() -> None:
    assert SretConfig(slices=4).slices == (4,)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_plain", {"groups": ((1, 9),)}, "block 9 does not exist; choose from 0..3"),
        ("vit_plain", {"groups": ((1, 2), (2, 3))}, "block 2 is named twice"),
        ("vit_plain", {"groups": ((),)}, "a group is empty"),
        ("vit_plain", {"groups": "1-x"}, "neither a number nor a span"),
        ("vit_plain", {"keep_first": 2}, "fewer than two are left to share; lower keep_first"),
        ("vit_plain", {"slices": (3,)}, "16 patches are cut into equal slices only by 1, 2, 4, 8, 16, not by 3"),
        ("vit_plain", {"slices": ()}, "name one number of slices or more"),
        ("vit_plain", {"rank": -1}, "a rank is 0 or more"),
        ("vit_plain", {"recursions": 2, "lrc": False}, "further applications need LRC"),
        ("eva_mixed_rotary", {"recursions": 2}, "rotary positions of its own for every block"),
        ("eva_grouped_queries", {"groups": ((0, 1),)}, "cannot share attn.[kv]_proj, which is .48, 48. in one and .16"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sret(name, **options)


def test_blocks_share_once() -> None:
    with pytest.raises(ConfigError, match="already converted with 'sret'"):
        convert(sret("vit_plain"), "sret", groups=((0, 3),))


@pytest.mark.parametrize("name", ["vit_plain", "eva_mixed_rotary", "beit_both_biases"])
def test_every_family_is_supported(name: str) -> None:
    assert method_support(plan_of(dense(name)))["sret"] == {"supported": True, "reason": ""}


def with_weights(plan: ModelPlan, index: int, **changes: Any) -> ModelPlan:
    step = plan.steps[index]
    return plan.with_steps({index: step.but(weights=step.weights.model_copy(update=changes))})


@pytest.mark.parametrize(
    ("index", "changes", "message"),
    [
        (1, {"rank": 3}, "step 2: block 1 should share with (1, 2), but has other weights (shared by 1, 2, rank 3)"),
        (1, {"members": (2, 3)}, "step 1: block 1 is not among the blocks (2, 3) that share"),
        (2, {"application": 1}, "step 2: application=1: 0 steps before it run block 2"),
        (2, {"home": 3}, "step 2: home=3: shared matrices are registered as one of (1, 2)"),
    ],
)
def test_a_group_that_was_edited_into_nonsense_is_refused(index: int, changes: dict[str, Any], message: str) -> None:
    plan = plan_of(sret("vit_plain"))
    assert any(message in error for error in check(with_weights(plan, index, **changes)))
    assert check(plan) == []


def test_a_member_may_be_dropped() -> None:
    plan = plan_of(sret("vit_plain"))
    shallow = plan.model_copy(update={"steps": plan.steps[:1] + plan.steps[2:]})
    model = build(shallow, sret("vit_plain"))
    assert (cost(shallow).macs, cost(shallow).parameters) == (count_macs(model), count_parameters(model))

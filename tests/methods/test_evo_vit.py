"""What Evo-ViT does with the tokens of a model."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from inline_snapshot import snapshot
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.methods.slow_evo_vit import slow_evo_vit
from tests.variants import ALL, SIZE, dense, images_for
from vitslim.bench import count_macs
from vitslim.checkpoint import load, save
from vitslim.errors import ConfigError
from vitslim.methods import convert, method_support
from vitslim.methods.evo_vit import EvoViTConfig, kept_patches
from vitslim.models import BlockAdapter
from vitslim.plans import check, cost
from vitslim.trunk import plan_of, trunk_of

FORMS: dict[str, dict[str, Any]] = {
    "frozen": {"stages": (1, 3), "keep": (0.5, 0.25)},
    "slow_fast": {"stages": (1, 3), "keep": (0.5, 0.25), "placeholders": "slow_fast"},
    "layer_wise": {"schedule": "layer", "alpha": (1.0, 0.3, 0.7, 0.5)},
    "slow_fast_layer_wise": {"schedule": "layer", "placeholders": "slow_fast", "keep": (1.0, 0.8, 0.3, 0.6)},
    "all_return": {"stages": (1, 2, 3), "keep": (0.5, 1.0, 0.25), "placeholders": "slow_fast"},
    "slow_g": {"stages": (2,), "alpha": (0.5, 0.5, 0.25, 0.5)},
}


def deit(size: str, depth: int = 12) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(f"deit_{size}_patch16_224", depth=depth)


def after_every_block(model: nn.Module, images: Tensor) -> list[Tensor]:
    prefix = trunk_of(model).layout.prefix
    every = model.forward_intermediates(
        images, output_fmt="NLC", return_prefix_tokens=prefix > 0, intermediates_only=True
    )
    # With a prefix timm returns (patches, prefix).
    return [torch.cat(one[::-1], dim=1) if prefix else one for one in every]


@pytest.mark.parametrize(
    ("name", "form"),
    [("vit_plain", form) for form in FORMS] + [(name, "slow_fast") for name in ALL if not name.startswith("test_")],
)
@torch.no_grad()
def test_sorting_and_gathering_is_masking_and_putting_back(name: str, form: str) -> None:
    model, images = convert(dense(name), "evo_vit", **FORMS[form]), images_for(dense(name), batch=3)
    for got, expected in zip(after_every_block(model, images), slow_evo_vit(dense(name), images, model), strict=True):
        torch.testing.assert_close(got, expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["vit_plain", "distilled", "vit_four_registers", "eva_mixed_rotary", "beit_own_bias"])
@torch.no_grad()
def test_frozen_patches_stay_as_they_were_and_the_prefix_never_does(name: str) -> None:
    model = convert(dense(name), "evo_vit", stages=(1, 3))
    prefix = trunk_of(model).layout.prefix
    every = after_every_block(model, images_for(model, batch=3))
    for before, after in pairwise(every):
        moved = (before != after).any(dim=2)
        assert moved[:, :prefix].all()
        assert moved[:, prefix:].sum(dim=1).tolist() == [8, 8, 8]
    # Within a stage the same ones are inactive.
    assert torch.equal((every[0] != every[1]).any(dim=2), (every[1] != every[2]).any(dim=2))


@torch.no_grad()
def test_followers_all_gain_the_same() -> None:
    model = convert(dense("vit_plain"), "evo_vit", stages=(1,), placeholders="slow_fast")
    every = after_every_block(model, images_for(model))
    for before, after in pairwise(every):
        gains = (after - before)[:, 1:]
        same = (gains.unsqueeze(1) - gains.unsqueeze(2)).abs().amax(dim=3) < 1e-5
        assert same.sum(dim=2).amax(dim=1).tolist() == [8, 8]


@torch.no_grad()
def test_inactive_patches_cost_nothing() -> None:
    model, rows = convert(dense("vit_one_register"), "evo_vit", stages=(1, 3), keep=(0.5, 0.25)), []
    for block in trunk_of(model).steps:
        mlp = model.blocks[block.home].mlp
        mlp.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
        model.blocks[block.home].norm1.register_forward_hook(lambda _, args, out: rows.append(out.shape[1]))
    model(images_for(model))
    assert rows == [18, 18, 10, 10, 10, 10, 6, 6]


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, [3, 4, 5, 6, 7]),
        ({"schedule": "layer"}, [3, 4, 5, 6, 7, 8, 9, 10]),
        ({"keep": 1.0}, []),
        ({"keep": (0.5, 1.0)}, [3]),
        ({"alpha": (0.5,) * 12}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"alpha": (0.5, 0.5, 1.0, 0.5, *[1.0] * 8)}, [2, 3, 4, 5, 6, 7]),
        ({"stages": (6,)}, [5]),
    ],
)
def test_the_class_row_is_computed_only_where_it_is_used(options: dict[str, Any], rows: list[int]) -> None:
    model = convert(deit("tiny"), "evo_vit", **options)
    assert [index for index, step in enumerate(trunk_of(model).steps) if step.wants_row] == rows


@torch.no_grad()
def test_rows_that_are_wanted_are_the_only_ones_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = BlockAdapter.class_row

    def counted(self: BlockAdapter, query: Tensor, *rest: Any) -> Tensor:
        calls.append(query.shape[2])
        return original(self, query, *rest)

    monkeypatch.setattr(BlockAdapter, "class_row", counted)
    model = convert(dense("vit_plain"), "evo_vit", stages=(1, 3))
    model(images_for(model))
    assert calls == [17, 9, 9]


@pytest.mark.parametrize(("size", "gmac"), [("tiny", 0.818), ("small", 3.033), ("base", 11.66)])
def test_multiply_accumulates_are_those_of_the_authors_model(size: str, gmac: float) -> None:
    # METHODS.md section 2. The five class rows, which we compute apart, add up to 0.2 MMAC at most.
    assert count_macs(convert(deit(size), "evo_vit")) / 1e9 == pytest.approx(gmac, rel=5e-4)


def test_alignment_is_visible_in_tokens_and_cost() -> None:
    paper, aligned = (cost(plan_of(convert(deit("small"), "evo_vit", align=align))) for align in (1, 8))
    assert [paper.steps[index].tokens for index in (3, 4, 9)] == [197, 99, 99]
    assert [aligned.steps[index].tokens for index in (3, 4, 9)] == [197, 96, 96]
    assert aligned.macs < paper.macs


def test_the_plan_says_who_is_active() -> None:
    steps = plan_of(convert(deit("small"), "evo_vit")).steps
    assert [steps[index].tokens.describe() for index in (3, 4, 9)] == snapshot(
        ["all", "kept 50 %, chosen by class attention, others frozen", "kept 50 %, others frozen"]
    )


@given(st.integers(1, 600), st.floats(0.01, 0.99), st.integers(0, 6), st.integers(1, 64))
def test_the_kept_count_is_aligned_and_in_range(patches: int, keep: float, others: int, align: int) -> None:
    kept = kept_patches(patches, keep, others=others, align=align)
    assert 1 <= kept <= patches
    plain = kept_patches(patches, keep, others=others)
    assert plain == max(1, int(patches * keep + 1e-9))
    if 1 < kept < patches:
        assert (kept + others) % align == 0
        assert abs(kept - plain) <= align / 2
    assert kept_patches(patches, 1.0, others=others, align=align) == patches


def test_shares_are_rounded_as_the_authors_do() -> None:
    assert kept_patches(196, 0.5) == 98
    assert kept_patches(196, 0.7) == 137
    # 0.29 · 100 is 28.999… in binary.
    assert kept_patches(100, 0.29) == 29


@pytest.mark.parametrize("form", ["layer_wise", "slow_fast", "frozen"])
@torch.no_grad()
def test_the_early_form_is_the_layer_wise_schedule_and_goes_again(form: str) -> None:
    options = {**FORMS[form], "schedule": "stage"}
    images = images_for(dense("vit_plain"))
    model = convert(dense("vit_plain"), "evo_vit", **options)
    layer_wise = convert(dense("vit_plain"), "evo_vit", **{**options, "schedule": "layer"})
    stage_wise, plan = model(images), plan_of(model)
    trunk_of(model).choose_early_(True)
    assert torch.equal(model(images), layer_wise(images))
    # It is a matter of training: what is saved is the last form.
    assert plan_of(model) == plan
    trunk_of(model).choose_early_(False)
    assert torch.equal(model(images), stage_wise)
    assert not torch.equal(layer_wise(images), stage_wise)
    assert trunk_of(model).has_early_form
    assert not trunk_of(layer_wise).has_early_form


@pytest.mark.parametrize("name", ["vit_plain", "vit_four_registers", "eva_rotary", "beit_both_biases"])
@torch.no_grad()
def test_the_mean_readout_normalises_the_mean_of_all_patches(name: str, tmp_path: Path) -> None:
    source, images = dense(name), images_for(dense(name))
    norm = source.norm if isinstance(source.fc_norm, nn.Identity) else source.fc_norm
    model = convert(source, "evo_vit", readout="mean")
    patches = model.forward_features(images)[:, trunk_of(model).layout.prefix :]
    torch.testing.assert_close(model(images), source.head(norm(patches.mean(dim=1))))
    again = load(save(model, tmp_path))
    assert torch.equal(again(images), model(images))
    assert set(again.state_dict()) == set(model.state_dict())
    # The source has kept its own.
    assert (source.global_pool, type(source.norm)) == (dense(name).global_pool, type(dense(name).norm))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_plain", {}),
        ("eva_mixed_rotary", {"placeholders": "slow_fast"}),
        ("vit_map_pooling", {"keep": [1, 0.5, 0.5, 0.2]}),
    ],
)
@torch.no_grad()
def test_saving_and_loading_gives_the_same_numbers(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model, images = convert(dense(name), "evo_vit", **options), images_for(dense(name))
    again = load(save(model, tmp_path))
    assert torch.equal(again(images), model(images))
    assert plan_of(again) == plan_of(model)


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("vit_plain", "class"),
        ("distilled", "class"),
        ("eva_perception_encoder", "class"),
        ("vit_no_class_token", "mean_query"),
        ("vit_registers_without_class_token", "mean_query"),
        ("vit_map_pooling", "mean_query"),
    ],
)
def test_the_score_is_named(name: str, score: str) -> None:
    model = convert(dense(name), "evo_vit")
    tokens = plan_of(model).steps[1].tokens
    assert tokens.score == score
    assert f"chosen by {score.replace('_', ' ')} attention" in tokens.describe()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"stages": (0, 2)},
            snapshot("evo_vit.stages=(0, 2): choose from 1..3; block 0 has no attention before it to choose by"),
        ),
        (
            {"stages": "1,7"},
            snapshot("evo_vit.stages=(1, 7): choose from 1..3; block 0 has no attention before it to choose by"),
        ),
        (
            {"stages": ()},
            snapshot("evo_vit.stages=(): no stage; name at least one block, or give keep=1 to keep all patches"),
        ),
        ({"keep": 0.0}, snapshot("evo_vit.keep=0.0: shares and rates lie above 0 and are at most 1")),
        (
            {"keep": (0.5, 0.5, 0.5)},
            snapshot(
                "evo_vit.keep=(0.5, 0.5, 0.5): 3 shares; wanted one, one per stage (2: (1, 2)), or one per block (4)"
            ),
        ),
        (
            {"keep": (0.5, 0.5, 0.5, 0.5)},
            snapshot("evo_vit.keep[0]=0.5: reduction starts at block 1 (stages=(1, 2)); give 1 before it"),
        ),
        ({"alpha": (1.0, 0.5)}, snapshot("evo_vit.alpha=(1.0, 0.5): 2 rates; wanted one, or one per block (4)")),
        (
            {"score": "mean_query"},
            snapshot("evo_vit.score='mean_query': this VisionTransformer has a class token; its score is 'class'"),
        ),
        (
            {"keep_ratio": 0.5},
            snapshot(
                "unknown option evo_vit.keep_ratio; "
                "known: stages, schedule, keep, alpha, placeholders, align, score, readout"
            ),
        ),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(dense("vit_plain"), "evo_vit", **options)
    assert str(caught.value) == message


def test_a_single_block_has_nothing_to_choose_by() -> None:
    support = method_support(plan_of(VisionTransformer(**{**SIZE, "depth": 1})))["evo_vit"]
    assert support["reason"] == snapshot("evo_vit: 1 block; the first must attend before patches can be chosen")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("distilled", "readout='mean': a distilled model has two heads"),
        ("vit_map_pooling", "readout='mean': this VisionTransformer pools with 'map'; only token, avg"),
    ],
)
def test_classifiers_with_a_readout_of_their_own_keep_it(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(dense(name), "evo_vit", readout="mean")


def test_the_default_stages_are_the_papers_thirds() -> None:
    for depth, stages in ((12, [4, 8]), (24, [8, 16]), (4, [1, 2]), (2, [1])):
        steps = plan_of(convert(deit("tiny", depth), "evo_vit")).steps
        assert [index for index, step in enumerate(steps) if step.tokens.selects] == stages


def test_two_rules_for_the_same_tokens_are_refused() -> None:
    once = convert(dense("vit_plain"), "evo_vit")
    assert "already converted" in method_support(plan_of(once), trunk_of(once).history)["evo_vit"]["reason"]
    assert "already has a rule for its tokens" in method_support(plan_of(once))["evo_vit"]["reason"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": 0.25}, "step 3: 4 patches should be active, but 8 are before it, and it does not choose"),
        ({"placeholders": "slow_fast"}, "step 3: 8 patches should be active, but 8 are before it"),
        ({"score": "mean_query"}, "step 3: score='mean_query': this VisionTransformer has a class token; use 'class'"),
    ],
)
def test_a_plan_that_was_edited_into_nonsense_is_refused(changes: dict[str, Any], message: str) -> None:
    plan = plan_of(convert(dense("vit_plain"), "evo_vit", stages=(2,)))
    step = plan.steps[3]
    changed = plan.with_steps({3: step.but(tokens=step.tokens.model_copy(update=changes))})
    assert any(message in error for error in check(changed)), check(changed)
    assert check(plan) == []


def test_dropout_acts_in_every_block() -> None:
    model = VisionTransformer(**SIZE, attn_drop_rate=0.5)
    images = images_for(model)
    model = convert(model, "evo_vit", stages=(1,)).train()
    # Block 0, whose class row is wanted, alone.
    trunk_of(model).steps[1:].eval()
    for block in (1, 2, 3):
        model.blocks[block].eval()

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(images)

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_the_representative_teaches_the_attention_that_chose_it() -> None:
    model = convert(dense("vit_plain"), "evo_vit", stages=(1,), placeholders="slow_fast")
    # Queries of block 0's class token count in its class row, hence in the shares; its own output is cut off.
    tokens = trunk_of(model)(torch.randn(2, 17, 48, generator=torch.Generator().manual_seed(0)))
    tokens[:, 1:].sum().backward()
    assert model.blocks[0].attn.qkv.weight.grad[:48].abs().sum() > 0


def test_a_config_is_as_good_as_options() -> None:
    config = EvoViTConfig(keep=0.25, placeholders="slow_fast")
    images = images_for(dense("vit_plain"))
    one, other = (
        convert(dense("vit_plain"), config),
        convert(dense("vit_plain"), "evo_vit", keep=0.25, placeholders="slow_fast"),
    )
    assert torch.equal(one(images), other(images))

"""Which blocks the methods of a recipe take: what an analysis recommends, what the methods accept beside each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.pipeline.tiny import RECIPE
from vitslim import checkpoint
from vitslim.analysis import AnalysisReport, Recommendation, Replacement, Similarity
from vitslim.errors import ConfigError, VitslimError
from vitslim.files import read_json
from vitslim.opening import open_model
from vitslim.pipeline import run
from vitslim.pipeline.checks import check
from vitslim.pipeline.choices import Choice, advise, convert_all, plan_all, reads_analysis
from vitslim.recipe import Recipe, read_recipe
from vitslim.trunk import plan_of

ONLY_CONVERTED: dict[str, Any] = {"warm_start": None, "distill": None, "finetune_dense": False, "evaluate": False}


def recipe(*entries: dict[str, Any], **changes: Any) -> Recipe:
    return read_recipe({**RECIPE, **ONLY_CONVERTED, "convert": list(entries), **changes})


def dense(depth: int = 12) -> nn.Module:
    with torch.device("meta"):
        return open_model("builtin", pretrained=False, img_size=32, depth=depth, embed_dim=48, num_heads=3)


def report(layers: Sequence[int], order: Sequence[int], depth: int = 12) -> AnalysisReport:
    """An analysis that recommends ``layers``; ``order`` has all layers but the first, the cheapest first."""
    table: list[list[float | None]] = [[1.0] * depth for _ in range(depth)]
    return AnalysisReport(
        model="builtin",
        images=16,
        layers=[f"blocks.{layer}" for layer in range(depth)],
        cka=Similarity(z=table, cls_attention=table, block=table),
        linear_r2=[None, *[0.5] * (depth - 1)],
        linear_tokens=100,
        output_measure="kl",
        replacement_images=4,
        replacement=[Replacement(layer=layer, kind="identity", kl=float(rank)) for rank, layer in enumerate(order)],
        recommended=Recommendation(
            layers=list(layers), reason="", max_layers=len(layers), max_kl=None, estimated_change=0.0
        ),
        block_influence=[0.5] * depth,
        drop_order=[],
        mlp_importance=[[1.0]] * depth,
        heads_importance=[[1.0]] * depth,
        notes=[],
    )


def chosen(found: AnalysisReport, *entries: dict[str, Any]) -> list[Choice]:
    plan = plan_of(dense(len(found.layers)))
    return plan_all(entries, plan, advise(entries, plan, found))[2]


# --- what is used ---------------------------------------------------------------------------------------------------

IN_ORDER = range(1, 12)
SKIPAT, PRUNED = {"method": "skipat"}, {"method": "sparsifiner", "token_keep_rate": 0.7}  # prunes after 3, 6 and 9


@pytest.mark.parametrize(
    ("options", "used", "reason"),
    [
        ({}, [4, 5, 6], "the analysis recommends them"),
        ({"layers": "auto"}, [4, 5, 6], "the analysis recommends them"),
        ({"layers": "3-4"}, [3, 4], "the options name them"),
        ({"layers": "paper"}, [3, 4, 5, 6, 7, 8], "layers=paper asks for them"),
    ],
)
def test_an_analysis_decides_unless_the_options_do(options: dict[str, Any], used: list[int], reason: str) -> None:
    assert chosen(report([4, 5, 6], IN_ORDER), {**SKIPAT, **options}) == [
        Choice(method="skipat", option="layers", recommended=[4, 5, 6], used=used, reason=reason)
    ]


def test_without_an_analysis_the_usual_blocks_are_used() -> None:
    _, choices = convert_all(recipe(SKIPAT, {"method": "evo_vit"}, {"method": "sret"}), dense())
    assert [(one.method, one.recommended, one.used) for one in choices] == [
        ("skipat", None, [3, 4, 5, 6, 7, 8]),
        ("sret", None, [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]),
    ]
    assert choices[0].reason == "they are the usual ones, and no analysis was made"


def test_widths_that_differ_from_the_recommended_are_told_apart_though_they_change_the_same_blocks() -> None:
    found = report([2], [2, 1, 3], depth=4).model_copy(update={"mlp_importance": [[4.0, 3.0], [2.0, 1.0]] * 2})
    for options, used, reason in (
        ({}, [192, 96, 192, 96], "the analysis recommends them"),
        ({"widths": "even"}, [144] * 4, "widths=even asks for them"),
        ({"widths": [8, 16, 24, 192]}, [8, 16, 24, 192], "the options name them"),
    ):
        (choice,) = chosen(found, {"method": "mlp", "keep": 0.75, **options})
        assert (choice.recommended, choice.used, choice.reason) == ([192, 96, 192, 96], used, reason)


def test_a_linear_mlp_leaves_nothing_to_the_analysis_of_its_recipe() -> None:
    assert check(recipe({"method": "mlp", "form": "linear", "layers": [1]})).choices == []


def test_an_analysis_that_recommends_nothing_is_not_answered_with_the_papers_blocks() -> None:
    with pytest.raises(ConfigError, match="the analysis recommends no block; name layers, ask for the paper's set"):
        chosen(report([], IN_ORDER), SKIPAT)


# --- several methods ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [(SKIPAT, PRUNED), (PRUNED | {"layers": [1]}, SKIPAT)], ids=["before", "after"])
def test_the_recommended_blocks_that_another_method_needs_are_left_out(entries: tuple[dict[str, Any], ...]) -> None:
    (choice,) = chosen(report([2, 3, 4, 6], IN_ORDER), *entries)
    assert choice.recommended == [2, 3, 4, 6]
    assert set(choice.used) < {2, 3, 4, 6}
    for block in set(choice.recommended) - set(choice.used):
        assert f"block {block} left out: " in choice.reason


def test_a_block_that_is_accepted_behind_a_later_one_is_tried_again() -> None:
    # Evo-ViT chooses at 4: block 5 can reuse only where 4 does.
    (choice,) = chosen(report([4, 5], [5, 4, *(set(IN_ORDER) - {4, 5})]), SKIPAT, {"method": "evo_vit", "stages": [4]})
    assert choice.used == [4, 5]
    (choice,) = chosen(
        report([4, 5, 9], [5, 9, 4, *(set(IN_ORDER) - {4, 5, 9})]), SKIPAT, {"method": "evo_vit", "stages": [4]}
    )
    assert choice.used == [4, 5]
    assert "block 9 left out: evo_vit: step 9" in choice.reason


def test_where_no_recommended_block_is_accepted_the_next_ones_of_the_analysis_are() -> None:
    (choice,) = chosen(report([3, 6], [3, 6, 8, 2, *(set(IN_ORDER) - {2, 3, 6, 8})]), SKIPAT, PRUNED)
    assert choice.recommended == [3, 6]
    assert len(choice.used) == 2
    assert not {3, 6, 9} & set(choice.used)
    assert "none of the recommended ones can be the first to join" in choice.reason


def test_where_no_block_is_accepted_the_refusal_is_that_of_the_method() -> None:
    with pytest.raises(ConfigError, match="which computes none"):
        chosen(report([1, 2], [1, 2], depth=4), SKIPAT, {**PRUNED, "prune_layers": [1, 2]})


def test_a_recommended_block_that_is_applied_several_times_is_changed_in_all_of_them() -> None:
    entries = ({"method": "sret", "groups": "4-5", "recursions": 2}, SKIPAT)
    plan, found = plan_of(dense()), report([5], IN_ORDER)
    made, _, choices = plan_all(entries, plan, advise(entries, plan, found))
    assert choices[1].used == [5]
    assert [step.block for step in made.steps if not step.attention.attends] == [5, 5]


# --- over a recipe --------------------------------------------------------------------------------------------------


def test_a_run_takes_and_writes_what_its_analysis_recommends(tmp_path: Path) -> None:
    news: list[Any] = []
    result = run(recipe({"method": "skipat"}), tmp_path / "out", announce=news.append)
    recommended = read_json(tmp_path / "out" / "analysis.json")["recommended"]["layers"]
    assert read_json(tmp_path / "out" / "choices.json") == [
        {
            "method": "skipat",
            "option": "layers",
            "recommended": recommended,
            "used": recommended,
            "reason": "the analysis recommends them",
        }
    ]
    assert [one.model_dump() for one in result.choices] == read_json(tmp_path / "out" / "choices.json")
    assert news[1:] == [result.choices]
    steps = read_json(tmp_path / "out" / "plan.json")["steps"]
    assert [step["block"] for step in steps if step["attention"]["kind"] == "reuse"] == recommended
    assert checkpoint.load_config(tmp_path / "out").conversions[0].options == {}  # what was asked, not what was made


def test_a_dense_run_leaves_no_choices_of_the_run_before(tmp_path: Path) -> None:
    run(recipe({"method": "skipat"}, analyze=None), tmp_path)
    assert (tmp_path / "choices.json").exists()
    run(recipe(analyze=None), tmp_path, overwrite=True)
    assert not (tmp_path / "choices.json").exists()


@pytest.mark.parametrize(
    ("entry", "reads"),
    [
        ({"method": "skipat"}, True),
        ({"method": "skipat", "layers": "auto"}, True),
        ({"method": "skipat", "layers": "paper"}, False),
        ({"method": "skipat", "layers": [1]}, False),
        ({"method": "sret"}, True),
        ({"method": "sret", "groups": "runs"}, False),
        ({"method": "sret", "groups": "1-2"}, False),
        ({"method": "evo_vit"}, False),
        ({"method": "sparsifiner"}, False),
    ],
    ids=str,
)
def test_a_method_says_whether_it_reads_an_analysis(entry: dict[str, Any], reads: bool) -> None:
    assert reads_analysis(recipe(entry)) == reads


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((SKIPAT, {**PRUNED, "prune_layers": [2]}, {"method": "sret", "groups": "1-9"}), "block 4 does not exist"),
        (({**SKIPAT, "layers": "paper"}, {**PRUNED, "prune_layers": [2]}, {"method": "sret"}), "which computes none"),
    ],
)
def test_what_no_analysis_can_solve_is_refused_before_it(
    entries: tuple[dict[str, Any], ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(VitslimError, match=message):
        run(recipe(*entries), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_before_the_analysis_its_blocks_are_supposed() -> None:
    found = check(recipe(SKIPAT))
    assert (found.choices[0].recommended, found.choices[0].used) == (None, [1, 2])
    assert found.choices[0].reason.startswith("the analysis decides when the recipe is run")
    # The paper's 1-2 cannot stand beside a pruning by the attention of 2; one of them can.
    assert check(recipe(SKIPAT, {**PRUNED, "prune_layers": [2]})).choices[0].used == [1]


def test_a_run_that_was_refused_after_its_analysis_leaves_the_folder_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> Any:
        raise ConfigError("refused")

    with monkeypatch.context() as patch:
        patch.setattr("vitslim.pipeline.running.advise", refuse)
        with pytest.raises(ConfigError, match="refused"):
            run(recipe(SKIPAT), tmp_path)
    assert (tmp_path / "analysis.json").exists()
    run(recipe({**SKIPAT, "layers": [2]}), tmp_path)
    assert read_json(tmp_path / "choices.json")[0]["used"] == [2]

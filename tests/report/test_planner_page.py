"""The page of a planner's decision."""

import base64
import csv
import json
import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.cbook import STEP_LOOKUP_MAP
from matplotlib.figure import Figure

from tests.report.planned import one_trial, two_budgets
from tests.report.reading import read, words
from tests.variants import dense
from vitslim.methods import METHODS, planned
from vitslim.planner.budget import Budget
from vitslim.planner.result import PlanReport
from vitslim.plans import plan_json, read_plan
from vitslim.report.charts import Point, draw_front
from vitslim.report.content import Table
from vitslim.report.numbers import amount, fixed, percent, times
from vitslim.report.plan_figure import Lane, plan_picture
from vitslim.report.plan_rows import plan_rows
from vitslim.report.planner_data import Trials, budget_words
from vitslim.report.planner_page import render_planner_page
from vitslim.report.planner_tables import predictors_table
from vitslim.trunk import plan_of


@pytest.fixture(scope="module")
def report() -> PlanReport:
    return two_budgets()


@pytest.fixture(scope="module")
def page(report: PlanReport) -> str:
    return render_planner_page(report)


def files_of(page: str) -> dict[str, str]:
    """What a page offers to save, by name."""
    links = [attributes for tag, attributes in read(page).tags if tag == "a" and "download" in attributes]
    return {str(one["download"]): base64.b64decode(str(one["href"]).split("base64,")[1]).decode() for one in links}


def test_every_trial_stands_in_the_table_and_the_picture_of_its_budget(report: PlanReport, page: str) -> None:
    for place, answer in enumerate(report.answers, start=1):
        own = page.split(f'<section id="budget-{place}"')[1].split("</section>")[0]
        text = words(own)
        drawing = own.split("<svg")[1].split("</svg>")[0]
        for index in answer.trials:
            trial = report.trials[index]
            assert f"{index + 1}: {trial.name}" in text
            assert times(1 / trial.share) in text
            assert percent(trial.last.top1, 1).replace("\u202f", " ") in text
            assert fixed(trial.last.loss, 3) in text, "what trials are chosen by"
            assert f">{index + 1} " in drawing
        for name in ("dense", "method", "several methods", "a choice per block", "improved", "chosen", "Pareto front"):
            assert f">{name}</text>" in drawing, name
        assert f">budget {times(1 / answer.limit)}</text>" in drawing
        assert "pair of methods" not in drawing


def test_only_the_chosen_trial_is_called_chosen(report: PlanReport, page: str) -> None:
    for place, answer in enumerate(report.answers, start=1):
        own = page.split(f'<section id="budget-{place}"')[1].split("</section>")[0]
        rows = [row for row in own.split("<tr>") if "<small>chosen;" in row]
        assert len(rows) == 1
        assert f">{answer.chosen + 1}: {report.trials[answer.chosen].name}<" in rows[0]


def test_every_block_of_the_chosen_plan_has_its_reason(report: PlanReport, page: str) -> None:
    trial = report.trials[report.answers[1].chosen]
    own = page.split('<section id="budget-2"')[1].split("</section>")[0]
    rows = own.split("The chosen plan, block by block")[1].split("<tr>")[2:]
    assert len(rows) == len(trial.blocks) == 8
    for row, one in zip(rows, trial.blocks, strict=True):
        text = words(f"<table><tr>{row.split('</tr>')[0]}</tr></table>")
        assert text.startswith(f"{one.block} {one.choice} {percent(one.cost, 1)}".replace("\u202f", " "))
        assert fixed(one.alone, 4) in text
        if one.cheapest_other is not None:
            assert f"{fixed(one.cheapest_other[1], 4)} {one.cheapest_other[0]}" in text


def test_the_files_on_the_page_are_the_plans_and_all_data(report: PlanReport, page: str) -> None:
    files = files_of(page)
    assert list(files) == ["plan.json", "plan-speedup-2.json", "planner.json", "trials.csv"]
    for name, answer in zip(files, report.answers, strict=False):
        plan = read_plan(json.loads(files[name]), name)
        assert plan_json(plan) == report.trials[answer.chosen].plan
    assert PlanReport.model_validate(json.loads(files["planner.json"])) == report
    lines = list(csv.DictReader(files["trials.csv"].splitlines()))
    assert [one["name"] for one in lines] == [one.name for one in report.trials]
    for line, trial in zip(lines, report.trials, strict=True):
        assert (float(line["measured"]), float(line["kl_after"])) == (trial.measured, trial.last.kl)
        assert float(line["CKA removed"]) == trial.figures["CKA removed"]
    chosen = {int(one["trial"]) - 1: one["chosen_for"] for one in lines if one["chosen_for"]}
    assert chosen == {one.chosen: one.budget.describe() for one in report.answers}


def test_a_name_with_commas_and_quotes_stays_one_field() -> None:
    report = one_trial()
    hostile = 'a, "b"\n</a><script>alert(1)</script>'
    renamed = report.model_copy(
        update={"model": hostile, "trials": [report.trials[0].model_copy(update={"name": hostile})]}
    )
    page = render_planner_page(renamed)
    (line,) = csv.DictReader(files_of(page)["trials.csv"].splitlines(keepends=True))
    assert line["name"] == hostile
    assert "script" not in {tag for tag, _ in read(page).tags}


@pytest.mark.parametrize("made", [two_budgets, one_trial, lambda: two_budgets(labels=False)])
def test_the_page_is_whole_and_by_itself(made: Any) -> None:
    page = render_planner_page(made())
    found = read(page)
    for tag, attributes in found.tags:
        assert tag not in {"script", "link", "img", "iframe", "object"}
        assert re.match("#|data:", attributes.get("href") or "#")
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert ElementTree.fromstring(drawing).get("aria-label")
    for table in re.findall(r"<table>.*?</table>", page, re.DOTALL):
        assert len({len(re.findall(r"<t[hd]", line)) for line in table.split("<tr>")[1:]}) == 1
    assert not re.search(r"\b(nan|None|inf)\b", words(page))
    assert words(page).count("Kullback–Leibler") == 1


def test_one_trial_for_multiply_accumulates_has_no_times_and_no_training() -> None:
    report = one_trial()
    text = words(render_planner_page(report))
    saving = Trials(report).dense.macs / report.trials[0].macs
    for phrase in (
        f"budget: {budget_words(report.answers[0].budget)} {times(saving)} fewer multiply-accumulates",
        "none trained: accuracies are those before training",
        "1 plan met it on paper; 1 plan tried",
        "Fewer than three plans were trained",
        amount(report.trials[0].macs, "MAC").replace("\u202f", " "),
    ):
        assert phrase in text, phrase
    for phrase in ("Latency", "Top-1", "recovered best", "left behind", "Predicted", "other budgets"):
        assert phrase not in text, phrase


def test_without_labels_plans_are_judged_by_agreement() -> None:
    report = two_budgets(labels=False)
    text = words(render_planner_page(report)).replace("\u202f", " ")
    last = report.chosen.last
    assert f"agreement with dense {percent(last.agreement, 1)}".replace("\u202f", " ") in text
    assert "top-1" not in text.lower()
    assert "loss, nats" not in text.lower()


def test_the_speeds_behind_a_loss_of_accuracy_stand_beside_each_other(report: PlanReport) -> None:
    kept = report.answers[0].model_copy(update={"budget": Budget(max_drop=1)})
    page = render_planner_page(report.model_copy(update={"answers": [kept], "front": report.answers}))
    budgets = words(page.split('<section id="budgets"')[1].split("</section>")[0])
    for name in ("at most 1 point lost", "1.5× as fast", "2× as fast"):
        assert name in budgets
    assert list(files_of(page)) == ["plan.json", "planner.json", "trials.csv"]
    assert page.count('<section id="budget-') == 1


def test_outlook_prediction_and_stages_are_shown(report: PlanReport, page: str) -> None:
    text = words(page)
    for one in report.outlook:
        shown = f"{times(1 / one.limit)} {percent(one.limit, 0)} {fixed(one.expected_kl, 3)}"
        assert shown.replace("\u202f", " ") in text
    worst = max(abs(one.predicted / one.measured - 1) for one in report.trials if one.measured)
    assert f"off by 2.1 % in the median, by {percent(worst, 1)} at most".replace("\u202f", " ") in text
    assert "short trainings 21 min 0 s" in text
    assert "all 25 min 23 s" in text


@pytest.mark.parametrize(("trained", "sure"), [(3, False), (40, True)])
def test_a_correlation_that_chance_gives_is_not_called_good(trained: int, sure: bool) -> None:
    table = predictors_table({"KL at the start": 0.9, "fewer MACs": 0.1}, trained)
    assert isinstance(table, Table)
    tones = [getattr(row[1], "tone", None) for row in table.rows]
    assert tones == (["good", None] if sure else [None, None])
    assert ("can be told" in table.note) is not sure


def test_a_block_that_is_applied_twice_has_its_figures_once() -> None:
    method = METHODS.get("sret")
    plan = planned(method, method.config(groups=((0, 1), (2, 3))), plan_of(dense("vit_plain")))
    rows = plan_rows(plan_json(plan))
    assert rows is not None
    costs = {block: 10.0 + block for block in {row.block for row in rows.rows}}
    picture = plan_picture(rows, [Lane("cost, %", dict(costs), 1)])
    for value in costs.values():
        assert picture.svg.count(f">{value:.1f}<") == 1
    assert "cost, %: " + ", ".join(f"{value:.1f}" for value in costs.values()) in picture.description


def test_the_front_promises_nothing_that_no_point_reaches() -> None:
    points = [Point("", *place) for place in ((1.0, 90.0), (1.5, 88.0), (2.0, 80.0), (1.2, 70.0))]
    axes = Figure().add_subplot()
    draw_front(axes, points)
    (line,) = axes.lines
    corners = STEP_LOOKUP_MAP[line.get_drawstyle()](*line.get_data())
    for x, y in corners.T:
        assert any(one.x >= x and one.y >= y for one in points)


def test_images_that_the_dense_model_knows_by_heart_are_called_so() -> None:
    report = two_budgets()
    known = report.model_copy(update={"dense": report.dense.model_copy(update={"top1": 0.998})})
    assert "learned them by heart" in render_planner_page(known)
    assert "learned them by heart" not in render_planner_page(report)


def test_a_narrower_stream_is_seen_and_said() -> None:
    method = METHODS.get("width")
    plan = planned(method, method.config(keep=0.5), plan_of(dense("vit_plain")))
    rows = plan_rows(plan_json(plan))
    assert rows is not None
    stream = f"{plan.channels} of {plan.model.width} channels"
    assert f"the stream has {stream}" in plan_picture(rows).description
    assert plan_picture(rows).svg != plan_picture(replace(rows, channels=(1, 1))).svg

"""The tables of the planner's page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from vitslim.planner.budget import Measure
from vitslim.planner.damage import Damage
from vitslim.planner.result import Answer, Outlook, StepReason, Trial
from vitslim.report.content import Cell, Table
from vitslim.report.numbers import ABSENT, amount, fixed, half_width, percent, points, times, whole
from vitslim.report.planner_data import KINDS, Trials, budget_words

Row = list[str | Cell]
_OF = {"time": "time", "macs": "multiply-accumulates", "parameters": "parameters"}


def budgets_table(trials: Trials, answers: Sequence[Answer]) -> Table:
    """What was chosen for each budget."""
    rows = [
        [
            budget_words(one.budget),
            Cell(f"plan {one.chosen + 1}", below=trials.report.trials[one.chosen].name),
            times(trials.gain(one.chosen, one.budget.measure)),
            fixed(trials.latency_ms(one.chosen)),
            *_quality(trials, trials.report.trials[one.chosen].last),
        ]
        for one in answers
    ]
    note = "Gain: how many times less a plan takes than the dense model, of what the budget limits."
    header = ["Budget", "Chosen", "Gain", "Latency, ms", *_quality_names(trials)]
    return Table("The chosen plans.", header, rows, words=2, note=note)


def trials_table(trials: Trials, answer: Answer) -> Table:
    """All trials of one budget, and the dense model before them."""
    report, is_timed = trials.report, answer.budget.measure == "time"
    header = ["Plan", "Speed" if is_timed else "Saving", *(["Latency, ms", "Predicted, ms"] if is_timed else [])]
    header += [*_quality_names(trials), "KL at start, nats", "Steps trained", "MACs", "Parameters"]
    rows = [_dense_row(trials, is_timed=is_timed), *(_trial_row(trials, index, answer) for index in answer.trials)]
    images = report.images
    least = 100 * half_width(trials.score(report.trials[answer.chosen].last), images)
    note = f"On {whole(images)} held-out images, {trials.score_name} is uncertain by ±{fixed(least, 1)} points (95 %)."
    if len({len(report.trials[index].rungs) for index in answer.trials}) > 1:
        judged = "loss to the labels" if trials.has_labels else "KL"
        note = (
            f"Trials whose {judged} was higher were left behind early, after fewer steps; the least is chosen. {note}"
        )
    return Table("All trials, the least damaged before training first.", header, rows, note=note)


def _dense_row(trials: Trials, *, is_timed: bool) -> Row:
    latency = [fixed(trials.report.dense_ms), ABSENT] if is_timed else []
    costs = [amount(trials.dense.macs, "MAC"), amount(trials.dense.parameters)]
    return ["dense model", times(1.0), *latency, *_quality(trials, trials.report.dense), fixed(0.0, 3), ABSENT, *costs]


def _trial_row(trials: Trials, index: int, answer: Answer) -> Row:
    trial, dense_ms = trials.report.trials[index], trials.report.dense_ms
    is_chosen = index == answer.chosen
    below = f"chosen; {KINDS[trial.kind]}" if is_chosen else KINDS[trial.kind]
    latency: list[str] = []
    if answer.budget.measure == "time":
        predicted = None if dense_ms is None else dense_ms * trial.predicted
        latency = [fixed(trials.latency_ms(index)), fixed(predicted)]
    return [
        Cell(f"{index + 1}: {trial.name}", "good" if is_chosen else None, below),
        times(trials.gain(index, answer.budget.measure)),
        *latency,
        *_quality(trials, trial.last),
        fixed(trial.damage.kl, 3),
        whole(trial.rungs[-1].steps if trial.rungs else 0),
        amount(trial.macs, "MAC"),
        amount(trial.parameters),
    ]


def _quality_names(trials: Trials) -> list[str]:
    return [*(["Top-1", "Loss, nats"] if trials.has_labels else ["Agreement with dense"]), "KL, nats"]


def _quality(trials: Trials, damage: Damage) -> Row:
    dense = trials.report.dense.top1
    if dense is None:
        return [percent(damage.agreement, 1), fixed(damage.kl, 3)]
    lost = "" if damage.top1 is None or damage.top1 == dense else points(damage.top1 - dense)
    return [Cell(percent(damage.top1, 1), below=lost), fixed(damage.loss, 3), fixed(damage.kl, 3)]


def blocks_table(blocks: Sequence[StepReason], measure: Measure) -> Table:
    """What became of each block, and why."""
    rows: list[Row] = []
    for one in blocks:
        other: str | Cell = ABSENT
        if one.cheapest_other is not None:
            name, divergence = one.cheapest_other
            other = Cell(fixed(divergence, 4), below=name)
        rows.append([str(one.block), one.choice, percent(one.cost, 1), fixed(one.alone, 4), other])
    header = ["Block", "What became of it", "Cost, of dense", "KL alone, nats", "Next best, KL, nats"]
    note = (
        f"Cost: share of the whole dense model's {_OF[measure]}. KL alone: before training, with this block changed "
        "and all others dense. Next best: the least damaging other change of the block that was measured."
    )
    return Table("The chosen plan, block by block.", header, rows, words=2, note=note)


def predictors_table(found: Mapping[str, float], trained: int) -> Table:
    """Which figures order the trials as their training did."""
    # Var ρ = 1 / (n - 1) under independence
    chance = 1.96 / math.sqrt(trained - 1)
    rows: list[Row] = [
        [name, Cell(fixed(value), "good" if value > chance else None)]
        for name, value in sorted(found.items(), key=lambda item: -item[1])
    ]
    sure = "no figure here can be told from it" if chance >= 1 else f"a ρ within ±{fixed(chance)} may be chance"
    note = (
        "Spearman's rank correlation with the KL after the first short training: 1 means that the figure put the "
        f"trials into the same order, 0 that it says nothing. With {trained} trials, {sure}."
    )
    return Table("Figures known before training.", ("Figure", "ρ"), rows, note=note, look="facts")


def outlook_table(outlook: Sequence[Outlook], measure: Measure) -> Table:
    """The divergence that is expected at other budgets."""
    rows = [[times(1.0 / one.limit), percent(one.limit, 0), fixed(one.expected_kl, 3)] for one in outlook]
    header = ["Budget", f"Share of the dense model's {_OF[measure]}", "Expected KL, nats"]
    return Table("The best choice for each block at other budgets.", header, rows)


def prediction_words(trials: Sequence[Trial], median: float) -> str:
    """How good the predicted times were, in a sentence."""
    errors = [abs(one.predicted / one.measured - 1.0) for one in trials if one.measured is not None]
    worst = f", by {percent(max(errors), 1)} at most" if errors else ""
    return f"Predicted times of the {len(errors)} trials were off by {percent(median, 1)} in the median{worst}."

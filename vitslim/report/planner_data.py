"""What the planner's page says of a trial, and the files that it carries."""

from __future__ import annotations

import csv
import io

from vitslim.files import json_text
from vitslim.planner.budget import Budget, Measure
from vitslim.planner.damage import Damage
from vitslim.planner.result import Answer, PlanReport, Trial
from vitslim.plans import cost, dense_plan, read_plan
from vitslim.report.content import Download

KINDS = {
    "method": "one method",
    "methods": "several methods",
    "steps": "a choice per block",
    "improved": "improved block by block",
}
"""How a trial was found, in words."""
GAINS: dict[Measure, str] = {
    "time": "as fast as the dense model",
    "macs": "fewer multiply-accumulates than the dense model",
    "parameters": "fewer parameters than the dense model",
}
"""What a plan is as many times as its gain says."""
_RUNTIMES = {
    "ort": "ONNX Runtime",
    "torch": "PyTorch",
    "compiled": "compiled PyTorch",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
}


class Trials:
    """The trials of a report as its page compares them.

    Raises:
        ConfigError: one of the plans cannot be read.
    """

    def __init__(self, report: PlanReport) -> None:
        self.report = report
        self.has_labels = report.dense.top1 is not None
        self.dense = cost(dense_plan(read_plan(report.trials[0].plan, "planner.json").model))

    def gain(self, index: int, measure: Measure) -> float:
        """How many times less a trial takes than the dense model, of what a budget limits."""
        trial = self.report.trials[index]
        if measure == "macs":
            return self.dense.macs / trial.macs
        if measure == "parameters":
            return self.dense.parameters / trial.parameters
        return 1.0 / trial.share

    def latency_ms(self, index: int) -> float | None:
        """Of one call, as measured; ``None`` where it was not."""
        dense, share = self.report.dense_ms, self.report.trials[index].measured
        return None if dense is None or share is None else dense * share

    def score(self, damage: Damage) -> float:
        """Accuracy where the images have labels, else agreement with the dense model, 0..1."""
        return damage.agreement if damage.top1 is None else damage.top1

    @property
    def score_name(self) -> str:
        """What ``score`` is."""
        return "top-1" if self.has_labels else "agreement with dense"


def short_name(index: int, trial: Trial) -> str:
    """A trial in a picture: its number, and its methods where they are all that there is to say."""
    methods = " + ".join(str(entry["method"]) for entry in trial.entries)
    words = (
        methods if trial.kind in ("method", "methods") else {"steps": "per block", "improved": "improved"}[trial.kind]
    )
    return f"{index + 1}  {words}"


def budget_words(budget: Budget) -> str:
    """A budget as people say it."""
    ((name, value),) = budget.model_dump(exclude_none=True).items()
    words = {
        "speedup": f"{value:.4g}× as fast",
        "latency_ms": f"at most {value:.4g} ms",
        "macs": f"at most {value:.4g} GMAC",
        "params": f"at most {value:.4g} M parameters",
        "file_mib": f"at most {value:.4g} MiB of weights",
        "max_drop": f"at most {value:.4g} point{'' if value == 1 else 's'} lost",
    }
    return words[name]


def runtime_words(report: PlanReport) -> str:
    """Where a time was measured, as in ``ONNX Runtime fp32 on cpu, 1 thread, batch 1``."""
    own = report.runtime
    if own is None:
        return ""
    threads = f", {own.threads} thread{'s' if own.threads > 1 else ''}" if own.device == "cpu" else ""
    return f"{_RUNTIMES.get(own.backend, own.backend)} {own.precision} on {own.device}{threads}, batch {own.batch}"


def across(report: PlanReport, measure: Measure) -> str:
    """What an axis of gains shows."""
    if measure == "time":
        where = "" if report.runtime is None else f" in {_RUNTIMES.get(report.runtime.backend, report.runtime.backend)}"
        return f"measured speed{where}, dense model 1×"
    return f"times {GAINS[measure]}"


def downloads(report: PlanReport) -> list[Download]:
    """Every chosen plan, the whole report, and a table of all trials."""
    files = [_plan_file(report, answer, is_first=place == 0) for place, answer in enumerate(report.answers)]
    whole = report.model_dump_json()  # without indents: it is the largest part of the page
    return [
        *files,
        Download("planner.json", "application/json", whole, "everything on this page, with every plan"),
        Download("trials.csv", "text/csv", trials_csv(report), "a line for each trial"),
    ]


def _plan_file(report: PlanReport, answer: Answer, *, is_first: bool) -> Download:
    name = "plan.json" if is_first else f"plan-{answer.budget.describe().lstrip('-').replace(' ', '-')}.json"
    text = json_text(report.trials[answer.chosen].plan, name)
    what = f"the plan chosen for “{budget_words(answer.budget)}”; vitslim convert --plan {name} builds it"
    return Download(name, "application/json", text, what)


def trials_csv(report: PlanReport) -> str:
    """All trials as CSV: a header, then one line each; times as shares of the dense model's, KL in nats."""
    figures = list(dict.fromkeys(name for trial in report.trials for name in trial.figures))
    measures = list(Damage.model_fields)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    header = ["trial", "name", "kind", "chosen_for", "predicted", "measured", "macs", "parameters", "expected_kl"]
    header += [f"{name}_at_start" for name in measures] + [f"{name}_after" for name in measures]
    table.writerow([*header, "steps", *figures])
    for index, trial in enumerate(report.trials):
        chosen = [one.budget.describe() for one in [*report.answers, *report.front] if one.chosen == index]
        start, last = trial.damage.model_dump(), trial.last.model_dump()
        row = [index + 1, trial.name, trial.kind, "; ".join(dict.fromkeys(chosen)), trial.predicted, trial.measured]
        row += [trial.macs, trial.parameters, trial.expected_kl]
        row += [*(start[name] for name in measures), *(last[name] for name in measures)]
        steps = trial.rungs[-1].steps if trial.rungs else 0
        table.writerow([*row, steps, *(trial.figures.get(name) for name in figures)])
    return text.getvalue()

"""The command that finds a plan for a budget: plan; with the options and the table that convert shares."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitslim.cli import complete, options
from vitslim.cli.screen import Screen, duration, print_json, print_table, say
from vitslim.cli.train import distill_budget
from vitslim.errors import ConfigError

if TYPE_CHECKING:
    from vitslim.planner import PlanReport, Trial

SpeedupOption = Annotated[
    list[float] | None, typer.Option("--speedup", help="budget: so many times as fast as the dense model")
]
LatencyOption = Annotated[
    list[float] | None, typer.Option("--latency-ms", help="budget: milliseconds of one call in the target")
]
MacsOption = Annotated[
    list[float] | None, typer.Option("--macs", help="budget: billions of multiply-accumulates of an image")
]
ParamsOption = Annotated[list[float] | None, typer.Option("--params", help="budget: millions of parameters")]
FileOption = Annotated[list[float] | None, typer.Option("--file-mib", help="budget: MiB of weights in the precision")]
DropOption = Annotated[
    list[float] | None,
    typer.Option("--max-drop", help="budget: points of accuracy that the fastest plan may lose"),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="backend to be fast in: ort, torch, compiled, tensorrt and others; default: the fastest that is installed",
        show_default=False,
        autocompletion=complete.backends,
    ),
]
BatchOption = Annotated[int, typer.Option("--batch", help="images per call that it has to be fast at", min=1)]
ThreadsOption = Annotated[int, typer.Option("--threads", help="of the CPU in the target", min=1)]
PrecisionOption = Annotated[str, typer.Option("--precision", help="of the target: fp32, fp16, bf16 or int8")]

_EXAMPLES = {"speedup": 1.5, "latency_ms": 40.0, "macs": 2.9, "params": 15.0, "file_mib": 40.0, "max_drop": 1.0}
Budgets = list[dict[str, float]]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(plan)


def plan(
    model: options.ModelArgument,
    data: Annotated[str, typer.Option("--data", help="images of the task; labels are not needed")],
    out: options.OutOption,
    speedup: SpeedupOption = None,
    latency_ms: LatencyOption = None,
    macs: MacsOption = None,
    params: ParamsOption = None,
    file_mib: FileOption = None,
    max_drop: DropOption = None,
    target: TargetOption = None,
    batch: BatchOption = 1,
    threads: ThreadsOption = 1,
    precision: PrecisionOption = "fp32",
    epochs: Annotated[
        float | None,
        typer.Option("--epochs", help="passes of the distillation to follow; default 3", show_default=False),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", help="plans that are trained for a short while", min=1, show_default=False)
    ] = None,
    recovery: Annotated[
        float | None,
        typer.Option(
            "--recovery",
            help="steps of all short trainings, as a share of the distillation's",
            min=0,
            show_default=False,
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Ray cluster for the short trainings", show_default=False),
    ] = None,
    batch_size: options.BatchSizeOption = 64,
    weights: options.WeightsOption = None,
    no_pretrained: options.NoPretrainedOption = False,
    img_size: options.ImageSizeOption = None,
    num_classes: options.ClassesOption = None,
    model_arg: options.ModelArgOption = None,
    setting: options.SetOption = None,
    device: options.DeviceOption = "cpu",
    seed: options.SeedOption = 0,
    overwrite: options.OverwriteOption = False,
    dry_run: options.DryRunOption = False,
    json: options.JsonOption = False,
) -> None:
    """Find the plan of a model that recovers best within a budget.

    Steps are timed in the target, damage is measured on the images, and the best
    plans of different kinds are trained for a short while. `vitslim convert MODEL
    --plan OUT/plan.json --data ...` then makes the student.

    Every budget but --max-drop can be repeated, and several kinds given: each gets its plan.
    """
    budgets = given_budgets(speedup, latency_ms, macs, params, file_mib, max_drop)
    if not budgets:
        raise ConfigError(f"name a budget: {', '.join(described({name: one}) for name, one in _EXAMPLES.items())}")
    from vitslim.pipeline.budgets import find_plan, outline_plan
    from vitslim.recipe import read_recipe

    document: dict[str, Any] = {
        "model": options.model_section(
            model,
            weights=weights,
            no_pretrained=no_pretrained,
            img_size=img_size,
            num_classes=num_classes,
            model_arg=model_arg,
        ),
        "data": {"source": data, "batch_size": batch_size},
        "planner": {
            "budgets": budgets,
            "runtime": runtime_section(target, batch, threads, precision, device),
            "config": _given({"trials": trials, "recovery": recovery, "ray": ray}),
        },
        "distill": distill_budget(epochs, setting or []),
        "device": device,
        "seed": seed,
    }
    recipe = read_recipe(document, setting or [])
    options.show_resolved(model)
    if dry_run:
        ahead = outline_plan(recipe, out, overwrite=overwrite)
        if json:
            print_json(ahead.model_dump(mode="json"))
            return
        for line in ahead.lines:
            say(line)
        say(f"{duration(ahead.seconds)}; nothing is written")
        return
    with Screen() as screen:
        report = find_plan(recipe, out, overwrite=overwrite, progress=screen)
    if json:
        print_json({**report.model_dump(mode="json"), "out": str(out)})
        return
    show_trials(report)
    words = ["vitslim", "convert", model, "--plan", str(out / "plan.json"), "--data", data]
    repeated = {"--model-arg": model_arg, "--set": [one for one in setting or [] if not one.startswith("planner.")]}
    changed = {
        "--target": target,
        "--batch": None if batch == 1 else batch,
        "--threads": None if threads == 1 else threads,
        "--precision": None if precision == "fp32" else precision,
        "--epochs": epochs,
        "--batch-size": None if batch_size == 64 else batch_size,
        "--weights": weights,
        "--img-size": img_size,
        "--num-classes": num_classes,
        "--device": None if device == "cpu" else device,
        "--seed": seed or None,
    }
    words += [word for name, value in changed.items() if value is not None for word in (name, str(value))]
    words += [word for name, values in repeated.items() for value in values or [] for word in (name, value)]
    words += ["--no-pretrained"] if no_pretrained else []
    say(f"wrote {out}; the student: {shlex.join(words)} --out DIR")


def given_budgets(
    speedup: Sequence[float] | None,
    latency_ms: Sequence[float] | None,
    macs: Sequence[float] | None,
    params: Sequence[float] | None,
    file_mib: Sequence[float] | None,
    max_drop: Sequence[float] | None,
) -> Budgets:
    """The budgets that were named, as recipes have them."""
    every = zip(_EXAMPLES, (speedup, latency_ms, macs, params, file_mib, max_drop), strict=True)
    found = [{name: value} for name, values in every for value in values or ()]
    for one in found:
        least = 1 if "speedup" in one else 0
        if not all(least < value < inf for value in one.values()):
            raise ConfigError(f"{described(one)}: wanted a number above {least}")
    return found


def described(budget: Mapping[str, float]) -> str:
    """As it is typed: ``--speedup 1.5``."""
    return " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in budget.items())


def runtime_section(target: str | None, batch: int, threads: int, precision: str, device: str) -> dict[str, Any]:
    """The ``runtime`` of a recipe's planner, as the options say."""
    from vitslim.pipeline.runtimes import fastest_backend

    backend = fastest_backend(device) if target is None else target
    # Which GPU it is does not matter to what is timed on it.
    kind = device.partition(":")[0]
    return {"backend": backend, "batch": batch, "threads": threads, "precision": precision, "device": kind}


def show_trials(report: PlanReport) -> None:
    """All trials as a table, each chosen one with its budget."""
    columns = ("plan", "time of dense", "MACs", "parameters", "KL at start", "KL after", "steps", "chosen for")
    chosen: dict[int, list[str]] = {}
    for answer in report.answers:
        chosen.setdefault(answer.chosen, []).append(answer.budget.describe())
    print_table("", columns, [_row(one, chosen.get(index, ())) for index, one in enumerate(report.trials)])
    for caution in report.cautions:
        say(caution, style="yellow")


def _row(trial: Trial, budgets: Sequence[str]) -> list[str]:
    return [
        trial.name,
        "-" if trial.measured is None else f"{trial.measured:.0%}",
        f"{trial.macs / 1e9:.3f} G",
        f"{trial.parameters / 1e6:.2f} M",
        f"{trial.damage.kl:.3f}",
        f"{trial.last.kl:.3f}" if trial.rungs else "-",
        str(sum(rung.steps for rung in trial.rungs)),
        ", ".join(budgets),
    ]


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}

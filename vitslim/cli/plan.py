"""The command that finds a plan for a budget: plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitslim.cli import options
from vitslim.cli.screen import Screen, print_json, print_table, say
from vitslim.cli.train import distill_budget

if TYPE_CHECKING:
    from vitslim.planner import PlanReport, RuntimeConfig, Trial
    from vitslim.recipe import Recipe

SpeedupOption = Annotated[
    float | None,
    typer.Option("--speedup", help="budget: so many times as fast as the dense model", show_default=False),
]
LatencyOption = Annotated[
    float | None, typer.Option("--latency-ms", help="budget: milliseconds of one call", show_default=False)
]
MacsOption = Annotated[
    float | None,
    typer.Option("--macs", help="budget: billions of multiply-accumulates of an image", show_default=False),
]
ParamsOption = Annotated[
    float | None, typer.Option("--params", help="budget: millions of parameters", show_default=False)
]
TargetOption = Annotated[str, typer.Option("--target", help="backend that it has to be fast in: ort, torch, compiled")]

BatchOption = Annotated[int, typer.Option("--batch", help="images per call that it has to be fast at", min=1)]
ThreadsOption = Annotated[int, typer.Option("--threads", help="of the CPU", min=1)]


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
    target: TargetOption = "ort",
    batch: BatchOption = 1,
    threads: ThreadsOption = 1,
    precision: Annotated[str, typer.Option("--precision", help="fp32, fp16 or bf16")] = "fp32",
    epochs: Annotated[
        float | None,
        typer.Option("--epochs", help="passes of the distillation to follow; default 3", show_default=False),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", help="plans that are trained for a short while", min=1)] = 8,
    recovery: Annotated[
        float, typer.Option("--recovery", help="steps of all short trainings, as a share of the distillation's", min=0)
    ] = 0.15,
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
    json: options.JsonOption = False,
) -> None:
    """Find the plan of a model that recovers best within a budget.

    Steps are timed in the runtime, damage is measured on the images, and the best
    plans of different kinds are trained for a short while. `vitslim convert MODEL
    --plan OUT/plan.json --data ...` then makes the student.
    """
    from vitslim.pipeline.planning import PlannerConfig
    from vitslim.pipeline.planning import plan as find_plan
    from vitslim.planner import Budget
    from vitslim.recipe import read_recipe
    from vitslim.validation import validated

    budget = validated(Budget, given_budget(speedup, latency_ms, macs, params))
    runtime = _runtime(
        {"backend": target, "batch": batch, "threads": threads, "precision": precision, "device": device}
    )
    document: dict[str, Any] = {
        "model": {
            "name": model,
            "pretrained": not no_pretrained,
            "weights": None if weights is None else str(weights),
            "img_size": options.image_size(img_size),
            "num_classes": num_classes,
            "options": options.model_arguments(model_arg),
        },
        "data": {"source": data, "batch_size": batch_size},
        "distill": distill_budget(epochs, setting or []),
        "device": device,
        "seed": seed,
    }
    recipe = read_recipe(document, setting or [])
    config = validated(PlannerConfig, {"trials": trials, "recovery": recovery})
    options.show_resolved(model)
    with Screen() as screen:
        report = find_plan(
            recipe, out, budget=budget, runtime=runtime, config=config, overwrite=overwrite, progress=screen
        )
    if json:
        print_json({**report.model_dump(mode="json"), "out": str(out)})
        return
    show_trials(report)
    say(f"wrote {out}; the student: vitslim convert {model} --plan {out}/plan.json --data {data} --out DIR")


def given_budget(
    speedup: float | None, latency_ms: float | None, macs: float | None, params: float | None
) -> dict[str, float]:
    """The budgets that were named."""
    given = {"speedup": speedup, "latency_ms": latency_ms, "macs": macs, "params": params}
    return {name: value for name, value in given.items() if value is not None}


def shown_budget(budget: Mapping[str, float]) -> str:
    """As it was typed."""
    return " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in budget.items())


def plan_first(
    recipe: Recipe,
    out: Path,
    budget: Mapping[str, float],
    runtime: Mapping[str, Any],
    *,
    overwrite: bool,
    quiet: bool,
) -> Recipe:
    """The recipe with the plan that is found for a budget, in a folder beside ``out``."""
    from vitslim.pipeline.planning import plan as find_plan
    from vitslim.planner import Budget
    from vitslim.validation import validated

    folder = out.with_name(f"{out.name}-plan")
    with Screen() as screen:
        report = find_plan(
            recipe,
            folder,
            budget=validated(Budget, budget),
            runtime=_runtime(runtime),
            overwrite=overwrite,
            progress=screen,
        )
    if not quiet:
        show_trials(report)
    return recipe.model_copy(update={"plan": str(folder / "plan.json")})


def _runtime(given: Mapping[str, Any]) -> RuntimeConfig:
    from vitslim.planner import RuntimeConfig
    from vitslim.validation import validated

    return validated(RuntimeConfig, {**given, "device": str(given["device"]).split(":")[0]})


def show_trials(report: PlanReport) -> None:
    """All trials as a table, the chosen one marked."""
    columns = ("", "plan", "time of dense", "MACs", "parameters", "KL at start", "KL after", "steps")
    rows = [_row(one, "*" if index == report.chosen else "") for index, one in enumerate(report.trials)]
    print_table("", columns, rows)


def _row(trial: Trial, mark: str) -> list[str]:
    last = trial.rungs[-1] if trial.rungs else None
    return [
        mark,
        trial.name,
        "-" if trial.measured is None else f"{trial.measured:.0%}",
        f"{trial.macs / 1e9:.3f} G",
        f"{trial.parameters / 1e6:.2f} M",
        f"{trial.damage.kl:.3f}",
        "-" if last is None else f"{last.damage.kl:.3f}",
        "0" if last is None else str(last.steps),
    ]

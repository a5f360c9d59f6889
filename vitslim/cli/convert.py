"""Commands that run the pipeline: convert, run, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitslim.cli import options
from vitslim.cli.header import announcer, say_choices, say_outline
from vitslim.cli.inspect import print_plan
from vitslim.cli.plan import (
    BatchOption,
    DropOption,
    FileOption,
    LatencyOption,
    MacsOption,
    ParamsOption,
    PrecisionOption,
    SpeedupOption,
    TargetOption,
    ThreadsOption,
    described,
    given_budgets,
    runtime_section,
    show_trials,
)
from vitslim.cli.screen import Screen, print_json, print_metrics, print_table, say, say_skipped
from vitslim.cli.train import distill_budget
from vitslim.errors import ConfigError

if TYPE_CHECKING:
    from vitslim.pipeline import RunResult
    from vitslim.recipe import Recipe

_AUGMENT = "data.augment"  # where --set finds the augmentation in a recipe


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(convert)
    app.command()(run)
    app.command()(demo)


def convert(
    model: options.ModelArgument,
    out: options.OutOption,
    method: options.MethodsOption = None,
    plan: options.PlanOption = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-O", metavar="[METHOD.]KEY=VALUE", help="an option of a method, as layers=3-8"),
    ] = None,
    data: options.DataOption = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="dense model to learn from; default MODEL", show_default=False)
    ] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="passes of distillation; default 3", show_default=False)
    ] = None,
    finetune_dense: Annotated[
        bool, typer.Option("--finetune-dense", help="train the dense model with the same budget too")
    ] = False,
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
    analyze: Annotated[
        bool, typer.Option("--analyze", help="analyze the dense model, also where no method reads the analysis")
    ] = False,
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
    """Convert a pretrained ViT; with --data also warm start, distill, evaluate.

    With a budget (--speedup 1.5) in place of methods the plan is found first, as
    `vitslim plan` does, in OUT/planner. Of several budgets the student gets the
    first one's plan. With a budget, --plan or --target it is exported for the target
    and timed there beside the dense model.

    With --data, a method whose blocks an analysis can choose (depth, mlp, heads,
    skipat, sret) has the dense model analyzed and takes what is recommended. Name
    the blocks (-O layers=3-8; skipat: also -O layers=paper) to go without.

    Training images are mirrored left-right with probability 0.5. Turn that off
    where mirror images are other classes, as with digits or text:
    --set data.augment.hflip=0 (default 0.5).
    """
    budgets = given_budgets(speedup, latency_ms, macs, params, file_mib, max_drop)
    if not method and plan is None and not budgets:
        raise ConfigError(
            "name a method (--method depth; `vitslim list methods` shows all), a plan (--plan FILE) or a budget "
            "(--speedup 1.5)"
        )
    if budgets and (method or plan is not None or data is None):
        given, wrong = " ".join(map(described, budgets)), "--plan" if plan is not None else "--method"
        if data is None:
            raise ConfigError(f"{given}: a plan for a budget is found on images of the task; add --data")
        raise ConfigError(f"{given}: a budget stands in place of {wrong}; leave one of them out")
    document: dict[str, Any] = {
        "plan": None if plan is None else str(plan),
        "model": options.model_section(
            model,
            weights=weights,
            no_pretrained=no_pretrained,
            img_size=img_size,
            num_classes=num_classes,
            model_arg=model_arg,
        ),
        "convert": options.method_entries(method or [], option or []),
        "device": device,
        "seed": seed,
    }
    if data is not None:
        document |= {
            "data": {"source": data, "batch_size": batch_size},
            "analyze": {} if analyze else None,
            "warm_start": {},
            "distill": distill_budget(epochs, setting or []),
            "finetune_dense": finetune_dense,
            "teacher": teacher,
        }
    elif epochs is not None or finetune_dense or teacher is not None or analyze or target is not None:
        raise ConfigError("--epochs, --finetune-dense, --teacher, --analyze and --target need images; add --data")
    if data is not None and (budgets or plan is not None or target is not None):
        runtime = runtime_section(target, batch, threads, precision, device)
        document |= _proof(runtime) | ({"planner": {"budgets": budgets, "runtime": runtime}} if budgets else {})
    elif (batch, threads, precision) != (1, 1, "fp32"):
        raise ConfigError("--batch, --threads and --precision say how the student is timed in --target; name that too")
    from vitslim.pipeline.choices import reads_analysis
    from vitslim.recipe import AnalyzeSection, read_recipe

    recipe = read_recipe(document, setting or [])
    is_said = any(word.startswith("analyze") for word in setting or [])
    if recipe.data is not None and recipe.analyze is None and not is_said and reads_analysis(recipe):
        recipe = recipe.model_copy(update={"analyze": AnalyzeSection.model_validate({})})
    _run_recipe(recipe, out, overwrite=overwrite, dry_run=dry_run, json=json)
    if recipe.bench is not None and precision == "int8" and not dry_run:
        say(f"write the file in INT8, judged on its images: `vitslim export {out} --precision int8 --data {data}`")


def _proof(runtime: dict[str, Any]) -> dict[str, Any]:
    """The sections of a recipe that write a student for a runtime and time it there."""
    from vitslim.pipeline.runtimes import runs_onnx_files

    precisions = [runtime["precision"]]
    # INT8 is written and judged by a command of its own.
    floats = ["fp32"] if precisions == ["int8"] else precisions
    timed = {name: runtime[name] for name in ("threads", "device")}
    return {
        "export": {"precisions": floats} if runs_onnx_files(runtime["backend"]) else None,
        "bench": {"backends": [runtime["backend"]], "precisions": precisions, "batches": [runtime["batch"]], **timed},
    }


def run(
    recipe: Annotated[Path, typer.Argument(help="recipe file, YAML")],
    out: options.OutOption,
    setting: options.SetOption = None,
    overwrite: options.OverwriteOption = False,
    dry_run: options.DryRunOption = False,
    json: options.JsonOption = False,
) -> None:
    """Run a recipe; finished stages whose inputs have not changed are skipped.

    Training images are mirrored left-right with probability 0.5. Turn that off
    where mirror images are other classes, as with digits or text:
    --set data.augment.hflip=0 (default 0.5).
    """
    from vitslim.recipe import load_recipe

    _run_recipe(load_recipe(recipe, setting or []), out, overwrite=overwrite, dry_run=dry_run, json=json)


def demo(
    out: Annotated[Path, typer.Option("--out", help="output folder")] = Path("demo-out"),
    everything: Annotated[
        bool, typer.Option("--all", help="every student of the file: twice as many trainings")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="a smoke run of a few steps; its figures mean little")] = False,
    overwrite: options.OverwriteOption = False,
    json: options.JsonOption = False,
) -> None:
    """The whole pipeline on the built-in model and images, with every method, ending in a report. Needs no download.

    It takes a quarter of an hour on two CPU cores that do nothing else; a folder that was
    begun goes on where it stood.
    """
    from vitslim.pipeline.demo import run_demo

    with Screen() as screen:
        result = run_demo(out, everything=everything, quick=quick, overwrite=overwrite, progress=screen)
    if json:
        print_json(result)
        return
    columns = list(result["table"][0])
    print_table("", columns, [[row[name] for name in columns] for row in result["table"]])
    for note in result["notes"]:
        say(note)
    say(f"open {result['report']}")


def _run_recipe(recipe: Recipe, out: Path, *, overwrite: bool, dry_run: bool, json: bool) -> None:
    from vitslim.pipeline import require_passed
    from vitslim.pipeline import run as run_recipe
    from vitslim.recipe import write_yaml

    options.show_resolved(recipe.model.name)
    if dry_run:
        from vitslim.pipeline.budgets import outline_plan, with_planning
        from vitslim.pipeline.checks import check
        from vitslim.pipeline.folder import RunFolder
        from vitslim.plans import plan_json

        RunFolder(out).check(write_yaml(recipe), overwrite=overwrite)
        forecast = check(recipe)
        outline, planning = forecast.outline, None
        if recipe.planner is not None:
            planning = outline_plan(recipe)
            outline = with_planning(outline, planning)
        say_outline(outline, _AUGMENT)
        say_choices(forecast.choices)
        if json:
            choices = [one.model_dump(mode="json") for one in forecast.choices]
            plan = None if forecast.plan is None else plan_json(forecast.plan)
            ahead = None if planning is None else planning.model_dump(mode="json")
            document = {"recipe": recipe.model_dump(mode="json"), "plan": plan, "choices": choices, "planning": ahead}
            print_json(document)
            return
        say("nothing is written; the resolved recipe:\n")
        typer.echo(write_yaml(recipe))
        if forecast.plan is not None:
            print_plan(forecast.plan)
        return
    with Screen() as screen:
        result = run_recipe(recipe, out, overwrite=overwrite, progress=screen, announce=announcer(_AUGMENT))
    _show_result(recipe, result, json=json)
    require_passed(result)


def _show_result(recipe: Recipe, result: RunResult, *, json: bool) -> None:
    from vitslim.files import read_json
    from vitslim.plans import plan_json
    from vitslim.trunk import is_converted, plan_of

    training = None if recipe.distill is None else read_json(result.folder / "train" / "result.json")

    plan = plan_of(result.student) if is_converted(result.student) else None
    if json:
        choices = [one.model_dump(mode="json") for one in result.choices]
        document = None if plan is None else plan_json(plan)
        found = {"metrics": dict(result.metrics), "plan": document, "choices": choices, "passed": result.passed}
        print_json({"out": str(result.folder), **found, "training": training})
        return
    if recipe.planner is not None:
        from vitslim.pipeline.running import PLANNER_FILE, PLANNER_FOLDER
        from vitslim.planner import PlanReport

        show_trials(PlanReport.model_validate(read_json(result.folder / PLANNER_FOLDER / PLANNER_FILE)))
    if plan is not None:
        print_plan(plan)
    print_metrics(result.metrics)
    if training is not None:
        say_skipped(training, "training")
    if plan is not None and training is None:
        say(
            "note: the converted model is not trained yet; "
            f"`vitslim train {result.folder} --teacher {recipe.model.name} --data IMAGES --out DIR` trains it",
            style="yellow",
        )
    say(f"wrote {result.folder}")

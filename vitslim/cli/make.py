"""Verbs that make something: convert, train, run, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitslim.cli import options
from vitslim.cli.screen import Screen, print_json, print_metrics, print_table, say, say_skipped
from vitslim.errors import ConfigError

if TYPE_CHECKING:
    from vitslim.pipeline import RunResult
    from vitslim.recipe import Recipe

OutOption = Annotated[Path, typer.Option("--out", help="output folder", show_default=False)]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="check everything, say what would be done, write nothing")
]

_EPOCHS = 3.0


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(convert)
    app.command()(train)
    app.command()(pretrain)
    app.command()(run)
    app.command()(demo)


def convert(
    model: options.ModelArgument,
    method: Annotated[list[str], typer.Option("--method", help="a method; repeat the option to compose")],
    out: OutOption,
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
    control: Annotated[bool, typer.Option("--control", help="train the dense model with the same budget too")] = False,
    batch_size: options.BatchSizeOption = 64,
    weights: options.WeightsOption = None,
    no_pretrained: options.NoPretrainedOption = False,
    img_size: options.ImageSizeOption = None,
    num_classes: options.ClassesOption = None,
    setting: options.SetOption = None,
    device: options.DeviceOption = "cpu",
    seed: options.SeedOption = 0,
    overwrite: options.OverwriteOption = False,
    dry_run: DryRunOption = False,
    json: options.JsonOption = False,
) -> None:
    """Convert a pretrained ViT; with --data also analyze, warm start, distill, evaluate."""
    from vitslim.recipe import read_recipe

    document: dict[str, Any] = {
        "model": {
            "name": model,
            "pretrained": not no_pretrained,
            "weights": None if weights is None else str(weights),
            "img_size": options.image_size(img_size),
            "num_classes": num_classes,
        },
        "convert": options.method_entries(method, option or []),
        "device": device,
        "seed": seed,
    }
    if data is not None:
        document |= {
            "data": {"source": data, "batch_size": batch_size},
            "analyze": {},
            "warm_start": {},
            "distill": _budget(epochs, setting or []),
            "control": control,
            "teacher": teacher,
        }
    elif epochs is not None or control or teacher is not None:
        raise ConfigError("--epochs, --control and --teacher train the model and need images; add --data")
    recipe = read_recipe(document, setting or [])
    _walk(recipe, out, overwrite=overwrite, dry_run=dry_run, json=json)


def _budget(epochs: float | None, settings: list[str]) -> dict[str, Any]:
    """The length of distillation, unless ``--set`` gives it in other words."""
    in_steps = any(setting.startswith("distill.steps=") for setting in settings)
    return {} if epochs is None and in_steps else {"epochs": _EPOCHS if epochs is None else epochs}


def train(
    model: options.ModelArgument,
    data: Annotated[str, typer.Option("--data", help="images")],
    out: OutOption,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="model to learn from; none: labels alone", show_default=False)
    ] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="start from random weights")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --out")] = False,
    epochs: Annotated[float, typer.Option("--epochs", help="passes over the images")] = _EPOCHS,
    batch_size: options.BatchSizeOption = 64,
    num_classes: options.ClassesOption = None,
    img_size: options.ImageSizeOption = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="training settings, as lr=1e-3 or ema_decay=0.99"),
    ] = None,
    device: options.DeviceOption = "cpu",
    seed: options.SeedOption = 0,
    overwrite: options.OverwriteOption = False,
    json: options.JsonOption = False,
) -> None:
    """Train a saved or dense model: to a teacher (distillation), or to labels (fine-tuning, pretraining).

    Several processes: torchrun --nproc-per-node N -m vitslim.cli.main train ...; each takes --batch-size images a step.
    """
    from vitslim import pipeline
    from vitslim.data.randomness import seeded
    from vitslim.pipeline.training import claim_folder, open_untrained, read_settings, train_to_folder
    from vitslim.pipeline.verbs import device_named
    from vitslim.train.processes import started_processes

    hard = teacher is None
    losses = {"hard": float(hard), "soft": float(not hard)}
    config, augment = read_settings({"epochs": epochs, "seed": seed, **losses}, setting)
    device_named(device)
    from vitslim.cli.look import show_resolved

    is_main = started_processes().is_main
    note = claim_folder(out, device, resume=resume, overwrite=overwrite)
    if note is not None:
        say(f"note: {note}")
    if is_main:
        show_resolved(model)
    given: dict[str, Any] = {"num_classes": num_classes, "img_size": options.image_size(img_size)}
    with seeded(seed):  # a classifier for other classes starts anew
        student = open_untrained(model, seed, **given) if from_scratch else pipeline.open_any(model, **given)
    dense = None if teacher is None else pipeline.open_any(teacher)
    with Screen() as screen:
        result = train_to_folder(
            student,
            dense,
            data,
            config,
            out,
            augment=augment,
            batch_size=batch_size,
            device=device,
            resume=resume,
            progress=screen,
        )
    if not is_main:
        return
    if json:
        print_json(result)
        return
    print_metrics(result["metrics"])
    say_skipped(result["result"], "training")
    say(f"wrote {out}")


def pretrain(
    settings: Annotated[Path, typer.Argument(metavar="FILE", help="phases of the training, YAML")],
    out: OutOption,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --out")] = False,
    overwrite: options.OverwriteOption = False,
    json: options.JsonOption = False,
) -> None:
    """Train a small ViT from scratch in phases; this made the built-in model (recipes/builtin_teacher.yaml)."""
    from vitslim.checkpoint import check_output_folder
    from vitslim.pipeline.training import read_pretrain_config
    from vitslim.train import pretrain as train_phases

    config = read_pretrain_config(settings)
    if not resume:
        check_output_folder(out, overwrite=overwrite)
    with Screen() as screen:
        result = train_phases(config, out, resume=resume, progress=screen)
    document = result.model_dump(mode="json")
    if json:
        print_json(document)
        return
    print_metrics({"held out": document["held_out"]})
    say(f"wrote {out / result.weights}")


def run(
    recipe: Annotated[Path, typer.Argument(help="recipe file, YAML")],
    out: OutOption,
    setting: options.SetOption = None,
    overwrite: options.OverwriteOption = False,
    dry_run: DryRunOption = False,
    json: options.JsonOption = False,
) -> None:
    """Walk a recipe's whole road; finished stages whose inputs have not changed are skipped."""
    from vitslim.recipe import load_recipe

    _walk(load_recipe(recipe, setting or []), out, overwrite=overwrite, dry_run=dry_run, json=json)


def demo(
    out: Annotated[Path, typer.Option("--out", help="output folder")] = Path("demo-out"),
    everything: Annotated[bool, typer.Option("--all", help="every method and a pair; takes twice as long")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="a smoke run of a minute; its figures mean little")] = False,
    overwrite: options.OverwriteOption = False,
    json: options.JsonOption = False,
) -> None:
    """The whole road on the built-in model and images, with every method, ending in a report. Needs no download."""
    from vitslim.pipeline.demo import run_demo

    with Screen() as screen:
        result = run_demo(out, everything=everything, quick=quick, overwrite=overwrite, progress=screen)
    if json:
        print_json(result)
        return
    columns = ("model", "top-1", "vs control", "agreement", "parameters", "MACs", "ONNX file", "speed vs dense")
    print_table("", columns, [[row[name] for name in columns] for row in result["table"]])
    for note in result["notes"]:
        say(note)
    say(f"open {result['report']}")


def _walk(recipe: Recipe, out: Path, *, overwrite: bool, dry_run: bool, json: bool) -> None:
    from vitslim.cli.look import show_resolved
    from vitslim.pipeline import require_passed
    from vitslim.pipeline import run as run_recipe
    from vitslim.recipe import write_yaml

    show_resolved(recipe.model.name)
    if dry_run:
        from vitslim.pipeline.checks import check

        summary = check(recipe)
        if json:
            print_json({"recipe": recipe.model_dump(mode="json"), "plan": summary})
            return
        say("nothing is written; the resolved recipe:\n")
        typer.echo(write_yaml(recipe))
        _print_plan(summary)
        return
    with Screen() as screen:
        result = run_recipe(recipe, out, overwrite=overwrite, progress=screen)
    _show_result(recipe, result, json=json)
    require_passed(result)


def _show_result(recipe: Recipe, result: RunResult, *, json: bool) -> None:
    from vitslim.files import read_json
    from vitslim.trunk import is_converted, plan_summary

    training = None if recipe.distill is None else read_json(result.folder / "train" / "result.json")

    plan = plan_summary(result.student) if is_converted(result.student) else []
    if json:
        document = {"out": str(result.folder), "metrics": dict(result.metrics), "plan": plan, "passed": result.passed}
        print_json({**document, "training": training})
        return
    _print_plan(plan)
    print_metrics(result.metrics)
    if training is not None:
        say_skipped(training, "training")
    if recipe.distill is None and recipe.convert:
        say(
            "note: the converted model is not trained yet; "
            f"`vitslim train {result.folder} --teacher {recipe.model.name} --data IMAGES --out DIR` trains it",
            style="yellow",
        )
    say(f"wrote {result.folder}")


def _print_plan(plan: list[dict[str, Any]]) -> None:
    if plan:
        columns = ("step", "block", "mixing", "tokens", "weights", "parameters")
        print_table("plan", columns, [[str(row[name]) for name in columns] for row in plan])

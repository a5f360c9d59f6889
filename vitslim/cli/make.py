"""Verbs that make something: convert, train, run, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitslim.cli import complete, options
from vitslim.cli.header import announcer, say_choices, say_outline
from vitslim.cli.screen import Screen, print_json, print_metrics, print_table, say, say_skipped
from vitslim.errors import ConfigError

if TYPE_CHECKING:
    from vitslim.pipeline import RunResult
    from vitslim.plans import ModelPlan
    from vitslim.recipe import Recipe

OutOption = Annotated[Path, typer.Option("--out", help="output folder", show_default=False)]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="check everything, say what would be done, write nothing")
]

_EPOCHS = 3.0
_AUGMENT = "data.augment"  # where --set finds the augmentation in a recipe


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(convert)
    app.command()(train)
    app.command()(pretrain)
    app.command()(run)
    app.command()(demo)


def convert(
    model: options.ModelArgument,
    out: OutOption,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="a method; repeat the option to compose", autocompletion=complete.methods),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="a plan.json, in place of methods or before them", show_default=False)
    ] = None,
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
    dry_run: DryRunOption = False,
    json: options.JsonOption = False,
) -> None:
    """Convert a pretrained ViT; with --data also warm start, distill, evaluate.

    With --data, a method whose blocks an analysis can choose (skipat, sret) has
    the dense model analyzed and takes what is recommended. Name the blocks
    (-O layers=3-8) or ask for the paper's (-O layers=paper) to go without.

    Training images are mirrored left-right with probability 0.5. Turn that off
    where mirror images are other classes, as with digits or text:
    --set data.augment.hflip=0 (default 0.5).
    """
    if not method and plan is None:
        raise ConfigError("name a method (--method depth; `vitslim list methods` shows all), or a plan (--plan FILE)")
    document: dict[str, Any] = {
        "plan": None if plan is None else str(plan),
        "model": {
            "name": model,
            "pretrained": not no_pretrained,
            "weights": None if weights is None else str(weights),
            "img_size": options.image_size(img_size),
            "num_classes": num_classes,
            "options": options.model_arguments(model_arg),
        },
        "convert": options.method_entries(method or [], option or []),
        "device": device,
        "seed": seed,
    }
    if data is not None:
        document |= {
            "data": {"source": data, "batch_size": batch_size},
            "analyze": {} if analyze else None,
            "warm_start": {},
            "distill": _budget(epochs, setting or []),
            "control": control,
            "teacher": teacher,
        }
    elif epochs is not None or control or teacher is not None or analyze:
        raise ConfigError("--epochs, --control, --teacher and --analyze need images; add --data")
    from vitslim.pipeline.choices import reads_analysis
    from vitslim.recipe import AnalyzeSection, read_recipe

    recipe = read_recipe(document, setting or [])
    is_said = any(word.startswith("analyze") for word in setting or [])
    if recipe.data is not None and recipe.analyze is None and not is_said and reads_analysis(recipe):
        recipe = recipe.model_copy(update={"analyze": AnalyzeSection.model_validate({})})
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
    weights: options.WeightsOption = None,
    no_pretrained: options.NoPretrainedOption = False,
    num_classes: options.ClassesOption = None,
    img_size: options.ImageSizeOption = None,
    model_arg: options.ModelArgOption = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="training settings, as lr=1e-3, augment.hflip=0 or data.mean=0.5"
        ),
    ] = None,
    device: options.DeviceOption = "cpu",
    seed: options.SeedOption = 0,
    overwrite: options.OverwriteOption = False,
    json: options.JsonOption = False,
) -> None:
    """Train a saved or dense model: to a teacher (distillation), or to labels (fine-tuning, pretraining).

    Training images are mirrored left-right with probability 0.5. Turn that off
    where mirror images are other classes, as with digits or text:
    --set augment.hflip=0 (default 0.5).

    Several processes: torchrun --nproc-per-node N -m vitslim train ...; each takes --batch-size images a step.
    """
    from vitslim.data.randomness import seeded
    from vitslim.models import init_from_scratch_
    from vitslim.opening import open_model
    from vitslim.pipeline.devices import device_named
    from vitslim.pipeline.road import EVIDENCE
    from vitslim.pipeline.staging import replacing
    from vitslim.pipeline.training import claim_folder, read_settings, train_to_folder
    from vitslim.train.processes import started_processes

    hard = teacher is None
    losses = {"hard": float(hard), "soft": float(not hard)}
    of_images = [one for one in setting or () if one.startswith("data.")]
    of_training = [one for one in setting or () if one not in of_images]
    config, augment = read_settings({"epochs": epochs, "seed": seed, **losses}, of_training)
    wanted = options.images(data, of_images, batch_size=batch_size)
    device_named(device)
    if from_scratch and weights is not None:
        raise ConfigError("--from-scratch starts from random weights; leave out --weights, or --from-scratch")
    is_main = started_processes().is_main
    note = claim_folder(out, device, resume=resume, overwrite=overwrite)
    if note is not None:
        say(f"note: {note}")
    if is_main:
        options.show_resolved(model)
    given: dict[str, Any] = {"num_classes": num_classes, "img_size": options.image_size(img_size)}
    given |= options.model_arguments(model_arg)
    with seeded(seed):  # a classifier for other classes starts anew
        student = open_model(model, pretrained=not (no_pretrained or from_scratch), weights=weights, **given)
        if from_scratch:
            init_from_scratch_(student, seed)
    dense = None if teacher is None else open_model(teacher)
    with Screen() as screen, replacing(out, resume=resume, without=(*EVIDENCE, "stages.json")) as place:
        result = train_to_folder(
            student,
            dense,
            wanted,
            config,
            place,
            augment=augment,
            batch_size=wanted.batch_size,
            device=device,
            resume=resume,
            progress=screen,
            announce=announcer("augment"),
        )
    if not is_main:
        return
    if json:
        print_json({**result, "out": str(out)})
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
    from vitslim.files import check_output_folder
    from vitslim.pipeline.staging import replacing
    from vitslim.pipeline.training import read_pretrain_config
    from vitslim.train import pretrain as train_phases

    config = read_pretrain_config(settings)
    if not resume:
        check_output_folder(out, overwrite=overwrite)
    with Screen() as screen, replacing(out, resume=resume) as place:
        result = train_phases(config, place, resume=resume, progress=screen)
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
    """Walk a recipe's whole road; finished stages whose inputs have not changed are skipped.

    Training images are mirrored left-right with probability 0.5. Turn that off
    where mirror images are other classes, as with digits or text:
    --set data.augment.hflip=0 (default 0.5).
    """
    from vitslim.recipe import load_recipe

    _walk(load_recipe(recipe, setting or []), out, overwrite=overwrite, dry_run=dry_run, json=json)


def demo(
    out: Annotated[Path, typer.Option("--out", help="output folder")] = Path("demo-out"),
    everything: Annotated[
        bool, typer.Option("--all", help="every student of the file: twice as many trainings")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="a smoke run of a few steps; its figures mean little")] = False,
    overwrite: options.OverwriteOption = False,
    json: options.JsonOption = False,
) -> None:
    """The whole road on the built-in model and images, with every method, ending in a report. Needs no download.

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


def _walk(recipe: Recipe, out: Path, *, overwrite: bool, dry_run: bool, json: bool) -> None:
    from vitslim.pipeline import require_passed
    from vitslim.pipeline import run as run_recipe
    from vitslim.recipe import write_yaml

    options.show_resolved(recipe.model.name)
    if dry_run:
        from vitslim.pipeline.checks import check
        from vitslim.plans import plan_json

        forecast = check(recipe)
        say_outline(forecast.outline, _AUGMENT)
        say_choices(forecast.choices)
        if json:
            choices = [one.model_dump(mode="json") for one in forecast.choices]
            plan = None if forecast.plan is None else plan_json(forecast.plan)
            print_json({"recipe": recipe.model_dump(mode="json"), "plan": plan, "choices": choices})
            return
        say("nothing is written; the resolved recipe:\n")
        typer.echo(write_yaml(recipe))
        _print_plan(forecast.plan)
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


def _print_plan(plan: ModelPlan | None) -> None:
    from vitslim.cli.look import print_plan

    if plan is not None:
        print_plan(plan)

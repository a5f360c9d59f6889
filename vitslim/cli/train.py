"""Commands that train what is there already: train, pretrain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitslim.cli import options
from vitslim.cli.header import announcer
from vitslim.cli.screen import Screen, print_json, print_metrics, say, say_skipped
from vitslim.errors import ConfigError

EPOCHS = 3.0


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(train)
    app.command()(pretrain)


def distill_budget(epochs: float | None, settings: list[str]) -> dict[str, Any]:
    """The length of distillation, unless ``--set`` gives it in other words."""
    in_steps = any(setting.startswith("distill.steps=") for setting in settings)
    return {} if epochs is None and in_steps else {"epochs": EPOCHS if epochs is None else epochs}


def train(
    model: options.ModelArgument,
    data: Annotated[str, typer.Option("--data", help="images")],
    out: options.OutOption,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="model to learn from; none: labels alone", show_default=False)
    ] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="start from random weights")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --out")] = False,
    epochs: Annotated[float, typer.Option("--epochs", help="passes over the images")] = EPOCHS,
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
    from vitslim.pipeline.running import EVIDENCE
    from vitslim.pipeline.staging import replacing
    from vitslim.pipeline.training import claim_folder, read_settings, train_to_folder
    from vitslim.train.processes import started_processes

    from_labels = teacher is None
    losses = {"ce_weight": float(from_labels), "kd_weight": float(not from_labels)}
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
    out: options.OutOption,
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

"""The command for weights that others wrote: import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vitslim.cli import options
from vitslim.cli.screen import print_json, print_table, say
from vitslim.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("import")(import_checkpoint)


def import_checkpoint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="weights: .pth, .pt, .bin, .t7, .safetensors")],
    base: Annotated[
        str, typer.Option("--base", help="the dense model by timm name; for sret the pyramid", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="output folder", show_default=False)],
    source: Annotated[
        str | None,
        typer.Option(
            "--from", help="skipat, evo_vit, sret or sparsifiner: its authors wrote FILE", show_default="a dense model"
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-O", metavar="KEY=VALUE", help="with --from: what FILE does not say, as layers=3-8"),
    ] = None,
    img_size: options.ImageSizeOption = None,
    model_arg: options.ModelArgOption = None,
    setting: options.DataSetOption = None,
    overwrite: options.OverwriteOption = False,
    json: options.JsonOption = False,
) -> None:
    """Make a folder of a weights file: of your own dense ViT, or with --from of a method's authors.

    Such a folder knows its architecture and how its images are prepared, so
    that no other command needs them again.
    """
    from vitslim import authors, checkpoint
    from vitslim.files import check_output_folder
    from vitslim.models import preprocessing, set_preprocessing_
    from vitslim.models.image_input import describe_assumed

    check_output_folder(out, overwrite=overwrite)
    stated = _stated_of_images(setting or [])
    report = None
    if source is None:
        if option:
            raise ConfigError(
                f"-O {option[0]!r} goes with --from, for files of a method's authors; a dense model takes --model-arg"
            )
        model = options.open_named(base, weights=file, img_size=img_size, model_arg=model_arg, stated=stated)
    else:
        (given,) = options.method_entries([source], option or [])
        options.show_resolved(base)
        shape = {"img_size": options.image_size(img_size), "base_options": options.model_arguments(model_arg)}
        model, report = authors.import_checkpoint(file, given.pop("method"), base, **shape, **given)
        set_preprocessing_(model, **stated)
    if (known := preprocessing(model)).assumed:
        say(f"note: {describe_assumed(known)}", style="yellow")
    checkpoint.save(model, out, overwrite=overwrite)
    if json:
        print_json({"out": str(out), **({} if report is None else report.model_dump(mode="json"))})
        return
    if report is not None:
        reasons = list(report.dropped.values())
        rows = [(str(len(report.used)), "used")]
        rows += [(str(reasons.count(why)), why) for why in dict.fromkeys(reasons)]
        print_table("tensors", ("count", "what became of them"), rows)
    say(f"wrote {out}; `vitslim inspect {out}` shows what it is")


def _stated_of_images(settings: Sequence[str]) -> dict[str, Any]:
    """What ``--set data.…`` states of the images that the weights were trained on."""
    from vitslim.models.image_input import STATED_WITH_WEIGHTS

    others = [one for one in settings if one.partition("=")[0] not in {f"data.{name}" for name in STATED_WITH_WEIGHTS}]
    if others:
        raise ConfigError(f"--set {others[0]}: wanted one of data.{', data.'.join(STATED_WITH_WEIGHTS)}")
    read = options.images("fractals", settings)  # no image is read; they are only checked as elsewhere
    return {name: getattr(read, name) for name in STATED_WITH_WEIGHTS}

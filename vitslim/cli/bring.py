"""The verb that brings in weights that others wrote: import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vitslim.cli import options
from vitslim.cli.screen import print_json, print_table, say
from vitslim.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
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
        typer.Option("--option", "-O", metavar="KEY=VALUE", help="with --from: what FILE cannot tell, as layers=3-8"),
    ] = None,
    img_size: options.ImageSizeOption = None,
    model_arg: options.ModelArgOption = None,
    setting: options.DataSetOption = None,
    overwrite: options.OverwriteOption = False,
    json: options.JsonOption = False,
) -> None:
    """Make a folder of a weights file: of your own dense ViT, or with --from of a method's authors.

    Such a folder knows its architecture and how its images are prepared, so
    that no other verb has to be told again.
    """
    from vitslim import checkpoint
    from vitslim.files import check_output_folder

    check_output_folder(out, overwrite=overwrite)
    if source is None:
        model, document = _open_dense(file, base, option, img_size, model_arg)
    else:
        model, document = _open_authors(file, source, base, option, img_size, model_arg)
    _prepare_images_(model, setting or [])
    checkpoint.save(model, out, overwrite=overwrite)
    if json:
        print_json({"out": str(out), **document})
        return
    if source is not None:
        reasons = list(document["dropped"].values())
        rows = [(str(len(document["used"])), "used")]
        rows += [(str(reasons.count(why)), why) for why in dict.fromkeys(reasons)]
        print_table("tensors", ("count", "what became of them"), rows)
    say(f"wrote {out}; `vitslim inspect {out}` shows what it is")


def _open_dense(
    file: Path, base: str, option: Sequence[str] | None, img_size: str | None, model_arg: Sequence[str] | None
) -> tuple[Any, dict[str, Any]]:
    if option:
        raise ConfigError(
            f"-O {option[0]!r} goes with --from, for files of a method's authors; a dense model takes --model-arg"
        )
    return options.open_named(base, weights=file, img_size=img_size, model_arg=model_arg), {}


def _open_authors(
    file: Path,
    source: str,
    base: str,
    option: Sequence[str] | None,
    img_size: str | None,
    model_arg: Sequence[str] | None,
) -> tuple[Any, dict[str, Any]]:
    from vitslim import authors

    given = options.method_entries([source], option or [])[0]
    del given["method"]
    options.show_resolved(base)
    size, arguments = options.image_size(img_size), options.model_arguments(model_arg)
    model, report = authors.import_checkpoint(file, source, base, img_size=size, base_options=arguments, **given)
    return model, report.model_dump(mode="json")


def _prepare_images_(model: Any, settings: Sequence[str]) -> None:
    """State on the model what ``--set data.…`` says, and say what stays a guess."""
    from vitslim.models import preprocessing, set_preprocessing_
    from vitslim.models.image_input import STATED_WITH_WEIGHTS, describe_assumed

    others = [one for one in settings if one.partition("=")[0] not in {f"data.{name}" for name in STATED_WITH_WEIGHTS}]
    if others:
        raise ConfigError(f"--set {others[0]}: wanted one of data.{', data.'.join(STATED_WITH_WEIGHTS)}")
    stated = options.images("fractals", settings)  # no image is read; they are only checked as elsewhere
    set_preprocessing_(model, **{name: getattr(stated, name) for name in STATED_WITH_WEIGHTS})
    if (known := preprocessing(model)).assumed:
        say(f"note: {describe_assumed(known)}", style="yellow")

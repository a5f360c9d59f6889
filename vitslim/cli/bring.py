"""The verb that brings in what a method's authors released: import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitslim.cli import complete, options
from vitslim.cli.screen import print_json, print_table, say


def register(app: typer.Typer) -> None:
    """Add the verb to the command."""
    app.command("import")(import_checkpoint)


def import_checkpoint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="the authors' weights: .pth, .t7, .safetensors")],
    source: Annotated[
        str,
        typer.Option(
            "--from",
            help="skipat, evo_vit, sret or sparsifiner",
            show_default=False,
            autocompletion=complete.methods,
        ),
    ],
    base: Annotated[
        str,
        typer.Option(
            "--base",
            help="the dense model by timm name; for sret the pyramid",
            show_default=False,
            autocompletion=complete.models,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="output folder", show_default=False)],
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-O", metavar="KEY=VALUE", help="what the file cannot tell, as layers=3-8"),
    ] = None,
    img_size: options.ImageSizeOption = None,
    model_arg: options.ModelArgOption = None,
    overwrite: options.OverwriteOption = False,
    json: options.JsonOption = False,
) -> None:
    """Bring a checkpoint of a method's authors onto our model, every tensor accounted for."""
    from vitslim import authors, checkpoint

    checkpoint.check_output_folder(out, overwrite=overwrite)
    given = options.method_entries([source], option or [])[0]
    del given["method"]
    options.show_resolved(base)
    size, arguments = options.image_size(img_size), options.model_arguments(model_arg)
    model, report = authors.import_checkpoint(file, source, base, img_size=size, base_options=arguments, **given)
    checkpoint.save(model, out, overwrite=overwrite)
    if json:
        print_json({"out": str(out), **report.model_dump(mode="json")})
        return
    reasons = list(report.dropped.values())
    rows = [[str(len(report.used)), "used"], *([str(reasons.count(why)), why] for why in dict.fromkeys(reasons))]
    print_table("tensors", ("count", "what became of them"), rows)
    say(f"wrote {out}")

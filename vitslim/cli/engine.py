"""`export --to tensorrt` and `refit`: their options, and what a person is told of the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vitslim.cli.options import JsonOption, require_saved
from vitslim.cli.screen import print_json, say
from vitslim.errors import ConfigError

PANEL = "engines (--to tensorrt)"


def _option(name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel=PANEL, show_default=False)


FlavorOption = Annotated[str | None, _option("--flavor", "tensorrt (default; builds on its GPU) or rtx")]
EngineBatchOption = Annotated[str | None, _option("--batch", "min:opt:max images per call, default 1:8:64")]
EngineSizeOption = Annotated[str | None, _option("--image-size", "min:opt:max pixels of a side; default the model's")]
PluginsOption = Annotated[str | None, _option("--plugins", "auto (default; inside the engine), on, external, off")]
TimingCacheOption = Annotated[Path | None, _option("--timing-cache", "file of kernel timings, read and added to")]
CompatibleOption = Annotated[bool, _option("--version-compatible", "runs in later versions of TensorRT too")]
RefitOption = Annotated[bool, _option("--refit", "weights can be exchanged later, with `vitslim refit`")]
StreamingOption = Annotated[bool, _option("--weight-streaming", "weights stay on the host")]
StripOption = Annotated[bool, _option("--strip-plan", "stored without weights; see `vitslim refit`")]
FusedOption = Annotated[bool, _option("--require-fused-mha", "fail unless every attention became one kernel")]


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as fields of ``EngineOptions``.

    Raises:
        ConfigError: sizes that are not min:opt:max.
    """
    from vitslim.export.tensorrt import parse_sizes

    found = {name: value for name, value in options.items() if value not in (None, False)}
    for name in ("batch", "image_size"):
        if name in found:
            found[name] = parse_sizes(found[name], f"--{name.replace('_', '-')}")
    return found


def require_none(options: dict[str, Any], to: str) -> None:
    """Refuse options of an engine for anything else.

    Raises:
        ConfigError: one was given.
    """
    names = [f"--{name.replace('_', '-')}" for name, value in options.items() if value not in (None, False)]
    if names:
        raise ConfigError(f"{', '.join(names)}: only with --to tensorrt, given --to {to}")


def export_engine(
    source: Path, out: Path | None, precision: str | None, options: dict[str, Any], *, overwrite: bool, json: bool
) -> None:
    """Build the engine of a saved folder or an ONNX file and say what it became."""
    from vitslim.export.tensorrt import describe
    from vitslim.pipeline.engines import default_engine, default_precision
    from vitslim.pipeline.engines import export_engine as build

    asked = given(options)
    if precision is None:
        precision = default_precision(source)
        reason = "as the file is" if source.suffix == ".onnx" else "since TensorRT fuses attention in half only"
        say(f"precision {precision}, {reason}; --precision chooses another")
    path = out or default_engine(source, precision)
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists; pass --overwrite or another --out")
    record = build(source, path, precision=precision, **asked)
    if json:
        print_json(record.model_dump(mode="json"))
        return
    size_mib = path.stat().st_size / 2**20
    say(f"wrote {path} ({size_mib:.1f} MiB, {record.seconds:.0f} s): {describe(record)}")
    for what, why in record.unknown.items():
        say(f"note: {what} is not known: {why}", style="yellow")
    if not record.has_weights:
        say(f"it has no weights yet; on the GPU that runs it: vitslim refit {path} --from {source}", style="yellow")


def refit(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="built with --refit or --strip-plan")],
    source: Annotated[
        Path, typer.Option("--from", help="what has the weights: a folder that vitslim wrote, or an ONNX file")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="file to write; default ENGINE itself", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file that --out names")] = False,
    json: JsonOption = False,
) -> None:
    """Give a TensorRT engine other weights of the same model, or a stripped one its weights, without a build."""
    from vitslim import pipeline
    from vitslim.export.tensorrt import describe

    if source.suffix != ".onnx":
        require_saved(source)
    if out is not None and out != engine and out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; pass --overwrite or another --out")
    record = pipeline.refit(engine, source, out)
    if json:
        print_json(record.model_dump(mode="json"))
        return
    again = "can be refitted again" if record.is_refittable else "its weights are fixed now"
    say(f"wrote {out or engine} with the weights of {source}: {describe(record)}; {again}")

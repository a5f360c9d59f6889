"""Commands that write a model for a runtime or server: export, verify, refit, quantize."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitslim.cli import complete, options
from vitslim.cli.screen import print_json, print_table, say
from vitslim.errors import CheckFailedError, CheckpointError, ConfigError

if TYPE_CHECKING:
    from vitslim.pipeline.gate import QuantizedExport

ENGINES, SERVERS = "engines (--to tensorrt, rtx)", "servers (--to triton-server)"
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="a folder that vitslim wrote")]
ArtifactOption = Annotated[
    Path | None, typer.Option("--artifact", help="the exported file; default the one in DIR/export", show_default=False)
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="replace what lies there")]


def _option(name: str, text: str, panel: str | None = None, **more: Any) -> Any:
    return typer.Option(name, help=text, rich_help_panel=panel, show_default=False, **more)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (export, verify, refit, quantize):
        app.command()(command)
    app.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(deploy)


def export(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="a folder that vitslim wrote; for engines also an ONNX file")
    ],
    to: Annotated[
        str, typer.Option("--to", help="a target, see `vitslim list targets`", autocompletion=complete.targets)
    ] = "onnx",
    precision: Annotated[str | None, _option("--precision", "fp32, fp16, bf16, int8; default the target's")] = None,
    max_drop: Annotated[
        float, typer.Option("--max-drop", help="int8: points of accuracy (or agreement) it may lose", min=0)
    ] = 1.0,
    out: Annotated[Path | None, _option("--out", "file or folder; default in DIR/export")] = None,
    data: options.DataOption = None,
    setting: Annotated[
        list[str] | None,
        _option(
            "--set",
            "any option of the target, or of the images: data.mean=0.5, data.labels=ignore",
            metavar="KEY=VALUE",
        ),
    ] = None,
    device: Annotated[str | None, _option("--device", "aotinductor: cpu, cuda")] = None,
    no_optimize: Annotated[bool, _option("--no-optimize", "leave onnxslim out", "ONNX")] = False,
    opset: Annotated[
        int | None,
        _option(
            "--opset",
            "operators; default 20 (bf16 22), which every runtime takes; from 23 on attention is one node",
            "ONNX",
        ),
    ] = None,
    inline: Annotated[bool, _option("--inline", "no local functions in the file", "ONNX")] = False,
    input_format: Annotated[
        str | None, _option("--input-format", "normalized (default), uint8-nchw or uint8-nhwc", "ONNX")
    ] = None,
    dynamic_image_size: Annotated[
        bool, _option("--dynamic-image-size", "free height and width, where the model allows", "ONNX")
    ] = False,
    batch: Annotated[str | None, _option("--batch", "min:opt:max images per call, default 1:8:64", ENGINES)] = None,
    image_size: Annotated[
        str | None, _option("--image-size", "min:opt:max pixels of a side; default the model's", ENGINES)
    ] = None,
    plugins: Annotated[
        str | None, _option("--plugins", "auto (default; inside the engine), on, external, off", ENGINES)
    ] = None,
    timing_cache: Annotated[
        Path | None, _option("--timing-cache", "file of kernel timings, read and added to", ENGINES)
    ] = None,
    version_compatible: Annotated[
        bool, _option("--version-compatible", "runs in later versions of TensorRT too", ENGINES)
    ] = False,
    refit: Annotated[bool, _option("--refit", "weights can be exchanged later, with `vitslim refit`", ENGINES)] = False,
    weight_streaming: Annotated[bool, _option("--weight-streaming", "weights stay on the host", ENGINES)] = False,
    strip_plan: Annotated[
        bool, _option("--strip-plan", "stored without weights; see `vitslim refit`", ENGINES)
    ] = False,
    require_fused_mha: Annotated[
        bool, _option("--require-fused-mha", "fail unless every attention became one kernel", ENGINES)
    ] = False,
    backend: Annotated[str | None, _option("--backend", "what is served: onnx, tensorrt, auto", SERVERS)] = None,
    artifact: Annotated[Path | None, _option("--artifact", "the file that is served", SERVERS)] = None,
    name: Annotated[str | None, _option("--name", "of the model; default DIR's", SERVERS)] = None,
    max_batch: Annotated[int | None, _option("--max-batch", "most images in a batch", SERVERS)] = None,
    instances: Annotated[int | None, _option("--instances", "copies per device", SERVERS)] = None,
    any_gpu: Annotated[bool, _option("--any-gpu", "the server's GPU is another one", SERVERS)] = False,
    overwrite: OverwriteOption = False,
    json: options.JsonOption = False,
) -> None:
    """Write a saved model for a runtime or a server: ONNX, TensorRT, torch.export, AOTInductor, Triton, and others."""
    from vitslim.pipeline.exporting import prepare_export, write

    if folder.suffix != ".onnx":
        options.require_saved(folder)
    flags: dict[str, Any] = {
        "device": device,
        "opset": opset,
        "inline": inline,
        "input_format": input_format,
        "batch": batch,
        "dynamic_image_size": dynamic_image_size,
        "image_size": image_size,
        "plugins": plugins,
        "refit": refit,
        "timing_cache": timing_cache,
        "version_compatible": version_compatible,
        "strip_plan": strip_plan,
        "weight_streaming": weight_streaming,
        "require_fused_mha": require_fused_mha,
        "backend": backend,
        "artifact": artifact,
        "name": name,
        "max_batch": max_batch,
        "instances": instances,
        "any_gpu": any_gpu,
    }
    given = {key: value for key, value in flags.items() if value is not None and value is not False}
    given |= {"optimize": False} if no_optimize else {}
    of_images = [one for one in setting or () if one.startswith("data.")]
    given |= dict(_setting(one) for one in setting or () if one not in of_images)
    images = options.images(data, of_images)
    target, request = prepare_export(
        folder, out, to=to, precision=precision, data=images, overwrite=overwrite, options=given
    )
    if request.precision != "fp32" and precision is None:
        say(f"precision {request.precision}, the target's own; --precision chooses another")
    written = write(target, request, given, str(folder), images, max_drop)
    if json:
        print_json(written.model_dump(mode="json"))
    if request.precision == "int8":
        lines = [] if json else target.describe(written.written, replace(request, path=Path(written.path)))
        _tell_quantized(written, lines, "ms per call, one thread")
        return
    if json:
        return
    for line in target.describe(written, request):
        say(line, style="yellow" if line.startswith("note:") else "")
    if target.marker is None and not target.is_code:
        own = request.path.parent == folder / "export"
        say(f"check it with `vitslim verify {folder}{'' if own else f' {request.path}'}`")


def _tell_quantized(found: QuantizedExport, lines: list[str], timed: str) -> None:
    """The proof and then the lines; nothing of both without lines."""
    if lines:
        names = list(dict.fromkeys(name for times in found.latency_ms.values() for name in sorted(times)))
        rows = [
            [str(batch), *(f"{times[name]:.2f}" if name in times else "–" for name in names)]
            for batch, times in found.latency_ms.items()
        ]
        if rows:
            print_table(timed, ("batch", *names), rows)
        if found.file is not None:
            say(f"{found.loss:.2f} points lost on {found.file.images} images; {found.most:g} are allowed")
        for line in [*lines, *(f"note: {one}" for one in found.notes)]:
            say(line, style="yellow" if line.startswith("note:") else "")
    if found.failures:
        raise CheckFailedError(f"{'; '.join(found.failures)}; the file is kept aside as {found.path}")


def deploy() -> None:
    """Replaced by `vitslim export DIR --to TARGET`."""
    raise ConfigError("there is no `deploy`; use `vitslim export DIR --to TARGET` (`vitslim list targets` shows them)")


def verify(
    folder: FolderArgument,
    artifact: Annotated[list[Path] | None, typer.Argument(help="files; default all in DIR/export")] = None,
    data: options.DataOption = None,
    images: Annotated[int, typer.Option("--images", help="images compared", min=1)] = 32,
    batch: Annotated[str, typer.Option("--batch", help="batch sizes")] = "1,3",
    precision: Annotated[
        str | None,
        _option("--precision", "fp32, fp16, bf16 or int8: of a file that has no FILE.json beside it; default fp32"),
    ] = None,
    setting: options.DataSetOption = None,
    backend: Annotated[str | None, _option("--backend", "what runs the files; see eval")] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="find the layer at which a file that fails first departs (ONNX, OpenVINO)")
    ] = False,
    json: options.JsonOption = False,
) -> None:
    """Compare exported files with the model on images of its task; exit code 1 when one is out of tolerance.

    The images are those of --data, else those the folder's recipe names, else built-in ones; a note says which.
    """
    from vitslim import pipeline
    from vitslim.files import write_json

    options.require_saved(folder)
    batches = options.numbers(batch, "--batch")
    found = pipeline.verify(
        str(folder),
        artifact or None,
        data=options.images(data, setting),
        images=images,
        batches=batches,
        precision=precision,  # pyright: ignore[reportArgumentType] - checked at the call
        backend=backend,
        bisect=bisect,
    )
    try:
        write_json(folder / "export" / "parity.json", found.model_dump(mode="json"))
    except CheckpointError as error:  # a folder that is only read; the verdict stands
        found = found.model_copy(update={"notes": [*found.notes, str(error)]})
    document = found.model_dump(mode="json")
    if json:
        print_json(document)
    else:
        print_table(
            "",
            ("file", "precision", "form", "pixels", "batch", "max diff", "mean diff", "cosine", "same top-1", "passed"),
            [_parity_row(check) for check in document["checks"]],
        )
    for note in found.notes:
        say(f"note: {note}")
    for departure in found.departures:
        say(departure.line())
    if not found.passed:
        raise CheckFailedError("; ".join(found.failures()))


def refit(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="built with --refit or --strip-plan")],
    source: Annotated[
        Path, typer.Option("--from", help="what has the weights: a folder that vitslim wrote, or an ONNX file")
    ],
    out: Annotated[Path | None, _option("--out", "file to write; default ENGINE itself")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file that --out names")] = False,
    json: options.JsonOption = False,
) -> None:
    """Give a TensorRT engine other weights of the same model, or a stripped one its weights, without a build."""
    from vitslim import pipeline
    from vitslim.targets.tensorrt.build import describe

    if source.suffix != ".onnx":
        options.require_saved(source)
    if out is not None and out != engine and out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; pass --overwrite or another --out")
    record = pipeline.refit(engine, source, out)
    if json:
        print_json(record.model_dump(mode="json"))
        return
    again = "can be refitted again" if record.is_refittable else "its weights are fixed now"
    say(f"wrote {out or engine} with the weights of {source}: {describe(record)}; {again}")


def quantize(
    folder: FolderArgument,
    data: Annotated[str, typer.Option("--data", help="images of the calibration; labels are not needed")],
    precision: Annotated[str, typer.Option("--precision", help="of the matrix products: fp8 or int8")] = "fp8",
    others: Annotated[str, typer.Option("--others", help="precision of everything else: fp16, bf16, fp32")] = "fp16",
    modelopt_python: Annotated[
        Path | None,
        typer.Option("--modelopt-python", help="python of the environment with nvidia-modelopt", show_default=False),
    ] = None,
    providers: Annotated[str, typer.Option("--providers", help="where it calibrates: cpu, cuda:0, trt")] = "cpu",
    images: Annotated[int, typer.Option("--images", help="images of the calibration", min=1)] = 512,
    max_drop: Annotated[
        float, typer.Option("--max-drop", help="points of accuracy (or agreement) it may lose", min=0)
    ] = 1.0,
    artifact: ArtifactOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="file; default in DIR/export/quantized", show_default=False)
    ] = None,
    calibration_file: Annotated[
        Path | None, typer.Option("--calibration-file", help="leave the images here, as .npz", show_default=False)
    ] = None,
    setting: options.DataSetOption = None,
    seed: options.SeedOption = 0,
    overwrite: OverwriteOption = False,
    json: options.JsonOption = False,
) -> None:
    """Make the exported ONNX file FP8 or INT8 for TensorRT with NVIDIA Model-Optimizer.

    Model-Optimizer has an environment of its own. For CPUs use `vitslim export DIR --precision int8`.
    """
    from vitslim import pipeline
    from vitslim.targets.onnx.quantization import QuantizedOnnx

    options.require_saved(folder)
    found = pipeline.quantize(
        folder,
        options.images(data, setting),
        precision=precision,
        others=others,  # pyright: ignore[reportArgumentType] - checked at the call
        out=out,
        artifact=artifact,
        images=images,
        max_drop=max_drop,
        seed=seed,
        overwrite=overwrite,
        python=modelopt_python,
        providers=options.words(providers),
        calibration_file=calibration_file,
    )
    if json:
        print_json(found.model_dump(mode="json"))
    written = found.written
    assert isinstance(written, QuantizedOnnx)
    lines = [f"wrote {found.path}: {written.quantizers} quantizers, Model-Optimizer {written.modelopt}"]
    if written.kept:
        lines.append(f"left in {written.others}, since they choose tokens or keys: {', '.join(written.kept)}")
    _tell_quantized(found, [] if json else lines, "ms per call")


def _setting(text: str) -> tuple[str, Any]:
    from vitslim.plain_yaml import read_yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text!r}: wanted KEY=VALUE")
    return key, read_yaml(value, f"--set {key}")


def _parity_row(check: dict[str, Any]) -> tuple[str, ...]:
    same = check["top1_agreement"]
    return (
        Path(check["artifact"]).name,
        check["precision"],
        check["form"],
        "x".join(map(str, check["image_size"])),
        str(check["batch"]),
        f"{check['max_abs']:.2e}",
        f"{check['mean_abs']:.2e}",
        f"{check['cosine']:.6f}",
        "-" if same is None else f"{100 * same:.0f} %",
        "yes" if check["passed"] else "NO",
    )

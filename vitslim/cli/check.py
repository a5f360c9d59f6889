"""Verbs that check or deploy what was made: eval, export, verify, report, compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitslim.cli import complete, engine, options
from vitslim.cli.screen import Screen, print_json, print_metrics, print_table, say
from vitslim.errors import CheckFailedError, CheckpointError, ConfigError

if TYPE_CHECKING:
    from vitslim.bench import BenchRow
    from vitslim.report import ComparisonRow

BackendOption = Annotated[
    str, typer.Option("--backend", help="torch, auto, ort, ort-cuda, ort-tensorrt, tensorrt, rtx")
]
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="a folder that vitslim wrote")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command("eval")(evaluate)
    app.command()(export)
    app.command()(engine.refit)
    app.command()(verify)
    app.command()(report)
    app.command()(compare)


def evaluate(
    model: options.ModelArgument,
    data: Annotated[str, typer.Option("--data", help="images with labels")],
    teacher: Annotated[str | None, typer.Option("--teacher", help="model to compare with", show_default=False)] = None,
    batch_size: options.BatchSizeOption = 64,
    limit: Annotated[int | None, typer.Option("--limit", help="images, spread over the classes", min=1)] = None,
    weights: options.WeightsOption = None,
    img_size: options.ImageSizeOption = None,
    model_arg: options.ModelArgOption = None,
    setting: options.DataSetOption = None,
    device: options.DeviceOption = "cpu",
    backend: BackendOption = "torch",
    json: options.JsonOption = False,
) -> None:
    """Top-1, top-5 and agreement with a teacher on held-out images."""
    from vitslim import pipeline

    exported = backend != "torch"
    if exported and (weights or img_size or model_arg or not Path(model).is_dir()):
        raise ConfigError(
            f"--backend {backend} runs the exports of a saved folder; given {model}; it takes no --weights, --img-size "
            "or --model-arg"
        )
    wanted = options.images(data, setting, batch_size=batch_size)
    student = model if exported else options.open_named(model, weights=weights, img_size=img_size, model_arg=model_arg)
    with Screen() as screen:
        found = pipeline.evaluate(
            student,
            wanted,
            teacher=teacher,
            batch_size=wanted.batch_size,
            limit=limit,
            device=device,
            backend=backend,
            progress=screen,
        )
    if json:
        print_json({"model": model, **found.model_dump(mode="json")})
        return
    print_metrics({model: found.model_dump()})


def export(
    folder: FolderArgument,
    to: Annotated[
        str, typer.Option("--to", help="onnx or tensorrt", autocompletion=complete.words("onnx", "tensorrt"))
    ] = "onnx",
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision", help="fp32 (default for onnx), fp16 (default for tensorrt), bf16", show_default=False
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="file; default in DIR/export", show_default=False)] = None,
    no_optimize: Annotated[bool, typer.Option("--no-optimize", help="leave onnxslim out")] = False,
    opset: Annotated[
        int | None,
        typer.Option(
            "--opset",
            help="ONNX operators; default 20 (bf16 22), which every runtime takes; from 23 on attention is one node",
        ),
    ] = None,
    inline: Annotated[bool, typer.Option("--inline", help="no local functions in the ONNX file")] = False,
    images: Annotated[str, typer.Option("--input", help="normalized, uint8-nchw or uint8-nhwc")] = "normalized",
    dynamic_image_size: Annotated[
        bool, typer.Option("--dynamic-image-size", help="free height and width, where the model allows")
    ] = False,
    flavor: engine.FlavorOption = None,
    batch: engine.EngineBatchOption = None,
    image_size: engine.EngineSizeOption = None,
    plugins: engine.PluginsOption = None,
    timing_cache: engine.TimingCacheOption = None,
    version_compatible: engine.CompatibleOption = False,
    refit: engine.RefitOption = False,
    weight_streaming: engine.StreamingOption = False,
    strip_plan: engine.StripOption = False,
    require_fused_mha: engine.FusedOption = False,
    overwrite: options.OverwriteOption = False,
    json: options.JsonOption = False,
) -> None:
    """Write a saved model as an ONNX file with a dynamic batch, or build it into a TensorRT engine."""
    from vitslim import pipeline
    from vitslim.files import require_writable
    from vitslim.pipeline.exporting import default_artifact

    for_engine = {
        "flavor": flavor,
        "batch": batch,
        "image_size": image_size,
        "plugins": plugins,
        "timing_cache": timing_cache,
        "version_compatible": version_compatible,
        "refit": refit,
        "weight_streaming": weight_streaming,
        "strip_plan": strip_plan,
        "require_fused_mha": require_fused_mha,
    }
    if to == "tensorrt":
        if folder.suffix != ".onnx":
            options.require_saved(folder)
        engine.export_engine(folder, out, precision, for_engine, overwrite=overwrite, json=json)
        return
    engine.require_none(for_engine, to)
    options.require_saved(folder)
    precision = precision or "fp32"
    if precision not in ("fp32", "fp16", "bf16"):
        raise ConfigError(f"--precision {precision!r}: wanted fp32, fp16 or bf16")
    if images not in ("normalized", "uint8-nchw", "uint8-nhwc"):
        raise ConfigError(f"--input {images!r}: wanted normalized, uint8-nchw or uint8-nhwc")
    path = out or default_artifact(
        folder, precision, images=images, inline=inline, dynamic_image_size=dynamic_image_size
    )
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists; pass --overwrite or another --out")
    if to != "onnx":
        raise ConfigError(f"--to {to!r}: wanted onnx or tensorrt")
    require_writable(path)
    result = pipeline.export(
        str(folder),
        path,
        precision=precision,
        optimize=not no_optimize,
        opset=opset,
        inline=inline,
        dynamic_image_size=dynamic_image_size,
        images=images,
    )
    if json:
        print_json(result.model_dump(mode="json"))
        return
    size_mib = path.stat().st_size / 2**20
    check = f"vitslim verify {folder}" + ("" if path.parent == folder / "export" else f" {path}")
    say(f"wrote {path} ({size_mib:.1f} MiB, opset {result.opset}); check it with `{check}`")
    if result.data_file is not None:
        say(f"its weights lie in {result.data_file} ({result.data_bytes / 2**20:.1f} MiB); move both together")
    if result.functions:
        say(f"{', '.join(result.functions)}: a node that a plugin may take, and a function for all others (--inline)")
    for note in result.notes:
        say(f"note: {note}", style="yellow")


def verify(
    folder: FolderArgument,
    artifact: Annotated[list[Path] | None, typer.Argument(help="files; default all in DIR/export")] = None,
    data: options.DataOption = None,
    images: Annotated[int, typer.Option("--images", help="images compared", min=1)] = 32,
    batch: Annotated[str, typer.Option("--batch", help="batch sizes")] = "1,3",
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            help="fp32, fp16 or bf16: what was promised of a file that has no FILE.json beside it; default fp32",
            show_default=False,
        ),
    ] = None,
    setting: options.DataSetOption = None,
    backend: Annotated[str | None, typer.Option("--backend", help="what runs the files; see eval")] = None,
    json: options.JsonOption = False,
) -> None:
    """Compare exported files with the model on images of its task; exit code 1 when one is out of tolerance.

    The images are those of --data, else those the folder's recipe names, else built-in ones; a note says which.
    """
    from vitslim import pipeline
    from vitslim.files import write_json

    options.require_saved(folder)
    batches = options.numbers(batch, "--batch")
    if precision not in (None, "fp32", "fp16", "bf16"):
        raise ConfigError(f"--precision {precision!r}: wanted fp32, fp16 or bf16")
    found = pipeline.verify(
        str(folder),
        artifact or None,
        data=options.images(data, setting),
        images=images,
        batches=batches,
        precision=precision,
        backend=backend,
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
    if not found.passed:
        raise CheckFailedError("; ".join(found.failures()))


def report(
    folder: FolderArgument,
) -> None:
    """Render the page of an output folder again: report.html, that of a benchmark suite, or compare.html of students.

    Example: vitslim report out
    """
    from vitslim.pipeline.rendering import render_again

    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    say(f"wrote {render_again(folder)}")


def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="folders of students, or one that holds them")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="the page; compare.html beside the students by default", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a file that is no page of vitslim's")] = False,
    json: options.JsonOption = False,
) -> None:
    """Compare students: accuracy, size and speed side by side, as a page and as a table."""
    from vitslim import pipeline

    found = pipeline.compare(folders, out=out, overwrite=overwrite)
    if json:
        print_json(found.model_dump(mode="json"))
        return
    columns = ("model", "top-1", "±", "vs teacher", "agreement", "parameters", "MACs")
    print_table(found.title, columns, [_quality_cells(row) for row in found.rows])
    speeds = [_speed_cells(row.model, one) for row in found.rows for one in row.speed]
    if speeds:
        columns = ("setting", "model", "p50 ms", "vs dense", "verdict", "vs dense torch")
        print_table("speed", columns, sorted(speeds, key=lambda cells: cells[0]))
    if found.sessions > 1:
        say(
            f"note: the timings come from {found.sessions} sessions, each with its own dense model; compare ratios only"
        )
    for caution in found.cautions:
        say(f"note: {caution}", style="yellow")
    say(f"wrote {found.page}")


def _quality_cells(row: ComparisonRow) -> tuple[str, ...]:
    shares = (row.top1, row.top1_half_width, row.top1_vs_teacher, row.agreement)
    top1, half_width, difference, agreement = ("-" if one is None else f"{100 * one:.2f}" for one in shares)
    return (
        row.model,
        f"{top1} %" if row.top1 is not None else top1,
        half_width,
        difference if row.top1_vs_teacher is None or row.top1_vs_teacher <= 0 else f"+{difference}",
        f"{agreement} %" if row.agreement is not None else agreement,
        "-" if row.params is None else f"{row.params / 1e6:.2f} M",
        "-" if row.macs is None else f"{row.macs / 1e9:.3f} G",
    )


def _speed_cells(model: str, one: BenchRow) -> tuple[str, ...]:
    ratios = (one.speedup_vs_dense, one.speedup_vs_dense_torch)
    first, second = ("-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios)
    verdict = (one.verdict or "baseline") + (", at another resolution" if one.other_image_size else "")
    setting = f"{one.backend} {one.precision}, batch {one.batch}"
    return setting, model, f"{one.latency_ms_p50:.2f}", first, verdict, second


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

"""Commands that tell how good a model is: eval, report, compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitslim.cli import options
from vitslim.cli.screen import Screen, print_json, print_metrics, print_table, say
from vitslim.errors import ConfigError

if TYPE_CHECKING:
    from vitslim.bench import BenchRow
    from vitslim.report import ComparisonRow

BackendOption = Annotated[str, typer.Option("--backend", help="torch, auto, or one of `vitslim list targets`")]
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="a folder that vitslim wrote")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("eval")(evaluate)
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

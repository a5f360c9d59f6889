"""The commands that measure speed: bench MODEL..., bench suite, bench accuracy."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from vitslim.cli import complete, options
from vitslim.cli.screen import Screen, print_json, print_table, say
from vitslim.errors import CheckFailedError, CheckpointError, ConfigError, MissingDependencyError, VitslimError

BENCH_BACKENDS = "train, or any of `vitslim list targets`: torch, compiled, compiled-graph, ort, tensorrt, ..."
_MODELS = "models"

if TYPE_CHECKING:
    from vitslim.bench.suite import SuiteReport
    from vitslim.progress import Progress

OutFolder = Annotated[
    Path | None,
    typer.Option("--out", help="folder; name it again to go on; out/COMMAND-PRESET by default", show_default=False),
]
MinutesOption = Annotated[
    float | None, typer.Option("--minutes", help="begin nothing that would end later", min=0.05, show_default=False)
]
PresetOption = Annotated[str, typer.Option("--preset", help="cpu, gpu or a YAML file of the same form")]
QuickOption = Annotated[bool, typer.Option("--quick", help="a part of it with few samples")]


class _WithDefault(typer.core.TyperGroup):
    """A group whose first word, where it is no command's name, is already an argument of the default command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        asks_for_help = any(word in ctx.help_option_names for word in args[:1])
        if not asks_for_help and (not args or args[0] not in self.commands):
            args = [_MODELS, *args]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(
        name="bench",
        cls=_WithDefault,
        help="Latency and throughput beside the dense model with fused attention, in one interleaved run. "
        "`vitslim bench MODEL...` measures the given models; see `vitslim bench models --help`.",
    )
    group.command(_MODELS)(bench)
    group.command("suite")(suite)
    group.command("accuracy")(accuracy)
    app.add_typer(group)


def bench(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="folders or model names", autocompletion=complete.benched)
    ],
    baseline: Annotated[str, typer.Option("--baseline", help="'dense' (the base of the model) or a model")] = "dense",
    backend: Annotated[str, typer.Option("--backend", help=BENCH_BACKENDS)] = "torch,ort",
    batch: Annotated[str, typer.Option("--batch", help="batch sizes")] = "1,8",
    precision: Annotated[str, typer.Option("--precision", help="fp32, bf16, fp16")] = "fp32",
    threads: Annotated[int, typer.Option("--threads", help="CPU threads", min=1)] = 1,
    rounds: Annotated[int, typer.Option("--rounds", help="samples per model", min=5)] = 30,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda")] = "cpu",
    img_size: options.ImageSizeOption = None,
    num_classes: options.ClassesOption = None,
    model_arg: options.ModelArgOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file", show_default=False)] = None,
    json: options.JsonOption = False,
) -> None:
    """Measure the given models; the word `models` may be left out. A folder called suite is ./suite."""
    from vitslim import pipeline
    from vitslim.bench import caption, remarks, skipped_lines, text_table
    from vitslim.files import require_writable, write_json

    given = {"img_size": options.image_size(img_size), "num_classes": num_classes}
    given |= options.model_arguments(model_arg)
    folders = [Path(model) for model in models if (Path(model) / "config.json").is_file()]
    if out is not None:
        require_writable(out)
    elif len(folders) == 1:
        out = _if_writable(folders[0] / "bench.json")
    with Screen() as screen:
        found = pipeline.benchmark(
            models,
            baseline=baseline,
            model_options=given,
            backends=options.words(backend),
            batches=options.numbers(batch, "--batch"),
            precisions=options.words(precision),
            threads=threads,
            rounds=rounds,
            device=device,
            progress=screen,
        )
    if not found.rows:
        raise _nothing_measured(skipped_lines(found))
    document = found.model_dump(mode="json")
    if out is not None:
        write_json(out, document)
    if json:
        print_json(document)
        return
    typer.echo(text_table(found.rows, found.baseline))
    typer.echo(caption(found))
    for line in remarks(found.rows, found.baseline, found.environment):
        typer.echo(line)
    for line in skipped_lines(found):
        say(f"not measured: {line}", style="yellow")


def _if_writable(path: Path) -> Path | None:
    from vitslim.files import require_writable

    try:
        require_writable(path)
    except CheckpointError as error:
        say(f"note: {error}", style="yellow")
        return None
    return path


def suite(
    out: OutFolder = None,
    preset: PresetOption = "cpu",
    quick: QuickOption = False,
    minutes: MinutesOption = None,
    again: Annotated[bool, typer.Option("--again", help="measure once more what failed")] = False,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", help="suite.json of before: its ratios must still hold", show_default=False),
    ] = None,
    tolerance: Annotated[float, typer.Option("--tolerance", help="relative change of a ratio that is let pass")] = 0.1,
    show: Annotated[bool, typer.Option("--list", help="say what is done and what is left, measure nothing")] = False,
    json: options.JsonOption = False,
) -> None:
    """Models, sizes, batches, backends, methods and baselines, case by case; stopped, it goes on where it was."""
    from vitslim.pipeline.suite import changed_ratios, list_suite, read_suite, run_suite
    from vitslim.report.suite import write_suite

    out = out or _default_folder("suite", preset, quick)
    if show:
        if again or minutes is not None or compare is not None:
            raise ConfigError("--list measures nothing; leave out --again, --minutes and --compare")
        _list_suite(list_suite(out, preset=preset, quick=quick), json=json)
        return
    earlier = None if compare is None else read_suite(compare)
    command = _command("suite", preset, quick)
    begun: list[str] = []
    with Screen() as screen:

        def tell(report: Progress) -> None:
            screen(report)
            if report.unit == "begun":
                begun.append(report.stage)

        found = run_suite(out, preset=preset, quick=quick, minutes=minutes, again=again, command=command, progress=tell)
    page, *_ = write_suite(found, out)
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        _show_suite(found, begun, page)
    if found.pieces and all(case.status == "unavailable" for case in found.pieces):
        reasons = dict.fromkeys(str(case.reason) for case in found.pieces)
        raise MissingDependencyError(f"nothing could be measured: {'; '.join(reasons)}")
    changes = [] if earlier is None else changed_ratios(earlier, found, tolerance)
    if changes:
        raise CheckFailedError("; ".join(changes))


def _show_suite(found: SuiteReport, begun: Sequence[str], page: Path) -> None:
    from vitslim.report.suite import render_overview

    rows = [_case_row(case) for case in found.pieces if case.piece.name in begun]
    if rows:
        print_table("cases of this call", ("case", "status", "seconds", "reason"), rows)
    typer.echo("\n" + render_overview(found))
    say(f"wrote {page}")
    if found.left:
        need = "each needs a larger --minutes" if {*found.left} == {*found.too_long} else "run the same command again"
        say(f"{_summary(found)}; {need}", style="yellow")


def _list_suite(found: SuiteReport, *, json: bool) -> None:
    statuses = {case.piece.name: case.status for case in found.pieces}
    if json:
        print_json({"cases": statuses, "left": found.left})
        return
    rows = [(name, statuses.get(name, "left")) for name in dict.fromkeys((*statuses, *found.left))]
    print_table("", ("case", "status"), rows)
    typer.echo(_summary(found))


def _summary(found: SuiteReport) -> str:
    return f"{found.total - len(found.left)} of {found.total} cases are done, {len(found.left)} are left"


def accuracy(
    out: OutFolder = None,
    preset: PresetOption = "cpu",
    quick: QuickOption = False,
    minutes: MinutesOption = None,
    again: Annotated[
        bool, typer.Option("--again", help="train anew what failed, or what other settings trained here")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="any setting, as budget.steps=100")
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """Train a teacher on the built-in images, convert it with everything at one budget; accuracy beside speed."""
    from vitslim.pipeline.suite import run_accuracy
    from vitslim.report.suite import accuracy_table, write_accuracy

    out = out or _default_folder("accuracy", preset, quick)
    command = _command("accuracy", preset, quick) + "".join(f" --set {shlex.quote(one)}" for one in settings or [])
    with Screen() as screen:
        found = run_accuracy(
            out,
            preset=preset,
            quick=quick,
            minutes=minutes,
            again=again,
            overrides=tuple(settings or ()),
            command=command,
            progress=screen,
        )
    page, *_ = write_accuracy(found, out)
    if json:
        print_json(found.model_dump(mode="json"))
        return
    if found.rows:
        typer.echo(accuracy_table(found).text())
        for note in found.notes:
            typer.echo(note)
    say(f"wrote {page}")
    if found.left:
        say(f"not done yet: {', '.join(found.left)}; run the same command again", style="yellow")


def _case_row(case: Any) -> tuple[str, ...]:
    return (case.piece.name, case.status, f"{case.seconds:.1f}", case.reason or "")


def _command(name: str, preset: str, quick: bool) -> str:
    # As anyone would type it: without the folders of this machine.
    return f"vitslim bench {name} --preset {Path(preset).name}{' --quick' if quick else ''}"


def _default_folder(name: str, preset: str, quick: bool) -> Path:
    return Path("out", f"{name}-{Path(preset).stem}{'-quick' if quick else ''}")


def _nothing_measured(reasons: list[str]) -> VitslimError:
    message = f"nothing could be measured: {'; '.join(reasons)}"
    # A backend whose library is absent says how to install it.
    return (
        MissingDependencyError(message) if all("pip install" in one for one in reasons) else CheckFailedError(message)
    )

"""The commands that measure: bench MODEL..., bench suite, bench accuracy, bench planner."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from vitslim.cli import complete, options
from vitslim.cli.screen import Screen, print_json, print_table, say
from vitslim.errors import CheckFailedError, CheckpointError, ConfigError, MissingDependencyError, VitslimError

BENCH_BACKENDS = "train, torch, compiled, compiled-graph, or one that `vitslim list targets` shows: ort, tensorrt, ..."
_MODELS = "models"

if TYPE_CHECKING:
    from vitslim.bench.suite import Benchmark, SuiteReport

OutFolder = Annotated[
    Path | None,
    typer.Option("--out", help="folder; name it again to go on; out/COMMAND-PRESET by default", show_default=False),
]
MinutesOption = Annotated[
    float | None, typer.Option("--minutes", help="begin nothing that would end later", min=0.05, show_default=False)
]
PresetOption = Annotated[str, typer.Option("--preset", help="cpu, gpu, headline (of the suite) or a YAML file")]
QuickOption = Annotated[bool, typer.Option("--quick", help="a part of it with few samples")]
AgainOption = Annotated[bool, typer.Option("--again", help="do once more what failed")]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="any setting of the preset, as rounds=100", show_default=False),
]
ListOption = Annotated[bool, typer.Option("--list", help="say what is done and what is left, measure nothing")]


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
    group.command("planner")(planner)
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
    again: AgainOption = False,
    settings: SettingsOption = None,
    triton: Annotated[
        str | None,
        typer.Option("--triton", help="0,1: whole models without our GPU kernels and with them", show_default=False),
    ] = None,
    show: ListOption = False,
    json: options.JsonOption = False,
) -> None:
    """Models, sizes, batches, backends, methods and baselines, case by case; stopped, it goes on where it was."""
    if triton is not None:
        settings = [*(settings or ()), "triton=[" + ",".join(f"'{one}'" for one in options.words(triton)) + "]"]
    _run("suite", out, preset, quick, minutes, again, settings, show, json)


def accuracy(
    out: OutFolder = None,
    preset: PresetOption = "cpu",
    quick: QuickOption = False,
    minutes: MinutesOption = None,
    again: AgainOption = False,
    settings: SettingsOption = None,
    show: ListOption = False,
    json: options.JsonOption = False,
) -> None:
    """Train a teacher on the built-in images, convert it with everything at one budget; accuracy beside speed."""
    _run("accuracy", out, preset, quick, minutes, again, settings, show, json)


def planner(
    out: OutFolder = None,
    preset: PresetOption = "cpu",
    minutes: MinutesOption = None,
    settings: SettingsOption = None,
    json: options.JsonOption = False,
) -> None:
    """The planner's students beside every simpler way that is as fast, with one budget; it goes on where it was."""
    from vitslim.pipeline.planner_bench import PlannerBench
    from vitslim.report.planner_bench import bench_lines

    bench = PlannerBench(out or Path("out", f"planner-{Path(preset).stem}"), preset=preset, overrides=settings or ())
    # As anyone would type it: without the folders of this machine.
    command = f"vitslim bench planner --preset {Path(preset).name}"
    command += "".join(f" --set {shlex.quote(one)}" for one in settings or ())
    with Screen() as screen:
        found = bench.run(minutes=minutes, command=command, progress=screen)
    if json:
        print_json(found.model_dump(mode="json"))
        return
    typer.echo("\n".join(bench_lines(found)))
    say(f"wrote {bench.path}")
    if found.left:
        say(f"{len(found.left)} parts are left; run the same command again", style="yellow")


def _run(
    benchmark: Benchmark,
    out: Path | None,
    preset: str,
    quick: bool,
    minutes: float | None,
    again: bool,
    settings: list[str] | None,
    show: bool,
    json: bool,
) -> None:
    from vitslim.pipeline.suite import Suite
    from vitslim.report.suite import caption, main_tables, write_suite

    out = out or Path("out", f"{benchmark}-{Path(preset).stem}{'-quick' if quick else ''}")
    if show and (again or minutes is not None):
        raise ConfigError("--list measures nothing; leave out --again and --minutes")
    benchmarked = Suite(benchmark, out, preset=preset, quick=quick, overrides=tuple(settings or ()))
    if show:
        _list(benchmarked.report(), json=json)
        return
    # As anyone would type it: without the folders of this machine.
    command = f"vitslim bench {benchmark} --preset {Path(preset).name}{' --quick' if quick else ''}"
    command += "".join(f" --set {shlex.quote(one)}" for one in settings or ())
    with Screen() as screen:
        found = benchmarked.run(minutes=minutes, again=again, command=command, progress=screen)
    page = write_suite(found, out)
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        typer.echo("\n\n".join([*(table.text() for table in main_tables(found)), caption(found)]))
    say(f"wrote {page}")
    if found.left:
        are_stopped = all(found.statuses.get(name) == "too long" for name in found.left)
        how = "each needs a larger --minutes" if are_stopped else "run the same command again"
        say(f"{_summary(found)}; {how}", style="yellow")
    if found.statuses and {*found.statuses.values()} == {"unavailable"}:
        reasons = dict.fromkeys(str(one.reason) for one in found.outcomes.values())
        raise MissingDependencyError(f"nothing could be measured: {'; '.join(reasons)}")


def _list(found: SuiteReport, *, json: bool) -> None:
    if json:
        print_json({"cases": found.statuses, "left": found.left})
        return
    names = dict.fromkeys((*found.statuses, *found.left))
    print_table("", ("case", "status"), [(name, found.statuses.get(name, "left")) for name in names])
    typer.echo(_summary(found))


def _summary(found: SuiteReport) -> str:
    return f"{found.total - len(found.left)} of {found.total} cases are done, {len(found.left)} are left"


def _nothing_measured(reasons: list[str]) -> VitslimError:
    message = f"nothing could be measured: {'; '.join(reasons)}"
    # A backend whose library is absent says how to install it.
    return (
        MissingDependencyError(message) if all("pip install" in one for one in reasons) else CheckFailedError(message)
    )

"""Section: latency and size against the dense model."""

from collections.abc import Sequence

from vitslim.bench import BenchReport, BenchRow, skipped_lines
from vitslim.bench.ratios import VERDICT_RULE, is_across, remarks
from vitslim.report.charts import size_bars, speed_bars
from vitslim.report.commands import command
from vitslim.report.content import TONES, Cell, Element, Note, Table, absent, facts, pictures
from vitslim.report.drawing import Picture
from vitslim.report.numbers import amount, fixed, flatten, percent, times
from vitslim.report.parts import ReportParts

Setting = tuple[str, str, int]  # backend, precision, batch


def speed(parts: ReportParts) -> list[Element]:
    """Speed ratios first, then all figures, then where they were measured."""
    bench = parts.bench
    sizes = [[name, fixed(size / 2**20)] for name, size in parts.file_bytes.items()]
    files: list[Element] = [Table("Files to deploy.", ("File", "Size, MiB"), sizes)] if sizes else []
    if bench is None or not bench.rows:
        return [absent("Not measured", command(parts, "bench")), *(bench_remarks(bench) if bench else []), *files]
    introduction = (
        f"Every ratio is against the dense model {bench.baseline} with fused attention, measured in the same run. "
    )
    return [
        Note(introduction + VERDICT_RULE),
        *pictures(_ratios(bench), _work(bench)),
        bench_table(bench),
        *bench_remarks(bench),
        *files,
        *where_measured([bench]),
    ]


def setting_of(row: BenchRow) -> Setting:
    """Where it was measured; only rows of one setting may be compared."""
    return row.backend, row.precision, row.batch


def setting_name(setting: Setting) -> str:
    """A setting in words: ort fp32, batch 8."""
    backend, precision, batch = setting
    return f"{backend} {precision}, batch {batch}"


def student_rows(bench: BenchReport | None) -> list[BenchRow]:
    """The rows of the converted model: the one named so, else the first that is not the baseline."""
    others = [row for row in bench.rows if row.model != bench.baseline] if bench else []
    name = "student" if any(row.model == "student" for row in others) else others[0].model if others else ""
    return [row for row in others if row.model == name]


def ratio_cell(row: BenchRow, below: str = "") -> Cell:
    """A speed ratio with its verdict in words and colour, since colour alone is not seen by all."""
    if row.verdict is None:
        return Cell("baseline" if row.speedup_vs_dense == 1 else times(row.speedup_vs_dense), below=below)
    notes = [*(["at another resolution"] if row.other_image_size else []), *([below] if below else [])]
    return Cell(f"{times(row.speedup_vs_dense)} {row.verdict}", TONES[row.verdict], "; ".join(notes))


def bench_table(bench: BenchReport) -> Table:
    """All timings, grouped by setting."""
    across = any(map(is_across, bench.rows))
    settings = list(dict.fromkeys(map(setting_of, bench.rows)))
    has_memory = any(row.peak_memory_mib is not None for row in bench.rows)
    rows = [
        [
            row.model,
            *([setting_name(setting)] if len(settings) > 1 else []),
            ratio_cell(row),
            f"{fixed(row.speedup_p10)}–{fixed(row.speedup_p90)}",
            *([times(row.speedup_vs_dense_torch)] if across else []),
            fixed(row.latency_ms_p50),
            fixed(row.latency_ms_p90),
            fixed(row.latency_ms_p99),
            fixed(row.throughput_img_s, 1),
            amount(row.params),
            amount(row.macs, "MAC"),
            *([fixed(row.peak_memory_mib, 0)] if has_memory else []),
        ]
        for setting in settings
        for row in bench.rows
        if setting_of(row) == setting
    ]
    header = [
        "Model",
        *(["Setting"] if len(settings) > 1 else []),
        "Against dense",
        "p10–p90",
        *(["Against dense in torch"] if across else []),
    ]
    header += ["p50, ms", "p90, ms", "p99, ms", "Images per second", "Parameters", "Work per image"]
    where = "" if len(settings) > 1 else f" in {setting_name(settings[0])}"
    caption = (
        f"Latency of one batch{where}. Ratios compare medians of the same setting and run; p10–p90 is their spread."
    )
    header += ["Peak memory, MiB"] if has_memory else []
    return Table(caption, header, rows, words=2 if len(settings) > 1 else 1)


def bench_remarks(bench: BenchReport) -> list[Element]:
    """How to read the rows, what was asked for and could not be measured, and what else the benchmark wants known."""
    left_out = [*(f"Not measured: {line}" for line in skipped_lines(bench)), *bench.notes]
    return [
        *map(Note, remarks(bench.rows, bench.baseline, bench.environment)),
        *(Note(sentence, "absent") for sentence in left_out),
    ]


def where_measured(benches: Sequence[BenchReport]) -> list[Element]:
    """The hardware and settings of the measurements; where they differ, each of their values."""
    found: dict[str, list[str]] = {}
    for bench in benches:
        for name, value in flatten({**bench.environment, **bench.settings}).items():
            found.setdefault(name, []).append(value)
    return facts(
        "Where the speed was measured.", {name: " | ".join(dict.fromkeys(all_)) for name, all_ in found.items()}
    )


def work_picture(macs: dict[str, int], dense: int | None) -> Picture:
    """Multiply-accumulates as bars, with their share of the dense model's."""
    bars = {
        name: (float(count), amount(count, "MAC") + (f", {percent(count / dense, 1)}" if dense else ""))
        for name, count in macs.items()
    }
    note = "With the attention core. This is work, not speed: the timings decide."
    return size_bars("Multiply-accumulates per image", bars, note)


def _ratios(bench: BenchReport) -> Picture | None:
    converted = [row for row in bench.rows if row.verdict is not None]
    several = len({row.model for row in converted}) > 1
    named = {(f"{row.model}: " if several else "") + setting_name(setting_of(row)): row for row in converted}
    return speed_bars("Speed against dense", named)


def _work(bench: BenchReport) -> Picture:
    counted = {row.model: row.macs for row in bench.rows}
    return work_picture(counted, counted.get(bench.baseline))

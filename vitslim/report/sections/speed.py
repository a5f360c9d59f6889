"""Section: latency and size against the dense model."""

from vitslim.bench.ratios import VERDICT_RULE, Verdict, is_across, remarks
from vitslim.report.bars import size_bars, speed_bars
from vitslim.report.commands import bench_command
from vitslim.report.documents import Bench, BenchRow
from vitslim.report.markup import Markup, element, figure, join, paragraph, table
from vitslim.report.numbers import ABSENT, amount, fixed, flatten, percent, times
from vitslim.report.parts import ReportParts
from vitslim.report.sections.absent import absent

TONES: dict[Verdict, str] = {"faster": "good", "even": "even", "too noisy": "even", "slower": "bad"}


def speed(parts: ReportParts) -> Markup:
    """Speed ratios first, then all figures, then where they were measured."""
    bench = parts.bench
    sizes = [_file_table(parts.file_bytes)] if parts.file_bytes else []
    if bench is None or not bench.rows:
        return join([absent("Not measured", bench_command(parts)), *(bench_remarks(bench) if bench else []), *sizes])
    pieces = [
        _introduction(bench),
        *_ratio_figure(bench),
        bench_table(bench),
        *bench_remarks(bench),
        size_table(bench.rows),
    ]
    pieces += [*_work_figure(bench), *sizes, where_measured(bench)]
    return join(pieces)


def setting_name(setting: tuple[str, str, int]) -> str:
    """A setting in words: ort fp32, batch 8."""
    backend, precision, batch = setting
    return f"{backend} {precision}".strip() + f", batch {batch}"


def ratio_cell(row: BenchRow | None) -> str:
    """A speed ratio with its verdict in words and colour, since colour alone is not seen by all."""
    if row is None or row.verdict is None:
        return ABSENT
    words = f"{times(row.speedup_vs_dense)} {row.verdict}" + (", at another resolution" if row.other_image_size else "")
    return element("span", words, class_=TONES[row.verdict])


def across_cell(row: BenchRow | None) -> str:
    """The ratio to dense in torch fp32 at the same batch, in the same session."""
    return times(row.speedup_vs_dense_torch) if row else ABSENT


def bench_table(bench: Bench) -> Markup:
    """All timings, grouped by setting."""
    across = any(map(is_across, bench.rows))
    has_memory = any(row.peak_memory_mib is not None for row in bench.rows)
    rows = [
        [
            setting_name(row.setting),
            row.model,
            "baseline" if row.model == bench.dense_name else ratio_cell(row),
            _spread(row),
            *([across_cell(row)] if across else []),
            fixed(row.latency_ms_p50),
            fixed(row.latency_ms_p90),
            fixed(row.latency_ms_p99),
            fixed(row.throughput_img_s, 1),
            *([fixed(row.peak_memory_mib, 0)] if has_memory else []),
        ]
        for setting in dict.fromkeys(row.setting for row in bench.rows)
        for row in bench.rows
        if row.setting == setting
    ]
    header = ["Setting", "Model", "Against dense", "p10–p90", *(["Against dense in torch"] if across else [])]
    header += ["p50, ms", "p90, ms", "p99, ms", "Images per second"]
    header += ["Peak memory, MiB"] if has_memory else []
    caption = "Latency of one batch. Ratios compare medians of the same setting and run; p10–p90 is their spread."
    return table(caption, header, rows, text_columns=2)


def size_table(rows: list[BenchRow]) -> Markup:
    """Parameters and multiply-accumulates of every model once."""
    models = {row.model: row for row in reversed(rows)}
    body = [[name, amount(row.params), amount(row.macs, "MAC")] for name, row in reversed(models.items())]
    caption = "Size of the models; multiply-accumulates per image with the attention core. They are work, not speed."
    return table(caption, ("Model", "Parameters", "Multiply-accumulates"), body)


def where_measured(*benches: Bench) -> Markup:
    """The hardware and settings of the measurement, as the benchmark recorded them."""
    facts: dict[str, list[str]] = {}
    for bench in benches:
        for name, value in flatten(bench.environment | bench.settings).items():
            facts.setdefault(name, []).append(value)
    if not facts:
        return paragraph("The benchmark did not record its environment.", class_="absent")
    # Several runs that differ show each of their values, so that none is passed off as the other.
    rows = [[name, " | ".join(dict.fromkeys(values))] for name, values in facts.items()]
    return element(
        "div", table("Where the speed was measured.", ("Setting", "Value"), rows, text_columns=2), class_="facts"
    )


def _introduction(bench: Bench) -> Markup:
    if bench.dense_name is None:
        return paragraph("No dense baseline was measured in this run, so there are no ratios.")
    return paragraph(
        "Every ratio is against the dense model ",
        element("strong", bench.dense_name),
        " with fused attention, measured in the same run. ",
        VERDICT_RULE,
    )


def _ratio_figure(bench: Bench) -> list[Markup]:
    converted = [row for row in bench.rows if row.model != bench.dense_name and row.speedup_vs_dense is not None]
    if not converted:
        return []
    several = len({row.model for row in converted}) > 1
    named = {(f"{row.model}: " if several else "") + setting_name(row.setting): row for row in converted}
    description = "Speed against dense: " + "; ".join(
        f"{name} {times(row.speedup_vs_dense)}" for name, row in named.items()
    )
    has_spread = any(row.spread for row in converted)
    note = "Thin lines: from the 10th to the 90th percentile of the ratio over the rounds." if has_spread else None
    return [figure("Speed against dense", speed_bars(named, description), note)]


def _work_figure(bench: Bench) -> list[Markup]:
    """Work against dense as bars; nothing where it was not counted."""
    first = {row.model: row for row in reversed(bench.rows)}
    dense = first.get(bench.dense_name or "")
    counted = {name: row.macs for name, row in reversed(first.items()) if row.macs is not None}
    if dense is None or not dense.macs or len(counted) < 2:
        return []
    bars = {name: (macs, f"{amount(macs, 'MAC')}, {percent(macs / dense.macs, 1)}") for name, macs in counted.items()}
    description = "Multiply-accumulates per image: " + "; ".join(f"{name} {label}" for name, (_, label) in bars.items())
    return [figure("Multiply-accumulates per image", size_bars(bars, description))]


def _file_table(file_bytes: dict[str, int]) -> Markup:
    rows = [[name, fixed(size / 2**20)] for name, size in file_bytes.items()]
    return table("Files to deploy.", ("File", "Size, MiB"), rows)


def bench_remarks(bench: Bench) -> list[Markup]:
    """How to read the rows, what was asked for and could not be measured, and what else the benchmark wants known."""
    known = [paragraph(sentence) for sentence in remarks(bench.rows, bench.dense_name, bench.environment)]
    left_out = [*(one.sentence for one in bench.skipped), *bench.notes]
    return [*known, *(paragraph(sentence, class_="absent") for sentence in left_out)]


def _spread(row: BenchRow) -> str:
    return f"{fixed(row.spread[0])}–{fixed(row.spread[1])}" if row.spread else ABSENT

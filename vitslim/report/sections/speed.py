"""Section: latency and size against the dense model."""

from vitslim.report.charts import size_bars, speed_bars
from vitslim.report.documents import Bench, BenchRow
from vitslim.report.markup import Markup, element, figure, join, paragraph, table
from vitslim.report.numbers import ABSENT, amount, fixed, flatten, percent, times, verdict
from vitslim.report.parts import ReportParts
from vitslim.report.sections.absent import absent

TONES = {"faster": "good", "slower": "bad", "even": "even"}


def speed(parts: ReportParts) -> Markup:
    """Speed ratios first, then all figures, then where they were measured."""
    bench = parts.bench
    sizes = [_file_table(parts.file_bytes)] if parts.file_bytes else []
    if bench is None or not bench.rows:
        return join([absent("Not measured", "vitslim bench …"), *_skipped(bench), *sizes])
    pieces = [_introduction(bench), *_ratio_figure(bench), bench_table(bench), *_skipped(bench), size_table(bench.rows)]
    pieces += [*_work_figure(bench), *sizes, where_measured(bench)]
    return join(pieces)


def setting_name(setting: tuple[str, str, int]) -> str:
    """A setting in words: ort fp32, batch 8."""
    backend, precision, batch = setting
    return f"{backend} {precision}".strip() + f", batch {batch}"


def ratio_cell(speedup: float | None) -> str:
    """A speed ratio with its verdict in words and colour, since colour alone is not seen by all."""
    if speedup is None:
        return ABSENT
    word = verdict(speedup)
    return element("span", f"{times(speedup)} {word}", class_=TONES[word])


def bench_table(bench: Bench) -> Markup:
    """All timings, grouped by setting."""
    rows = [
        [
            setting_name(row.setting),
            row.model,
            element("span", "baseline", class_="even")
            if row.model == bench.dense_name
            else ratio_cell(row.speedup_vs_dense),
            fixed(row.latency_ms_p50),
            fixed(row.latency_ms_p90),
            fixed(row.latency_ms_p99),
            fixed(row.throughput_img_s, 1),
            fixed(row.peak_memory_mib, 0),
        ]
        for setting in bench.settings
        for row in bench.rows
        if row.setting == setting
    ]
    header = (
        "Setting",
        "Model",
        "Against dense",
        "p50, ms",
        "p90, ms",
        "p99, ms",
        "Images per second",
        "Peak memory, MiB",
    )
    caption = "Latency of one batch; ratios compare medians of the same setting and run."
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
        for name, value in flatten(bench.environment).items():
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
        " with fused attention, measured in the same run. Ratios within 2 % of 1 are called even: "
        "two runs of one model differ by as much.",
    )


def _ratio_figure(bench: Bench) -> list[Markup]:
    converted = [row for row in bench.rows if row.model != bench.dense_name and row.speedup_vs_dense is not None]
    several = len({row.model for row in converted}) > 1
    ratios = {
        (f"{row.model}: " if several else "") + setting_name(row.setting): row.speedup_vs_dense
        for row in converted
        if row.speedup_vs_dense is not None
    }
    if not ratios:
        return []
    description = "Speed against dense: " + "; ".join(f"{name} {times(ratio)}" for name, ratio in ratios.items())
    return [figure("Speed against dense", speed_bars(ratios, description))]


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


def _skipped(bench: Bench | None) -> list[Markup]:
    return [
        paragraph(
            f"Not measured on {one.backend}: {one.reason or 'no reason given'}.".replace("..", "."), class_="absent"
        )
        for one in (bench.skipped if bench else [])
    ]

"""Benchmark rows as text."""

import re
from collections.abc import Callable, Sequence

from vitslim.bench.ratios import is_across
from vitslim.bench.result import BenchReport, BenchRow
from vitslim.errors import ConfigError

Column = tuple[str, Callable[[BenchRow], str]]

_COLUMNS: tuple[Column, ...] = (
    ("model", lambda row: row.model),
    ("backend", lambda row: row.backend),
    ("precision", lambda row: row.precision),
    ("batch", lambda row: str(row.batch)),
    ("p50 ms", lambda row: significant(row.latency_ms_p50)),
    ("p90 ms", lambda row: significant(row.latency_ms_p90)),
    ("img/s", lambda row: significant(row.throughput_img_s)),
    ("speed-up", lambda row: f"{row.speedup_vs_dense:.2f}x"),
    ("spread p10–p90", lambda row: f"{row.speedup_p10:.2f}–{row.speedup_p90:.2f}"),
    ("params M", lambda row: f"{row.params / 1e6:.2f}"),
    ("GMAC", lambda row: f"{row.macs / 1e9:.3f}"),
)
_VERDICT: Column = ("verdict", lambda row: row.verdict or "baseline")
_ACROSS: Column = ("vs dense torch", lambda row: _ratio(row.speedup_vs_dense_torch))
_PIXELS: Column = ("px", lambda row: "x".join(map(str, row.image_size)) + ("*" if row.other_image_size else ""))
_OPTIONAL: dict[str, Callable[[BenchRow], float | None]] = {
    "file MiB": lambda row: row.file_mib,
    "memory MiB": lambda row: row.peak_memory_mib,
    "mJ/img": lambda row: row.energy_mj_per_image,
    "W": lambda row: row.power_w,
    "MHz": lambda row: row.sm_clock_mhz,
}
_TEXT_COLUMNS = 4  # the first columns are words, left-aligned; figures follow, right-aligned


def text_table(rows: Sequence[BenchRow], baseline: str | None = None) -> str:
    """Aligned columns for a terminal, one line per row.

    Args:
        baseline: name of the dense model. With it a further column says which share of the ratio of
            multiply-accumulates the measured speed-up is: 100 % where time went down as they did.
    """
    return as_text(table_cells(rows, baseline), words=_TEXT_COLUMNS)


def table_cells(rows: Sequence[BenchRow], baseline: str | None) -> list[list[str]]:
    """Header and rows of a table as text; figures that no row has get no column. See ``text_table``."""
    dense = next((row.macs for row in rows if row.model == baseline), None)
    columns = list(_COLUMNS)
    after_spread = 1 + [title for title, _ in columns].index("spread p10–p90")
    extra = [_VERDICT] if any(row.verdict for row in rows) else []
    extra += [_ACROSS] if any(is_across(row) for row in rows) else []
    columns[after_spread:after_spread] = extra
    if any(row.other_image_size for row in rows):
        columns.insert(_TEXT_COLUMNS, _PIXELS)
    if dense is not None:
        columns.append(("of MAC ratio", lambda row: f"{100 * share_of_mac_ratio(row, dense):.0f} %"))
    columns += [
        (title, lambda row, value=value: _optional(value(row)))
        for title, value in _OPTIONAL.items()
        if any(value(row) is not None for row in rows)
    ]
    return [[title for title, _ in columns], *([cell(row) for _, cell in columns] for row in rows)]


def as_markdown(cells: Sequence[Sequence[str]], words: int = 1) -> str:
    """Cells as a GitHub table, the first row its header.

    Args:
        words: columns at the left that hold words; figures follow, right-aligned.
    """
    header, *lines = cells
    rule = ["---" if index < words else "---:" for index in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def as_text(cells: Sequence[Sequence[str]], words: int = 1) -> str:
    """Cells in aligned columns; ``words`` as in ``as_markdown``."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < words else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def share_of_mac_ratio(row: BenchRow, dense_macs: int) -> float:
    """Which part of the ratio of multiply-accumulates became speed: 1 where time went down as they did."""
    # (t_dense / t) / (MAC_dense / MAC)
    return row.speedup_vs_dense * row.macs / dense_macs


def significant(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    if value >= 100:
        return f"{value:.0f}"
    if value >= 1:
        return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"{value:.3g}"


def caption(report: BenchReport) -> str:
    """One sentence that says on what, how, beside which baseline the rows were measured."""
    environment, settings = report.environment, report.settings
    gpu = ", ".join(gpu["name"] for gpu in environment["gpu"]) if settings["device"] == "cuda" else ""
    load = (environment["load_average"] or ["unknown"])[0]
    parts = [
        gpu or f"{environment['cpu']}, {settings['threads']} thread{'s' if settings['threads'] > 1 else ''}",
        f"median of up to {settings['rounds']} interleaved rounds",
        f"speed-up against '{report.baseline}' with fused attention in the same run",
        f"torch {environment['torch']}, onnxruntime {environment['onnxruntime'] or 'not installed'}",
        f"load average {load}",
    ]
    if any(row.other_image_size for row in report.rows):
        parts.append("models marked * at another resolution than the baseline")
    return f"{'; '.join(parts)}."


def skipped_lines(report: BenchReport) -> list[str]:
    """What was asked for and not measured, one sentence each."""
    return [
        f"{skip.backend} {skip.precision}"
        + (f", {skip.model}" if skip.model else "")
        + (f", batch {skip.batch}" if skip.batch else "")
        + f": {skip.reason}"
        for skip in report.skipped
    ]


def replace_between_markers(text: str, name: str, table: str) -> str:
    """Put ``table`` between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; the rest of ``text`` stays.

    Raises:
        ConfigError: the pair of markers is not there exactly once.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ConfigError(
            f"wanted one '{begin}' followed by one '{end}', found {text.count(begin)} and {text.count(end)}"
        )
    pattern = re.compile(re.escape(begin) + r".*" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{table.strip()}\n{end}", text)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _optional(value: float | int | None) -> str:
    return "-" if value is None else significant(float(value))

"""Benchmark rows as text: for a README, for a terminal."""

import re
from collections.abc import Callable, Sequence

from vitslim.bench.result import BenchReport, BenchRow
from vitslim.errors import ConfigError

_COLUMNS: tuple[tuple[str, Callable[[BenchRow], str]], ...] = (
    ("model", lambda row: row.model),
    ("backend", lambda row: row.backend),
    ("precision", lambda row: row.precision),
    ("batch", lambda row: str(row.batch)),
    ("p50 ms", lambda row: _significant(row.latency_ms_p50)),
    ("p90 ms", lambda row: _significant(row.latency_ms_p90)),
    ("img/s", lambda row: _significant(row.throughput_img_s)),
    ("speed-up", lambda row: f"{row.speedup_vs_dense:.2f}x"),
    ("spread p10–p90", lambda row: f"{row.speedup_p10:.2f}–{row.speedup_p90:.2f}"),
    ("params M", lambda row: f"{row.params / 1e6:.2f}"),
    ("GMAC", lambda row: f"{row.macs / 1e9:.3f}"),
)
_TEXT_COLUMNS = 4  # the first columns are words, left-aligned; figures follow, right-aligned


def markdown_table(rows: Sequence[BenchRow], baseline: str | None = None) -> str:
    """A GitHub table, one line per row.

    Args:
        baseline: name of the dense model. With it a further column says which share of the ratio of
            multiply-accumulates the measured speed-up is: 100 % where time went down as they did.
    """
    header, *lines = _cells(rows, baseline)
    rule = ["---" if index < _TEXT_COLUMNS else "---:" for index in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def text_table(rows: Sequence[BenchRow], baseline: str | None = None) -> str:
    """Aligned columns for a terminal; ``baseline`` as in ``markdown_table``."""
    lines = _cells(rows, baseline)
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < _TEXT_COLUMNS else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def caption(report: BenchReport, command: str | None = None) -> str:
    """One sentence that says on what, how, against what the rows were measured."""
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
    return "; ".join(parts) + (f"; `{command}`" if command else "") + "."


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


def _cells(rows: Sequence[BenchRow], baseline: str | None) -> list[list[str]]:
    dense = next((row.macs for row in rows if row.model == baseline), None)
    columns = list(_COLUMNS)
    if dense is not None:
        columns.append(("of MAC ratio", lambda row: _share(row, dense)))
    return [[title for title, _ in columns], *([cell(row) for _, cell in columns] for row in rows)]


def _share(row: BenchRow, dense_macs: int) -> str:
    # (t_dense / t) / (MAC_dense / MAC)
    return f"{100 * row.speedup_vs_dense * row.macs / dense_macs:.0f} %"


def _significant(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"

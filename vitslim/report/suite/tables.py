"""The suite's figures as tables of text: one per setting, and one that puts all settings side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vitslim.bench.kernels import KernelRow
from vitslim.bench.suite import DENSE, CaseResult, GainTarget, Setting, SuiteReport, SuiteRow
from vitslim.bench.tables import share_of_mac_ratio, significant
from vitslim.report.content import Cell, Table
from vitslim.report.numbers import Number

Overviewed = tuple[str, str, str]  # model, backend, precision

_IN_BRACKETS = "In brackets: share of what the roofline allows; above 100 % where the L2 cache holds the operands."
_ABSENT = "–"
_MANY_COLUMNS = 6
_MANY_TABLES = 8
_MANY_NAMES = 8


def overview(report: SuiteReport, kind: Overviewed, size: int | None = None) -> Table | None:
    """Speed against dense of one model in one backend and precision: a row per competitor, a column per setting.

    Args:
        size: of the images in pixels; ``None`` for all sizes.
    """
    pieces = [piece for piece in report.pieces if _kind(piece) == kind and size in (None, piece.piece.image_size)]
    columns = [(piece, batch) for piece in pieces for batch in piece.piece.batches]
    columns.sort(key=lambda column: (column[0].piece.image_size, column[1]))
    names = _competitors(pieces)
    if not names:
        return None
    header = ["speed against dense (of the MAC ratio)", *(_setting_words(piece, batch) for piece, batch in columns)]
    lines = [[name, *(_speed_cell(piece, name, batch) for piece, batch in columns)] for name in names]
    dense = ["dense, ms per batch", *(_dense_cell(piece, batch) for piece, batch in columns)]
    base, backend, precision = kind
    return Table(f"{base}{f' {size} px' if size else ''}, {backend} {precision}", header, [dense, *lines])


def overviews(report: SuiteReport) -> list[Table]:
    """An overview per model, backend and precision, in the preset's order; training steps are among them.

    One that would be too wide to read becomes one for each image size.
    """
    return [table for kind in _kinds(report) for table in _overviews(report, kind)]


def main_overviews(report: SuiteReport) -> list[Table]:
    """All overviews, or where they are many, those in which targets are, if any is."""
    found = {kind: tables for kind in _kinds(report) if (tables := _overviews(report, kind))}
    wanted = {(one.model, one.backend, one.precision) for one in report.aims} & {*found}
    shows_all = not wanted or sum(map(len, found.values())) <= _MANY_TABLES
    return [table for kind, tables in found.items() if shows_all or kind in wanted for table in tables]


def _overviews(report: SuiteReport, kind: Overviewed) -> list[Table]:
    pieces = [piece.piece for piece in report.pieces if _kind(piece) == kind]
    are_many = sum(len(piece.batches) for piece in pieces) > _MANY_COLUMNS
    sizes = sorted({piece.image_size for piece in pieces}) if are_many else [None]
    return [table for size in sizes if (table := overview(report, kind, size)) is not None]


def _kinds(report: SuiteReport) -> list[Overviewed]:
    return list(dict.fromkeys(_kind(piece) for piece in report.pieces if piece.piece.kind == "models"))


def targets_table(report: SuiteReport) -> Table | None:
    """The preset's targets with what was measured, met or not."""
    if not report.aims:
        return None
    lines = [[target.what, f"{target.at_least:.2f}x", *_reached(report, target)] for target in report.aims]
    return Table("Aims", ("aim", "at least", "measured", "by", "met"), lines)


def piece_table(piece: CaseResult, batch: int) -> Table:
    """All figures of one setting; those that nobody has get no column."""
    rows = [row for row in piece.rows if row.batch == batch]
    dense = next((row.macs for row in rows if row.model == DENSE), None)
    columns: dict[str, Callable[[SuiteRow], str]] = {
        "speed": lambda row: f"{row.speedup_vs_dense:.2f}x",
        "p10–p90": lambda row: f"{row.speedup_p10:.2f}–{row.speedup_p90:.2f}",
        "p50 ms": lambda row: significant(row.latency_ms_p50),
        "p99 ms": lambda row: significant(row.latency_ms_p99),
        "img/s": lambda row: significant(row.throughput_img_s),
        "GMAC": lambda row: f"{row.macs / 1e9:.4g}",
        "of MAC ratio": lambda row: _ABSENT if dense is None else f"{100 * share_of_mac_ratio(row, dense):.0f} %",
        "params M": lambda row: f"{row.params / 1e6:.2f}",
        "weights MiB": lambda row: f"{row.weights_mib:.1f}",
        "TFLOP/s": lambda row: _cell(row.tflops, "{:.3g}"),
        "GB/s": lambda row: _cell(row.gbytes_s, "{:.3g}"),
        "of roofline": lambda row: _cell(row.roofline_share, "{:.0%}").replace("%", " %"),
        "file MiB": lambda row: _cell(row.file_mib, "{:.1f}"),
        "memory MiB": lambda row: _cell(row.peak_memory_mib, "{:.0f}"),
        "mJ/img": lambda row: _cell(row.energy_mj_per_image, "{:.3g}"),
        "W": lambda row: _cell(row.power_w, "{:.0f}"),
        "MHz": lambda row: _cell(row.sm_clock_mhz, "{:.0f}"),
    }
    cells = {title: [cell(row) for row in rows] for title, cell in columns.items()}
    known = {title: column for title, column in cells.items() if {*column} != {_ABSENT}}
    lines = [list(line) for line in zip([row.model for row in rows], *known.values(), strict=True)]
    return Table(f"{_words(piece)}, batch {batch}", ["competitor", *known], lines, note=_peak_note(piece))


def kernel_tables(report: SuiteReport) -> list[Table]:
    """Kernels against dense, a table per precision, a column per number of tokens."""
    found = {(row.precision, row.kernel, row.tokens, row.batch): row for row in report.kernel_rows}
    tables: list[Table] = []
    for precision in dict.fromkeys(row.precision for row in report.kernel_rows):
        own = [row for row in report.kernel_rows if row.precision == precision]
        columns = sorted({(row.tokens, row.batch) for row in own})
        lines = [
            [kernel, *(_kernel_cell(found.get((precision, kernel, *column))) for column in columns)]
            for kernel in dict.fromkeys(row.kernel for row in own)
        ]
        header = ["kernel against its dense twin", *(f"{tokens} tokens, b{batch}" for tokens, batch in columns)]
        tables.append(Table(f"kernels, {precision}", header, lines, note=_IN_BRACKETS))
    return tables


def _kernel_cell(row: KernelRow | None) -> str:
    return _ABSENT if row is None else f"{row.speedup_vs_dense:.2f}x ({100 * row.roofline_share:.0f} %)"


def not_measured(report: SuiteReport) -> list[str]:
    """What was asked for and has no figure, one sentence each."""
    sentences = [
        f"{piece.piece.name}: {piece.status}, {piece.reason}"
        for piece in report.pieces
        if not piece.rows and not piece.kernel_rows
    ]
    for piece in report.pieces:
        if piece.rows:
            sentences += [
                f"{piece.piece.name}, {skip.model or 'all'}"
                + (f", batch {skip.batch}" if skip.batch else "")
                + f": {skip.reason}"
                for skip in piece.skipped
            ]
        sentences += [
            f"{piece.piece.name}, {skip.kernel}, {skip.tokens} tokens: {skip.reason}" for skip in piece.kernel_skips
        ]
    notes = dict.fromkeys(note for piece in report.pieces for note in piece.notes)
    left = [f"not begun: {shortened(report.not_begun)}"] if report.not_begun else []
    return [*dict.fromkeys(sentences), *notes, *left]


def caption(report: SuiteReport) -> str:
    """On what, how and against what was measured."""
    environment, settings = report.environment, report.settings
    if not environment:
        return f"Nothing measured yet; `{report.command}`."
    gpu = ", ".join(one["name"] for one in environment.get("gpu") or []) if settings["device"] == "cuda" else ""
    threads = settings["threads"]
    parts = [
        gpu or f"{environment['cpu']}, {threads} thread{'s' if threads > 1 else ''}",
        f"medians of up to {settings['rounds']} interleaved rounds",
        "speed against dense with fused attention in the same rounds, random weights",
        f"torch {environment['torch']}",
        *(["quick run"] if report.quick else []),
        f"`{report.command}`",
    ]
    return "; ".join(parts) + "."


def shortened(names: Sequence[str]) -> str:
    """Names in a sentence; of many the first ones."""
    more = len(names) - _MANY_NAMES
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:_MANY_NAMES])} and {more} more"


def _competitors(pieces: Sequence[CaseResult]) -> list[str]:
    measured = {row.model for piece in pieces for row in piece.rows}
    named = dict.fromkeys(name for piece in pieces for name in piece.piece.competitors)
    return [name for name in named if name in measured]


def _speed_cell(piece: CaseResult, name: str, batch: int) -> str:
    row, dense = _row(piece, name, batch), _row(piece, DENSE, batch)
    if row is not None:
        share = "" if dense is None else f" ({100 * share_of_mac_ratio(row, dense.macs):.0f} %)"
        return f"{row.speedup_vs_dense:.2f}x{share}"
    if any(skip.out_of_memory and skip.model in (None, name) and skip.batch in (None, batch) for skip in piece.skipped):
        return "no memory"
    return "–"


def _row(piece: CaseResult, model: str, batch: int) -> SuiteRow | None:
    return next((row for row in piece.rows if (row.model, row.batch) == (model, batch)), None)


def _dense_cell(piece: CaseResult, batch: int) -> str:
    found = _row(piece, DENSE, batch)
    if found is not None:
        return significant(found.latency_ms_p50)
    return "no memory" if piece.status == "out of memory" else "–"


def _reached(report: SuiteReport, target: GainTarget) -> tuple[str, str, str | Cell]:
    """The best figure that counts for a target, who reached it, and whether that is enough."""
    here = [row for row in report.rows if _setting(row) == target.setting]
    dense = next((row for row in here if row.model == DENSE), None)
    gains = {row.model: _gain(target, row, dense) for row in here if row.model in target.competitors}
    found = {name: gain for name, gain in gains.items() if gain is not None}
    found |= {
        row.kernel: row.speedup_vs_dense
        for row in report.kernel_rows
        if (row.kernel, row.tokens, row.batch, row.precision)
        == (target.kernel, target.tokens, target.batch, target.precision)
    }
    if not found:
        return "not measured", "–", "–"
    best = max(found, key=lambda name: found[name])
    return f"{found[best]:.2f}x", best, verdict_cell(found[best] >= target.at_least)


def verdict_cell(is_met: bool) -> Cell:
    """A target that is met or missed, in its colour."""
    return Cell("yes", "good") if is_met else Cell("no", "bad")


def _gain(target: GainTarget, row: SuiteRow, dense: SuiteRow | None) -> float | None:
    """How much less a row needs than dense of what the aim is of."""
    if target.of == "speed":
        return row.speedup_vs_dense
    if dense is None:
        return None
    if target.of == "weights":
        return dense.weights_mib / row.weights_mib
    if dense.peak_memory_mib is None or row.peak_memory_mib is None:
        return None
    return dense.peak_memory_mib / row.peak_memory_mib


def _setting(row: SuiteRow) -> Setting:
    return row.base, row.size, row.backend, row.precision, row.batch


def _kind(piece: CaseResult) -> Overviewed:
    return piece.piece.model, piece.piece.backend, piece.piece.precision


def _words(piece: CaseResult) -> str:
    own = piece.piece
    size = f" {own.image_size} px" if own.image_size else ""
    return f"{own.model}{size}, {own.backend} {own.precision}"


def _setting_words(piece: CaseResult, batch: int) -> str:
    size = f"{piece.piece.image_size} px, " if piece.piece.image_size else ""
    return f"{size}b{batch}"


def _peak_note(piece: CaseResult) -> str:
    peaks = piece.ceilings
    if peaks is None:
        return ""
    return (
        f"Ceilings measured in the same run: {significant(peaks.tflops)} TFLOP/s (matrix product of "
        f"{peaks.gemm_size}), {significant(peaks.gbytes_s)} GB/s (copy of {peaks.copy_mib:.0f} MiB)."
    )


def _cell(value: Number | None, form: str) -> str:
    return _ABSENT if value is None else form.format(value)

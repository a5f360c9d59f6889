"""The suite's figures as tables of text: one per setting, and one that puts all settings side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitslim.bench.suite import DENSE, CaseResult, GainTarget, Setting, SuiteReport, SuiteRow
from vitslim.bench.tables import as_markdown, as_text, share_of_mac_ratio, significant

Cells = list[list[str]]
Overviewed = tuple[str, str, str]  # model, backend, precision

_IN_BRACKETS = "In brackets: share of what the roofline allows; above 100 % where the L2 cache holds the operands."
_MANY_COLUMNS = 6
_MANY_TABLES = 8
_MANY_NAMES = 8


@dataclass(frozen=True)
class Table:
    """A table with its title; the first row is the header, the first column names the rows."""

    title: str
    cells: Cells
    note: str = ""

    def markdown(self) -> str:
        """As GitHub draws it."""
        return "\n".join([f"**{self.title}**", "", as_markdown(self.cells), *(["", self.note] if self.note else [])])

    def text(self) -> str:
        """In aligned columns, for a terminal."""
        return "\n".join([f"{self.title}:", as_text(self.cells), *([self.note] if self.note else [])])


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
    return Table(f"{base}{f' {size} px' if size else ''}, {backend} {precision}", [header, dense, *lines])


def overviews(report: SuiteReport) -> list[Table]:
    """An overview per model, backend and precision, in the preset's order; training steps are among them.

    One that would be too wide to read becomes one for each image size.
    """
    return [table for kind in _kinds(report) for table in _overviews(report, kind)]


def main_overviews(report: SuiteReport) -> list[Table]:
    """All overviews, or where they are many, those in which aims are, if any is."""
    found = {kind: tables for kind in _kinds(report) if (tables := _overviews(report, kind))}
    aimed = {(aim.model, aim.backend, aim.precision) for aim in report.aims} & {*found}
    shows_all = not aimed or sum(map(len, found.values())) <= _MANY_TABLES
    return [table for kind, tables in found.items() if shows_all or kind in aimed for table in tables]


def _overviews(report: SuiteReport, kind: Overviewed) -> list[Table]:
    pieces = [piece.piece for piece in report.pieces if _kind(piece) == kind]
    are_many = sum(len(piece.batches) for piece in pieces) > _MANY_COLUMNS
    sizes = sorted({piece.image_size for piece in pieces}) if are_many else [None]
    return [table for size in sizes if (table := overview(report, kind, size)) is not None]


def _kinds(report: SuiteReport) -> list[Overviewed]:
    return list(dict.fromkeys(_kind(piece) for piece in report.pieces if piece.piece.kind == "models"))


def aims_table(report: SuiteReport) -> Table | None:
    """The preset's aims with what was measured, met or not."""
    if not report.aims:
        return None
    lines = [[aim.what, f"{aim.at_least:.2f}x", *_reached(report, aim)] for aim in report.aims]
    return Table("Aims", [["aim", "at least", "measured", "by", "met"], *lines])


def piece_table(piece: CaseResult, batch: int) -> Table:
    """All figures of one setting."""
    rows = [row for row in piece.rows if row.batch == batch]
    dense = next((row for row in rows if row.model == DENSE), None)
    columns: list[tuple[str, Callable[[SuiteRow], str]]] = [
        ("speed", lambda row: f"{row.speedup_vs_dense:.2f}x"),
        ("p10–p90", lambda row: f"{row.speedup_p10:.2f}–{row.speedup_p90:.2f}"),
        ("p50 ms", lambda row: significant(row.latency_ms_p50)),
        ("p99 ms", lambda row: significant(row.latency_ms_p99)),
        ("img/s", lambda row: significant(row.throughput_img_s)),
        ("GMAC", lambda row: f"{row.macs / 1e9:.4g}"),
        ("of MAC ratio", lambda row: "–" if dense is None else f"{100 * share_of_mac_ratio(row, dense.macs):.0f} %"),
        ("params M", lambda row: f"{row.params / 1e6:.2f}"),
        ("weights MiB", lambda row: f"{row.weights_mib:.1f}"),
    ]
    optional: list[tuple[str, Callable[[SuiteRow], float | None], str]] = [
        ("TFLOP/s", lambda row: row.tflops, "{:.3g}"),
        ("GB/s", lambda row: row.gbytes_s, "{:.3g}"),
        ("of roofline", lambda row: None if row.roofline_share is None else 100 * row.roofline_share, "{:.0f} %"),
        ("file MiB", lambda row: row.file_mib, "{:.1f}"),
        ("memory MiB", lambda row: row.peak_memory_mib, "{:.0f}"),
        ("mJ/img", lambda row: row.energy_mj_per_image, "{:.3g}"),
        ("W", lambda row: row.power_w, "{:.0f}"),
        ("MHz", lambda row: row.sm_clock_mhz, "{:.0f}"),
    ]
    columns += [
        (title, _optional(value, form))
        for title, value, form in optional
        if any(value(row) is not None for row in rows)
    ]
    cells = [["competitor", *(title for title, _ in columns)]]
    cells += [[row.model, *(cell(row) for _, cell in columns)] for row in rows]
    return Table(f"{_words(piece)}, batch {batch}", cells, _ceiling_note(piece))


def kernel_table(report: SuiteReport, precision: str) -> Table | None:
    """Kernels against their dense twins, a column per number of tokens."""
    rows = [row for row in report.kernel_rows if row.precision == precision]
    if not rows:
        return None
    tokens = sorted({(row.tokens, row.batch) for row in rows})
    found = {(row.kernel, row.tokens, row.batch): row for row in rows}
    header = ["kernel against its dense twin", *(f"{count} tokens, b{batch}" for count, batch in tokens)]
    lines = [
        [
            kernel,
            *(
                "–" if row is None else f"{row.speedup_vs_dense:.2f}x ({100 * row.roofline_share:.0f} %)"
                for count, batch in tokens
                for row in [found.get((kernel, count, batch))]
            ),
        ]
        for kernel in dict.fromkeys(row.kernel for row in rows)
    ]
    return Table(f"kernels, {precision}", [header, *lines], _IN_BRACKETS)


def kernel_tables(report: SuiteReport) -> list[Table]:
    """A table per precision in which kernels were timed."""
    precisions = dict.fromkeys(row.precision for row in report.kernel_rows)
    return [table for one in precisions if (table := kernel_table(report, one)) is not None]


def not_measured(report: SuiteReport) -> list[str]:
    """What was asked for and has no figure, one sentence each."""
    sentences = [f"{piece.piece.name}: {piece.status}, {piece.reason}" for piece in report.pieces if not piece.rows]
    sentences = [one for one, piece in zip(sentences, _without_rows(report), strict=True) if not piece.kernel_rows]
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


def _without_rows(report: SuiteReport) -> list[CaseResult]:
    return [piece for piece in report.pieces if not piece.rows]


def _competitors(pieces: Sequence[CaseResult]) -> list[str]:
    measured = {row.model for piece in pieces for row in piece.rows}
    named = dict.fromkeys(name for piece in pieces for name in piece.piece.competitors)
    return [name for name in named if name in measured]


def _speed_cell(piece: CaseResult, name: str, batch: int) -> str:
    for row in piece.rows:
        if (row.model, row.batch) == (name, batch):
            dense = next((one for one in piece.rows if (one.model, one.batch) == (DENSE, batch)), None)
            share = "" if dense is None else f" ({100 * share_of_mac_ratio(row, dense.macs):.0f} %)"
            return f"{row.speedup_vs_dense:.2f}x{share}"
    if any(skip.out_of_memory and skip.model in (None, name) and skip.batch in (None, batch) for skip in piece.skipped):
        return "no memory"
    return "–"


def _dense_cell(piece: CaseResult, batch: int) -> str:
    found = next((row for row in piece.rows if (row.model, row.batch) == (DENSE, batch)), None)
    if found is not None:
        return significant(found.latency_ms_p50)
    return "no memory" if piece.status == "out of memory" else "–"


def _reached(report: SuiteReport, aim: GainTarget) -> tuple[str, str, str]:
    """The best figure that counts for an aim, who reached it, and whether that is enough."""
    here = [row for row in report.rows if _setting(row) == aim.setting]
    dense = next((row for row in here if row.model == DENSE), None)
    gains = {row.model: _gain(aim, row, dense) for row in here if row.model in aim.competitors}
    found = {name: gain for name, gain in gains.items() if gain is not None}
    found |= {
        row.kernel: row.speedup_vs_dense
        for row in report.kernel_rows
        if (row.kernel, row.tokens, row.batch, row.precision) == (aim.kernel, aim.tokens, aim.batch, aim.precision)
    }
    if not found:
        return "not measured", "–", "–"
    best = max(found, key=lambda name: found[name])
    return f"{found[best]:.2f}x", best, "yes" if found[best] >= aim.at_least else "no"


def _gain(aim: GainTarget, row: SuiteRow, dense: SuiteRow | None) -> float | None:
    """How much less a row needs than dense of what the aim is of."""
    if aim.of == "speed":
        return row.speedup_vs_dense
    if dense is None:
        return None
    if aim.of == "weights":
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


def _ceiling_note(piece: CaseResult) -> str:
    ceilings = piece.ceilings
    if ceilings is None:
        return ""
    return (
        f"Ceilings measured in the same run: {significant(ceilings.tflops)} TFLOP/s (matrix product of "
        f"{ceilings.gemm_size}), {significant(ceilings.gbytes_s)} GB/s (copy of {ceilings.copy_mib:.0f} MiB)."
    )


def _optional(value: Callable[[SuiteRow], float | None], form: str) -> Callable[[SuiteRow], str]:
    return lambda row: "–" if (number := value(row)) is None else form.format(number)

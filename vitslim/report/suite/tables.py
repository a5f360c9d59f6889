"""What the benchmarks of many cases found, as tables: targets, accuracy, speed, kernels."""

from __future__ import annotations

from collections.abc import Container, Sequence

from vitslim.bench.suite import DENSE, FINE_TUNED, REACHABLE, Case, CaseResult, GainTarget, SuiteReport, SuiteRow
from vitslim.bench.tables import share_of_mac_ratio, significant, table_cells
from vitslim.report.content import Cell, Table
from vitslim.report.numbers import ABSENT, half_width

Kind = tuple[str, str, str]  # model, backend, precision

_MANY_COLUMNS = 6
_MANY_TABLES = 8


def main_tables(report: SuiteReport) -> list[Table]:
    """Targets, accuracy, overviews and kernels; of many overviews those in which targets are, if any is."""
    shown, wanted = overviews(report), {*map(_kind, report.targets)}
    if len(shown) > _MANY_TABLES:
        shown = overviews(report, wanted) or shown
    return [*targets_table(report), *accuracy_table(report), *shown, *triton_tables(report), *kernel_tables(report)]


def targets_table(report: SuiteReport) -> list[Table]:
    """The preset's targets with the best gain that counts for each, met or not; none without targets."""
    lines: list[list[str | Cell]] = []
    for one in report.targets:
        gains, is_measured = _gains(report, one)
        best = max(gains, key=lambda name: gains[name][0] / gains[name][1], default="")
        gain, least = gains.get(best, (0.0, one.at_least))
        is_met = Cell("yes", "good") if best and least is not None and gain >= least else Cell("no", "bad")
        reached = f"{gain:.2f}x" if best else "none is as accurate" if is_measured else "not measured"
        loss = [] if one.max_loss is None else [f"at most {one.max_loss:g} points lost"]
        share = [] if one.at_least is not None else [f"{100 * REACHABLE:.0f} % of the MACs' ratio"]
        wanted = ", ".join([*([] if least is None else [f"{least:.2f}x"]), *share, *loss])
        lines.append([one.what, wanted, reached, best or ABSENT, is_met if is_measured else ABSENT])
    return [Table("Targets", ("target", "at least", "measured", "by", "met"), lines)] if lines else []


def _gains(report: SuiteReport, target: GainTarget) -> tuple[dict[str, tuple[float, float]], bool]:
    """What counts for a target: gain and wanted gain of those that are accurate enough; whether any was measured."""
    cases = [one for one in report.cases if target.is_measured_by(one.case)]
    kernels = [row for one in cases for row in one.kernel_rows]
    gains = {
        row.kernel: (row.speedup_vs_dense, target.at_least or 1.0)
        for row in kernels
        if (row.kernel, row.tokens) == (target.kernel, target.tokens)
    }
    for one in cases:
        rows = [row for row in one.rows if row.model in target.competitors and row.precision == target.precision]
        dense = one.row(DENSE)
        for row in rows:
            if (gain := _gain(target, row, dense)) is not None:
                ratio = 1.0 if dense is None else dense.macs / row.macs
                gains[row.model] = gain, target.at_least or REACHABLE * ratio
    if target.max_loss is None:
        return gains, bool(gains)
    rows = report.accuracy
    # Shares of whole images: a loss of just so many is no more than that.
    least = rows[FINE_TUNED].top1 - target.max_loss / 100 - 1e-9 if FINE_TUNED in rows else 1.0
    return {name: gain for name, gain in gains.items() if name in rows and rows[name].top1 >= least}, bool(gains)


def _gain(target: GainTarget, row: SuiteRow, dense: SuiteRow | None) -> float | None:
    """How much less a row needs than dense of what the target is of."""
    if target.of == "speed" or dense is None:
        return row.speedup_vs_dense
    if target.of == "weights":
        return dense.weights_mib / row.weights_mib
    own, base = row.peak_memory_mib, dense.peak_memory_mib
    return base / own if own and base else None


def accuracy_table(report: SuiteReport) -> list[Table]:
    """One row per trained model: what it reached, what it costs, how fast it is; none where nothing was trained."""
    rows, timed = report.accuracy, [one for one in report.cases if one.rows]
    baseline = rows.get(FINE_TUNED)
    header = ["model", "top-1", "±", f"vs {FINE_TUNED}", "agreement", "params M", "GMAC"]
    header += [f"{one.case.backend} {one.case.precision} b{one.case.batch}" for one in timed]
    lines: list[list[str]] = []
    for one in report.trained:
        if (row := one.row) is None:
            continue
        own = [case.row(one.timed_as) for case in timed]
        lines.append(
            [
                one.model,
                f"{100 * row.top1:.2f} %",
                f"{100 * half_width(row.top1, row.images):.2f}",
                ABSENT if baseline is None else f"{100 * (row.top1 - baseline.top1):+.2f}",
                ABSENT if row.agreement is None else f"{100 * row.agreement:.2f} %",
                f"{row.params / 1e6:.2f}",
                f"{row.macs / 1e9:.4g}",
                *(f"{a.speedup_vs_dense:.2f}x, {significant(a.latency_ms_p50)} ms" if a else ABSENT for a in own),
            ]
        )
    images = max((row.images for row in rows.values()), default=0)
    note = f"±: half of the 95 % interval of {images} held-out images. {FINE_TUNED}: the fine-tuned baseline."
    return [Table("Accuracy and speed", header, lines, note=note)] if lines else []


def overviews(report: SuiteReport, wanted: Container[Kind] | None = None) -> list[Table]:
    """Speed against dense: a table per model, backend and precision, or for each image size where it would be wide.

    Args:
        wanted: which models, backends and precisions; all by default.
    """
    kinds: dict[Kind, list[CaseResult]] = {}
    mixed: dict[tuple[str, int], list[CaseResult]] = {}
    for one in report.cases:
        if one.case.triton:
            continue  # of another kind; see ``triton_tables``
        if one.case.also:
            mixed.setdefault((one.case.model, one.case.image_size), []).append(one)
        elif not one.case.tokens and (wanted is None or _kind(one.case) in wanted):
            kinds.setdefault(_kind(one.case), []).append(one)
    tables = [_precisions(cases, has_note=not number) for number, cases in enumerate(mixed.values())]
    for cases in kinds.values():
        cases.sort(key=lambda one: (one.case.image_size, one.case.batch))
        sizes = dict.fromkeys(one.case.image_size for one in cases)
        parts = [[one for one in cases if one.case.image_size == size] for size in sizes]
        tables += map(_overview, parts if len(cases) > _MANY_COLUMNS else [cases])
    return [table for table in tables if len(table.rows) > 1]


def _overview(cases: Sequence[CaseResult]) -> Table:
    model, backend, precision = _kind(cases[0].case)
    settings = [f"{one.case.image_size} px, b{one.case.batch}" for one in cases]
    named = dict.fromkeys(name for one in cases for name in one.case.competitors)
    lines = [[name, *(_speed(one, name) for one in cases)] for name in named if any(one.row(name) for one in cases)]
    dense = ["dense, ms per batch", *(_speed(one, DENSE) for one in cases)]
    return Table(f"{model}, {backend} {precision}", ["speed (of the MAC ratio)", *settings], [dense, *lines])


def _precisions(cases: Sequence[CaseResult], *, has_note: bool) -> Table:
    """One model in several precisions: a line per backend, batch size and precision, a column per competitor."""
    case = cases[0].case
    names = list(dict.fromkeys(name for one in cases for name in (DENSE, *one.case.competitors)))
    lines: list[list[str]] = []
    for one in sorted(cases, key=lambda one: (one.case.backend, one.case.batch)):
        base = one.row(DENSE)
        for precision in (one.case.precision, *one.case.also) if base else ():
            own = one.row(DENSE, precision)
            gains = [_gains_of(one.row(name, precision), own) for name in names]
            cell = significant(own.latency_ms_p50) if own else ABSENT
            lines.append([f"{one.case.backend} {precision} b{one.case.batch}", cell, *gains])
    note = (
        f"All of one backend and batch size in the same rounds. First figure: speed against {DENSE} in "
        f"{case.precision}; in brackets: against {DENSE} in the same precision."
    )
    title, header = f"{case.model}, {case.image_size} px, precisions", ["speed", "dense ms", *names]
    return Table(title, header, lines, note=note if has_note else "")


def _gains_of(row: SuiteRow | None, dense: SuiteRow | None) -> str:
    if row is None:
        return ABSENT
    gain = f"{row.speedup_vs_dense:.2f}x"
    return gain if row is dense or dense is None else f"{gain} ({dense.latency_ms_p50 / row.latency_ms_p50:.2f}x)"


def _speed(case: CaseResult, name: str) -> str:
    row, dense = case.row(name), case.row(DENSE)
    if row is None or dense is None:
        lost = any(skip.out_of_memory and skip.model in (None, name) for skip in case.skipped)
        return "no memory" if lost else ABSENT
    ratio = f"{row.speedup_vs_dense:.2f}x ({100 * share_of_mac_ratio(row, dense.macs):.0f} %)"
    return significant(row.latency_ms_p50) if row is dense else ratio


def _kind(of: Case | GainTarget) -> Kind:
    return of.model, of.backend, of.precision


def case_table(result: CaseResult) -> Table:
    """All figures of one case."""
    peaks = result.peaks
    # Backend and batch are the same for all, and precision mostly.
    kept = (0, 2) if result.case.also else (0,)
    header, *lines = [[*(line[at] for at in kept), *line[4:]] for line in table_cells(result.rows, DENSE)]
    if any(row.roofline_share for row in result.rows):
        header += ["TFLOP/s", "GB/s", "of roofline"]
        lines = [[*line, *_roofline(row)] for line, row in zip(lines, result.rows, strict=True)]
    note = peaks and (
        f"Peaks measured in the same run: {significant(peaks.tflops)} TFLOP/s (matrix product of {peaks.gemm_size}), "
        f"{significant(peaks.gbytes_s)} GB/s (copy of {peaks.copy_mib:.0f} MiB)."
    )
    return Table(case_title(result), header, lines, note=note or "")


def case_title(result: CaseResult) -> str:
    """The setting of a case in words."""
    case = result.case
    precisions = ", ".join((case.precision, *case.also))
    return f"{case.model} {case.image_size} px, {case.backend} {precisions}, batch {case.batch}"


def triton_tables(report: SuiteReport) -> list[Table]:
    """Whole models with kernels of ours beside the same without: a row per model and method, a column per setting."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for one in report.cases:
        for row in one.rows if one.case.triton else ():
            without = next((own for own in one.rows if (own.model, own.triton) == (row.model, "0")), None)
            if row.triton == "1" and without is not None:
                where = f"{one.case.image_size} px, {one.case.precision}, b{one.case.batch}"
                gain = without.latency_ms_p50 / row.latency_ms_p50
                cells.setdefault((one.case.model, row.model), {})[where] = f"{gain:.2f}x"
    settings = list(dict.fromkeys(where for own in cells.values() for where in own))
    lines = [[*names, *(own.get(where, ABSENT) for where in settings)] for names, own in cells.items()]
    note = "Time without the kernels over time with them, both CUDA graphs of what torch.compile makes, same rounds."
    return [Table("Triton kernels in whole models", ["model", "method", *settings], lines, 2, note)] if lines else []


def kernel_tables(report: SuiteReport) -> list[Table]:
    """Kernels beside their dense baseline, a table per precision, a column per number of tokens and batch size."""
    rows = [row for one in report.cases for row in one.kernel_rows]
    note = "In brackets: share of what the roofline allows; above 100 % where the L2 cache holds the operands."
    tables: list[Table] = []
    for precision in dict.fromkeys(row.precision for row in rows):
        own = {(row.kernel, row.tokens, row.batch): row for row in rows if row.precision == precision}
        cells = {key: f"{row.speedup_vs_dense:.2f}x ({100 * row.roofline_share:.0f} %)" for key, row in own.items()}
        columns, names = sorted({key[1:] for key in own}), dict.fromkeys(key[0] for key in own)
        lines = [[name, *(cells.get((name, *column), ABSENT) for column in columns)] for name in names]
        header = ["kernel, against its dense baseline", *(f"{tokens} tokens, b{batch}" for tokens, batch in columns)]
        tables.append(Table(f"kernels, {precision}", header, lines, note=note))
    return tables


def not_measured(report: SuiteReport) -> list[str]:
    """What was asked for and has no figure, and what else is known of the cases, one sentence each."""
    sentences = [f"{one.model}: {one.status}, {one.reason}" for one in report.trained if one.row is None]
    for one in report.cases:
        if one.status != "measured":
            sentences.append(f"{one.case.name}: {one.status}, {one.reason}")
        else:
            sentences += [f"{one.case.name}, {skip.model}: {skip.reason}" for skip in one.skipped]
        sentences += one.notes
    waiting = len([name for name in report.left if name not in report.statuses])
    return [*dict.fromkeys(sentences), *([f"{waiting} of {report.total} cases are not begun"] if waiting else [])]


def caption(report: SuiteReport) -> str:
    """On what, how and beside which baseline was trained and measured."""
    settings, environment, training = report.settings, report.environment, report.settings["training"]
    if not environment:
        return f"Nothing measured yet; `{report.command}`."
    gpu = ", ".join(one["name"] for one in environment["gpu"]) if settings["device"] == "cuda" else ""
    learned = training and (
        f"teacher trained for {training['teacher']['steps']} steps of {training['batch_size']} images of "
        f"{training['data']['classes']} fractals, every other model distilled from it for "
        f"{training['budget']['steps']}: {FINE_TUNED} just so, lower-resolution from labels alone"
    )
    parts = [
        gpu or f"{environment['cpu']}, {settings['threads']} thread{'s' if settings['threads'] > 1 else ''}",
        learned or "random weights",
        f"medians of up to {settings['rounds']} interleaved rounds",
        "speed against dense with fused attention in the same rounds",
        f"torch {environment['torch']}",
        *(["quick run, whose figures mean little"] if report.quick else []),
        f"`{report.command}`",
    ]
    return "; ".join(parts) + "."


def _roofline(row: SuiteRow) -> list[str]:
    if row.tflops is None or row.gbytes_s is None or row.roofline_share is None:
        return [ABSENT] * 3
    return [f"{row.tflops:.3g}", f"{row.gbytes_s:.3g}", f"{100 * row.roofline_share:.0f} %"]

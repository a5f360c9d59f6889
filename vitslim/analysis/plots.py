"""The pictures of an analysis: CKA heat maps, R² per layer, effect of replacement."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitslim.analysis.canvas import GRID, INK, MUTED, SMALL, Axes, Figure, canvas, save_figure
from vitslim.analysis.colour import heat_colour
from vitslim.analysis.result import AnalysisReport, Kind, Table

_COLOUR_OF: dict[Kind, str] = {"identity": "#9aa5b1", "linear": "#00538a"}
_LABEL_OF: dict[Kind, str] = {"identity": "previous output as it is", "linear": "linear map of previous output"}
_REUSED = "#c2410c"
_FIGURES_UP_TO = 14  # layers; beyond it the numbers in the cells would touch
_KINDS: tuple[Kind, ...] = ("identity", "linear")


def write_plots(report: AnalysisReport, folder: str | Path) -> list[Path]:
    """Draw the report as PNG files in ``folder``; each replaces its former version whole or not at all.

    ``cka_z.png``, ``cka_cls_attention.png`` and ``cka_block.png`` share one colour scale from 0 to 1;
    ``linear_r2.png`` and ``replacement.png`` have one bar (pair) per block. Recommended blocks are marked in all.

    Raises:
        MissingDependencyError: matplotlib is not there.
    """
    drawings: dict[str, Callable[[], Figure]] = {
        "cka_z.png": lambda: _heat_map(report, report.cka.z, "Attention outputs of all block pairs"),
        "cka_cls_attention.png": lambda: _heat_map(
            report, report.cka.cls_attention, "Class-token attention of all block pairs"
        ),
        "cka_block.png": lambda: _heat_map(report, report.cka.block, "Block outputs of all block pairs"),
        "linear_r2.png": lambda: _r2_bars(report),
        "replacement.png": lambda: _replacement_bars(report),
    }
    paths: list[Path] = []
    for name, draw in drawings.items():
        path = Path(folder) / name
        save_figure(draw(), path)
        paths.append(path)
    return paths


def _heat_map(report: AnalysisReport, table: Table, title: str) -> Figure:
    layers = len(table)
    side = min(max(4.2, 0.46 * layers + 1.2), 10.0)
    legend = "orange blocks are recommended for reuse" if report.recommended.layers else ""
    subtitle = ", ".join(part for part in ("linear CKA", _images(report.images), legend) if part)
    figure, axes = canvas(side + 0.8, side + 0.7, title, subtitle)
    axes.set_facecolor(GRID)
    values = [[float("nan") if value is None else value for value in row] for row in table]
    # The first block at the top left and the colours of the report's page: the same map twice, not two to be matched.
    image = axes.imshow(values, cmap=_colour_map(), vmin=0.0, vmax=1.0, origin="upper")
    if layers <= _FIGURES_UP_TO:
        _write_figures(axes, table)
    axes.set_xlabel("block", color=MUTED, fontsize=SMALL)
    axes.set_ylabel("block", color=MUTED, fontsize=SMALL)
    _number_blocks(axes, report, layers)
    _number_rows(axes, report, layers)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=SMALL)
    bar = figure.colorbar(image, cax=axes.inset_axes([1.03, 0.0, 0.035, 1.0]), ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelcolor=MUTED, labelsize=SMALL)
    return figure


def _colour_map() -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap([heat_colour(step / 255) for step in range(256)])


def _write_figures(axes: Axes, table: Table) -> None:
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            text = "–" if value is None else f"{value:.2f}".replace("0.", ".", 1).replace("-", "−")
            colour = INK if value is None or value > 0.55 else "#ffffff"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)


def _r2_bars(report: AnalysisReport) -> Figure:
    layers = len(report.linear_r2)
    figure, axes = canvas(
        _width(layers),
        3.6,
        "How much of each attention output the previous one explains",
        f"R² of the best linear map from the block before, {report.linear_tokens:,} tokens",
    )
    for layer, value in enumerate(report.linear_r2):
        if value is not None:
            axes.bar(layer, value, width=0.7, color=_COLOUR_OF["linear"])
    axes.set_ylim(min([0.0, *(value for value in report.linear_r2 if value is not None)]), 1.0)
    axes.set_ylabel("R²", color=MUTED, fontsize=SMALL)
    _finish_bars(axes, report, layers)
    return figure


def _replacement_bars(report: AnalysisReport) -> Figure:
    layers = len(report.linear_r2)
    unit = "KL to the dense output, nats" if report.output_measure == "kl" else "relative change of the pooled features"
    figure, axes = canvas(
        _width(layers),
        4.0,
        "What the output loses when one attention output is replaced",
        f"{unit}, {_images(report.replacement_images)}, logarithmic",
    )
    # On a logarithmic axis a bar's length means nothing, so each figure is a dot and each block a line between two.
    axes.set_yscale("log")
    sizes = {(effect.layer, effect.kind): effect.size for effect in report.replacement if effect.size}
    for layer in range(layers):
        ends = [sizes[layer, kind] for kind in _KINDS if (layer, kind) in sizes]
        axes.plot([layer] * len(ends), ends, color=GRID, linewidth=5, solid_capstyle="round", zorder=2)
    for kind in _KINDS:
        dots = [(layer, size) for (layer, of), size in sizes.items() if of == kind]
        axes.plot(
            [layer for layer, _ in dots],
            [size for _, size in dots],
            "o",
            markersize=8,
            color=_COLOUR_OF[kind],
            label=_LABEL_OF[kind],
            zorder=3,
        )
    if sizes:
        axes.set_ylim(min(sizes.values()) / 1.7, max(sizes.values()) * 1.7)
        _label_decades(axes, max(sizes.values()) / min(sizes.values()))
    axes.set_ylabel("nats" if report.output_measure == "kl" else "relative change", color=MUTED, fontsize=SMALL)
    _finish_bars(axes, report, layers)
    return figure


def _label_decades(axes: Axes, span: float) -> None:
    """Plain numbers at 1, 2, 5 of each decade, or at the decades alone where more would crowd."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 300 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _finish_bars(axes: Axes, report: AnalysisReport, layers: int) -> None:
    for layer in report.recommended.layers:
        axes.axvspan(layer - 0.5, layer + 0.5, color=_REUSED, alpha=0.09, linewidth=0, zorder=0)
    if report.recommended.layers:
        axes.axvspan(-9, -8, color=_REUSED, alpha=0.18, linewidth=0, label="recommended for reuse")
    axes.set_xlim(-0.6, layers - 0.4)
    axes.set_xlabel("block", color=MUTED, fontsize=SMALL)
    _number_blocks(axes, report, layers)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(length=0, which="both", labelsize=SMALL)
    axes.tick_params(axis="y", labelcolor=MUTED)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, frameon=False, fontsize=SMALL, labelcolor=INK
        )


def _number_blocks(axes: Axes, report: AnalysisReport, layers: int) -> None:
    shown = _ticks(layers)
    axes.set_xticks(shown, [str(layer) for layer in shown])
    _mark(axes.get_xticklabels(), shown, report.recommended.layers)


def _number_rows(axes: Axes, report: AnalysisReport, layers: int) -> None:
    shown = _ticks(layers)
    axes.set_yticks(shown, [str(layer) for layer in shown])
    _mark(axes.get_yticklabels(), shown, report.recommended.layers)


def _mark(labels: Sequence[Any], shown: Sequence[int], reused: Sequence[int]) -> None:
    for label, layer in zip(labels, shown, strict=True):
        marked = layer in reused
        label.set_color(_REUSED if marked else MUTED)
        label.set_fontweight("bold" if marked else "normal")


def _ticks(layers: int) -> list[int]:
    return list(range(0, layers, 1 if layers <= 24 else 2))


def _width(layers: int) -> float:
    return min(max(6.4, 0.5 * layers + 1.2), 14.0)


def _images(count: int) -> str:
    return f"{count:,} images"

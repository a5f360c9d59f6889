"""Section: what was redundant in the dense model."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from vitslim.analysis import AnalysisReport
from vitslim.files import write_text
from vitslim.methods.widths import allotted
from vitslim.report.charts import block_bars, block_dots, heat_map
from vitslim.report.commands import command
from vitslim.report.content import Cell, Element, Heading, Note, Table, absent, pictures
from vitslim.report.drawing import Picture
from vitslim.report.numbers import ABSENT, digits, fixed, percent, whole
from vitslim.report.parts import ReportParts
from vitslim.report.plan_rows import PlanRows

_MAPS = (
    ("z", "Attention output Z", "what attention adds to the tokens"),
    ("cls_attention", "Class attention", "where the class token looks"),
    ("block", "Block output", "the tokens that leave the block"),
)
_WIDTHS = (("MLP", "mlp", "mlp_importance"), ("Heads", "attention", "heads_importance"))
_CAP = 4  # medians
_KINDS = {"identity": "previous output as it is", "linear": "linear map of it"}


def redundancy(parts: ReportParts) -> list[Element]:
    """Heat maps of similarity, then how well each block can be predicted or replaced."""
    found = parts.analysis
    if found is None:
        return [absent("Not measured", command(parts, "analyze"))]
    alike = (
        "Linear CKA between every pair of blocks: 1 is alike up to rotation and scale. Alike does not mean "
        "replaceable; the figures below test that."
    )
    return [
        Note(f"Measured on the dense model with {whole(found.images)} images."),
        *(Note(words, lead=what) for what, words in recommendations(found).items()),
        Heading("How alike the blocks are"),
        Note(alike, "note"),
        *pictures(*_maps(found), columns="three"),
        Heading("What each block does"),
        *pictures(_linear(found), _replacement(found), _influence(found), _widths(found, parts.plan)),
        analysis_table(found),
        *(Note(note, "note") for note in found.notes),
    ]


def write_plots(report: AnalysisReport, folder: str | Path) -> list[Path]:
    """Write the figures of an analysis as SVG files, those that a report shows.

    ``cka_z.svg``, ``cka_cls_attention.svg`` and ``cka_block.svg`` share one colour scale from 0 to 1;
    ``linear_r2.svg``, ``replacement.svg``, ``influence.svg`` and ``widths.svg`` have one figure per block. What is
    recommended is marked.
    """
    drawn: dict[str, Picture | None] = dict(zip((f"cka_{key}" for key, _, _ in _MAPS), _maps(report), strict=True))
    drawn |= {"linear_r2": _linear(report), "replacement": _replacement(report)}
    drawn |= {"influence": _influence(report), "widths": _widths(report)}
    found = {Path(folder) / f"{name}.svg": picture for name, picture in drawn.items() if picture is not None}
    for path, picture in found.items():
        write_text(path, picture.svg)
    return list(found)


def recommendations(found: AnalysisReport) -> dict[str, str]:
    """What follows from an analysis, in sentences by what they are about."""
    order = ", then ".join(map(str, found.drop_order))
    said = {
        "Attention to reuse": found.recommended.reason,
        "Blocks to drop": order and f"{order}; each time the one that changes the output least.",
    }
    return {what: words for what, words in said.items() if words}


def _maps(found: AnalysisReport) -> list[Picture]:
    marked = found.recommended.layers
    return [heat_map(name, getattr(found.cka, key), marked, note) for key, name, note in _MAPS]


def _linear(found: AnalysisReport) -> Picture:
    note = "Share of the variance of Z that the best linear map from the block before explains."
    title = "Predictable from the block before"
    return block_bars(title, {"R²": found.linear_r2}, found.recommended.layers, "R²", note, highest=1.0)


def _influence(found: AnalysisReport) -> Picture:
    note = (
        "Block influence: 1 minus the mean cosine between a token before and after. Above: the order to drop blocks in."
    )
    order = {block: _ordinal(place) for place, block in enumerate(found.drop_order, start=1)}
    cap = _CAP * median(found.block_influence)  # the first block turns tokens so far that the others would vanish
    title = "Droppable, together with those before"
    return block_bars(
        title, {"influence": found.block_influence}, found.drop_order, "influence", note, above=order, cap=cap
    )


def _ordinal(place: int) -> str:
    return f"{place}{('th', 'st', 'nd', 'rd')[place if place < 4 else 0]}"


def _widths(found: AnalysisReport, plan: PlanRows | None = None) -> Picture:
    """What the plan keeps of each block where it narrows them, else what the analysis would keep."""
    series: dict[str, Sequence[float | None]] = {}
    for name, axis, importance in _WIDTHS:
        used = {row.block: getattr(row, axis).share for row in plan.rows} if plan else {}
        if min(used.values(), default=1.0) < 1:
            series[f"{name}, in the plan"] = [used.get(block) for block in range(len(found.layers))]
        else:
            series[f"{name}, if half of all stays"] = _allotted(getattr(found, importance))
    note = (
        "By one threshold on the importance of all neurons, of all heads; in the plan: what is left of the dense block."
    )
    return block_bars("Width per block", series, (), "share that stays", note, highest=1.0)


def _allotted(importance: Sequence[Sequence[float]]) -> list[float | None]:
    """The share of each block's units that stays where half of all do."""
    parts = [len(block) for block in importance]
    return [width / size for width, size in zip(allotted(parts, importance, 0.5), parts, strict=True)]


def _replacement(found: AnalysisReport) -> Picture | None:
    sizes = {(one.kind, one.layer): one.size for one in found.replacement}
    layers = range(len(found.layers))
    series = {words: [sizes.get((kind, layer)) for layer in layers] for kind, words in _KINDS.items()}
    name = "KL to the dense output, nats" if found.output_measure == "kl" else "change of the features"
    note = "The output’s change when this one block takes its attention output from the block before."
    return block_dots("Replaceable, one block at a time", series, found.recommended.layers, name, note)


def analysis_table(found: AnalysisReport) -> Table:
    """Every figure that there is one of for each block."""
    order = {block: str(place) for place, block in enumerate(found.drop_order, start=1)}
    neurons, heads = (_allotted(getattr(found, importance)) for _, _, importance in _WIDTHS)
    rows = [
        [
            name,
            Cell("recommended", "good") if layer in found.recommended.layers else "",
            fixed(found.cka.z[layer][layer - 1] if layer else None, 3),
            fixed(found.linear_r2[layer], 3),
            *_replacement_cells(found, layer),
            fixed(found.block_influence[layer], 3),
            order.get(layer, ABSENT),
            percent(neurons[layer], 0),
            percent(heads[layer], 0),
        ]
        for layer, name in enumerate(found.layers)
    ]
    header = ["Block", "Reuse", "CKA with block before", "Linear R²"]
    if found.output_measure == "kl":
        header += ["Identity: KL", "Identity: same class", "Linear: KL", "Linear: same class"]
        measure = "KL in nats against the dense model's output"
    else:
        header += ["Identity: change", "Linear: change"]
        measure = "change in percent of the features' length"
    header += ["Influence", "Drop order", "Neurons if half stay", "Heads if half stay"]
    images = whole(found.replacement_images)
    caption = f"Every block, its attention output replaced in turn over {images} images; {measure}."
    return Table(caption, header, rows, words=2)


def _replacement_cells(found: AnalysisReport, layer: int) -> list[str]:
    of_layer = {one.kind: one for one in found.replacement if one.layer == layer}
    pair = [of_layer.get(kind) for kind in _KINDS]
    if found.output_measure == "feature_change":
        return [percent(one.feature_change if one else None, 1) for one in pair]
    figures = [(one.kl, one.top1_agreement) if one else (None, None) for one in pair]
    return [cell for kl, agreement in figures for cell in (digits(kl, 3), percent(agreement, 1))]

"""Section: what was redundant in the dense model."""

from pathlib import Path

from vitslim.analysis import AnalysisReport, Recommendation
from vitslim.files import write_text
from vitslim.report.charts import block_bars, block_dots, heat_map
from vitslim.report.commands import command
from vitslim.report.content import Cell, Heading, Note, Piece, Table, absent, pictures
from vitslim.report.drawing import Picture
from vitslim.report.numbers import block_list, digits, fixed, percent, whole
from vitslim.report.parts import ReportParts

_MAPS = (
    ("z", "Attention output Z", "what attention adds to the tokens"),
    ("cls_attention", "Class attention", "where the class token looks"),
    ("block", "Block output", "the tokens that leave the block"),
)
_KINDS = {"identity": "previous output as it is", "linear": "linear map of it"}


def redundancy(parts: ReportParts) -> list[Piece]:
    """Heat maps of similarity, then how well each block can be predicted or replaced."""
    found = parts.analysis
    if found is None:
        return [absent("Not measured", command(parts, "analyze"))]
    alike = (
        "Linear CKA between every pair of blocks: 1 is alike up to rotation and scale. Alike does not mean "
        "replaceable; the figures below test that."
    )
    maps, others = _maps(found), [_linear(found), _replacement(found)]
    return [
        Note(f"Measured on the dense model with {whole(found.images)} images."),
        Note(_advice(found.recommended), lead="Recommended"),
        Heading("How alike the blocks are"),
        Note(alike, "note"),
        *pictures(*maps, columns="three"),
        *pictures(*others),
        _table(found),
        *(Note(note, "note") for note in found.notes),
    ]


def write_plots(report: AnalysisReport, folder: str | Path) -> list[Path]:
    """Write the figures of an analysis as SVG files, those that a report shows.

    ``cka_z.svg``, ``cka_cls_attention.svg`` and ``cka_block.svg`` share one colour scale from 0 to 1;
    ``linear_r2.svg`` and ``replacement.svg`` have one figure per block. Recommended blocks are marked in all.
    """
    drawn = dict(zip((f"cka_{key}" for key, _, _ in _MAPS), _maps(report), strict=True))
    found = {**drawn, "linear_r2": _linear(report), "replacement": _replacement(report)}
    paths: list[Path] = []
    for name, picture in found.items():
        if picture is not None:
            paths.append(Path(folder) / f"{name}.svg")
            write_text(paths[-1], picture.svg)
    return paths


def _advice(advice: Recommendation) -> str:
    count = len(advice.layers)
    which = f"{'block' if count == 1 else 'blocks'} {block_list(advice.layers)}." if count else "none."
    return f"{which} {advice.reason}".strip()


def _maps(found: AnalysisReport) -> list[Picture]:
    marked = found.recommended.layers
    return [heat_map(name, getattr(found.cka, key), marked, note) for key, name, note in _MAPS]


def _linear(found: AnalysisReport) -> Picture:
    note = "Share of the variance of Z that the best linear map from the block before explains."
    title = "Predictable from the block before"
    return block_bars(title, found.linear_r2, found.recommended.layers, "R²", note)


def _replacement(found: AnalysisReport) -> Picture | None:
    sizes = {(one.kind, one.layer): one.size for one in found.replacement}
    layers = range(len(found.layers))
    series = {words: [sizes.get((kind, layer)) for layer in layers] for kind, words in _KINDS.items()}
    name = "KL to the dense output, nats" if found.output_measure == "kl" else "change of the features"
    note = "The output’s change when this one block takes its attention output from the block before."
    return block_dots("Replaceable, one block at a time", series, found.recommended.layers, name, note)


def _table(found: AnalysisReport) -> Table:
    rows = [
        [
            name,
            Cell("recommended", "good") if layer in found.recommended.layers else "",
            fixed(found.cka.z[layer][layer - 1] if layer else None, 3),
            fixed(found.linear_r2[layer], 3),
            *_replacement_cells(found, layer),
        ]
        for layer, name in enumerate(found.layers)
    ]
    header = ["Block", "", "CKA of Z with the block before", "Linear R²"]
    if found.output_measure == "kl":
        header += ["Identity: KL", "Identity: same class", "Linear: KL", "Linear: same class"]
        measure = "KL in nats against the dense model's output"
    else:
        header += ["Identity: change", "Linear: change"]
        measure = "change in percent of the features' length"
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

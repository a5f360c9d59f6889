"""Section: what was redundant in the dense model."""

from collections.abc import Sequence

from vitslim.report.charts import Series, block_bars
from vitslim.report.documents import Analysis
from vitslim.report.heatmap import heat_legend, heat_map
from vitslim.report.markup import Markup, element, figure, join, paragraph, table
from vitslim.report.numbers import block_list, fixed, percent, whole
from vitslim.report.parts import ReportParts
from vitslim.report.sections.absent import absent

MAPS = (
    ("z", "Attention output Z", "what the attention module adds to the tokens"),
    ("cls_attention", "Class attention", "where the class token looks"),
    ("block", "Block output", "the tokens that leave the block"),
)


def redundancy(parts: ReportParts) -> Markup:
    """Heat maps of similarity, then how well each block can be predicted or replaced."""
    analysis = parts.analysis
    if analysis is None:
        return absent("Not measured", "vitslim analyze …")
    return join([_introduction(analysis), *_heat_maps(analysis), *_bars(analysis), _layer_table(analysis)])


def _introduction(analysis: Analysis) -> Markup:
    images = f"{whole(analysis.images)} images" if analysis.images is not None else "an unknown number of images"
    marked = analysis.recommended_layers
    advice: Sequence[str] = (
        f" Recommended: {'block' if len(marked) == 1 else 'blocks'} {block_list(marked)}. ",
        analysis.recommended.reason if analysis.recommended else "",
    )
    text = f"Measured on the dense model with {images}."
    return paragraph(text, *(advice if marked else (" No block is recommended for conversion.",)))


def _heat_maps(analysis: Analysis) -> list[Markup]:
    maps = [_heat_figure(analysis, key, name, note) for key, name, note in MAPS]
    found = [one for one in maps if one is not None]
    if not found:
        return []
    note = (
        "Linear CKA between every pair of blocks: 1 is alike up to rotation and scale. Alike does not mean "
        "replaceable; the figures below test that."
    )
    return [
        element("h3", "How alike the blocks are"),
        paragraph(note, class_="note"),
        element("div", *found, class_="row three"),
        element("div", heat_legend(), class_="scroll"),
    ]


def _heat_figure(analysis: Analysis, key: str, name: str, note: str) -> Markup | None:
    matrix = analysis.cka.get(key)
    if matrix is None:
        return None
    neighbours = [matrix[layer][layer - 1] for layer in range(1, len(matrix))]
    marked = analysis.recommended_layers
    description = f"{name}: CKA of {len(matrix)} blocks. Each with the one before: " + ", ".join(map(fixed, neighbours))
    return figure(name, heat_map(matrix, analysis.layers, marked, description), note)


def _bars(analysis: Analysis) -> list[Markup]:
    figures: list[Markup] = []
    layers, marked = analysis.layers, analysis.recommended_layers
    if any(value is not None for value in analysis.linear_r2):
        series = [Series("R²", analysis.linear_r2, "first")]
        note = "Share of the variance of Z that the best linear map from the block before explains."
        figures.append(figure("Predictable from the block before", block_bars(series, layers, marked, "R²"), note))
    series = [
        Series(kind, _agreement(analysis, kind), shade)
        for kind, shade in (("identity", "first"), ("linear", "second"))
        if any(value is not None for value in _agreement(analysis, kind))
    ]
    if series:
        bars = block_bars(series, layers, marked, "agreement")
        note = "Share of images that keep their class when this one block takes its attention output from the block before."
        figures.append(figure("Replaceable, one block at a time", bars, note))
    return [element("div", *figures, class_="row two")] if figures else []


def _agreement(analysis: Analysis, kind: str) -> list[float | None]:
    found = {one.layer: one.top1_agreement for one in analysis.replacement if one.kind == kind}
    return [found.get(layer) for layer in range(len(analysis.layers))]


def _layer_table(analysis: Analysis) -> Markup:
    replaced = {(one.layer, one.kind): one for one in analysis.replacement}
    similarity = analysis.cka.get("z")
    rows: list[list[str]] = []
    for layer, name in enumerate(analysis.layers):
        identity, linear = replaced.get((layer, "identity")), replaced.get((layer, "linear"))
        rows.append(
            [
                name,
                element("strong", "recommended") if layer in analysis.recommended_layers else "",
                fixed(similarity[layer][layer - 1] if similarity and layer else None, 3),
                fixed(analysis.linear_r2[layer] if analysis.linear_r2 else None, 3),
                fixed(identity.kl if identity else None, 3),
                percent(identity.top1_agreement if identity else None, 1),
                fixed(linear.kl if linear else None, 3),
                percent(linear.top1_agreement if linear else None, 1),
            ]
        )
    header = ("Layer", "", "CKA of Z with the block before", "Linear R²", "Identity: KL", "Identity: agreement")
    header += ("Linear: KL", "Linear: agreement")
    caption = (
        "Each block, its attention output replaced in turn; KL in nats per image against the dense model's output."
    )
    return table(caption, header, rows, text_columns=2)

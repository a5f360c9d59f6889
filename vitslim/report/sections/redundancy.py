"""Section: what was redundant in the dense model."""

from vitslim.report.bars import Series, block_bars
from vitslim.report.commands import analyze_command
from vitslim.report.documents import Analysis
from vitslim.report.heatmap import heat_legend, heat_map
from vitslim.report.markup import Markup, element, figure, join, paragraph, table
from vitslim.report.numbers import block_list, fixed, percent, whole
from vitslim.report.parts import ReportParts
from vitslim.report.sections.absent import absent

MAPS = (
    ("z", "Attention output Z", "what attention adds to the tokens"),
    ("cls_attention", "Class attention", "where the class token looks"),
    ("block", "Block output", "the tokens that leave the block"),
)
KINDS = (("identity", "first"), ("linear", "second"))


def redundancy(parts: ReportParts) -> Markup:
    """Heat maps of similarity, then how well each block can be predicted or replaced."""
    analysis = parts.analysis
    if analysis is None:
        return absent("Not measured", analyze_command(parts))
    return join([_introduction(analysis), *_heat_maps(analysis), *_bars(analysis), _layer_table(analysis)])


def _introduction(analysis: Analysis) -> Markup:
    images = f"{whole(analysis.images)} images" if analysis.images is not None else "an unknown number of images"
    return join(
        [
            paragraph(f"Measured on the dense model with {images}."),
            paragraph(element("strong", "Recommended: "), _advice(analysis)),
            *(paragraph(sentence) for sentence in _together(analysis)),
        ]
    )


def _advice(analysis: Analysis) -> str:
    marked = analysis.recommended_layers
    which = f"{'block' if len(marked) == 1 else 'blocks'} {block_list(marked)}." if marked else "none."
    reason = analysis.recommended.reason if analysis.recommended else ""
    return f"{which} {reason}".strip()


def _together(analysis: Analysis) -> list[str]:
    """What happens when all recommended blocks are replaced at once: the start from which training sets out."""
    measured = analysis.recommended.measured if analysis.recommended else []
    return [
        f"All of them replaced at once ({one.kind}), before any training: {percent(one.top1_agreement, 1)} of the "
        f"images keep their class, KL {fixed(one.kl, 3)} nats."
        if one.feature_change is None
        else f"All of them replaced at once ({one.kind}), before any training: the features change by "
        f"{percent(one.feature_change, 1)} of their length."
        for one in measured
    ]


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
        heat_legend(has_marks=bool(analysis.recommended_layers)),
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
    series = [Series(kind, values, shade) for kind, shade in KINDS if (values := _replaced(analysis, kind))]
    if series:
        name = "feature change" if _has_features_only(analysis) else "share of images"
        note = "The features' change" if _has_features_only(analysis) else "Images that keep their class"
        note += " when this one block takes its attention output from the block before: as it is, or by a linear map."
        bars = block_bars(series, layers, marked, name)
        figures.append(figure("Replaceable, one block at a time", bars, note))
    return [element("div", *figures, class_="row two")] if figures else []


def _has_features_only(analysis: Analysis) -> bool:
    """Whether the model has no classifier, so that replacements are judged by its features."""
    return any(one.feature_change is not None for one in analysis.replacement)


def _replaced(analysis: Analysis, kind: str) -> list[float | None]:
    """The measured change of every block; empty when nothing was measured."""
    features = _has_features_only(analysis)
    found = {
        one.layer: one.feature_change if features else one.top1_agreement
        for one in analysis.replacement
        if one.kind == kind
    }
    values = [found.get(layer) for layer in range(len(analysis.layers))]
    return values if any(value is not None for value in values) else []


def _layer_table(analysis: Analysis) -> Markup:
    similarity = analysis.cka.get("z")
    rows = [
        [
            name,
            element("strong", "recommended") if layer in analysis.recommended_layers else "",
            fixed(similarity[layer][layer - 1] if similarity and layer else None, 3),
            fixed(analysis.linear_r2[layer] if analysis.linear_r2 else None, 3),
            *_replacement_cells(analysis, layer),
        ]
        for layer, name in enumerate(analysis.layers)
    ]
    header = ["Block", "", "CKA of Z with the block before", "Linear R²"]
    if _has_features_only(analysis):
        header += ["Identity: change", "Linear: change"]
        measure = "change in percent of the features' length"
    else:
        header += ["Identity: KL", "Identity: same class", "Linear: KL", "Linear: same class"]
        measure = "KL in nats against the dense model's output"
    images = f" over {whole(analysis.replacement_images)} images" if analysis.replacement_images is not None else ""
    caption = f"Every block, its attention output replaced in turn{images}; {measure}."
    notes = [paragraph(note, class_="note") for note in analysis.notes]
    return join([table(caption, header, rows, text_columns=2), *notes])


def _replacement_cells(analysis: Analysis, layer: int) -> list[str]:
    found = {one.kind: one for one in analysis.replacement if one.layer == layer}
    pair = [found.get(kind) for kind, _ in KINDS]
    if _has_features_only(analysis):
        return [percent(one.feature_change if one else None, 1) for one in pair]
    return [
        cell
        for one in pair
        for cell in (fixed(one.kl if one else None, 3), percent(one.top1_agreement if one else None, 1))
    ]

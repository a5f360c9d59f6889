"""The top of the report: one sentence and four cards."""

import itertools
from typing import Any

from vitslim.bench.ratios import Verdict, is_across
from vitslim.report.documents import Bench, BenchRow
from vitslim.report.markup import Markup, element, join, paragraph
from vitslim.report.numbers import amount, block_list, percent, plain, points, times
from vitslim.report.parts import ReportParts
from vitslim.report.sections.speed import TONES

_LONG = 4  # values of an option that are written out one by one


def headline(parts: ReportParts) -> Markup:
    """Title, what was done to the model, and the four figures that matter."""
    cards = element("ul", _accuracy_card(parts), _speed_card(parts), *_size_cards(parts), class_="cards")
    return element(
        "header",
        paragraph("vitslim report", class_="eyebrow"),
        element("h1", parts.title),
        paragraph(conversion_sentence(parts), class_="lead"),
        cards,
    )


def conversion_sentence(parts: ReportParts) -> str:
    """Which methods were applied, with their options, in one sentence."""
    if parts.config is None:
        return f"Output folder {parts.name}; it has no config.json, so the conversion is not known."
    if not parts.config.conversions:
        return "The dense model, not converted."
    methods = [
        one.method + (f" ({words})" if (words := _option_words(one.options)) else "")
        for one in parts.config.conversions
    ]
    size = parts.config.input.image_size
    at_size = f" at {'×'.join(map(str, size))} pixels" if size else ""
    return f"Converted with {', then '.join(methods)}{at_size}."


def _accuracy_card(parts: ReportParts) -> Markup:
    student = parts.metrics.student if parts.metrics else None
    teacher = parts.metrics.teacher if parts.metrics else None
    if student is None:
        return _card("Top-1 accuracy", None, "not measured")
    if student.top1 is None:
        return _card(
            "Agreement with the teacher", percent(student.agreement), "no labels: the same class as the teacher"
        )
    if teacher is None or teacher.top1 is None:
        return _card("Top-1 accuracy", percent(student.top1), "teacher not measured")
    change = student.top1 - teacher.top1
    tone = "good" if change > 0 else "bad" if change < 0 else "even"
    detail = [element("span", points(change), class_=tone), f" against the teacher’s {percent(teacher.top1)}"]
    return _card("Top-1 accuracy", percent(student.top1), join(detail))


def _speed_card(parts: ReportParts) -> Markup:
    rows = [row for row in _student_rows(parts.bench) if row.speedup_vs_dense is not None]
    name = "Speed against dense, fused attention"
    if not rows:
        return _card(name, None, "not measured")
    ratios = [row.speedup_vs_dense or 0.0 for row in rows]
    slowest, fastest = times(min(ratios)), times(max(ratios))
    figure = slowest if slowest == fastest else f"{slowest.rstrip('×')}–{fastest}"
    words: list[Verdict | None] = [row.verdict for row in rows]
    tone = TONES[words[0]] if words[0] and len(set(words)) == 1 else None
    across = [row.speedup_vs_dense_torch for row in rows if is_across(row)]
    exported = f"; exported, up to {times(max(one or 0.0 for one in across))} dense in torch" if across else ""
    return _card(name, figure, join([_speed_detail(words), exported]), tone=tone)


def _speed_detail(words: list[Verdict | None]) -> Markup:
    """In how many settings it is faster, slower, or neither."""
    counts = [
        element("span", word if len(words) == 1 else f"{word} in {words.count(word)}", class_=tone)
        for word, tone in TONES.items()
        if word in words
    ]
    separated = [piece for count in counts for piece in (", ", count)][1:]
    return join([*separated, " in the one setting measured" if len(words) == 1 else f" of {len(words)} settings"])


def _size_cards(parts: ReportParts) -> list[Markup]:
    cards: list[Markup] = []
    for name, unit, here, before in (
        ("Parameters", "", *_parameters(parts)),
        ("Multiply-accumulates", "MAC", *_macs(parts)),
    ):
        if here is None:
            cards.append(_card(name, None, "not counted"))
            continue
        detail = f"{percent(here / before, 1)} of dense ({amount(before, unit)})" if before else "dense not counted"
        cards.append(_card(name, amount(here, unit), detail))
    return cards


def _parameters(parts: ReportParts) -> tuple[int | None, int | None]:
    """Of the model and of the dense one: counted at the conversion, else by the benchmark, else as saved."""
    if parts.cost:
        return parts.cost.params, parts.cost.dense_params
    student, dense = next(iter(_student_rows(parts.bench)), None), next(iter(_dense_rows(parts.bench)), None)
    own = student.params if student else parts.config.parameters if parts.config else None
    return own, dense.params if dense else None


def _macs(parts: ReportParts) -> tuple[int | None, int | None]:
    if parts.cost:
        return parts.cost.macs, parts.cost.dense_macs
    student, dense = next(iter(_student_rows(parts.bench)), None), next(iter(_dense_rows(parts.bench)), None)
    return student.macs if student else None, dense.macs if dense else None


def _card(what: str, figure: str | None, detail: str, *, tone: str | None = None) -> Markup:
    value = (
        element("span", "–", class_="figure absent-figure")
        if figure is None
        else element("span", figure, class_=f"figure {tone}" if tone else "figure")
    )
    return element("li", element("span", what, class_="what"), value, element("span", detail, class_="detail"))


def _student_rows(bench: Bench | None) -> list[BenchRow]:
    return bench.rows_of(bench.student_name) if bench else []


def _dense_rows(bench: Bench | None) -> list[BenchRow]:
    return bench.rows_of(bench.dense_name) if bench else []


def _option_words(options: dict[str, Any]) -> str:
    """The options that say something: what is None or switched off is left out."""
    words: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        if value is True:
            words.append(name)
        elif name == "layers" and isinstance(value, list) and all(type(entry) is int for entry in value):
            words.append(f"layers {block_list(value)}")
        elif isinstance(value, list) and len(value) > _LONG:
            words.append(f"{name} {_in_runs(value)}")
        else:
            words.append(f"{name} {plain(value)}")
    return ", ".join(words)


def _in_runs(values: list[Any]) -> str:
    """A long list with what repeats written once: ``1 ×4, 0.5 ×8``."""
    counted = [(plain(value), len(list(run))) for value, run in itertools.groupby(values)]
    return ", ".join(f"{value} ×{count}" if count > 1 else value for value, count in counted)

"""The top of the report: one sentence and four cards."""

from vitslim.report.documents import Bench, BenchRow
from vitslim.report.markup import Markup, element, join, paragraph
from vitslim.report.numbers import Verdict, amount, block_list, percent, plain, points, times, verdict
from vitslim.report.parts import ReportParts


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
        one.method + (f" ({', '.join(_option(*option) for option in one.options.items())})" if one.options else "")
        for one in parts.config.conversions
    ]
    size = parts.config.input.get("image_size")
    at_size = f" at {_pixels(size)} pixels" if size is not None else ""
    return f"Converted with {', then '.join(methods)}{at_size}."


def speed_range(speedups: list[float]) -> tuple[str, Verdict]:
    """The slowest and the fastest ratio, and what they amount to taken together."""
    low, high = min(speedups), max(speedups)
    figure = times(low) if times(low) == times(high) else f"{times(low).rstrip('×')}–{times(high)}"
    words = {verdict(ratio) for ratio in speedups}
    return figure, words.pop() if len(words) == 1 else "even"


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
    rows = _student_rows(parts.bench)
    speedups = [row.speedup_vs_dense for row in rows if row.speedup_vs_dense is not None]
    name = "Speed against dense, fused attention"
    if not speedups:
        return _card(name, None, "not measured")
    figure, word = speed_range(speedups)
    return _card(name, figure, _speed_detail(speedups), tone={"faster": "good", "slower": "bad"}.get(word))


def _speed_detail(speedups: list[float]) -> Markup:
    """In how many settings it is faster, slower, or neither."""
    words = [verdict(ratio) for ratio in speedups]
    where = "the one setting measured" if len(words) == 1 else f"of {len(words)} settings"
    if len(words) == 1:
        tone = {"faster": "good", "slower": "bad", "even": "even"}[words[0]]
        return join([element("span", words[0], class_=tone), f" in {where}"])
    counts = [
        element("span", f"{word} in {words.count(word)}", class_=tone)
        for word, tone in (("faster", "good"), ("even", "even"), ("slower", "bad"))
        if word in words
    ]
    return join([piece for count in counts for piece in (", ", count)][1:] + [f" {where}"])


def _size_cards(parts: ReportParts) -> list[Markup]:
    student, dense = _student_rows(parts.bench)[:1], _dense_rows(parts.bench)[:1]
    cards: list[Markup] = []
    for name, field, unit in (("Parameters", "params", ""), ("Multiply-accumulates", "macs", "MAC")):
        here = getattr(student[0], field) if student else None
        before = getattr(dense[0], field) if dense else None
        if here is None:
            cards.append(_card(name, None, "not measured"))
            continue
        detail = f"{percent(here / before, 1)} of dense ({amount(before, unit)})" if before else "dense not measured"
        cards.append(_card(name, amount(here, unit), detail))
    return cards


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


def _option(name: str, value: object) -> str:
    if name in ("layers", "blocks") and isinstance(value, list) and all(type(entry) is int for entry in value):
        return f"{name} {block_list(value)}"
    return f"{name} {plain(value)}"


def _pixels(size: object) -> str:
    if isinstance(size, list):
        return "×".join(plain(side) for side in size)
    return plain(size)

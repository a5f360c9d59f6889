"""The plan as a strip: one box per step, lines from where something is taken to where it is used again."""

from collections.abc import Sequence
from dataclasses import dataclass

from vitslim.report.axes import drawing
from vitslim.report.documents import PlanStep
from vitslim.report.markup import Markup, element
from vitslim.report.numbers import amount

PER_ROW = 12
BOX_WIDTH, BOX_HEIGHT, GAP = 73.0, 94.0, 9.0
PITCH = BOX_WIDTH + GAP
ABOVE, BELOW, BELOW_WITH_ARCS = 30.0, 10.0, 36.0
# Characters of a detail that fit the box as they are, and when squeezed.
EASY_LENGTH, DETAIL_LENGTH = 11, 16
KNOWN_KINDS = ("dense", "reuse", "sparse", "sliced")
KIND_WORDS = {
    "dense": "own attention",
    "reuse": "reuses an earlier attention output",
    "sparse": "sparse attention",
    "sliced": "attention in groups",
    "other": "another mixing",
}


@dataclass(frozen=True)
class Place:
    """Where the box of a step stands."""

    row: int
    left: float
    top: float

    @property
    def middle(self) -> float:
        """Horizontal middle of the box."""
        return self.left + BOX_WIDTH / 2

    @property
    def bus(self) -> float:
        """Height of the line above the boxes of this row, along which attention outputs travel."""
        return self.top - 16


def plan_strip(plan: Sequence[PlanStep]) -> Markup:
    """Every step in order, twelve to a row."""
    row_height = ABOVE + BOX_HEIGHT + (BELOW_WITH_ARCS if any(step.shares_with is not None for step in plan) else BELOW)
    places = [_place(index, row_height) for index in range(len(plan))]
    pieces: list[Markup] = []
    for index, step in enumerate(plan):
        pieces.append(_link(places[index], is_last=index == len(plan) - 1))
        pieces.append(_box(step, places[index]))
    for source, users in reuse_groups(plan):
        pieces += _reuse_lines(source, users, places)
    pieces += _sharing_arcs(plan, places)
    rows = places[-1].row + 1
    columns = min(len(plan), PER_ROW)
    reusing = sum(step.reuses for step in plan)
    description = f"Plan of {len(plan)} steps, {reusing} of which reuse an earlier attention output"
    width = columns * PITCH - GAP + 4
    return drawing(width, rows * row_height, description, *pieces, min_width=round(min(width, 880)))


def plan_key(plan: Sequence[PlanStep]) -> Markup:
    """What the colours and lines of the strip mean; only what occurs in this plan."""
    kinds = list(dict.fromkeys(_shade(step) for step in plan))
    entries = [element("li", element("i", class_=f"spot step-{kind}"), KIND_WORDS[kind]) for kind in kinds]
    if any(step.kept_tokens for step in plan):
        entries.append(element("li", element("i", class_="spot tokens"), "share of the tokens that take part"))
    if any(step.shares_with is not None for step in plan):
        entries.append(element("li", element("i", class_="spot sharing"), "applies the same weights again"))
    return element("ul", *entries, class_="key")


def reuse_groups(plan: Sequence[PlanStep]) -> list[tuple[int, list[int]]]:
    """For every computed attention output that is used again: its position and the positions that use it.

    A reusing step takes the last output computed before it; that is how the trunk passes it on.
    """
    groups: list[tuple[int, list[int]]] = []
    source: int | None = None
    for index, step in enumerate(plan):
        if not step.reuses:
            source = index
        elif source is not None:
            if not groups or groups[-1][0] != source:
                groups.append((source, []))
            groups[-1][1].append(index)
    return groups


def _place(index: int, row_height: float) -> Place:
    row, column = divmod(index, PER_ROW)
    return Place(row, 2 + column * PITCH, row * row_height + ABOVE)


def _shade(step: PlanStep) -> str:
    return step.mixing_kind if step.mixing_kind in KNOWN_KINDS else "other"


def _link(place: Place, *, is_last: bool) -> Markup:
    """The residual stream that leads on to the next box."""
    y = place.top + BOX_HEIGHT / 2
    end = place.left + BOX_WIDTH + (0 if is_last else GAP)
    return element("line", x1=place.left + BOX_WIDTH, x2=end, y1=y, y2=y, class_="stream")


def _box(step: PlanStep, place: Place) -> Markup:
    x, y = place.left, place.top
    facts = f"step {step.step}, block {step.block}: {step.mixing}; tokens {step.tokens}; weights {step.weights}"
    detail = step.mixing.removeprefix(step.mixing_kind).strip(" ()")
    lines = [
        element("rect", x=x, y=y, width=BOX_WIDTH, height=BOX_HEIGHT, rx=5, class_=f"step-{_shade(step)}"),
        element("text", str(step.step), x=x + 8, y=y + 19, class_="step-number"),
        element("text", step.mixing_kind, x=x + 8, y=y + 37, class_="step-kind"),
        _detail(detail, x + 8, y + 50),
        element("text", f"block {step.block}", x=x + 8, y=y + 63, class_="step-detail"),
        element("text", amount(step.parameters), x=x + 8, y=y + 76, class_="step-detail"),
    ]
    if step.kept_tokens:
        lines += _token_bar(*step.kept_tokens, x + 8, y + 83)
    return element("g", element("title", facts), *lines)


def _detail(text: str, x: float, y: float) -> Markup:
    """The mixing's own figures, squeezed where they would leave the box."""
    shown = text if len(text) <= DETAIL_LENGTH else text[: DETAIL_LENGTH - 1] + "…"
    width = BOX_WIDTH - 14 if len(shown) > EASY_LENGTH else None
    squeeze = {"textLength": width, "lengthAdjust": "spacingAndGlyphs" if width else None}
    return element("text", shown, x=x, y=y, class_="step-detail", **squeeze)


def _token_bar(kept: int, total: int, x: float, y: float) -> list[Markup]:
    width = BOX_WIDTH - 16
    return [
        element("rect", x=x, y=y, width=width, height=4, class_="tokens-all"),
        element("rect", x=x, y=y, width=width * min(1.0, kept / max(total, 1)), height=4, class_="tokens"),
    ]


def _reuse_lines(source: int, users: Sequence[int], places: Sequence[Place]) -> list[Markup]:
    """Up from the source, along above the boxes, down with an arrow into every user; continued from row to row."""
    pieces: list[Markup] = []
    start = places[source]
    pieces.append(_path(f"M{start.middle:g} {start.top:g}V{start.bus:g}"))
    for row in sorted({places[user].row for user in users}):
        here = [places[user] for user in users if places[user].row == row]
        left = start.middle if row == start.row else 0.0
        if row > start.row and not any(places[user].row < row for user in users):
            before = places[row * PER_ROW - 1]
            pieces.append(_path(f"M{start.middle:g} {start.bus:g}H{before.left + BOX_WIDTH:g}"))
        goes_on = any(places[user].row > row for user in users)
        right = here[-1].left + BOX_WIDTH if goes_on else here[-1].middle
        pieces.append(_path(f"M{left:g} {here[0].bus:g}H{right:g}"))
        for place in here:
            pieces.append(_path(f"M{place.middle:g} {place.bus:g}V{place.top - 6:g}"))
            tip = f"M{place.middle - 4:g} {place.top - 7:g}h8l-4 6z"
            pieces.append(element("path", d=tip, class_="arrow"))
    pieces.append(element("circle", cx=start.middle, cy=start.top, r=3.5, class_="arrow"))
    return pieces


def _sharing_arcs(plan: Sequence[PlanStep], places: Sequence[Place]) -> list[Markup]:
    """Arcs below the boxes between steps that apply the same weights; across rows the step says it in words."""
    positions = {step.step: index for index, step in enumerate(plan)}
    pieces: list[Markup] = []
    for index, step in enumerate(plan):
        if step.shares_with is None:
            continue
        here, origin = places[index], positions.get(step.shares_with)
        bottom = here.top + BOX_HEIGHT
        if origin is not None and places[origin].row == here.row:
            depth = min(BELOW * 1.6, 22 + 6 * abs(index - origin))
            start, middle = places[origin].middle, (places[origin].middle + here.middle) / 2
            curve = f"M{start:g} {bottom:g}Q{middle:g} {bottom + depth:g} {here.middle:g} {bottom:g}"
            pieces.append(element("path", d=curve, class_="sharing"))
        else:
            words = {"x": here.middle, "y": bottom + 15, "text_anchor": "middle"}
            pieces.append(element("text", f"as step {step.shares_with}", class_="step-detail", **words))
    return pieces


def _path(data: str) -> Markup:
    return element("path", d=data, class_="reuse-line")

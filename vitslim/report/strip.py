"""The plan as a strip: one box per step, lines from where something is taken to where it is used again."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from vitslim.report.axes import drawing
from vitslim.report.documents import PlanStep
from vitslim.report.markup import Markup, element, join
from vitslim.report.numbers import amount
from vitslim.trunk.axes import Attention

PER_ROW, PER_NARROW_ROW = 12, 4  # boxes side by side; the second where the page is as narrow as a telephone
BOX_WIDTH, BOX_HEIGHT, GAP = 73.0, 94.0, 9.0
PITCH = BOX_WIDTH + GAP
ABOVE, BELOW, BELOW_WITH_ARCS = 30.0, 10.0, 36.0
# Characters of a line of details that fit the box as they are, and when squeezed.
EASY_LENGTH, DETAIL_LENGTH = 11, 14
LINE = 12.0  # from one line of details to the next
KIND_WORDS: dict[Attention, str] = {
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
    per_row: int
    height: float

    @property
    def bottom(self) -> float:
        """Height of the box's lower edge."""
        return self.top + self.height

    @property
    def middle(self) -> float:
        """Horizontal middle of the box."""
        return self.left + BOX_WIDTH / 2

    @property
    def bus(self) -> float:
        """Height of the line above the boxes of this row, along which attention outputs travel."""
        return self.top - 16


def plan_strip(plan: Sequence[PlanStep]) -> Markup:
    """Every step in order, twelve to a row, or four where the page is narrow: the style sheet shows one of the two."""
    return join([_strip(plan, PER_ROW, "wide-only"), _strip(plan, PER_NARROW_ROW, "narrow-only")])


def _strip(plan: Sequence[PlanStep], per_row: int, shown: str) -> Markup:
    box_height = BOX_HEIGHT + LINE * (max(len(_details(step)) for step in plan) - 1)
    row_height = ABOVE + box_height + (BELOW_WITH_ARCS if any(step.shares_with is not None for step in plan) else BELOW)
    places = [_place(index, row_height, per_row, box_height) for index in range(len(plan))]
    pieces: list[Markup] = []
    for index, step in enumerate(plan):
        pieces.append(_link(places[index], is_last=index == len(plan) - 1))
        pieces.append(_box(step, places[index]))
    for source, users in reuse_groups(plan):
        pieces += _reuse_lines(source, users, places)
    pieces += _sharing_arcs(plan, places)
    reusing = sum(step.reuses for step in plan)
    description = f"Plan of {len(plan)} steps, {reusing} of which reuse an earlier attention output"
    width = min(len(plan), per_row) * PITCH - GAP + 4
    return element("div", drawing(width, (places[-1].row + 1) * row_height, description, *pieces), class_=shown)


def plan_key(plan: Sequence[PlanStep]) -> Markup:
    """What the colours and lines of the strip mean; only what occurs in this plan."""
    kinds: list[Attention] = list(dict.fromkeys([step.attention for step in plan]))
    entries = [element("li", element("i", class_=f"spot step-{kind}"), KIND_WORDS[kind]) for kind in kinds]
    if any(step.drops_tokens for step in plan):
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


def _place(index: int, row_height: float, per_row: int, box_height: float) -> Place:
    row, column = divmod(index, per_row)
    return Place(row, 2 + column * PITCH, row * row_height + ABOVE, per_row, box_height)


def _link(place: Place, *, is_last: bool) -> Markup:
    """The residual stream that leads on to the next box."""
    y = place.top + place.height / 2
    end = place.left + BOX_WIDTH + (0 if is_last else GAP)
    return element("line", x1=place.left + BOX_WIDTH, x2=end, y1=y, y2=y, class_="stream")


def _box(step: PlanStep, place: Place) -> Markup:
    x, y = place.left, place.top
    facts = f"step {step.step}, block {step.block}: {step.mixing}; tokens {step.tokens}; weights {step.weights}"
    below = place.bottom - BOX_HEIGHT
    lines = [
        element("rect", x=x, y=y, width=BOX_WIDTH, height=place.height, rx=5, class_=f"step-{step.attention}"),
        element("text", str(step.step), x=x + 8, y=y + 19, class_="step-number"),
        element("text", step.attention, x=x + 8, y=y + 37, class_="step-kind"),
        *(_detail(text, x + 8, y + 50 + LINE * line) for line, text in enumerate(_details(step))),
        element("text", f"block {step.block}", x=x + 8, y=below + 63, class_="step-detail"),
        element("text", amount(step.parameters), x=x + 8, y=below + 76, class_="step-detail"),
    ]
    if step.drops_tokens:
        lines += _token_bar(step.kept, step.of, x + 8, below + 83)
    return element("g", element("title", facts), *lines)


def _details(step: PlanStep) -> list[str]:
    """The attention's own figures, for the eye alone; its kind stands on a line of its own above them."""
    return textwrap.wrap(step.mixing.removeprefix(step.attention).strip(" ()"), DETAIL_LENGTH) or [""]


def _detail(text: str, x: float, y: float) -> Markup:
    """One line of them, squeezed where it would leave the box."""
    width = BOX_WIDTH - 14 if len(text) > EASY_LENGTH else None
    squeeze = {"textLength": width, "lengthAdjust": "spacingAndGlyphs" if width else None}
    return element("text", text, x=x, y=y, class_="step-detail", **squeeze)


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
            before = places[row * start.per_row - 1]
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
        bottom = here.bottom
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

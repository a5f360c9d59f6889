"""The plan as a strip: the blocks of the dense model, and what became of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitslim.report.drawing import FIRST, FOURTH, INK, PAPER, RULE, SECOND, SMALL, SOFT, THIRD, Picture, draw
from vitslim.report.numbers import ABSENT
from vitslim.report.plan_rows import Part, PlanRow, PlanRows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What a method of somebody else calls its choice takes the last colour.
_COLOUR = {"dense": RULE, "narrow": FIRST, "reuse": SECOND, "sparse": THIRD, "sliced": FOURTH, "linear": SOFT}
_ATTENTION, _MLP, _TOKENS = 1.55, 0.45, 0.05  # where the lanes begin, from below
_HEIGHT, _TOKEN_HEIGHT = 1.0, 0.28
_NAMED_COLUMNS = 26  # more are too narrow for words
_DROPPED = "dropped"
_STRIP_INCHES, _LANE_INCHES = 2.7, 0.95
_WRITTEN_COLUMNS = 14  # more are too narrow for numbers beside each other

Column = PlanRow | int  # a step, or the number of a block that no step names


@dataclass(frozen=True)
class Lane:
    """A figure of each block, as bars below the strip; those of ``None`` are not known."""

    name: str
    values: Mapping[int, float | None]
    decimals: int


def plan_picture(plan: PlanRows, lanes: Sequence[Lane] = (), *, title: str = "The plan") -> Picture:
    """One column per step, and one with nothing in it per block that no step names."""
    rows, depth = plan.rows, plan.depth
    columns = _columns(rows, depth)
    dropped = sum(isinstance(column, int) for column in columns)

    def paint(figure: Figure) -> None:
        heights = [_STRIP_INCHES, *[_LANE_INCHES] * len(lanes)]
        axes, *below = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for place, column in enumerate(columns):
            if isinstance(column, int):
                _empty(axes, place)
            else:
                _step(axes, place, column, len(columns), plan.channels_kept)
        _finish(axes, columns)
        for lane, own in zip(lanes, below, strict=True):
            _lane(own, lane, columns)
        _number([axes, *below][-1], columns)

    changed = sum(row.is_changed for row in rows)
    words = f"{len(rows)} steps over {depth} blocks: {changed} changed, {dropped} blocks dropped"
    words += "".join(f"; {lane.name}: {_values_of(lane)}" for lane in lanes)
    note = "Each column is a block: its attention, its MLP, and below them the share of the patches that take part."
    if plan.channels_kept < 1:
        stream = "{} of {} channels".format(*plan.channels)
        words += f"; the stream has {stream}"
        note += f" Filled as far across as the stream is kept: {stream}."
    width = min(7.4, max(5.2, 0.42 * len(columns) + 1.0))
    height = _STRIP_INCHES + _LANE_INCHES * len(lanes)
    return draw(title, paint, height=height, width=width, description=words, note=note)


def _columns(rows: Sequence[PlanRow], depth: int) -> list[Column]:
    columns: list[Column] = []
    following = 0
    named = {row.block for row in rows}
    for row in rows:
        columns += [block for block in range(following, row.block) if block not in named]
        columns.append(row)
        following = max(following, row.block + 1)
    return [*columns, *range(following, depth)]


def _empty(axes: Axes, place: int) -> None:
    for bottom in (_ATTENTION, _MLP):
        axes.bar(place, _HEIGHT, 0.8, bottom, fill=False, edgecolor=SOFT, linestyle=(0, (2, 2)), linewidth=0.7)
        _write(axes, place, bottom, _DROPPED, SOFT)


def _step(axes: Axes, place: int, row: PlanRow, columns: int, channels_kept: float) -> None:
    for part, bottom in ((row.attention, _ATTENTION), (row.mlp, _MLP)):
        _box(axes, place, part, bottom, columns, channels_kept)
    axes.bar(place, _TOKEN_HEIGHT, 0.8, _TOKENS, fill=False, edgecolor=RULE, linewidth=0.7)
    axes.bar(place, _TOKEN_HEIGHT * min(1.0, max(0.0, row.tokens.share)), 0.8, _TOKENS, color=_token_colour(row.tokens))


def _box(axes: Axes, place: int, part: Part, bottom: float, columns: int, channels_kept: float) -> None:
    """The dense block's outline, filled as far up as its heads or neurons are kept, and across as the channels are."""
    axes.bar(place, _HEIGHT, 0.8, bottom, fill=False, edgecolor=RULE, linewidth=0.7)
    if part.kind == "none":
        _write(axes, place, bottom, "none", SOFT)
        return
    share = min(1.0, max(0.05, part.share))
    kind = "narrow" if part.kind == "dense" and channels_kept < 1 else part.kind
    axes.bar(place, _HEIGHT * share, 0.8 * channels_kept, bottom, color=_COLOUR.get(kind, INK))
    if columns > _NAMED_COLUMNS or part.kind == "dense":
        return
    if part.share < 1:  # above the bar, or within where there is no room
        is_above = share < (0.6 if _turned(columns) else 0.75)
        height = bottom + share + (0.04 if is_above else -0.04)
        colour, side = (INK, "bottom") if is_above else (PAPER, "top")
        style: dict[str, Any] = {"color": colour, "fontsize": SMALL, "rotation": _turned(columns)}
        axes.text(place, height, f"{100 * part.share:.0f} %", ha="center", va=side, **style)
    else:
        _write(axes, place, bottom, part.kind, PAPER)


def _token_colour(part: Part) -> str:
    return RULE if part.kind == "all" else SECOND


def _write(axes: Axes, place: int, bottom: float, words: str, colour: str) -> None:
    axes.text(place, bottom + _HEIGHT / 2, words, rotation=90, ha="center", va="center", color=colour, fontsize=SMALL)


def _finish(axes: Axes, columns: Sequence[Column]) -> None:
    middles = [_TOKENS + _TOKEN_HEIGHT / 2, _MLP + _HEIGHT / 2, _ATTENTION + _HEIGHT / 2]
    axes.set_yticks(middles, ["tokens", "MLP", "attention"])
    axes.set_xlim(-0.6, len(columns) - 0.4)
    axes.set_ylim(0, _ATTENTION + _HEIGHT + 0.05)
    axes.spines[:].set_visible(False)


def _turned(columns: int) -> int:
    """Degrees by which numbers are turned, so that they stand beside each other."""
    return 90 if columns > _WRITTEN_COLUMNS else 0


def _lane(axes: Axes, lane: Lane, columns: Sequence[Column]) -> None:
    """A bar per block, at the first of its steps."""
    first = {
        (column if isinstance(column, int) else column.block): place
        for place, column in reversed([*enumerate(columns)])
    }
    known = {block: value for block, value in lane.values.items() if value is not None and block in first}
    axes.bar([first[block] for block in known], list(known.values()), 0.8, color=FIRST)
    for block, value in known.items():
        words = f"{value:.{lane.decimals}f}".replace("-", "−")
        axes.annotate(
            words, (first[block], max(0.0, value)), (0, 2), textcoords="offset points", ha="center", va="bottom",
            fontsize=SMALL - 1, rotation=_turned(len(columns)),
        )  # fmt: skip
    axes.set_ylim(min([0.0, *known.values()]), 1.45 * max([0.0, *known.values()]) or 1.0)
    axes.set_yticks([])
    axes.set_ylabel(lane.name, rotation=0, ha="right", va="center")
    axes.spines["left"].set_visible(False)


def _values_of(lane: Lane) -> str:
    values = (ABSENT if value is None else f"{value:.{lane.decimals}f}" for value in lane.values.values())
    return ", ".join(values)


def _number(axes: Axes, columns: Sequence[Column]) -> None:
    every = -(-len(columns) // _NAMED_COLUMNS)
    names = [_name(column) for column in columns]
    places = range(0, len(columns), every)
    axes.set_xticks(list(places), [names[place] for place in places])
    axes.set_xlabel(
        "block" + (" (= earlier step whose weights it applies)" if any("=" in name for name in names) else "")
    )


def _name(column: Column) -> str:
    if isinstance(column, int) or column.shares_with is None:
        return str(column if isinstance(column, int) else column.block)
    return f"{column.block}\n= {column.shares_with}"

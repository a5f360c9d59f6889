"""What INT8 loses, block by block, and which blocks stay in float for that."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pydantic import Field

from vitslim.shapes import Result

_BLOCK = re.compile(r"(?:^|[./])blocks\.(\d+)[./]")


class Sensitivity(Result):
    """What INT8 loses, and which blocks stayed in float for that.

    Attributes:
        loss: points that are lost with all blocks in INT8.
        without: the same with one block in float, by its number; empty where nothing had to be found out.
        kept: the blocks in float, in the order in which they were taken out.
        last: points that are lost with those.
    """

    loss: float
    without: dict[int, float] = Field(default_factory=dict[int, float])
    kept: list[int] = Field(default_factory=list[int])
    last: float

    def lines(self) -> list[str]:
        """In words."""
        if not self.without:
            return []
        order = sorted(self.without, key=lambda block: self.without[block])
        shown = ", ".join(f"{block} ({self.without[block]:.2f})" for block in order)
        kept = ", ".join(map(str, self.kept))
        return [
            f"all blocks in INT8 lose {self.loss:.2f} points; with one block in float: {shown}",
            f"blocks {kept} stayed in float: {self.last:.2f} points lost",
        ]


def least_kept(blocks: Sequence[int], loss_with: Callable[[Sequence[int]], float], most: float) -> Sensitivity:
    """Take blocks out of INT8, those first that it harms most, until no more than ``most`` is lost, or half are out.

    Args:
        loss_with: points lost with these blocks in float.
    """
    loss = last = loss_with(())
    without: dict[int, float] = {}
    kept: list[int] = []
    if loss > most:
        without = {block: loss_with((block,)) for block in blocks}
        for block in sorted(blocks, key=lambda one: without[one])[: len(blocks) // 2]:
            kept.append(block)  # written once more even if it is the only one: the last file is the one that stays
            last = loss_with(kept)
            if last <= most:
                break
    return Sensitivity(loss=loss, without=without, kept=kept, last=last)


def block_of(name: str) -> int | None:
    """The number of the block that a node is named after; ``None`` outside the blocks."""
    found = _BLOCK.search(name)
    return None if found is None else int(found[1])

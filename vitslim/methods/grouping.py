"""Which blocks share their weights: runs of neighbours, or those that an analysis found alike."""

from __future__ import annotations

from collections.abc import Sequence

Groups = tuple[tuple[int, ...], ...]


def runs(blocks: Sequence[int], size: int) -> Groups:
    """Neighbours in groups of ``size``; the last may be smaller."""
    return tuple(tuple(blocks[start : start + size]) for start in range(0, len(blocks), size))


def alike_groups(similarity: Sequence[Sequence[float | None]], blocks: Sequence[int], count: int) -> Groups:
    """Cut a run of blocks into ``count`` groups of neighbours, as alike as possible.

    The price of a group is the sum of 1 - CKA over its pairs of block outputs, so that groups stay small unless much
    alike; the partition with the least summed price is found exactly. What is unknown counts as unlike.
    """

    def price(group: Sequence[int]) -> float:
        pairs = [(first, second) for place, first in enumerate(group) for second in group[:place]]
        return sum((1.0 - (similarity[first][second] or 0.0) for first, second in pairs), start=0.0)

    # best[k][end]: least price of the first ``end`` blocks in k groups, and the groups.
    best: list[dict[int, tuple[float, Groups]]] = [{0: (0.0, ())}]
    for _ in range(count):
        ends: dict[int, tuple[float, Groups]] = {}
        for start, (spent, groups) in best[-1].items():
            for end in range(start + 1, len(blocks) + 1):
                group = tuple(blocks[start:end])
                candidate = (spent + price(group), (*groups, group))
                ends[end] = min(ends.get(end, candidate), candidate)
        best.append(ends)
    return best[-1][len(blocks)][1]


def stepwise_picks(groups: Groups) -> list[int]:
    """One member of each group, those next to even steps from the first to the last block of all.

    Source: Bae et al., arXiv 2410.20672, section 2.2, "stepwise".
    """
    grouped = [block for group in groups for block in group]
    picks: list[int] = []
    for place, group in enumerate(groups):
        wanted = min(grouped) + place * (max(grouped) - min(grouped)) / max(len(groups) - 1, 1)
        nearest = sorted(group, key=lambda block, wanted=wanted: abs(block - wanted))
        picks.append(nearest[0])
    return picks

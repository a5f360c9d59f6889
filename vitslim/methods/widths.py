"""How many neurons or heads each block keeps, and where widths cannot be changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from vitslim.errors import ConfigError
from vitslim.methods.base import Evidence, require_evidence
from vitslim.methods.layers import parse_layers, parse_numbers
from vitslim.plans import Dense, DenseMlp, ModelPlan, OwnWeights, Place, StepPlan


def read_layers(value: object) -> object:
    """Blocks as ``parse_layers`` reads them; ``None`` stays."""
    return None if value is None else parse_layers(value)


def read_widths(value: object) -> object:
    """One number per block, or a word."""
    return value if value is None or value in ("even", "auto") else parse_numbers(value)


def steps_to_narrow(
    plan: ModelPlan, method: str, axis: Literal["attention", "mlp"], layers: Sequence[int] | None
) -> list[int]:
    """The steps of the blocks that are named, or of all that are dense on the axis.

    Raises:
        ConfigError: a block that is not there, or whose axis or weights another conversion has changed.
    """
    blocks = sorted({step.block for step in plan.steps})
    missing = [] if layers is None else sorted(set(layers) - set(blocks))
    if missing:
        raise ConfigError(
            f"{method}.layers={tuple(layers or ())}: block {missing[0]} is not there; "
            f"choose from {', '.join(map(str, blocks))}"
        )
    found: list[int] = []
    for index, step in enumerate(plan.steps):
        choice = getattr(step, axis)
        if layers is not None and step.block not in layers:
            continue
        if not isinstance(step.weights, OwnWeights):
            raise ConfigError(
                f"{method}.layers: block {step.block} shares its matrices with others ({step.weights.describe()}); "
                f"convert with {method} first"
            )
        if isinstance(choice, Dense | DenseMlp):
            found.append(index)
        elif layers is not None:
            raise ConfigError(
                f"{method}.layers={tuple(layers)}: the {axis} of block {step.block} is not dense any more "
                f"({choice.describe()}); name other blocks"
            )
    if layers is None and not found:
        raise ConfigError(f"{method}: no block has a dense {axis} any more; start again from the dense model")
    return found


@runtime_checkable
class WidthOptions(Protocol):
    """What the methods that narrow have in common."""

    @property
    def keep(self) -> float: ...
    @property
    def widths(self) -> tuple[int, ...] | str | None: ...


def widths_of(
    method: str,
    options: WidthOptions,
    blocks: Sequence[int],
    sizes: Sequence[int],
    evidence: Evidence | None,
    align: int = 1,
) -> list[int]:
    """The width of each block, from the options and perhaps an analysis (``mlp_importance``, ``heads_importance``).

    Args:
        blocks: the dense blocks, of ``sizes`` units each.

    Raises:
        ConfigError: ``auto`` without an analysis, or explicit widths that are not one for each block.
    """
    if isinstance(options.widths, tuple):
        if len(options.widths) != len(blocks):
            raise ConfigError(
                f"{method}.widths={options.widths}: {len(options.widths)} numbers for {len(blocks)} blocks; give one "
                "for each, or name the blocks with layers"
            )
        return list(options.widths)
    if options.widths == "even" or evidence is None:
        if options.widths == "auto":
            raise ConfigError(
                f"{method}.widths='auto' needs an analysis: pass analysis=vitslim.analyze(model, data=...), "
                "or --data on the command line"
            )
        return even(sizes, options.keep, align)
    importance = require_evidence(evidence, f"{method}_importance")
    return allotted(sizes, [importance[block] for block in blocks], options.keep, align)


def even(sizes: Sequence[int], keep: float, align: int = 1) -> list[int]:
    """The same share of the units of each block, rounded up to a multiple of ``align``."""
    return [_aligned(keep * size, size, align) for size in sizes]


def allotted(sizes: Sequence[int], importance: Sequence[Sequence[float]], keep: float, align: int = 1) -> list[int]:
    """Widths of all blocks by one threshold on the importance of their units, ``keep`` of all units being left.

    Args:
        sizes: units of each block.
        importance: for each block that of equal parts of its units, the highest first.
    """
    parts = [
        (value, block, size / len(values))
        for block, (size, values) in enumerate(zip(sizes, importance, strict=True))
        for value in values
    ]
    left, widths = keep * sum(sizes), [0.0] * len(sizes)
    for _, block, units in sorted(parts, reverse=True):
        if left < units / 2:
            break
        widths[block] += units
        left -= units
    return [_aligned(width, size, align) for width, size in zip(widths, sizes, strict=True)]


def same_width_errors(at: Place, axis: Literal["attention", "mlp"]) -> list[str]:
    """All steps that run one matrix have to agree on its width."""
    mine = getattr(at.step, axis)
    return [
        f"{mine.describe()}: step {index} runs the same matrices with {getattr(step, axis).describe()}; "
        "give both the same width"
        for index, step in enumerate(at.plan.steps)
        if index != at.index and step.home == at.step.home and _uses(step, axis) and getattr(step, axis) != mine
    ]


def shares_weights(at: Place) -> bool:
    """Whether other steps run this step's matrices too, so that they cannot be set for it alone."""
    same = [step for step in at.plan.steps if step.home == at.step.home]
    return len(same) > 1 or not isinstance(at.step.weights, OwnWeights)


def _uses(step: StepPlan, axis: str) -> bool:
    return step.attention.attends if axis == "attention" else step.mlp.uses_block


def _aligned(width: float, size: int, align: int) -> int:
    return min(size, max(1, -(-round(width) // align)) * align)

"""What the speed ratios of one session say: a gain, a loss, noise, and how much of it a plain export gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, cast, runtime_checkable

Verdict = Literal["faster", "slower", "even", "too noisy"]

# Two runs of one model on one machine easily differ by this much in their median; a smaller gain is not called one.
EVEN_BAND = 0.02
# A ratio that holds 1 and spreads further than this may hide a gain or a loss that anybody would want to know of.
NOISY_SPREAD = 0.10
# The same where other work had the cores: what is left to chance there is only as much as an even ratio may move.
NOISY_SPREAD_UNDER_LOAD = 2 * EVEN_BAND
VERDICT_RULE = (
    f"A ratio is called even where it lies within {100 * EVEN_BAND:g} % of 1, or where a tenth of the rounds or more "
    f"lie on either side; and too noisy instead where these rounds spread further than {100 * NOISY_SPREAD:g} % "
    f"({100 * NOISY_SPREAD_UNDER_LOAD:g} % where other work kept the cores busy)."
)
REFERENCE = ("torch", "fp32")
ACROSS_RULE = (
    "Against dense in torch: the dense model's median in torch fp32 over this median, same batch, same session. "
    "Backends are timed one after the other, not in the same rounds, so this ratio has no spread and carries whatever "
    "the machine's speed drifted by between them."
)


@runtime_checkable
class TimedRow(Protocol):
    """What a ratio across backends is made of."""

    @property
    def model(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def latency_ms_p50(self) -> float: ...
    @property
    def speedup_vs_dense(self) -> float | None: ...
    @property
    def speedup_p10(self) -> float | None: ...
    @property
    def speedup_p90(self) -> float | None: ...
    @property
    def speedup_vs_dense_torch(self) -> float | None: ...
    @property
    def verdict(self) -> Verdict | None: ...
    @property
    def other_image_size(self) -> bool: ...


def verdict(speedup: float, spread: tuple[float, float] | None = None, *, crowded: bool = False) -> Verdict:
    """Whether a speed ratio to dense is a gain, a loss, too small to tell, or too noisy to tell.

    Args:
        speedup: ratio of medians.
        spread: the ratio's 10th and 90th percentile over the rounds.
        crowded: whether other work kept the cores busy; see ``is_crowded``.
    """
    low, high = spread or (speedup, speedup)
    undecided = spread is not None and low <= 1 <= high
    if undecided and high - low > (NOISY_SPREAD_UNDER_LOAD if crowded else NOISY_SPREAD):
        return "too noisy"
    if undecided or abs(speedup - 1) < EVEN_BAND:
        return "even"
    return "faster" if speedup > 1 else "slower"


def is_crowded(environment: Mapping[str, Any], threads: int) -> bool:
    """Whether the load average before a measurement, with its own threads, was more than the cores there are."""
    load, cores = load_of(environment), environment.get("cores_usable") or environment.get("cores")
    return load is not None and isinstance(cores, int) and load + threads > cores


def load_of(environment: Mapping[str, Any]) -> float | None:
    """Runnable processes over the last minute before a measurement; ``None`` where it was not recorded."""
    loads = cast("Sequence[float]", environment.get("load_average") or [None])
    return loads[0]


def against_dense_torch(row: TimedRow, rows: Sequence[TimedRow], baseline: str | None) -> float | None:
    """How many times as fast as the dense model in torch fp32 at the same batch; ``None`` where that was not timed.

    Args:
        rows: of the same session; ratios of rows of different sessions mean nothing.
    """
    wanted = (baseline, *REFERENCE, row.batch)
    dense = next((one for one in rows if (one.model, one.backend, one.precision, one.batch) == wanted), None)
    return None if dense is None else dense.latency_ms_p50 / row.latency_ms_p50


def export_sentences(rows: Sequence[TimedRow], baseline: str | None) -> list[str]:
    """Where running the unchanged model elsewhere gains more than converting it does, one sentence per setting."""
    sentences: list[str] = []
    for dense in rows:
        alone = dense.speedup_vs_dense_torch
        if dense.model != baseline or alone is None or (dense.backend, dense.precision) == REFERENCE:
            continue
        students = [row for row in rows if row.model != baseline and _setting(row) == _setting(dense)]
        best = max(students, key=lambda row: row.speedup_vs_dense or 0.0, default=None)
        if best is None or best.speedup_vs_dense is None or alone <= max(1 + EVEN_BAND, best.speedup_vs_dense):
            continue
        sentences.append(
            f"Batch {dense.batch}: the unchanged dense model in {dense.backend} {dense.precision} is {alone:.2f} times "
            f"as fast as in torch fp32, which is more than the conversion gives there ({best.model}: "
            f"{best.speedup_vs_dense:.2f} times dense in the same backend; both together "
            f"{alone * best.speedup_vs_dense:.2f} times dense in torch)."
        )
    return sentences


def is_across(row: TimedRow) -> bool:
    """Whether the ratio to dense in torch says more than the ratio to dense does."""
    return row.speedup_vs_dense_torch is not None and (row.backend, row.precision) != REFERENCE


def remarks(rows: Sequence[TimedRow], baseline: str | None, environment: Mapping[str, Any]) -> list[str]:
    """What must be known to read the rows: ratios at another resolution, noise, exports that outdo a conversion."""
    resized = list(dict.fromkeys(row.model for row in rows if row.other_image_size))
    found = [f"The input of {', '.join(resized)} is not as large as the baseline's: at another resolution."]
    load = load_of(environment)
    noisy = ", ".join(
        f"{row.model} in {row.backend} {row.precision}, batch {row.batch} (spread {row.speedup_p10 or 0:.2f} to "
        f"{row.speedup_p90 or 0:.2f})"
        for row in rows
        if row.verdict == "too noisy"
    )
    quieter = "measure again on a quiet machine, with more rounds"
    noise = [f"Too noisy to tell at a load average of {load or 'unknown size'}: {noisy}; {quieter}."]
    across = [ACROSS_RULE] if any(map(is_across, rows)) else []
    return [*(found if resized else []), *(noise if noisy else []), *export_sentences(rows, baseline), *across]


def _setting(row: TimedRow) -> tuple[str, str, int]:
    return row.backend, row.precision, row.batch

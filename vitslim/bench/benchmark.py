"""Measuring models beside the dense one they came from."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationError, model_validator
from torch import nn

from vitslim.arguments import checked
from vitslim.bench.clock import MIN_ROUNDS, torch_threads
from vitslim.bench.environment import environment, load_average
from vitslim.bench.ratios import against_dense_torch, is_crowded, verdict
from vitslim.bench.result import BenchReport, BenchRow, Skipped
from vitslim.bench.session import Backend, RunConfig, Session, candidates
from vitslim.errors import ConfigError
from vitslim.progress import Progress, ProgressCallback, silent
from vitslim.runtime import Precision
from vitslim.shapes import Config
from vitslim.trunk import is_converted
from vitslim.validation import describe_errors

_NO_CPU_MEMORY = (
    "No peak memory (peak_memory_mib) on the CPU: the resident peak belongs to the process, which holds every model."
)


class BenchConfig(Config):
    """What to measure, how often."""

    backends: tuple[Backend, ...] = ("torch", "ort")
    precisions: tuple[Precision, ...] = ("fp32",)
    batches: tuple[PositiveInt, ...] = (1, 8)  # images per call
    threads: int = Field(default=1, ge=1)  # CPU threads of every backend; two on a small shared machine gave nonsense
    rounds: int = Field(default=30, ge=MIN_ROUNDS)  # samples per model, or more
    warmup: int = Field(default=3, ge=1)  # calls before the first sample
    seconds: float | None = Field(default=None, gt=0)  # time limit of one backend, precision and batch
    least_seconds: float = Field(default=0.0, ge=0)  # that the rounds of one backend, precision and batch go on
    # ``processor``: what a call waits for other work does not count. For one thread of a CPU, on a busy machine.
    clock: Literal["wall", "processor"] = "wall"
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _clock_of_one_thread(self) -> BenchConfig:
        if self.clock == "processor" and (self.threads > 1 or self.device != "cpu"):
            raise ValueError(
                "clock=processor adds up the threads of a CPU; wanted threads=1 and device=cpu, given "
                f"threads={self.threads} and device={self.device}; take clock=wall"
            )
        return self


@checked
def benchmark(
    models: Mapping[str, nn.Module],
    *,
    baseline: str,
    progress: ProgressCallback = silent,
    **options: Any,
) -> BenchReport:
    """Latency, throughput, cost of every model, each next to the dense baseline of the same run.

    All models of one backend, precision and batch size are timed in interleaved rounds; backends, precisions and batch
    sizes follow one after the other. A backend that is missing or fails is named in ``skipped``; the others go on.

    Args:
        models: by the name of their rows; each runs at its own image size, none is changed.
        baseline: the name of the dense model; its attention must be fused.
        options: fields of ``BenchConfig``.

    Raises:
        ConfigError: an unknown option, a baseline that is absent, converted, or whose attention is not fused.
    """
    config = _config(options)
    _check_baseline(models, baseline)
    session = Session(
        candidates=candidates(models),
        baseline=baseline,
        threads=config.threads,
        rounds=config.rounds,
        warmup=config.warmup,
        seconds=config.seconds,
        least_seconds=config.least_seconds,
        clock=config.clock,
        device=config.device,
    )
    before = environment()
    rows, skipped = _run(session, config, progress)
    return BenchReport(
        baseline=baseline,
        settings=config.model_dump(mode="json"),
        environment=before | {"torch_threads": config.threads},
        load_average_end=load_average(),
        rows=_judged(rows, baseline, crowded=is_crowded(before, config.threads)),
        skipped=skipped,
        notes=[*([_NO_CPU_MEMORY] if config.device == "cpu" else []), *session.notes],
    )


def _judged(rows: list[BenchRow], baseline: str, *, crowded: bool) -> list[BenchRow]:
    """The rows with what only the whole session can say of each."""
    sizes = {row.image_size for row in rows if row.model == baseline}
    return [
        row.model_copy(
            update={
                "verdict": None
                if row.model == baseline
                else verdict(row.speedup_vs_dense, (row.speedup_p10, row.speedup_p90), crowded=crowded),
                "speedup_vs_dense_torch": against_dense_torch(row, rows, baseline),
                "other_image_size": row.image_size not in sizes,
            }
        )
        for row in rows
    ]


def _run(session: Session, config: BenchConfig, progress: ProgressCallback) -> tuple[list[BenchRow], list[Skipped]]:
    rows: list[BenchRow] = []
    skipped: list[Skipped] = []
    runs = [RunConfig(backend, precision) for backend in config.backends for precision in config.precisions]
    with torch_threads(config.threads):
        for done, run in enumerate(runs):
            for row in session.measure(run, config.batches, skipped):
                rows.append(row)
                progress(Progress("bench", done, len(runs), "backend", {"latency_ms": row.latency_ms_p50}))
            progress(Progress("bench", done + 1, len(runs), "backend"))
    return rows, skipped


def _config(options: dict[str, Any]) -> BenchConfig:
    try:
        return BenchConfig(**options)
    except ValidationError as error:
        raise ConfigError(f"benchmark: {'; '.join(describe_errors(error, BenchConfig))}") from None


def _check_baseline(models: Mapping[str, nn.Module], baseline: str) -> None:
    if baseline not in models:
        close = get_close_matches(baseline, models, n=1)
        hint = (
            f"did you mean '{close[0]}'?" if close else f"choose from {', '.join(models) or 'nothing: no models given'}"
        )
        raise ConfigError(f"baseline '{baseline}' is not among the models; {hint}")
    if is_converted(models[baseline]):
        raise ConfigError(f"baseline '{baseline}' is converted; give the dense model it came from as the baseline")
    # A gain over unfused attention is not a gain: nobody deploys it.
    unfused = [name for name, part in models[baseline].named_modules() if getattr(part, "fused_attn", None) is False]
    if unfused:
        raise ConfigError(
            f"baseline '{baseline}' runs {len(unfused)} attention modules unfused (first: {unfused[0]}); "
            "unset TIMM_FUSED_ATTN, or set fused_attn=True on them, before measuring"
        )

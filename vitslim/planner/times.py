"""What plans take in a runtime: measured for a few whole models, from which ``prediction`` puts together all others.

The probes are towers of equal steps: the dense model with two steps, at several image sizes, without MLPs, with narrow
MLPs, with fewer heads, all of these once more at a small image size, on a narrower stream, and one model for every
method that brings choices of its own. All times are ratios to the dense model in the same interleaved rounds: of the
10th percentiles, for one thread of processor time, which other work on the machine hardly moves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt
from torch import nn

from vitslim.bench import benchmark, environment
from vitslim.bench.session import Backend
from vitslim.errors import CheckFailedError, CheckpointError, ConfigError
from vitslim.files import cache_root, digest_of, read_json, write_json
from vitslim.methods import METHODS, planned
from vitslim.methods.heads import NarrowAttention
from vitslim.methods.mlp import NarrowMlp
from vitslim.methods.resolution import ResolutionConfig
from vitslim.methods.width import WidthConfig
from vitslim.plans import ModelPlan, NoMlp, check, plan_json
from vitslim.progress import Progress, ProgressCallback, silent
from vitslim.runtime import Precision
from vitslim.shapes import Config, Result
from vitslim.trunk import build, plan_of

DENSE, SHORT, SMALL = "dense", "two steps", "tokens 0.5"
SHORT_SMALL = "two steps, fewer tokens"
NO_MLP, NO_MLP_SMALL = "no MLPs", "no MLPs, fewer tokens"
_SHARES = (0.75, 0.5, 0.25)
"""Of tokens, neurons and heads in the probes."""
SMALLER = "small, "
"""Before the name of a probe: the same on fewer tokens."""
TIMED = "10th percentiles of the second call in each round, on one thread of a CPU of processor time"
"""Times that are kept are good for as long as they are taken so."""
_TOGETHER = 6
"""Probes that are timed in the same rounds, beside the dense model; more would not fit into memory."""


class RuntimeConfig(Config):
    """In what a plan is to be fast."""

    backend: Backend = "ort"
    batch: PositiveInt = 1  # images per call
    threads: PositiveInt = 1  # of the CPU
    precision: Precision = "fp32"
    device: str = "cpu"
    rounds: int = Field(default=60, ge=5)  # samples per model, or more
    seconds: float = Field(default=10.0, ge=0)  # that models are timed together, or longer


class ProbeTimes(Result):
    """What was measured: the time of each probe as a share of the dense model's, and what the probes were.

    Attributes:
        dense_ms: latency of the dense model, one call, milliseconds, 10th percentile: the median of ``dense_each_ms``,
            one for every group that was measured together.
        skipped: probes that could not be measured, with the reason.
    """

    dense_ms: float
    dense_each_ms: list[float] = Field(default_factory=list[float])
    shares: dict[str, float]
    plans: dict[str, Any]
    skipped: dict[str, str]
    environment: dict[str, Any]


def probe_plans(dense: ModelPlan) -> dict[str, ModelPlan]:
    """The towers for a dense plan, by name; those that its model cannot have are left out."""
    block = dense.model.blocks[0]
    small = _at_share_of_tokens(dense, 0.5)
    found = {
        SHORT: dense.model_copy(update={"steps": dense.steps[:2]}),
        SHORT_SMALL: small.model_copy(update={"steps": small.steps[:2]}),
        NO_MLP: _everywhere(dense, mlp=NoMlp()),
        NO_MLP_SMALL: _everywhere(small, mlp=NoMlp()),
        **{f"tokens {share:g}": _at_share_of_tokens(dense, share) for share in _SHARES},
        **{
            f"neurons {s:g}": _everywhere(dense, mlp=NarrowMlp(neurons=max(1, round(s * block.hidden))))
            for s in _SHARES
        },
    }
    for share in _SHARES:
        found[f"width {share:g}"] = planned(METHODS.get("width"), WidthConfig(keep=share, align=1), dense)
    shared = block.heads // block.groups
    for groups in sorted({max(1, round(share * block.groups)) for share in _SHARES} - {block.groups}):
        found[f"heads {groups * shared}"] = _everywhere(dense, attention=NarrowAttention(left=groups * shared))
    for name in [name for name in found if name.startswith(("neurons ", "heads "))]:
        step = found[name].steps[0]
        found[SMALLER + name] = _everywhere(small, attention=step.attention, mlp=step.mlp)
    for name, method in METHODS.items():
        strengths = method.strengths(dense)
        if strengths:
            try:
                found[f"method {name}"] = planned(method, method.config(**strengths[0]), dense)
            except ConfigError:
                continue
    return {
        name: plan for name, plan in found.items() if not check(plan) and (name == SHORT or _is_new(plan, found, name))
    }


def measure_probes(
    model: nn.Module, config: RuntimeConfig, *, file: Path | None = None, progress: ProgressCallback = silent
) -> ProbeTimes:
    """Time the probes of a dense model in a runtime.

    Args:
        file: keeps what is measured, and may hold what a run that was cut off has measured.

    Raises:
        CheckFailedError: the runtime does not run the dense model.
    """
    plans = probe_plans(plan_of(model))
    found = (None if file is None else _read_probes(file)) or ProbeTimes(
        dense_ms=math.nan,
        shares={DENSE: 1.0},
        plans={name: plan_json(plan) for name, plan in plans.items()},
        skipped={},
        environment=environment(),
    )
    left = [name for name in plans if name not in found.shares and name not in found.skipped]
    progress(Progress("time probes", len(plans) - len(left), len(plans), "models"))
    for first in range(0, len(left), _TOGETHER):
        group = left[first : first + _TOGETHER]
        shares, skipped, latency = measure_plans(model, {name: plans[name] for name in group}, config)
        each = [*found.dense_each_ms, latency]
        found = found.model_copy(
            update={
                "dense_ms": float(np.median(each)),
                "dense_each_ms": each,
                "shares": found.shares | shares,
                # One that neither ran nor has a reason is not tried for ever.
                "skipped": found.skipped | {name: "" for name in group if name not in shares} | skipped,
            }
        )
        if file is not None:
            write_json(file, found.model_dump(mode="json"))
        progress(Progress("time probes", len(plans) - len(left) + first + len(group), len(plans), "models"))
    return found


def measure_plans(
    model: nn.Module, plans: Mapping[str, ModelPlan], config: RuntimeConfig
) -> tuple[dict[str, float], dict[str, str], float]:
    """Time plans in the same rounds as the dense model.

    Returns:
        Their times as shares of the dense model's, the reasons of those that do not run, the dense latency in ms.

    Raises:
        CheckFailedError: the runtime does not run the dense model.
    """
    return measure_models({DENSE: model, **{name: build(plan, model).eval() for name, plan in plans.items()}}, config)


def measure_models(
    models: Mapping[str, nn.Module], config: RuntimeConfig
) -> tuple[dict[str, float], dict[str, str], float]:
    """Time models in the same rounds as the one named ``dense``; returns and raises as ``measure_plans``."""
    report = benchmark(
        models,
        baseline=DENSE,
        backends=(config.backend,),
        precisions=(config.precision,),
        batches=(config.batch,),
        threads=config.threads,
        rounds=config.rounds,
        least_seconds=config.seconds,
        clock="processor" if config.threads == 1 and config.device == "cpu" else "wall",
        device=config.device,
    )
    # A call of 5 ms loses the processor, and its caches, to other work more often than one of 1 ms: medians lie then.
    latency = {row.model: row.latency_ms_p10 or row.latency_ms_p50 for row in report.rows}
    reasons = {str(one.model or DENSE): one.reason for one in report.skipped}
    if DENSE not in latency:
        raise CheckFailedError(
            f"{config.backend} {config.precision} does not run the dense model, so nothing can be planned for it: "
            f"{reasons.get(DENSE, 'no reason is known')}"
        )
    dense = latency.pop(DENSE)
    return {name: time / dense for name, time in latency.items()}, reasons, dense


def times_folder() -> Path:
    """Where measured times are kept: ``times`` in $VITSLIM_CACHE, else in ~/.cache/vitslim."""
    return cache_root() / "times"


class SharesOfPlans:
    """Measured times of plans as shares of the dense model's, each measured once.

    Plans that differ in nothing but which of several equal blocks they take are the same to a runtime. A JSON file
    for the model's geometry, the runtime, the way of timing, the machine and the versions keeps what is known.

    Args:
        folder: of the cache.
    """

    def __init__(self, model: nn.Module, config: RuntimeConfig, folder: Path) -> None:
        self._model, self._config = model, config
        words = [plan_json(plan_of(model)), config, TIMED, _stable_environment()]
        self._path = folder / f"plans-{digest_of(words)}.json"
        self._known: dict[str, float | None] = _read(self._path)

    def __call__(
        self, plans: Sequence[ModelPlan], *, what: str = "plans", progress: ProgressCallback = silent
    ) -> list[float | None]:
        """Their times; ``None`` for those that the runtime does not run.

        Raises:
            CheckFailedError: the runtime does not run the dense model.
        """
        keys = [digest_of(_as_run(plan)) for plan in plans]
        new = {key: plan for key, plan in zip(keys, plans, strict=True) if key not in self._known}
        names = list(new)
        for first in range(0, len(names), _TOGETHER):
            group = {name: new[name] for name in names[first : first + _TOGETHER]}
            found = measure_plans(self._model, group, self._config)[0]
            self._known |= {name: found.get(name) for name in group}
            write_json(self._path, self._known)
            progress(Progress(f"times of {what}", first + len(group), len(names), "plans"))
        return [self._known[key] for key in keys]


def _as_run(plan: ModelPlan) -> Any:
    """What of a plan a runtime sees: each block by its shape, and by the step that used it first."""
    document = plan_json(plan)
    first: dict[int, int] = {}
    for index, step in enumerate(document["steps"]):
        first.setdefault(step["block"], index)
        shape = document["model"]["blocks"][step["block"]]
        step["block"] = [first[step["block"]], shape]
    del document["model"]["blocks"]
    return document


def _read(path: Path) -> dict[str, float | None]:
    try:
        return read_json(path)
    except CheckpointError:
        return {}


def _stable_environment() -> dict[str, Any]:
    return {name: value for name, value in environment().items() if name not in _CHANGING}


def probes_once(
    model: nn.Module, config: RuntimeConfig, folder: Path, *, progress: ProgressCallback = silent
) -> ProbeTimes:
    """``measure_probes``, less what it found before for the same geometry, runtime, machine and versions.

    Args:
        folder: of the cache.
    """
    return measure_probes(model, config, file=folder / _probes_name(plan_of(model), config), progress=progress)


def probes_left(dense: ModelPlan, config: RuntimeConfig, folder: Path) -> int:
    """How many probes ``probes_once`` has still to measure."""
    known = _read_probes(folder / _probes_name(dense, config))
    names = set(probe_plans(dense))
    return len(names) if known is None else len(names - set(known.shares) - set(known.skipped))


def _probes_name(dense: ModelPlan, config: RuntimeConfig) -> str:
    plans = {name: plan_json(plan) for name, plan in probe_plans(dense).items()}
    return f"{digest_of([plans, config, TIMED, _stable_environment()])}.json"


def _read_probes(path: Path) -> ProbeTimes | None:
    try:
        return ProbeTimes.model_validate(read_json(path))
    except (CheckpointError, ValueError):
        return None


_CHANGING = ("load_average", "torch_threads")


def _everywhere(plan: ModelPlan, **choices: Any) -> ModelPlan:
    return plan.with_steps({index: step.but(**choices) for index, step in enumerate(plan.steps)})


def _at_share_of_tokens(plan: ModelPlan, share: float) -> ModelPlan:
    return planned(METHODS.get("resolution"), ResolutionConfig(keep=share), plan)


def _is_new(plan: ModelPlan, found: Mapping[str, ModelPlan], name: str) -> bool:
    """Whether no probe before it is the same: small grids have few sizes."""
    before = list(found)[: list(found).index(name)]
    is_dense = all(step.is_dense for step in plan.steps) and plan.image_size == plan.model.image_size
    return not (is_dense and plan.width is None) and all(found[other] != plan for other in before)

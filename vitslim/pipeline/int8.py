"""Exports in INT8 by libraries of the target's own, kept where they are proven to be worth it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vitslim.files import scratch_beside
from vitslim.pipeline.gate import Judged, QuantizedExport, keep_or_reject, latencies_ms
from vitslim.pipeline.images import DataLike
from vitslim.runtime import Runner
from vitslim.targets import ExportRequest, Opening, Target
from vitslim.targets.base import Judge


def export_int8(
    target: Target, request: ExportRequest, options: Mapping[str, Any], data: DataLike, max_drop: float
) -> QuantizedExport:
    """Write a file in INT8, measure what it loses and how fast it is, and keep it aside where either speaks against it.

    Args:
        data: its training split is for calibration, its held-out one for the judgement.
        max_drop: points of accuracy (of agreement without labels) that may be lost.

    Raises:
        ConfigError: too few images.
    """
    judged = Judged(request.model(), data)
    with scratch_beside(request.path) as scratch:
        folder = scratch / "files"
        asked = replace(
            request,
            path=folder / request.path.name,
            calibration=judged.calibration,
            judge=Judge(judged.loss, max_drop),
        )
        written = target.write(asked, **options)

        def opened(_: Sequence[int]) -> Runner:
            return target.load(asked.path, Opening(threads=1))

        with opened(()) as runner:
            file = judged.result(runner)
        notes = list[str]()
        latency = latencies_ms(target, judged.model, {"int8": opened}, ("fp32", "bf16"), notes)
        return keep_or_reject(asked.path, request.path, judged, file, max_drop, latency, "int8", written, notes)

"""What an exported file says about itself, so that it can be used without us."""

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from vitslim.errors import ConfigError
from vitslim.models import describe, preprocessing
from vitslim.plans import plan_json
from vitslim.runtime import Precision
from vitslim.runtime.versions import library_versions
from vitslim.targets.input_format import InputFormat, describe_input
from vitslim.trunk import is_converted, plan_of, trunk_of

_OURS = ("producer", "plan", "precision", "image_size", "input", "versions")


def artifact_metadata(
    model: nn.Module, precision: Precision, given: Mapping[str, Any], *, input_format: InputFormat = "normalized"
) -> dict[str, str]:
    """Metadata of a file made from ``model``: text as it stands, everything else as JSON.

    Args:
        model: dense or converted.
        precision: of the file.
        given: the caller's entries; they may replace ``base_model``, ``methods`` and ``labels``.
        input_format: what the file takes; the entry ``input`` says what is left to do before.

    Raises:
        ConfigError: ``given`` contradicts what only the exporter knows.
    """
    clash = sorted(set(given) & set(_OURS))
    if clash:
        raise ConfigError(f"metadata: {', '.join(clash)} is written by the exporter; rename your entry")
    image = preprocessing(model)
    entries: dict[str, Any] = {
        "producer": "vitslim",
        "base_model": _base_model(model),
        "methods": _methods(model),
        "plan": plan_json(plan_of(model)) if is_converted(model) else None,
        "precision": precision,
        "image_size": list(image.image_size),
        "input": describe_input(image, input_format),
        "mean": list(image.mean),
        "std": list(image.std),
        "interpolation": image.interpolation,
        "crop_pct": image.crop_pct,
        "labels": _labels(model),
        "versions": library_versions(),
        **given,
    }
    return {key: _text(value) for key, value in entries.items() if value is not None}


def _base_model(model: nn.Module) -> str | None:
    base = trunk_of(model).base if is_converted(model) else describe(model)
    return None if base is None else base.architecture


def _methods(model: nn.Module) -> list[dict[str, Any]]:
    if not is_converted(model):
        return []
    return [{"method": step.method, "options": dict(step.options)} for step in trunk_of(model).history]


def _labels(model: nn.Module) -> list[str] | None:
    configuration: Any = getattr(model, "pretrained_cfg", None) or {}
    labels = configuration.get("label_names")
    return list(labels) if labels and len(labels) == getattr(model, "num_classes", None) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

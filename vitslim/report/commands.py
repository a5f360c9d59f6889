"""Commands that would fill a gap of a report, ready to be pasted where the folder lies."""

import shlex
from typing import Any, cast

from vitslim.errors import ConfigError
from vitslim.plain_yaml import read_yaml
from vitslim.report.parts import ReportParts

IMAGES, MODEL = "IMAGES", "MODEL"  # what the folder cannot tell


def analyze_command(parts: ReportParts) -> str:
    """Measures what is redundant in the dense model."""
    if parts.recipe is not None:
        return f"{_run_again(parts)} --set analyze={{}}{'' if _source(parts) else f' --set data.source={IMAGES}'}"
    return f"vitslim analyze {_base(parts)} --data {_images(parts)} --out {folder_of(parts)} --overwrite"


def convert_command(parts: ReportParts) -> str:
    """Makes a student."""
    return f"vitslim convert {_base(parts)} --method skipat --out {folder_of(parts)} --overwrite"


def train_command(parts: ReportParts) -> str:
    """Trains the student, into a folder of its own."""
    trained = shlex.quote(f"{parts.name}-trained")
    return f"vitslim train {folder_of(parts)} --teacher {_base(parts)} --data {_images(parts)} --out {trained}"


def eval_command(parts: ReportParts) -> str:
    """Measures the student's accuracy."""
    if parts.recipe is not None and _source(parts) is None:
        return f"{_run_again(parts)} --set data.source={IMAGES}"
    return f"vitslim eval {folder_of(parts)} --teacher {_base(parts)} --data {_images(parts)}"


def bench_command(parts: ReportParts) -> str:
    """Measures the student's speed; the figures are written into its folder."""
    return f"vitslim bench {folder_of(parts)}"


def verify_command(parts: ReportParts) -> str:
    """Compares what was exported with the model."""
    verify = f"vitslim verify {folder_of(parts)}"
    exported = any(name.startswith("export/") for name in parts.file_bytes)
    return verify if exported else f"vitslim export {folder_of(parts)} && {verify}"


def recipe_command(parts: ReportParts) -> str:
    """Runs the saved recipe into a folder of the same name."""
    return f"vitslim run recipe.yaml --out {folder_of(parts)}"


def folder_of(parts: ReportParts) -> str:
    """The folder's own name as a word of a command."""
    return shlex.quote(parts.name)


def recipe_of(parts: ReportParts) -> dict[str, Any]:
    """The folder's recipe as far as it can be read; nothing where it cannot."""
    try:
        found = read_yaml(parts.recipe or "", "recipe.yaml")
    except ConfigError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _run_again(parts: ReportParts) -> str:
    recipe = shlex.quote(f"{parts.name}/recipe.yaml")
    return f"vitslim run {recipe} --out {folder_of(parts)} --overwrite"


def _base(parts: ReportParts) -> str:
    """The dense model as a command takes it; one that was built by hand has no name."""
    name = parts.config.base.architecture if parts.config else ":"
    return MODEL if name.startswith(":") else shlex.quote(name)


def _images(parts: ReportParts) -> str:
    source = _source(parts)
    return IMAGES if source is None else shlex.quote(source)


def _source(parts: ReportParts) -> str | None:
    data = recipe_of(parts).get("data")
    source = cast("dict[str, Any]", data).get("source") if isinstance(data, dict) else None
    return source if isinstance(source, str) else None

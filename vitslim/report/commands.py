"""Commands that would fill a gap of a report, ready to be pasted where the folder lies."""

import shlex
from typing import Any, Literal, cast

from vitslim.errors import ConfigError
from vitslim.plain_yaml import read_yaml
from vitslim.report.parts import ReportParts

Missing = Literal["analyze", "convert", "train", "eval", "bench", "verify", "run"]


def command(parts: ReportParts, missing: Missing) -> str:
    """The command that makes what is missing; IMAGES and MODEL stand for what the folder cannot tell."""
    folder, trained = shlex.quote(parts.name), shlex.quote(f"{parts.name}-trained")
    name = parts.config.base.architecture if parts.config else ":"
    base = "MODEL" if name.startswith(":") else shlex.quote(name)
    data = recipe_of(parts).get("data")
    source = cast("dict[str, Any]", data).get("source") if isinstance(data, dict) else None
    images = shlex.quote(source) if isinstance(source, str) else "IMAGES"
    again = f"vitslim run {shlex.quote(f'{parts.name}/recipe.yaml')} --out {folder} --overwrite"
    with_images = "" if isinstance(source, str) else " --set data.source=IMAGES"
    has_recipe, is_exported = parts.recipe is not None, any(one.startswith("export/") for one in parts.file_bytes)
    commands: dict[Missing, str] = {
        "analyze": f"{again} --set analyze={{}}{with_images}"
        if has_recipe
        else f"vitslim analyze {base} --data {images} --out {folder} --overwrite",
        "convert": f"vitslim convert {base} --method skipat --out {folder} --overwrite",
        "train": f"vitslim train {folder} --teacher {base} --data {images} --out {trained}",
        "eval": f"{again}{with_images}"
        if has_recipe and with_images
        else f"vitslim eval {folder} --teacher {base} --data {images}",
        "bench": f"vitslim bench {folder}",
        "verify": ("" if is_exported else f"vitslim export {folder} && ") + f"vitslim verify {folder}",
        "run": f"vitslim run recipe.yaml --out {folder}",
    }
    return commands[missing]


def recipe_of(parts: ReportParts) -> dict[str, Any]:
    """The folder's recipe as far as it can be read; nothing where it cannot."""
    try:
        found = read_yaml(parts.recipe or "", "recipe.yaml")
    except ConfigError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}

"""What of a command line can be refused before torch is imported, which takes seconds."""

from __future__ import annotations

import os
import re
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
import typer.core

from vitslim.errors import ConfigError, DataError
from vitslim.files import check_output_folder
from vitslim.names import ALIASES, BUILTIN, check_device, check_method, unknown_model

_READ = {
    "folder": "folder",
    "plan": "plan",
    "recipe": "recipe",
    "settings": "file of settings",
    "file": "weights file",
    "weights": "weights file",
}
_FILLS_AN_EMPTY_FOLDER = ("analyze", "train", "pretrain", "import")
_MAKES_A_FOLDER = (*_FILLS_AN_EMPTY_FOLDER, "convert", "run", "demo", "suite", "accuracy")


class CheckedCommand(typer.core.TyperCommand):
    """A command whose names, paths and devices are checked before it runs."""

    def invoke(self, ctx: Any) -> Any:
        check(str(self.name), ctx.params)
        return super().invoke(ctx)


def check_early(app: typer.Typer) -> None:
    """Make every command a ``CheckedCommand``."""
    for command in app.registered_commands:
        command.cls = CheckedCommand
    for group in app.registered_groups:
        if group.typer_instance is not None:
            check_early(group.typer_instance)


def check(command: str, given: dict[str, Any]) -> None:
    """Check what a command was given, by the names of its parameters.

    Raises:
        ConfigError: an unknown model, method or device, a file that is not there, or an output folder that cannot be
            used.
        DataError: images that are not there.
    """
    methods = given.get("method") or ()
    for method in (*methods, given.get("source") if command == "import" else None):
        if method is not None:
            check_method(method)
    for model in (given.get("model"), given.get("teacher"), given.get("base"), *(given.get("models") or ())):
        if model is not None:
            check_model(model)
    for name, what in _READ.items():
        path = given.get(name)
        if isinstance(path, Path) and not path.exists():
            raise ConfigError(f"{what} {path} does not exist")
    if given.get("device") is not None:
        check_device(given["device"])
    if given.get("data") is not None:
        _check_images(given["data"])
    # Several processes have to agree on a folder, which the command sees to: one may find what another has written.
    if isinstance(out := given.get("out"), Path) and os.environ.get("WORLD_SIZE", "1") == "1":
        _check_place(out, is_folder=command in _MAKES_A_FOLDER)
        if command in _FILLS_AN_EMPTY_FOLDER and not (given.get("overwrite") or given.get("resume")):
            check_output_folder(out, overwrite=False)


def check_model(name: str) -> None:
    """Refuse a name that neither vitslim nor the installed timm can know.

    Raises:
        ConfigError: with the nearest names.
    """
    if name in ALIASES or name == BUILTIN or ":" in name or "/" in name or Path(name).exists():
        return
    architecture, known = name.partition(".")[0], model_names()
    # Timm makes further names of older ones, which are written in its sources too; other packages have their own.
    is_known = architecture in known or re.search(rf"\b{re.escape(architecture)}\b", _sources())
    if known and not is_known and not entry_points(group="vitslim.adapters"):
        raise unknown_model(name, known)


@cache
def model_names() -> tuple[str, ...]:
    """The architectures that timm and vitslim define, read from their files: importing timm takes seconds."""
    return tuple(re.findall(r"^@register_model\s*\ndef (\w+)", _sources(), re.MULTILINE))


@cache
def _sources() -> str:
    places = [
        place for name in ("timm", "vitslim") for place in getattr(find_spec(name), "submodule_search_locations", ())
    ]
    files = [path for place in places for path in sorted(Path(place, "models").glob("*.py"))]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def _check_images(source: str) -> None:
    is_named = source.startswith(("hfds/", "wds/", "fractals:")) or source == "fractals"
    if not is_named and not Path(source).exists():
        raise DataError(
            f"{source} does not exist; give a folder of images, hfds/NAME, wds/FOLDER, or fractals (built in)"
        )


def _check_place(out: Path, *, is_folder: bool) -> None:
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir() and (is_folder or there != out):
        raise ConfigError(f"output {out}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"output {out}: no right to write in {there}; name another place")

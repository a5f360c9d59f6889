"""A recipe together with the files that it names, for a machine that has none of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitslim import checkpoint
from vitslim.files import is_scratch
from vitslim.recipe import DataSection, Recipe

INPUTS = "inputs"


@dataclass(frozen=True)
class PackedRecipe:
    """A recipe whose paths lead into the folder where ``write_files`` puts its files.

    The paths hold digests of the content: the same recipe of the same files is packed to an equal one.
    """

    recipe: Recipe
    files: Mapping[str, Path]  # by path in that folder: where it lies here


def pack(recipe: Recipe) -> PackedRecipe:
    """Take along the plan, the weights, the saved models and the class map of a recipe.

    A path that leads nowhere stays as it is, for the run to refuse. Images do not travel: a folder of them is named by
    its whole path, under which the other machine has to have it.
    """
    files: dict[str, Path] = {}

    def packed(path: str | None, contents: Callable[[Path], list[Path]]) -> str | None:
        found = [] if path is None else contents(Path(path))
        if path is None or not found:
            return path
        folder = f"{INPUTS}/{_digest(found)}"
        if Path(path).is_file():
            files[f"{folder}/{found[0].name}"] = found[0]
            return f"{folder}/{found[0].name}"
        files.update({f"{folder}/{file.name}": file for file in found})
        return folder

    model, data = recipe.model, recipe.data
    changes: dict[str, Any] = {
        "plan": packed(recipe.plan, _one_file),
        "teacher": packed(recipe.teacher, _saved_model),
        "model": model.model_copy(
            update={"name": packed(model.name, _saved_model), "weights": packed(model.weights, _one_file)}
        ),
        "data": data
        and data.model_copy(update={"source": _whole_path(data), "class_map": packed(data.class_map, _one_file)}),
    }
    return PackedRecipe(recipe.model_copy(update=changes), files)


def read_files(folder: Path) -> dict[str, bytes]:
    """The content of a folder by path within it, without what writes that were cut off left behind."""
    inside = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path.read_bytes()
        for name, path in inside.items()
        if not any(is_scratch(folder / above) for above in (name, *name.parents))
    }


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write what ``read_files`` gave into a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _one_file(path: Path) -> list[Path]:
    return [path] if path.is_file() else []


def _saved_model(path: Path) -> list[Path]:
    """The files of a saved model, without the run around it; none where the path names no saved model."""
    if not checkpoint.is_saved_model(path):
        return []
    return [path] if path.is_file() else [path / checkpoint.CONFIG_FILE, *_one_file(path / checkpoint.WEIGHTS_FILE)]


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _whole_path(data: DataSection) -> str:
    kind = next((kind for kind in ("wds/", "hfds/") if data.source.startswith(kind)), "")
    folder = data.source.removeprefix(kind)
    return kind + os.path.abspath(folder) if Path(folder).is_dir() else data.source

"""Recipes as files and as ``--set`` assignments, and options of methods."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.fuzz import values
from tests.fuzz.place import Case
from tests.pipeline.tiny import WHOLE
from vitslim.cli.options import method_entries
from vitslim.methods import METHODS
from vitslim.recipe import load_recipe, write_yaml

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
KEYS = ["seed", "model.name", "model.options.depth", "convert.0.layers", "distill.lr", "data.source", "bench.batches.0"]


def case(rng: random.Random, folder: Path) -> Case:
    """A recipe that is nearly one, or an option that is nearly one."""
    if rng.random() < 0.2:
        method = rng.choice(METHODS.names())
        field = rng.choice([*METHODS.get(method).config.model_fields, "layer", "", "."])
        option = f"{field}={values.text(rng)}"
        return Case(f"-O {option!r} of {method}", lambda: _configured(method, option))
    path = folder / "recipe.yaml"
    path.write_bytes(_text(rng).encode(errors="surrogatepass"))
    overrides = [_override(rng) for _ in range(rng.choice([0, 0, 1, 2]))]
    chosen = path if rng.random() < 0.95 else folder / rng.choice(values.PLACES)
    return Case(f"{chosen.name} with --set {overrides!r}", lambda: write_yaml(load_recipe(chosen, overrides)))


def _configured(method: str, option: str) -> None:
    from vitslim.methods import read_method

    entry = method_entries([method], [option])[0]
    read_method(entry.pop("method"), entry)


def _text(rng: random.Random) -> str:
    document = rng.choice(_documents())
    if rng.random() < 0.4:
        return values.changed_text(yaml.safe_dump(document), rng)
    changed = values.changed_document(document, rng)
    try:
        return yaml.safe_dump(changed) if rng.random() < 0.8 else json.dumps(changed)
    except (TypeError, ValueError, yaml.YAMLError):  # bytes in JSON, numbers too long to write
        return "[" * 3000


@cache
def _documents() -> list[Any]:
    return [WHOLE, *(yaml.safe_load(path.read_text()) for path in sorted(RECIPES.glob("*.yaml")))]


def _override(rng: random.Random) -> str:
    key = rng.choice([*KEYS, f"{rng.choice(KEYS)}.{values.text(rng)}", values.text(rng)])
    return f"{key}={values.text(rng)}"

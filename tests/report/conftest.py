"""The output folder of a real run, of which each test changes a copy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.tiny import WHOLE
from vitslim.pipeline import run
from vitslim.recipe import read_recipe

CONVERSIONS = [
    {"method": "skipat", "layers": [1], "expansion": 0.5},
    {"method": "evo_vit", "stages": [3], "keep": 0.5},
]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "out"
    run(read_recipe({**WHOLE, "convert": CONVERSIONS, "report": False}), out)
    return out


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    """Edit a JSON file in place."""
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))

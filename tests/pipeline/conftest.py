import shutil
from pathlib import Path

import pytest

from tests.pipeline.planned import Planner, stand_in
from tests.pipeline.tiny import RECIPE
from vitslim.pipeline import run
from vitslim.recipe import read_recipe


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one whole run without export and bench. Shared between tests: never change it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run(read_recipe(RECIPE), folder)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> Planner:
    """In place of the one that measures."""
    return stand_in(monkeypatch)

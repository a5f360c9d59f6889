"""Recipes as tasks of a Ray cluster: one of this machine, with two workers."""

import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.tiny import IMAGES, MODEL, QUIET
from vitslim import checkpoint
from vitslim.errors import CheckFailedError, ConfigError, DataError, MissingDependencyError
from vitslim.files import read_json
from vitslim.pipeline import ray_cluster, run
from vitslim.pipeline.folder import RECIPE_FILE
from vitslim.pipeline.side_by_side import run_side_by_side
from vitslim.progress import Progress, silent
from vitslim.recipe import Recipe, load_recipe, read_recipe


def small(**changes: Any) -> Recipe:
    return read_recipe({"model": MODEL, "convert": [{"method": "skipat"}], "report": False, **changes})


def trained(tmp_path: Path) -> Recipe:
    """One that names a folder of this machine."""
    if not (tmp_path / "model").exists():
        run(small(convert=[]), tmp_path / "model")
    return small(
        model={"name": str(tmp_path / "model")},
        data={"source": IMAGES, "batch_size": 16},
        distill={"steps": 2, **QUIET},
        evaluate=False,
    )


@pytest.fixture(scope="module")
def ray() -> Generator[Any]:
    """Ray, connected to a cluster of this machine with two workers, which lasts for these tests."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'vitslim[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.usefixtures("ray")
def test_runs_on_a_cluster_end_as_they_do_here_and_are_not_sent_again(tmp_path: Path) -> None:
    recipes = {"first": trained(tmp_path), "second": trained(tmp_path).model_copy(update={"seed": 1}), "third": small()}
    reports: list[Progress] = []
    run_side_by_side(recipes, tmp_path / "out", overwrite=False, progress=reports.append, ray="local")
    run(recipes["second"], tmp_path / "here")
    here, there = (checkpoint.load(path).state_dict() for path in (tmp_path / "here", tmp_path / "out" / "second"))
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)
    assert {"first: distill", "second: distill", "third: convert"} <= {one.stage for one in reports}
    assert load_recipe(tmp_path / "out" / "first" / RECIPE_FILE) == recipes["first"]

    weights = tmp_path / "out" / "first" / checkpoint.WEIGHTS_FILE
    before, again = weights.stat().st_mtime_ns, list[Progress]()
    run_side_by_side(recipes, tmp_path / "out", overwrite=False, progress=again.append, ray="local")
    assert weights.stat().st_mtime_ns == before
    assert [(one.stage, one.unit) for one in again] == [(name, "done before") for name in recipes]


@pytest.mark.usefixtures("ray")
def test_a_run_whose_worker_is_lost_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deaths = tmp_path / "deaths"
    deaths.mkdir()

    def dying(name: str, *given: Any) -> dict[str, bytes]:
        if name == "second" and not list(deaths.iterdir()):
            (deaths / str(os.getpid())).touch()
            os._exit(1)
        return ray_cluster._run(name, *given)  # in a worker, where nothing is patched

    monkeypatch.setattr(ray_cluster, "_run", dying)
    recipes = {"first": small(), "second": small(seed=1)}
    run_side_by_side(recipes, tmp_path / "out", overwrite=False, progress=silent, ray="local")
    assert len(list(deaths.iterdir())) == 1
    assert all(checkpoint.is_saved_model(tmp_path / "out" / name) for name in recipes)


@pytest.mark.usefixtures("ray")
def test_a_run_that_loses_every_worker_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deaths = tmp_path / "deaths"
    deaths.mkdir()

    def dying(*_: Any) -> dict[str, bytes]:
        (deaths / str(os.getpid())).touch()
        os._exit(1)

    monkeypatch.setattr(ray_cluster, "_run", dying)
    with pytest.raises(CheckFailedError, match=f"heavy lost its worker {ray_cluster.ATTEMPTS} times"):
        run_side_by_side({"heavy": small()}, tmp_path / "out", overwrite=False, progress=silent, ray="local")
    assert len(list(deaths.iterdir())) == ray_cluster.ATTEMPTS
    assert not (tmp_path / "out" / "heavy").exists()


@pytest.mark.usefixtures("ray")
def test_the_error_of_a_run_is_raised_as_itself_and_the_others_stay(tmp_path: Path) -> None:
    recipes = {"sound": small(), "broken": small(data={"source": str(tmp_path / "nowhere"), "batch_size": 4})}
    with pytest.raises(DataError, match="nowhere"):
        run_side_by_side(recipes, tmp_path / "out", overwrite=False, progress=silent, ray="local")
    assert not (tmp_path / "out" / "broken").exists()


@pytest.mark.usefixtures("ray")
def test_a_cluster_without_a_gpu_is_refused_where_one_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="wanting: device cuda was asked for, but no machine"):
        run_side_by_side(
            {"wanting": small(device="cuda:1")}, tmp_path / "out", overwrite=False, progress=silent, ray="local"
        )


@pytest.mark.usefixtures("ray")
def test_a_later_run_here_makes_the_record_of_the_cluster_void(tmp_path: Path) -> None:
    run_side_by_side({"one": small()}, tmp_path, overwrite=False, progress=silent, ray="local")
    run(small(seed=1), tmp_path / "one", overwrite=True)
    reports: list[Progress] = []
    run_side_by_side({"one": small()}, tmp_path, overwrite=True, progress=reports.append, ray="local")
    assert "one: convert" in {one.stage for one in reports}
    assert load_recipe(tmp_path / "one" / RECIPE_FILE).seed == 0
    assert read_json(tmp_path / "one" / ray_cluster.CLUSTER_FILE)["recipe"]["seed"] == 0


@pytest.mark.usefixtures("ray")
def test_what_is_wrong_here_is_said_before_anything_is_sent(tmp_path: Path) -> None:
    recipes = {"new": small(), "taken": small()}
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("of somebody")
    with pytest.raises(ConfigError, match="files that no run of vitslim wrote"):
        run_side_by_side(recipes, tmp_path, overwrite=False, progress=silent, ray="local")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="ray='cluster' is no address; wanted local, auto"):
        run_side_by_side({"new": small()}, tmp_path, overwrite=False, progress=silent, ray="cluster")


def test_without_ray_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vitslim\[ray\]'"):
        run_side_by_side({"new": small()}, tmp_path, overwrite=False, progress=silent, ray="local")
    assert not list(tmp_path.iterdir())

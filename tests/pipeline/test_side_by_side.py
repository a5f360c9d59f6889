"""Several recipes at once: each in its folder, as if it ran alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.tiny import MODEL, RECIPE
from vitslim import checkpoint
from vitslim.errors import DataError
from vitslim.pipeline import run
from vitslim.pipeline.side_by_side import _lanes, run_side_by_side
from vitslim.progress import Progress
from vitslim.recipe import Recipe, load_recipe, read_recipe


def small(**changes: Any) -> Recipe:
    return read_recipe({"model": MODEL, "convert": [{"method": "skipat"}], "report": False, **changes})


def test_a_run_in_a_process_of_its_own_ends_as_one_in_this(tmp_path: Path) -> None:
    trained = {**RECIPE, "finetune_dense": False, "analyze": None, "warm_start": None}
    recipes = {"trained": read_recipe(trained)}
    reports: list[Progress] = []
    run_side_by_side(recipes, tmp_path / "together", overwrite=False, progress=reports.append)
    run(recipes["trained"], tmp_path / "alone")
    together = checkpoint.load(tmp_path / "together" / "trained").state_dict()
    alone = checkpoint.load(tmp_path / "alone").state_dict()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert {"trained: convert", "trained: distill"} <= {one.stage for one in reports}


def test_the_error_of_one_is_raised_and_the_others_stay(tmp_path: Path) -> None:
    recipes = {"sound": small(), "broken": small(data={"source": str(tmp_path / "nowhere"), "batch_size": 4})}
    with pytest.raises(DataError, match="nowhere"):
        run_side_by_side(recipes, tmp_path / "out", overwrite=False, progress=lambda one: None)
    assert checkpoint.is_saved_model(tmp_path / "out" / "sound")
    assert not (tmp_path / "out" / "broken").exists()


def test_a_gpu_has_one_process_and_a_core_too() -> None:
    def lanes(devices: list[str], gpus: int) -> dict[str, list[int | None]]:
        return _lanes({str(number): small(device=device) for number, device in enumerate(devices)}, cores=2, gpus=gpus)

    assert lanes(["cpu"] * 3, gpus=4) == {"cpu": [None, None]}
    assert lanes(["cuda"] * 3, gpus=2) == {"cuda": [0, 1]}
    assert lanes(["cuda", "cuda", "cuda:1", "cuda:1"], gpus=8) == {"cuda": [0, 1], "cuda:1": [None]}
    # Without any, the run is what refuses.
    assert lanes(["cuda"], gpus=0) == {"cuda": [None]}


@pytest.mark.gpu
def test_runs_on_gpus_keep_the_device_of_their_recipes(tmp_path: Path) -> None:
    recipes = {name: small(device="cuda", seed=seed) for seed, name in enumerate(("first", "second", "third"))}
    run_side_by_side(recipes, tmp_path, overwrite=False, progress=lambda one: None)
    assert [load_recipe(tmp_path / name / "recipe.yaml").device for name in recipes] == ["cuda"] * 3

"""One analysis per model and images: what is taken over, what is made anew."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vitslim.analysis import AnalysisReport, analyze_once, cache
from vitslim.analysis.cache import cache_folder  # as it is: the tests of a run have a folder of their own
from vitslim.data import Loader, open_data
from vitslim.models import preprocessing
from vitslim.opening import open_model

TINY: dict[str, Any] = {"img_size": 32, "num_classes": 4, "depth": 3, "embed_dim": 48, "num_heads": 3}


def build(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return open_model("builtin", pretrained=False, **{**TINY, **options})


def images(model: nn.Module, seed: int = 0, batch_size: int = 8, per_class: int = 4) -> Loader:
    source = f"fractals:classes=4,train_per_class={per_class},val_per_class=1,image_size=32,seed={seed}"
    return open_data(source, split="train", preprocessing=preprocessing(model), batch_size=batch_size)


def ask(model: nn.Module, loader: Loader | None = None, **settings: int) -> AnalysisReport:
    return analyze_once(model, loader or images(model), **{"images": 16, "replacement_images": 4, **settings})


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often an analysis was really made, with an empty cache at the start."""
    made: list[object] = []
    analyze = cache.analyze

    def counted(*args: Any, **options: Any) -> AnalysisReport:
        made.append(args)
        return analyze(*args, **options)

    monkeypatch.setattr(cache, "analyze", counted)
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    return lambda: len(made)


@pytest.mark.filterwarnings("ignore:R² and the linear maps")
def test_the_same_question_is_answered_once(measured: Callable[[], int]) -> None:
    first = ask(build())
    assert ask(build()) == first
    assert measured() == 1


def other_code(monkeypatch: pytest.MonkeyPatch) -> AnalysisReport:
    monkeypatch.setattr(cache, "_CODE", ("analysis",))
    return ask(build())


@pytest.mark.filterwarnings("ignore:R² and the linear maps")
@pytest.mark.parametrize(
    "other",
    [
        lambda patch: ask(build(seed=1)),
        lambda patch: ask(build(num_heads=2)),
        lambda patch: ask(build(), images(build(), seed=1)),
        lambda patch: ask(build(), images(build(), per_class=5)),
        lambda patch: ask(build(), images(build(), batch_size=4)),
        lambda patch: ask(build(), images=12),
        lambda patch: ask(build(), replacement_images=5),
        other_code,
    ],
    ids=["weights", "heads", "images", "number of images", "batch size", "streamed", "replaced", "code"],
)
def test_another_question_is_not_answered_from_the_cache(
    other: Callable[[pytest.MonkeyPatch], AnalysisReport], measured: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(build())
    other(monkeypatch)
    assert measured() == 2


@pytest.mark.filterwarnings("ignore:R² and the linear maps")
@pytest.mark.parametrize("content", ["", '{"model": "bui', "[1]", '{"model": "builtin", "images": 16}'])
def test_a_damaged_entry_is_made_anew(content: str, measured: Callable[[], int], tmp_path: Path) -> None:
    first = ask(build())
    (entry,) = tmp_path.iterdir()
    entry.write_text(content)
    assert ask(build()) == first == ask(build())
    assert measured() == 2


@pytest.mark.filterwarnings("ignore:R² and the linear maps")
def test_a_cache_that_cannot_be_written_costs_no_analysis(
    measured: Callable[[], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "file" / "analyses")
    with pytest.warns(UserWarning, match="made but not kept for other students: .*cannot be written"):
        assert ask(build()).images == 16


def test_the_folder_is_the_one_of_all_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSLIM_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere/analyses")
    monkeypatch.delenv("VITSLIM_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "vitslim" / "analyses"

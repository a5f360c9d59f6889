"""Hugging Face data sets; optional libraries that are not there."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.data.conftest import make_image
from vitslim.data import DataConfig, open_data
from vitslim.errors import DataError, MissingDependencyError


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "set"
    for split, count in (("train", 6), ("test", 3)):
        rows = {"image": [make_image(number) for number in range(count)], "label": [n % 3 for n in range(count)]}
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])}
        )
        (folder / "data").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / f"{split}-0.parquet")
    return folder


def test_a_hugging_face_data_set_gives_images_labels_and_names(hub_folder: Path, wanted: Any) -> None:
    loader = open_data(f"hfds/{hub_folder}", split="val", preprocessing=wanted, batch_size=3)
    assert loader.class_names == ("ant", "bee", "cat")
    assert loader.origin.endswith("(test)")
    assert next(iter(loader)).labels.tolist() == [0, 1, 2]
    unlabelled = DataConfig(source=f"hfds/{hub_folder}", label_key="species")
    batch = next(iter(open_data(unlabelled, split="train", preprocessing=wanted, batch_size=6)))
    assert batch.labels is None
    assert batch.images.shape == (6, 3, 16, 16)


def test_a_missing_hugging_face_split_is_refused(hub_folder: Path, wanted: Any) -> None:
    config = DataConfig(source=f"hfds/{hub_folder}", val_split="held_out")
    with pytest.raises(DataError, match="has no split 'held_out'; it has train, test"):
        open_data(config, split="val", preprocessing=wanted, batch_size=3)


def test_a_missing_hugging_face_data_set_is_refused(tmp_path: Path, wanted: Any) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="cannot be opened"):
        open_data(f"hfds/{tmp_path}/nowhere", split="val", preprocessing=wanted, batch_size=3)


def test_the_missing_library_is_named_with_its_extra(
    tmp_path: Path, wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, library in (("wds", "webdataset"), ("hfds", "datasets")):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(MissingDependencyError, match=rf"needs {library}: pip install 'vitslim\[data\]'"):
            open_data(f"{kind}/{tmp_path}", split="val", preprocessing=wanted, batch_size=2)

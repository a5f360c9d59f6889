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


def write_labels(folder: Path, labels: list[Any]) -> None:
    """Put images with these labels, whose names nobody gives, in place of those of the folder."""
    import datasets

    for path in (folder / "data").iterdir():
        path.unlink()
    rows = {"image": [make_image(number) for number in range(len(labels))], "label": labels}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(
        folder / "data" / "train-0.parquet"
    )


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


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["ant", "bee"], "must hold class numbers"),
        ([0.5, 1.0], "found 2 of type float32"),
        ([0, 10**18], "found 0 to 1000000000000000000"),
        ([-3, 1], "found -3 to 1"),
        ([None, 1], "must hold class numbers"),
    ],
)
def test_labels_that_number_no_class_are_refused(
    hub_folder: Path, wanted: Any, labels: list[Any], message: str
) -> None:
    write_labels(hub_folder, labels)
    with pytest.raises(DataError, match=message):
        open_data(f"hfds/{hub_folder}", split="train", preprocessing=wanted, batch_size=2)


def test_labels_that_are_not_given_away_are_none(hub_folder: Path, wanted: Any) -> None:
    write_labels(hub_folder, [-1, -1])
    loader = open_data(f"hfds/{hub_folder}", split="train", preprocessing=wanted, batch_size=2)
    assert not loader.labelled
    assert next(iter(loader)).labels is None

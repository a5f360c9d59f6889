"""Finding image folders, Hugging Face data sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from timm.data.dataset_factory import create_dataset
from timm.data.readers.img_extensions import get_img_extensions
from torch import Tensor

from vitslim.data.batch import MAX_CLASSES
from vitslim.data.folder import FolderReader, list_images, number_classes
from vitslim.data.fractal import Split
from vitslim.data.samples import Reader, as_reader
from vitslim.data.spec import SPLIT_NAMES, DataConfig
from vitslim.errors import DataError, MissingDependencyError

make_dataset: Any = create_dataset  # timm declares every kind of data set at once


@dataclass(frozen=True)
class Images:
    """Images with random access."""

    origin: str  # for messages
    reader: Reader
    labels: Int[Tensor, " n"] | None
    class_names: tuple[str, ...] | None
    num_classes: int | None


def find_folder(config: DataConfig, split: Split, takes_labels: bool) -> Images:
    """Open one split of a folder: sub-folders are classes; a flat folder of images has none.

    A folder without any folder named after a split is one set of images, whatever split is asked for.

    Raises:
        DataError: the folder, its split or its images are missing.
    """
    folder = _split_folder(Path(config.source), config, split)
    images = list_images(folder)
    if not images:
        raise DataError(f"{folder} holds no image; known endings are {', '.join(get_img_extensions())}")
    paths, classes = [path for path, _ in images], {name for _, name in images}
    if not takes_labels or classes == {""}:
        return Images(str(folder), FolderReader(folder, paths, [-1] * len(paths)), None, None, None)
    if "" in classes:
        raise DataError(
            f"{folder} holds images beside {len(classes) - 1} class folders; move them into one, "
            "or leave the labels out"
        )
    numbers = number_classes(classes, config.class_map)
    labels = [numbers[name] for _, name in images]
    reader = FolderReader(folder, paths, labels)
    return Images(str(folder), reader, torch.tensor(labels), tuple(numbers), len(numbers))


def find_hfds(config: DataConfig, name: str, split: Split) -> Images:
    """Open one split of a Hugging Face data set, from the hub, its cache or a local folder.

    Raises:
        DataError: the data set or the split cannot be opened.
        MissingDependencyError: the library `datasets` is not installed.
    """
    if find_spec("datasets") is None:
        raise MissingDependencyError(f"hfds/{name} needs datasets: pip install 'vitslim[data]'")
    import datasets

    try:
        present = datasets.get_dataset_split_names(name)
        chosen = _choose_split(f"hfds/{name}", present, config.split_names(split))
        reader: Any = make_dataset(
            f"hfds/{name}", split=chosen, input_key=config.image_key, target_key=config.label_key
        ).reader
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds, from network, files, formats
        raise DataError(f"hfds/{name} cannot be opened ({type(error).__name__}: {error})") from error
    features: dict[str, Any] = reader.dataset.features
    origin = f"hfds/{name} ({chosen})"
    if config.label_key not in features:
        return Images(origin, _Unlabelled(reader), None, None, None)
    labels = _labels_of(reader.dataset[config.label_key], f"{origin}: column {config.label_key!r}")
    if labels is None:
        return Images(origin, _Unlabelled(reader), None, None, None)
    names = tuple(map(str, reader.class_to_idx)) or None
    classes = len(names) if names else int(labels.max()) + 1
    return Images(origin, as_reader(reader), labels, names, classes)


def _labels_of(column: Any, origin: str) -> Int[Tensor, " n"] | None:
    """Labels as a tensor; None where all are -1, as data sets mark those that they do not give away.

    Raises:
        DataError: something else than numbers of classes.
    """
    wanted = f"{origin} must hold class numbers, from 0 to at most {MAX_CLASSES - 1}; name another with label_key"
    try:
        labels = torch.tensor(list(column))
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # text, lists, nothing at all
        raise DataError(f"{wanted} ({error})") from None
    if labels.ndim != 1 or labels.is_floating_point() or not len(labels):
        raise DataError(f"{wanted} (found {len(labels)} of type {str(labels.dtype).removeprefix('torch.')})")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest == highest == -1:
        return None
    if lowest < 0 or highest >= MAX_CLASSES:
        raise DataError(f"{wanted} (found {lowest} to {highest})")
    return labels.long()


class _Unlabelled:
    """A Hugging Face split without a column of classes."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._reader.label_key = reader.image_key  # timm reads a label in any case; this column is there

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self._reader[index][0], -1

    def filename(self, index: int) -> str:
        return str(self._reader.filename(index))


def _split_folder(root: Path, config: DataConfig, split: Split) -> Path:
    if not root.exists():
        raise DataError(
            f"{root} does not exist; give a folder of images, hfds/NAME, wds/FOLDER, fractals (built in), "
            "or sklearn-digit-pairs"
        )
    if not root.is_dir():
        raise DataError(f"{root} is a file; give the folder that holds the images")
    wanted = config.split_names(split)
    for name in wanted:
        if (root / name).is_dir():
            return root / name
    others = [name for names in SPLIT_NAMES.values() for name in names if (root / name).is_dir()]
    if others or config.is_split_named(split):
        raise DataError(
            f"{root} has no split {split!r}: looked for {', '.join(f'{name}/' for name in wanted)}, "
            f"found {', '.join(f'{name}/' for name in others) or 'no split'}; name it with {split}_split"
        )
    return root


def _choose_split(origin: str, present: Sequence[str], wanted: Sequence[str]) -> str:
    for name in wanted:
        if name in present:
            return name
    raise DataError(f"{origin} has no split {' or '.join(map(repr, wanted))}; it has {', '.join(present)}")

"""How a data set is named."""

import dataclasses
import difflib
from typing import Any, Literal

from pydantic import Field

from vitslim.data.fractal import FractalConfig
from vitslim.errors import ConfigError
from vitslim.shapes import ChannelDeviations, ChannelMeans, Config, CropShare, Interpolation

# Other names under which a split is looked for, in this order, when none is given.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "eval", "evaluation", "test"),
}


class DataConfig(Config):
    """Where the images come from, and how they are prepared where the model's own word on it is not to be taken."""

    source: str = "fractals"  # a folder, hfds/NAME, wds/FOLDER, fractals, fractals:classes=20,..., sklearn-digit-pairs
    train_split: str | None = None  # name of the split to train on; None: "train" or a synonym
    val_split: str | None = None  # name of the held-out split; None: "val" or a synonym
    class_map: str | None = None  # folders: text file with one class name per line, in label order
    image_key: str = "image"  # Hugging Face data sets: column of the images
    label_key: str = "label"  # Hugging Face data sets: column of the classes
    labels: Literal["auto", "ignore"] = "auto"  # ignore: images of other classes than the model's
    num_classes: int | None = Field(default=None, ge=1)  # shards: number of classes, which the files do not tell
    batch_size: int = Field(default=64, ge=1)  # images
    workers: int = Field(default=0, ge=0)  # processes that decode image files; the built-in images need none
    max_corrupt_share: float = Field(
        default=0.01, ge=0, le=1
    )  # share of unreadable images that is skipped and reported
    # What the model was trained with; none: what the model says. Stated here, it is put on the model and saved with it.
    mean: ChannelMeans | None = None  # per channel, of pixels in 0..1; one number for all
    std: ChannelDeviations | None = None  # likewise
    crop_pct: CropShare | None = None  # share of a side that the centre crop keeps, above 0 to 1
    interpolation: Interpolation | None = None  # nearest, bilinear, bicubic, box, hamming, lanczos

    @property
    def stated(self) -> dict[str, Any]:
        """What is stated of the preparation, as ``vitslim.models.set_preprocessing_`` takes it."""
        return self.model_dump(include={"mean", "std", "crop_pct", "interpolation"}, exclude_none=True)

    def split_names(self, split: str) -> tuple[str, ...]:
        """The names under which a split is looked for."""
        named = self.train_split if split == "train" else self.val_split
        return SPLIT_NAMES[split] if named is None else (named,)

    def is_split_named(self, split: str) -> bool:
        """Whether the user said what the split is called."""
        return (self.train_split if split == "train" else self.val_split) is not None


DRAWN = "drawn-"
"""Before ``fractals``: images that are drawn while a model trains, on its device, and stored nowhere."""


def parse_fractals(source: str) -> FractalConfig:
    """Read ``fractals:classes=20,train_per_class=50``.

    Raises:
        ConfigError: an option that the fractals do not have, or a value that is no number.
    """
    _, _, words = source.partition(":")
    kinds = {field.name: field.type for field in dataclasses.fields(FractalConfig)}
    options: dict[str, float] = {}
    for word in filter(None, words.split(",")):
        name, _, value = (part.strip() for part in word.partition("="))
        if name not in kinds:
            close = difflib.get_close_matches(name, kinds, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{source!r}: fractals have no option {name!r}{hint} (they have {', '.join(kinds)})")
        try:
            options[name] = int(value) if kinds[name] in (int, "int") else float(value)
        except ValueError:
            raise ConfigError(f"{source!r}: {name}={value!r} is not a number") from None
    return FractalConfig(**options)  # pyright: ignore[reportArgumentType]  numbers of the declared kinds

"""How a model wants its images, with what of it nobody stated."""

from typing import Annotated, Any

import timm.data
from pydantic import Field, ValidationError, model_validator
from torch import nn

from vitslim.errors import ConfigError
from vitslim.shapes import ChannelDeviations, ChannelMeans, Config, CropShare, Interpolation

STATED_WITH_WEIGHTS = ("mean", "std", "interpolation", "crop_pct")
"""What must be as it was in the model's training, and no tensor says."""

_ATTRIBUTE = "_vitslim_assumed"  # a setting of no layer, so that it is not compared when a model is described
_Side = Annotated[int, Field(ge=1, le=16384)]


class Preprocessing(Config):
    """How an image becomes the input: size in pixels (height, width), per-channel mean and deviation of 0..1."""

    image_size: tuple[_Side, _Side]
    mean: ChannelMeans
    std: ChannelDeviations
    interpolation: Interpolation
    crop_pct: CropShare
    channels: int = Field(ge=1, le=1024)
    assumed: tuple[str, ...] = ()  # of mean, std, interpolation, crop_pct, those that nobody stated

    @model_validator(mode="after")
    def _is_whole(self) -> "Preprocessing":
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} numbers, the images {self.channels} channels")
        if odd := sorted(set(self.assumed) - {*STATED_WITH_WEIGHTS}):
            raise ValueError(f"assumed names {odd[0]!r}; wanted some of {', '.join(STATED_WITH_WEIGHTS)}")
        return self


def preprocessing(model: nn.Module) -> Preprocessing:
    """What the model's pretrained configuration says of its input, at the image size that it has now.

    A model that was built by its constructor has no such configuration, and a local file of weights says nothing of
    images: the values are timm's default or its tag's then, and ``assumed`` names them. ``set_preprocessing_`` states
    them.

    Raises:
        ConfigError: the configuration makes no sense, as a deviation of 0.
    """
    stated: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    config: dict[str, Any] = timm.data.resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    channels = int(getattr(model, "in_chans", channels))
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or (height, width)
    assumed = {*getattr(model, _ATTRIBUTE, ()), *(name for name in STATED_WITH_WEIGHTS if not stated.get(name))}
    for name in ("mean", "std"):
        if len(config[name]) != channels:
            # Figures of RGB images, for a model of another number of channels.
            config[name] = (sum(config[name]) / len(config[name]),) * channels
            assumed.add(name)
    return _checked(
        image_size=tuple(size),
        channels=channels,
        **{name: config[name] for name in STATED_WITH_WEIGHTS},
        assumed=tuple(name for name in STATED_WITH_WEIGHTS if name in assumed),
    )


def set_preprocessing_(
    model: nn.Module,
    *,
    mean: float | tuple[float, ...] | None = None,
    std: float | tuple[float, ...] | None = None,
    interpolation: str | None = None,
    crop_pct: float | None = None,
) -> nn.Module:
    """State on the model itself how its images are prepared; it is saved, exported and measured with it.

    Args:
        model: dense or converted; given back.
        mean: of each channel, of pixels in 0..1, or one number for all.
        std: likewise.
        interpolation: nearest, bilinear, bicubic, box, hamming or lanczos.
        crop_pct: share of a side that the centre crop keeps, above 0 to 1.

    Raises:
        ConfigError: values out of range, or another number of them than the model has channels.
    """
    known = preprocessing(model)
    asked = {"mean": mean, "std": std, "interpolation": interpolation, "crop_pct": crop_pct}
    given = {name: value for name, value in asked.items() if value is not None}
    if not given:
        return model
    for name in {"mean", "std"} & set(given):
        values: Any = given[name]
        alone = (values,) if isinstance(values, int | float) else tuple(values)
        given[name] = alone * known.channels if len(alone) == 1 else alone
    assumed = tuple(name for name in known.assumed if name not in given)
    return restore_preprocessing_(model, _checked(**{**known.model_dump(), **given, "assumed": assumed}))


def restore_preprocessing_(model: nn.Module, known: Preprocessing) -> nn.Module:
    """Make ``preprocessing(model)`` give ``known``, what was assumed included."""
    entries: dict[str, Any] = {
        "input_size": (known.channels, *known.image_size),
        **{name: getattr(known, name) for name in STATED_WITH_WEIGHTS},
    }
    for config in ("pretrained_cfg", "default_cfg"):
        setattr(model, config, {**(getattr(model, config, None) or {}), **entries})
    setattr(model, _ATTRIBUTE, known.assumed)
    return model


def describe_assumed(known: Preprocessing) -> str:
    """One sentence: what was assumed of the images, and how to state it."""
    values = {name: setting(getattr(known, name)) for name in known.assumed}
    return (
        f"nobody stated how this model's images were prepared in its training; assumed "
        f"{', '.join(f'{name} {value}' for name, value in values.items())}. A wrong guess costs accuracy; state it: "
        f"{' '.join(f'--set data.{name}={value}' for name, value in values.items())} "
        f"(DataConfig({', '.join(f'{name}=...' for name in values)}), vitslim.models.set_preprocessing_)"
    )


def setting(value: Any) -> str:
    """A value as it is typed after ``--set data.mean=``."""
    if not isinstance(value, tuple):
        return f"{value:g}" if isinstance(value, float) else str(value)
    numbers = [f"{one:.4g}" for one in value]
    return numbers[0] if len(set(numbers)) == 1 else f"[{','.join(numbers)}]"


def assume_preprocessing_(model: nn.Module) -> nn.Module:
    """Note that nobody stated how the images are prepared, whatever the model's configuration says."""
    setattr(model, _ATTRIBUTE, STATED_WITH_WEIGHTS)
    return model


def _checked(**values: Any) -> Preprocessing:
    try:
        return Preprocessing(**values)
    except ValidationError as error:
        errors = (
            f"{'.'.join(map(str, one['loc'])) or 'input'}={one['input']!r}: {one['msg']}" for one in error.errors()
        )
        raise ConfigError(f"images cannot be prepared like this: {'; '.join(errors)}") from None

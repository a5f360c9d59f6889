"""A recipe: the whole road from a dense model to a report, as one YAML file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import Field, ValidationError

from vitslim.bench import BenchConfig
from vitslim.data import DataConfig
from vitslim.data.augment import AugmentConfig
from vitslim.errors import ConfigError
from vitslim.methods import method_named, read_options
from vitslim.shapes import Config
from vitslim.train import DistillConfig, WarmStartConfig


class ModelSection(Config):
    """The dense model to start from."""

    name: str = "builtin"  # timm name, alias, hf-hub: id, or a folder that vitslim wrote
    pretrained: bool = True
    weights: str | None = None  # local file of weights
    img_size: int | tuple[int, int] | None = None  # pixels
    num_classes: int | None = None
    options: dict[str, Any] = Field(default_factory=dict)  # further arguments of the timm model


class DataSection(DataConfig):
    """The images, and how the training ones are changed."""

    augment: AugmentConfig = AugmentConfig()
    train_limit: int | None = Field(None, gt=0)  # use so many training images, spread over the classes
    val_limit: int | None = Field(None, gt=0)


class AnalyzeSection(Config):
    """The analysis of the dense model."""

    images: int = Field(1024, ge=4)  # images of the streaming pass
    replacement_images: int = Field(256, ge=1)  # images on which layers are replaced one by one


class ExportSection(Config):
    """The ONNX files, and how they are compared with the torch model."""

    precisions: tuple[Literal["fp32", "fp16"], ...] = ("fp32",)
    optimize: bool = True  # onnxslim
    batches: tuple[int, ...] = (1, 3)  # batch sizes of the comparison
    images: int = Field(32, ge=1)  # images of the comparison


class Recipe(Config):
    """One road; a section that is ``null`` is left out."""

    model: ModelSection = ModelSection()
    convert: tuple[dict[str, Any], ...] = ()  # each {method: name, option: value, ...}
    data: DataSection | None = None
    analyze: AnalyzeSection | None = None
    warm_start: WarmStartConfig | None = None
    distill: DistillConfig | None = None
    control: bool = False  # also train the dense model with the same budget
    evaluate: bool = True
    export: ExportSection | None = None
    bench: BenchConfig | None = None
    report: bool = True
    device: str = "cpu"
    seed: int = Field(0, ge=0)


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key=value`` overrides.

    Raises:
        ConfigError: unreadable YAML, unknown keys, or values out of range; all faults in one message.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read: {error.strerror}") from None
    try:
        document: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {path} is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"recipe {path} holds {type(document).__name__}; wanted a mapping of sections")
    return read_recipe(cast("dict[str, Any]", document), overrides, origin=str(path))


def read_recipe(document: Mapping[str, Any], overrides: Iterable[str] = (), *, origin: str = "recipe") -> Recipe:
    """A recipe from plain data; see ``load_recipe``."""
    merged = with_overrides(document, overrides)
    try:
        recipe = Recipe(**merged)
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "; ".join(_fault(fault) for fault in error.errors())) from None
    _check(recipe, origin)
    return recipe


def with_overrides(document: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Plain data with ``a.b=value`` assignments made; values are read as YAML.

    Raises:
        ConfigError: an assignment without ``=``, or a key inside something that is not a section.
    """
    merged = cast("dict[str, Any]", yaml.safe_load(yaml.safe_dump(dict(document))))
    for assignment in overrides:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {assignment!r}: wanted key=value, for example distill.epochs=3")
        place: Any = merged
        *sections, last = key.split(".")
        for section in sections:
            place = _section(place, section, key)
        parsed = yaml.safe_load(value) if value else None
        place[int(last) if isinstance(place, list) and last.isdigit() else last] = parsed
    return merged


def write_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every key written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _section(place: Any, name: str, key: str) -> Any:
    if isinstance(place, list):
        if not name.isdigit() or int(name) >= len(cast("list[Any]", place)):
            raise ConfigError(f"--set {key}: {name!r} is not an entry of a list of {len(cast('list[Any]', place))}")
        return cast("list[Any]", place)[int(name)]
    if place.get(name) is None:
        place[name] = {}
    if not isinstance(place[name], dict | list):
        raise ConfigError(f"--set {key}: {name!r} is a value, not a section")
    return place[name]


def _check(recipe: Recipe, origin: str) -> None:
    faults: list[str] = []
    for index, entry in enumerate(recipe.convert):
        options = {name: value for name, value in entry.items() if name != "method"}
        try:
            read_options(method_named(str(entry.get("method"))), options)
        except ConfigError as error:
            faults.append(f"convert.{index}: {error}")
    needing = [name for name in ("analyze", "warm_start", "distill") if getattr(recipe, name) is not None]
    if needing and recipe.data is None:
        faults.append(f"{', '.join(needing)} need images, but data is missing")
    if recipe.control and recipe.distill is None:
        faults.append("control asks for the dense model's own training, but distill gives no budget")
    if faults:
        raise ConfigError(f"{origin}: " + "; ".join(faults))


def _fault(fault: Any) -> str:
    place = [str(part) for part in fault["loc"]]
    key = ".".join(place)
    if fault["type"] == "extra_forbidden":
        known = _fields_at(place[:-1])
        close = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    return f"{key}={fault['input']!r}: {fault['msg']}"


def _fields_at(sections: list[str]) -> list[str]:
    kinds: dict[str, type[Config]] = {
        "model": ModelSection,
        "data": DataSection,
        "analyze": AnalyzeSection,
        "warm_start": WarmStartConfig,
        "distill": DistillConfig,
        "export": ExportSection,
        "bench": BenchConfig,
        "augment": AugmentConfig,
    }
    kind = kinds.get(sections[-1]) if sections else Recipe
    return list(kind.model_fields) if kind else []

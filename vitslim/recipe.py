"""A recipe: all stages from a dense model to a report, as one YAML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import Field, PositiveInt, ValidationError, field_validator

from vitslim.bench import BenchConfig
from vitslim.data import DataConfig
from vitslim.data.augment import AugmentConfig
from vitslim.errors import ConfigError
from vitslim.methods import read_method
from vitslim.plain_yaml import LARGEST_NUMBER, read_yaml, read_yaml_file
from vitslim.planner import Budget, RuntimeConfig
from vitslim.planner.config import PlannerConfig
from vitslim.shapes import Config
from vitslim.train import DistillConfig, WarmStartConfig
from vitslim.validation import describe_errors, shown

_MAX_SECTIONS = 8  # one within the other, in the key of an assignment


class ModelSection(Config):
    """The dense model to start from."""

    name: str = "builtin"  # timm name, alias, hf-hub: id, or a folder that vitslim wrote
    pretrained: bool = True
    weights: str | None = None  # local file of weights
    img_size: int | tuple[int, int] | None = None  # pixels
    num_classes: int | None = Field(default=None, ge=0)
    options: dict[str, Any] = Field(default_factory=dict)  # further arguments of the timm model (--model-arg)

    @field_validator("options")
    @classmethod
    def _has_nothing_with_a_key_of_its_own(cls, options: dict[str, Any]) -> dict[str, Any]:
        if known := sorted(set(options) & {"name", "pretrained", "weights", "img_size", "num_classes"}):
            raise ValueError(f"{', '.join(known)} is no option but a key beside it, as in model.{known[0]}")
        return options


class DataSection(DataConfig):
    """The images, and how the training ones are changed."""

    augment: AugmentConfig = AugmentConfig()
    train_limit: int | None = Field(None, gt=0)  # use so many training images, spread over the classes
    val_limit: int | None = Field(None, gt=0)
    reserved: int = Field(0, ge=0)  # training images, spread over the classes, that nothing is trained on


class AnalyzeSection(Config):
    """The analysis of the dense model."""

    images: int = Field(1024, ge=4)  # images of the streaming pass
    replacement_images: int = Field(256, ge=1)  # images on which layers are replaced one by one
    cache: bool = True  # take over what an earlier run found in this model on these images


class ExportSection(Config):
    """The ONNX files, and how they are compared with the torch model."""

    precisions: tuple[Literal["fp32", "fp16", "bf16"], ...] = ("fp32",)
    opset: PositiveInt | None = None  # none: the one that vitslim.targets.onnx.export.OPSETS gives each precision
    optimize: bool = True  # onnxslim
    inline: bool = False  # no local functions, for runtimes that know none
    dynamic_image_size: bool = False  # free height and width: dense, SkipAt, SReT without slices
    input_format: Literal["normalized", "uint8-nchw", "uint8-nhwc"] = "normalized"  # bytes: mean and std in the file
    batches: tuple[PositiveInt, ...] = (1, 3)  # batch sizes of the comparison
    images: int = Field(32, ge=1)  # images of the comparison


class PlannerSection(Config):
    """The search for the plan, in place of ``plan`` and ``convert``."""

    budgets: tuple[Budget, ...]  # the student gets the plan of the first
    runtime: RuntimeConfig = RuntimeConfig()  # in what it has to be fast
    config: PlannerConfig = PlannerConfig()  # how much is tried

    @field_validator("budgets", mode="before")
    @classmethod
    def _one_budget_needs_no_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value

    @field_validator("budgets")
    @classmethod
    def _go_together(cls, budgets: tuple[Budget, ...]) -> tuple[Budget, ...]:
        if not budgets:
            raise ValueError("wanted one budget or more, such as {speedup: 1.5}")
        if twice := [one.describe() for one in dict.fromkeys(budgets) if budgets.count(one) > 1]:
            raise ValueError(f"{', '.join(twice)} given more than once; each budget gets one plan")
        if len(budgets) > 1 and (drop := next((one for one in budgets if one.max_drop is not None), None)):
            raise ValueError(f"{drop.describe()} tries several speedups by itself; give it alone")
        return budgets


class Recipe(Config):
    """One run; a section that is ``null`` is left out."""

    model: ModelSection = ModelSection()
    teacher: str | None = None  # dense model to learn from, a name or a folder; none: `model` itself
    convert: tuple[dict[str, Any], ...] = ()  # each {method: name, option: value, ...}
    plan: str | None = None  # a plan.json to build first, or in place of methods
    planner: PlannerSection | None = None  # finds the plan within a budget, in place of both
    data: DataSection | None = None
    analyze: AnalyzeSection | None = None
    warm_start: WarmStartConfig | None = None
    distill: DistillConfig | None = None
    finetune_dense: bool = False  # also train the dense model with the same budget
    evaluate: bool = True
    export: ExportSection | None = None
    bench: BenchConfig | None = None
    report: bool = True
    device: str = "cpu"
    seed: int = Field(0, ge=0, le=LARGEST_NUMBER)

    @field_validator("convert", mode="before")
    @classmethod
    def _one_method_needs_no_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key=value`` overrides.

    Raises:
        ConfigError: unreadable YAML, unknown keys, or values out of range; all errors in one message.
    """
    return read_recipe(read_settings_file(path, "sections such as model and convert"), overrides, origin=str(path))


def read_settings_file(path: str | Path, wanted: str) -> dict[str, Any]:
    """The mapping in a YAML file; ``wanted`` says in messages what it should hold.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds something else.
    """
    document = read_yaml_file(path)
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds {_kind(document)}; wanted {wanted}")
    return cast("dict[str, Any]", document)


def read_recipe(document: Mapping[str, Any], overrides: Iterable[str] = (), *, origin: str = "") -> Recipe:
    """A recipe from plain data; ``origin`` names it in messages. See ``load_recipe``."""
    merged = with_overrides(document, overrides)
    where = f"{origin}: " if origin else ""
    try:
        recipe = Recipe.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(where + "; ".join(describe_errors(error, Recipe))) from None
    errors = _contradictions(recipe)
    if errors:
        raise ConfigError(where + "; ".join(errors))
    return recipe


def with_overrides(document: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Plain data with ``a.b=value`` assignments made; values are read as YAML.

    Raises:
        ConfigError: an assignment without ``=``, or a key inside something that is not a section.
    """
    merged = cast("dict[str, Any]", _plain(document))
    for assignment in overrides:
        key, equals, value = assignment.partition("=")
        *sections, last = key.split(".")
        if not equals or not all(sections) or not last or len(sections) > _MAX_SECTIONS:
            raise ConfigError(f"--set {shown(assignment)}: wanted key=value, for example distill.epochs=3")
        place: Any = merged
        for section in sections:
            place = _section(place, section, key)
        place[_index(place, last, key)] = read_yaml(value, f"--set {key}")
    return merged


def write_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every key written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _plain(value: Any) -> Any:
    """A copy of nested mappings and sequences that can be assigned to."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("list[Any]", value)]
    return value


def _section(place: Any, name: str, key: str) -> Any:
    index = _index(place, name, key)
    if isinstance(place, dict) and cast("dict[str, Any]", place).get(name) is None:
        place[name] = {}
    if not isinstance(place[index], dict | list):
        raise ConfigError(f"--set {key}: {name!r} is a value, not a section")
    return place[index]


def _index(place: Any, name: str, key: str) -> Any:
    """The key or number under which an assignment finds its place."""
    if not isinstance(place, list):
        return name
    length = len(cast("list[Any]", place))
    if name not in map(str, range(length)):
        raise ConfigError(f"--set {key}: {name!r} is not an entry of a list of {length}; they count from 0")
    return int(name)


def _kind(document: Any) -> str:
    return "nothing" if document is None else f"a {type(document).__name__}"


def _contradictions(recipe: Recipe) -> list[str]:
    errors: list[str] = []
    for index, entry in enumerate(recipe.convert):
        where = f"convert.{index}: " if len(recipe.convert) > 1 else ""
        options = {name: value for name, value in entry.items() if name != "method"}
        if "method" not in entry:
            errors.append(f"convert.{index} names no method; wanted {{method: NAME, option: value, ...}}")
            continue
        try:
            read_method(str(entry["method"]), options)
        except ConfigError as error:
            errors.append(f"{where}{error}")
    needing = [name for name in ("planner", "analyze", "warm_start", "distill") if getattr(recipe, name) is not None]
    if needing and recipe.data is None:
        verb = "needs" if len(needing) == 1 else "need"
        errors.append(f"{', '.join(needing)} {verb} images, but data is missing")
    if recipe.distill is not None and recipe.distill.ce_weight and recipe.data and recipe.data.labels == "ignore":
        errors.append(
            f"distill.ce_weight={recipe.distill.ce_weight:g} trains on labels, but data.labels says to ignore them"
        )
    if recipe.finetune_dense and recipe.distill is None:
        errors.append("finetune_dense trains the dense model too, but distill gives no budget")
    return errors + _planner_contradictions(recipe)


def _planner_contradictions(recipe: Recipe) -> list[str]:
    if recipe.planner is None:
        return []
    errors: list[str] = []
    budgets = ", ".join(budget.describe() for budget in recipe.planner.budgets)
    given = [name for name in ("plan", "convert") if getattr(recipe, name)]
    if given:
        verb = "names" if len(given) == 1 else "name"
        errors.append(
            f"planner finds the plan for a budget ({budgets}), but {' and '.join(given)} {verb} one; leave out either"
        )
    if recipe.distill is not None and recipe.distill.early_tokens:
        errors.append(
            f"distill.early_tokens={recipe.distill.early_tokens:g} needs a plan that chooses tokens, which planner may "
            "not find; leave it at 0, or train with the plan that is found"
        )
    return errors

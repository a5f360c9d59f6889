"""Saving a model to a folder that says how it was made, and loading it back by doing that again."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field, InstanceOf, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vitslim.arguments import checked
from vitslim.errors import CheckpointError, ConfigError, VitslimError
from vitslim.files import atomic_paths, check_output_folder, json_text, parse_json, read_json, save_tensors
from vitslim.models import BaseModel, Preprocessing, build_base, describe, preprocessing
from vitslim.models.base import refresh
from vitslim.models.create import BUILD_ERRORS, MOST_BLOCKS
from vitslim.models.image_input import restore_preprocessing_
from vitslim.plans import plan_json, read_plan
from vitslim.shapes import AnyPath, Config
from vitslim.trunk import Conversion, is_converted, plan_of, trunk_of
from vitslim.trunk import build as build_plan

FORMAT = "vitslim"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_FLOATS = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}
# As safetensors names them. Any of the first may stand for another: parts of a model may be of another precision.
_FLOAT_TYPES = ("F32", "F16", "BF16")
_OTHER_TYPES = {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}


class SavedConversion(Config):
    """One conversion as it stands in config.json."""

    method: str
    options: dict[str, Any] = Field(default_factory=dict)


class SavedModel(Config):
    """config.json: how to build the model whose tensors lie in model.safetensors."""

    format: str
    format_version: int
    base: BaseModel
    conversions: list[SavedConversion]
    """The history: what was asked of which method."""
    plan: dict[str, Any] | None = None
    """What the conversions made of the model (``vitslim.plans``); none for a dense one."""
    dtype: str
    input: Preprocessing
    parameters: int | None = None
    class_names: list[str] | None = None
    versions: dict[str, str]


@checked
def save(
    model: nn.Module,
    out: AnyPath,
    *,
    overwrite: bool = False,
    base: InstanceOf[BaseModel] | None = None,
    class_names: list[str] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Path:
    """Write config.json, model.safetensors and a model card into a folder; old ones stay until all three are whole.

    The same model gives the same bytes.

    The folder is taken wherever a model's name is, so this is also the way in for a dense timm ViT of one's own,
    however it was built: ``vitslim.save(model, DIR)``. State first how its images were prepared in its training
    (``vitslim.models.set_preprocessing_``).

    Args:
        model: a converted model, or a dense timm model of a supported family.
        out: the folder; made when it is not there.
        overwrite: replace the model in a folder that is not empty; other files in it stay.
        base: how the dense model is built, where the model itself cannot tell.
        class_names: labels of the outputs, in order.
        metrics: accuracy figures for the model card, fractions of 1.

    Raises:
        ConfigError: the folder is not empty, the model cannot be described, or has more or fewer classes than names.
        CheckpointError: a file cannot be written; what lay there is unchanged.
    """
    folder = Path(out)
    check_output_folder(folder, overwrite=overwrite)
    config = describe_saved(model, base=base, class_names=class_names)
    document = json.loads(json.dumps(config.model_dump(mode="json"), sort_keys=True))
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    if any(value.is_meta for value in tensors.values()):
        raise ConfigError("a model on the meta device has no weights to save; open it on a real device")
    text = json_text(document, folder / CONFIG_FILE)
    places = [folder / name for name in (WEIGHTS_FILE, CONFIG_FILE, "README.md")]
    with atomic_paths(*places) as (weights, description, card):
        # The same description travels inside the file, so that the file alone can be loaded, and is known to belong
        # to the description beside it.
        save_tensors(weights, tensors, {"format": "pt", FORMAT: json.dumps(document)})
        description.write_text(text, "utf-8")
        card.write_text(model_card(config, metrics), "utf-8")
    return folder


def describe_saved(
    model: nn.Module, *, base: BaseModel | None = None, class_names: list[str] | None = None
) -> SavedModel:
    """What config.json says of a model.

    Raises:
        ConfigError: the model cannot be rebuilt from a name and options.
    """
    known = base or (trunk_of(model).base if is_converted(model) else describe(model))
    if known is None:
        raise ConfigError(
            f"this {type(model).__name__} cannot be rebuilt from a name: it was built by hand with unusual settings, "
            "or cut with prune_intermediate_layers; pass base=BaseModel(architecture=..., options={...})"
        )
    if class_names is not None and len(class_names) != getattr(model, "num_classes", None):
        raise ConfigError(
            f"{len(class_names)} class names were given for a model of {getattr(model, 'num_classes', 'no')} classes"
        )
    history = trunk_of(model).history if is_converted(model) else ()
    return SavedModel(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        base=refresh(known, model),
        conversions=[SavedConversion(method=entry.method, options=dict(entry.options)) for entry in history],
        plan=plan_json(plan_of(model)) if is_converted(model) else None,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        input=preprocessing(model),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        class_names=class_names,
        versions=versions(),
    )


@checked
def load(path: AnyPath) -> nn.Module:
    """Load a saved model, in eval mode, by building the dense one, then what its plan says, and filling it.

    Args:
        path: a folder that ``save`` wrote, its model.safetensors alone, or ``hf-hub:owner/name``.

    Nothing but these files is read, and nothing is built before the weights are known to fit it.

    Raises:
        CheckpointError: missing, corrupt or truncated files, an unknown format, tensors that do not fit, or a
            description that is not the one the weights were saved with.
    """
    config, weights = _locate(path)
    if weights != Path(path):
        _require_one_save(weights)
    _require_fit(config, weights)
    model = build(config)
    _fill(model, weights)
    return model.eval()


def load_config(path: str | Path) -> SavedModel:
    """The description alone, without the weights."""
    return _locate(path)[0]


def build(config: SavedModel) -> nn.Module:
    """The model that a description names, with random weights.

    Raises:
        CheckpointError: the description does not work with this version of vitslim or timm.
    """
    depth = config.base.options.get("depth", 1)
    if not isinstance(depth, int) or depth > MOST_BLOCKS:
        raise CheckpointError(f"the saved description cannot be rebuilt: depth={depth!r}; wanted 1 to {MOST_BLOCKS}")
    try:
        model = build_base(config.base)
        if config.plan is not None:
            history = tuple(Conversion(entry.method, entry.options) for entry in config.conversions)
            plan = read_plan(config.plan, f"the plan in {CONFIG_FILE}")
            if plan.image_size != plan_of(model).image_size:
                raise CheckpointError(
                    f"the saved description cannot be rebuilt: its plan is for images of {plan.image_size}, its base "
                    f"model for {plan_of(model).image_size}; save the model again"
                )
            model = build_plan(plan, model, history=history, base=config.base, weights_follow=True)
    except CheckpointError:
        raise
    except (VitslimError, *BUILD_ERRORS) as error:
        raise CheckpointError(
            f"the saved description cannot be rebuilt: {error} (saved with vitslim "
            f"{config.versions.get('vitslim', '?')}, timm {config.versions.get('timm', '?')})"
        ) from error
    classes = cast(Any, model).num_classes
    if config.class_names is not None and len(config.class_names) != classes:
        raise CheckpointError(
            f"the saved description has {len(config.class_names)} class names for {classes} classes; save it again"
        )
    # timm's name alone does not tell it of a model that was built by hand.
    restore_preprocessing_(model, config.input)
    return model.to(_FLOATS[config.dtype])


def is_saved_model(path: str | Path) -> bool:
    """Whether a path looks like something that ``save`` wrote."""
    place = Path(path)
    return (place / CONFIG_FILE).is_file() or (place.is_file() and place.suffix == ".safetensors")


def versions() -> dict[str, str]:
    """Installed versions of what a saved model depends on."""
    found: dict[str, str] = {}
    for name in ("vitslim", "torch", "timm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def model_card(config: SavedModel, metrics: Mapping[str, Any] | None) -> str:
    """README.md of a saved model: what it is, how it was made, how to use it, what was measured."""
    name = config.base.architecture.removeprefix(":")  # a class that was built by hand
    made = " → ".join(["dense", *(entry.method for entry in config.conversions)])
    lines = [
        f"# {name}, {made}",
        "",
        f"Made with vitslim {config.versions['vitslim']} (torch {config.versions['torch']}, "
        f"timm {config.versions['timm']}).",
        "",
        "| | |",
        "|---|---|",
        f"| base model | `{name}` |",
        f"| image size | {config.input.image_size[0]} × {config.input.image_size[1]} px |",
        f"| parameters | {(config.parameters or 0) / 1e6:.2f} M |",
    ]
    for entry in config.conversions:
        options = ", ".join(f"{name}={value}" for name, value in entry.options.items() if value is not None)
        lines.append(f"| {entry.method} | {options or 'defaults'} |")
    lines += ["", "```python", "import vitslim", "", 'model = vitslim.load("this folder")', "```", ""]
    lines += _metric_lines(metrics)
    return "\n".join(lines)


def _metric_lines(metrics: Mapping[str, Any] | None) -> list[str]:
    if not metrics:
        return ["No accuracy was measured when this model was saved.", ""]
    lines = ["| model | top-1 | top-5 | agreement with the teacher | images |", "|---|---|---|---|---|"]
    for name, row in metrics.items():
        if isinstance(row, Mapping) and "top1" in row:
            cells = [_percent(cast(Any, row).get(key)) for key in ("top1", "top5", "agreement")]
            lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} | {cast(Any, row).get('images', '-')} |")
    return [*lines, ""]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _locate(path: str | Path) -> tuple[SavedModel, Path]:
    place = _downloaded(str(path)) if str(path).startswith(("hf-hub:", "hf_hub:")) else Path(path)
    if place.is_dir():
        if not (place / CONFIG_FILE).is_file():
            raise CheckpointError(f"{place} holds no {CONFIG_FILE}; wanted a folder that vitslim.save wrote")
        return _read_config(read_json(place / CONFIG_FILE), place / CONFIG_FILE), place / WEIGHTS_FILE
    if not place.is_file():
        raise CheckpointError(f"{place} does not exist; wanted a folder or a {WEIGHTS_FILE} that vitslim.save wrote")
    document = _described(place)
    if document is None:
        raise CheckpointError(
            f"{place} carries no vitslim description; load its folder, or open it as weights (--weights FILE, weights=)"
        )
    return _read_config(document, place), place


def _described(weights: Path) -> Any:
    """The description inside a weights file; ``None`` where others wrote it."""
    with _opened(weights) as tensors:
        text = (tensors.metadata() or {}).get(FORMAT)
    try:
        return None if text is None else parse_json(text)
    except ValueError as error:
        raise CheckpointError(
            f"{weights}: the description inside is not JSON ({error}); save the model again"
        ) from None


def _require_one_save(weights: Path) -> None:
    """Refuse weights beside a description that they were not saved with: a save was cut off, or one was exchanged."""
    description = weights.with_name(CONFIG_FILE)
    inside, beside = _described(weights), read_json(description)
    if inside is None or inside == beside:
        return
    known = cast("dict[str, Any]", inside if isinstance(inside, dict) else {})
    names = sorted(name for name in {*known, *beside} if known.get(name) != beside.get(name))
    newer = max(weights, description, key=lambda path: path.stat().st_mtime_ns)
    raise CheckpointError(
        f"{CONFIG_FILE} and {WEIGHTS_FILE} in {weights.parent} were not saved together: {', '.join(names)} differ, "
        f"{newer.name} is the newer one. A save was cut off, or one was changed by hand. The weights bring their own "
        f"description: load {weights}, then save it again; or make the model again"
    )


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository = name.split(":", 1)[1]
    try:
        return Path(snapshot_download(repository, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{name} could not be fetched ({reason}); without network load a local folder") from error


def _read_config(document: Any, where: Path) -> SavedModel:
    if not isinstance(document, dict) or cast(Any, document).get("format") != FORMAT:
        raise CheckpointError(f"{where} is not a vitslim description (no format: {FORMAT!r})")
    found = cast(Any, document).get("format_version")
    if found != FORMAT_VERSION:
        raise CheckpointError(f"{where} has format version {found}; this vitslim reads {FORMAT_VERSION}: update it")
    try:
        config = SavedModel(**document)
    except ValidationError as error:
        errors = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise CheckpointError(f"{where} is damaged: {errors}") from None
    if config.dtype not in _FLOATS:
        raise CheckpointError(f"{where}: dtype {config.dtype!r} is not one of {', '.join(_FLOATS)}")
    return config


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is missing, corrupt or truncated: {error}") from error


def _require_fit(config: SavedModel, weights: Path) -> None:
    """Compare the names, shapes and types in the file with those of a model that takes no memory."""
    with torch.device("meta"):
        wanted = build(config).state_dict()
    with _opened(weights) as tensors:
        _check_names(weights, set(tensors.keys()), set(wanted))
        for name, value in wanted.items():
            found = tensors.get_slice(name)
            shape, kind = tuple(found.get_shape()), found.get_dtype()
            if shape != tuple(value.shape):
                raise CheckpointError(
                    f"{weights}: {name} has shape {shape}, the model that config.json describes wants "
                    f"{tuple(value.shape)}"
                )
            if kind not in (_FLOAT_TYPES if value.is_floating_point() else (_OTHER_TYPES.get(value.dtype),)):
                raise CheckpointError(f"{weights}: {name} is {kind}, wanted a {value.dtype} as {FORMAT} saves it")


def _fill(model: nn.Module, path: Path) -> None:
    with _opened(path) as tensors:
        # Copies, since tensors of an opened file are windows into it.
        state: dict[str, Tensor] = {name: tensors.get_tensor(name).clone() for name in tensors.keys()}  # noqa: SIM118
    # Assigned and not copied into place: parts of the model may have another dtype than the rest.
    model.load_state_dict(state, assign=True)


def _check_names(path: Path, given: set[str], wanted: set[str]) -> None:
    missing, extra = sorted(wanted - given), sorted(given - wanted)
    if not missing and not extra:
        return
    parts: list[str] = []
    if missing:
        parts.append(f"{len(missing)} tensors are missing, first {missing[0]!r}")
    if extra:
        close = difflib.get_close_matches(extra[0], sorted(wanted), n=1)
        hint = f" (nearest known: {close[0]!r})" if close else ""
        parts.append(f"{len(extra)} are unknown, first {extra[0]!r}{hint}")
    raise CheckpointError(f"{path} does not fit the model that config.json describes: {'; '.join(parts)}")

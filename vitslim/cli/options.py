"""Options that several commands share, and how text from the command line becomes values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vitslim.cli import complete
from vitslim.cli.screen import say
from vitslim.errors import ConfigError
from vitslim.names import ALIASES

_COUNT = re.compile("0*[1-9][0-9]{0,8}")

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="timm name, alias (deit_base), hf-hub: id, 'builtin', or a saved folder",
        autocompletion=complete.models,
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help="image folder, hfds/NAME, wds/PATH, or 'fractals' (built in)", show_default=False),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="local file of weights of MODEL: .safetensors, .pth, .bin; what differs from MODEL is read from it "
        "(or vitslim.save(model, DIR) in Python, and DIR as MODEL)",
        show_default=False,
    ),
]
ModelArgOption = Annotated[
    list[str] | None,
    typer.Option("--model-arg", metavar="KEY=VALUE", help="argument of the timm model, as patch_size=4; repeatable"),
]
NoPretrainedOption = Annotated[bool, typer.Option("--no-pretrained", help="random weights, nothing is fetched")]
ImageSizeOption = Annotated[
    str | None, typer.Option("--img-size", help="pixels, one number or HEIGHTxWIDTH", show_default=False)
]
ClassesOption = Annotated[
    int | None, typer.Option("--num-classes", help="outputs of the classifier", min=0, show_default=False)
]
MethodsOption = Annotated[
    list[str] | None,
    typer.Option("--method", help="a method; repeat the option to compose", autocompletion=complete.methods),
]
PlanOption = Annotated[
    Path | None, typer.Option("--plan", help="a plan.json, in place of methods or before them", show_default=False)
]
OutOption = Annotated[Path, typer.Option("--out", help="output folder", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON document on stdout, all else on stderr")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:N", autocompletion=complete.devices)]
SeedOption = Annotated[int, typer.Option("--seed", help="of everything random")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="use an output folder that is not empty")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="any recipe key, as distill.epochs=3")
]
DataSetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="how the images are read and prepared, as data.mean=0.5 data.crop_pct=1"
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="check everything, say what would be done, write nothing")
]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", help="images per batch", min=1)]

_OWN_OPTIONS = {
    "name": "MODEL",
    "img_size": "--img-size",
    "num_classes": "--num-classes",
    "weights": "--weights",
    "pretrained": "--no-pretrained",
    "stated": "--set data.mean=... and its like",
}


def open_named(
    name: str,
    *,
    weights: Path | None = None,
    no_pretrained: bool = False,
    img_size: str | None = None,
    num_classes: int | None = None,
    model_arg: Sequence[str] | None = None,
    stated: Mapping[str, Any] | None = None,
    shape_only: bool = False,
) -> Any:
    """Open a model as the options say, and say what an alias stands for."""
    from vitslim.opening import open_model, open_shape

    show_resolved(name)
    return (open_shape if shape_only else open_model)(
        name,
        pretrained=not no_pretrained,
        weights=weights,
        img_size=image_size(img_size),
        num_classes=num_classes,
        stated=stated,
        **model_arguments(model_arg),
    )


def model_section(
    name: str,
    *,
    weights: Path | None = None,
    no_pretrained: bool = False,
    img_size: str | None = None,
    num_classes: int | None = None,
    model_arg: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The ``model`` section of a recipe, as the options say."""
    return {
        "name": name,
        "pretrained": not no_pretrained,
        "weights": None if weights is None else str(weights),
        "img_size": image_size(img_size),
        "num_classes": num_classes,
        "options": model_arguments(model_arg),
    }


def show_resolved(name: str) -> None:
    """Say which timm model an alias stands for."""
    if name in ALIASES:
        say(f"{name} → {ALIASES[name]}")


def model_arguments(given: Sequence[str] | None) -> dict[str, Any]:
    """Arguments of the timm model from ``--model-arg KEY=VALUE``; values are read as YAML.

    Raises:
        ConfigError: no ``=``, or an argument that has an option of its own.
    """
    if not given:
        return {}
    from vitslim.plain_yaml import read_yaml

    found: dict[str, Any] = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--model-arg {one!r}: wanted KEY=VALUE, such as patch_size=4")
        if key in _OWN_OPTIONS:
            raise ConfigError(f"--model-arg {one}: {key} is not given here but with {_OWN_OPTIONS[key]}")
        found[key] = read_yaml(value, f"--model-arg {key}")
    return found


def images(source: str | None, settings: Sequence[str] | None, *, batch_size: int = 64) -> Any:
    """What ``--data`` and ``--set data.…`` say of the images, a ``DataConfig``; ``None`` where neither is given.

    Raises:
        ConfigError: unknown keys, values out of range, or settings without images.
    """
    from vitslim.pipeline.images import read_data_settings

    if source is None and settings:
        raise ConfigError(f"--set {settings[0]} says how images are read and prepared; name them with --data")
    return None if source is None else read_data_settings(source, settings or (), batch_size=batch_size)


def require_saved(folder: Path) -> None:
    """Refuse what is no folder that vitslim wrote.

    Raises:
        ConfigError: with what is wrong with it.
    """
    from vitslim.checkpoint import CONFIG_FILE, is_saved_model

    if not folder.is_dir() or not is_saved_model(folder):
        what = f"holds no {CONFIG_FILE}" if folder.is_dir() else "is not a folder"
        raise ConfigError(f"{folder} {what}; wanted a folder that vitslim wrote (`vitslim convert ... --out DIR`)")


def image_size(text: str | None) -> int | tuple[int, int] | None:
    """Pixels from ``384`` or ``256x128`` (height first).

    Raises:
        ConfigError: neither form.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if not all(_COUNT.fullmatch(part) for part in parts) or len(parts) > 2:
        raise ConfigError(f"--img-size {text!r}: wanted pixels such as 384 or 256x128 (height first)")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers from ``1,8``.

    Raises:
        ConfigError: something else, or a number below 1.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(_COUNT.fullmatch(part) for part in parts):
        raise ConfigError(f"{option} {text!r}: wanted whole numbers from 1, such as 1,8")
    return tuple(int(part) for part in parts)


def words(text: str) -> tuple[str, ...]:
    """Names from ``torch,ort``."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def method_entries(methods: Sequence[str], options: Sequence[str]) -> list[dict[str, Any]]:
    """Recipe entries from ``--method`` names and ``-O`` options.

    With one method an option is ``key=value``; with several it is ``method.key=value``.

    Raises:
        ConfigError: an option without ``=``, or that names no chosen method.
    """
    entries: dict[str, dict[str, Any]] = {}
    for name in methods:
        if name in entries:
            raise ConfigError(f"--method {name} was given twice; a method is applied once")
        entries[name] = {"method": name}
    values: list[tuple[dict[str, Any], str, str, str]] = []
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise ConfigError(f"-O {option!r}: wanted key=value, such as layers=3-8")
        owner, dot, field = key.rpartition(".")
        if not dot and len(entries) != 1:
            raise ConfigError(f"-O {option!r}: with {len(entries)} methods write which one, such as skipat.{key}=...")
        owner = owner or next(iter(entries))
        if owner not in entries:
            raise ConfigError(f"-O {option!r}: method {owner!r} was not chosen (--method {owner})")
        values.append((entries[owner], field, key, value))
    from vitslim.plain_yaml import read_yaml

    for entry, field, key, value in values:
        entry[field] = read_yaml(value, f"-O {key}")
    return list(entries.values())

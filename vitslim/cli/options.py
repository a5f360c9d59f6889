"""Options that several verbs share, and how text from the command line becomes values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vitslim.errors import ConfigError

_COUNT = re.compile("0*[1-9][0-9]{0,8}")

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="timm name, alias (deit_base), hf-hub: id, 'builtin', or a saved folder")
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help="image folder, hfds/NAME, wds/PATH, or 'fractals' (built in)", show_default=False),
]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="local file of weights: .safetensors, .pth, .bin", show_default=False)
]
NoPretrainedOption = Annotated[bool, typer.Option("--no-pretrained", help="random weights, nothing is fetched")]
ImageSizeOption = Annotated[
    str | None, typer.Option("--img-size", help="pixels, one number or HEIGHTxWIDTH", show_default=False)
]
ClassesOption = Annotated[int | None, typer.Option("--num-classes", help="outputs", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON document on stdout, all else on stderr")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:N")]
SeedOption = Annotated[int, typer.Option("--seed", help="of everything random")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="use an output folder that is not empty")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="any recipe key, as distill.epochs=3")
]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", help="images per batch", min=1)]


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
    from vitslim.recipe import read_yaml

    entries: dict[str, dict[str, Any]] = {}
    for name in methods:
        if name in entries:
            raise ConfigError(f"--method {name} was given twice; a method is applied once")
        entries[name] = {"method": name}
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
        entries[owner][field] = read_yaml(value, f"-O {key}")
    return list(entries.values())

"""The tensors of a weights file, read without ever running code that is inside it."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from timm.models import clean_state_dict

from vitslim.errors import CheckpointError

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".t7")
_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")


def read_weights(path: Path, *, containers: Sequence[str] = _CONTAINERS) -> dict[str, torch.Tensor]:
    """The tensors of a weights file by name, without what DDP and the compiler put before the names.

    Args:
        containers: keys under which a training checkpoint may hold its state dict, of which the first that is there
            counts. By default timm's, moving averages first. A file with none of them is a state dict itself.

    Raises:
        CheckpointError: missing, of an unknown kind, corrupt, or with objects that are not tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"weights file {path} does not exist")
    if path.suffix not in (*_SUFFIXES, ""):
        raise CheckpointError(f"weights file {path} is a {path.suffix} file; wanted {_SUFFIXES}")
    document = _document(path)
    held = next((name for name in containers if isinstance(document.get(name), Mapping)), None)
    state = document if held is None else document[held]
    odd = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if odd:
        where = f"under none of {', '.join(map(repr, containers))}" if held is None else f"under {held!r}"
        raise CheckpointError(
            f"weights file {path} holds more than tensors {where}, first {odd[0]!r}; save the state dict alone, "
            "torch.save(model.state_dict(), FILE), or the model as a folder, vitslim.save(model, DIR)"
        )
    return cast("dict[str, torch.Tensor]", clean_state_dict(dict(state)))


def _document(path: Path) -> Mapping[str, Any]:
    try:
        document = _safetensors(path) if _is_safetensors(path) else _pickled(path)
    except (pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError, KeyError) as error:
        raise CheckpointError(f"weights file {path} is not readable as tensors only: {_reason(error, path)}") from error
    except Exception as error:
        # safetensors raises its own class, known only where the library is imported.
        raise CheckpointError(f"weights file {path} is corrupt or truncated: {error}") from error
    if not isinstance(document, Mapping):
        raise CheckpointError(f"weights file {path} holds a {type(document).__name__}; wanted tensors by name")
    return cast("Mapping[str, Any]", document)


def _is_safetensors(path: Path) -> bool:
    """By the ending; a file without one by its content, a JSON object behind eight bytes of length."""
    if path.suffix:
        return path.suffix == ".safetensors"
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


class _Inert:
    """Stands where a file has a number or a dtype of numpy; it takes anything, keeps nothing and calls nothing.

    Training scripts leave such numbers beside the weights, an accuracy say, and nobody here reads them. numpy's own
    functions would build them too, but trust a file about sizes and memory.
    """

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


# Before numpy 2 the module had another name.
_INERT = [(_Inert, name) for name in ("numpy.dtype", "numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")]


def _pickled(path: Path) -> Any:
    # DeiT's training script and its descendants save their arguments too: plain data.
    with torch.serialization.safe_globals([argparse.Namespace, *_INERT]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception, path: Path) -> str:
    # torch names what it would not read at the end of several lines of advice to read it all the same.
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused is not None:
        return (
            f"it holds a {refused[1]}, and to make one may run code; if you trust the file, write its state dict alone "
            f"(of held = torch.load({str(path)!r}, weights_only=False): held[KEY], or held.state_dict() of a whole "
            "module); or, in the program that made the model, vitslim.save(model, DIR)"
        )
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

"""What a backend raised, as it is recorded."""

import re

import torch

_FOLDERS = re.compile(r"(?:/[\w.+@-]+)+/")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a backend ran out of memory; ONNX Runtime and TensorRT say it in words only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error).lower()


def first_line(error: BaseException) -> str:
    """What went wrong, without the folders of this machine: reports are published."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {_FOLDERS.sub('', lines[0])[:300] if lines else 'no message'}"

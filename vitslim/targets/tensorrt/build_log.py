"""Finding in a builder's log the lines that tell a person what went wrong."""

import re
from collections.abc import Sequence

_SEVERITY = re.compile(r"^\[(INTERNAL_ERROR|ERROR|WARNING|INFO|VERBOSE)\] (.*)$")
# The library has noticed that there is no GPU, which is no news and hides what comes after.
_NO_NEWS = ("CUDA driver version is insufficient", "Error reading CUDA GPU properties", "no CUDA-capable device")
_OUT_OF_MEMORY = ("out of memory", "outofmemory", "bad_alloc", "memoryerror", "cannot allocate memory")
_LENGTH = 300


def useful_line(lines: Sequence[str]) -> str:
    """The first error that says something, else the last line that is not chatter.

    The first, because TensorRT follows an error with errors about the error.
    """
    errors = [text for severity, text in map(_split, lines) if "ERROR" in severity and text.strip()]
    news = [text for text in errors if not any(known in text for known in _NO_NEWS)] or errors
    if news:
        return news[0].strip()[:_LENGTH]
    plain = [text for severity, text in map(_split, lines) if severity in ("", "WARNING") and text.strip()]
    return plain[-1].strip()[:_LENGTH] if plain else "the log says nothing"


def is_out_of_memory(lines: Sequence[str]) -> bool:
    """Whether the log ends in want of memory."""
    return any(word in line.lower() for line in lines[-50:] for word in _OUT_OF_MEMORY)


def _split(line: str) -> tuple[str, str]:
    match = _SEVERITY.match(line)
    return (match[1], match[2]) if match else ("", line)

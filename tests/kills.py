"""Processes that die at a chosen point of their writing, as by a power cut or the OOM killer."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_KILLED = 9


def killed_at(point: int, work: Callable[[], object], writes: tuple[str, ...]) -> bool:
    """Do ``work`` in a process of its own that ends before its ``point``-th change of a folder; whether it did.

    Args:
        point: from 1.
        work: what is done.
        writes: the functions of ``os`` that are counted.
    """
    child = os.fork()
    if child == 0:
        points = itertools.count(1)

        def dying(change: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                if next(points) == point:
                    os._exit(_KILLED)
                return change(*args, **kwargs)

            return call

        for name in writes:
            setattr(os, name, dying(getattr(os, name)))
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, _KILLED)
    return code == _KILLED


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its name within."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}

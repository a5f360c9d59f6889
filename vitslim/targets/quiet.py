"""Keeping other libraries' chatter out of the way, yet readable afterwards."""

import io
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "onnxslim")


@contextmanager
def captured() -> Generator[list[str]]:
    """Collect what is printed, warned or logged inside the block; the list is filled when the block ends."""
    lines: list[str] = []
    printed = io.StringIO()
    # The exporter and its helpers warn about their own insides (deprecations between torch, onnxscript, onnx_ir) which
    # neither we nor our caller can act on. They are recorded, so that a strict warning filter does not end an export.
    with warnings.catch_warnings(record=True) as warned, redirect_stdout(printed), redirect_stderr(printed):
        warnings.simplefilter("always")
        with _logged_to(printed):
            try:
                yield lines
            finally:
                lines += [line for line in printed.getvalue().splitlines() if line.strip()]
                lines += [f"{warning.category.__name__}: {warning.message}" for warning in warned]


@contextmanager
def _logged_to(stream: io.StringIO) -> Generator[None]:
    handler = logging.StreamHandler(stream)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate

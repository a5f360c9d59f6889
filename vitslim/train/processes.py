"""The processes that train one model together, seen from one of them."""

import os
import re
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from vitslim.errors import CheckFailedError, ConfigError, MissingDependencyError

# A process that is killed is noticed at once; this is for one that hangs. Between two exchanges lie at most the
# compilation of a model or the writing of a state.
PATIENCE = timedelta(minutes=10)

# What torchrun, accelerate and the kinds of MPI say to the processes that they start.
_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")

# gloo has no class of errors of its own.
_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket", re.IGNORECASE)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """How many train together, and which of them this one is."""

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and speaks to people."""
        return self.rank == 0

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        total = tensor.clone()
        if self.count > 1:
            distributed.all_reduce(total)
        return total

    def gather(self, value: Value) -> list[Value]:
        """What each process has, in the order of their ranks; small plain data."""
        found: list[Any] = [value] * self.count
        if self.count > 1:
            distributed.all_gather_object(found, value)
        return found


ALONE = Processes()


def started_processes() -> Processes:
    """What the launcher started, whether or not these processes know of each other yet."""
    if distributed.is_available() and distributed.is_initialized():
        return Processes(distributed.get_rank(), distributed.get_world_size())
    rank, count = (_first_number(names, missing) for names, missing in ((_RANKS, 0), (_COUNTS, 1)))
    return Processes(rank, count)


def refuse_several_processes(what: str) -> None:
    """Stop work that only one process can do, before it is done several times into one folder.

    Raises:
        ConfigError: the launcher started several.
    """
    count = started_processes().count
    if count > 1:
        raise ConfigError(
            f"{what} works in one process, but {count} were started (WORLD_SIZE={count}); start it without torchrun; "
            "of the commands only `vitslim train` works in several"
        )


def device_of_process(device: str) -> str:
    """Where this process works: of several that were sent to ``cuda`` each has a GPU of its own."""
    here = _first_number(("LOCAL_RANK",), 0)
    return f"cuda:{here}" if device == "cuda" and started_processes().count > 1 else device


def open_accelerator(device: torch.device) -> Any:
    """Accelerate's object that joins the processes for a model on ``device``; it holds for the whole process.

    Raises:
        ConfigError: several processes were started, and accelerate was set up for another number.
        MissingDependencyError: accelerate is not installed.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs
    except ImportError:
        raise MissingDependencyError("training needs accelerate: pip install 'vitslim[train]'") from None
    started = started_processes().count
    several: dict[str, Any] = {}
    if started > 1:
        # Unless asked to, accelerate joins processes on GPUs alone, and leaves others to train on their own.
        several = {"cpu": device.type == "cpu", "kwargs_handlers": [InitProcessGroupKwargs(timeout=PATIENCE)]}
    # It joins processes and nothing else. Precision is ours: accelerate fixes it once per process, a run of two stages
    # may want two; bf16 needs no gradient scaling. Devices are ours: a model trains where it lies.
    try:
        accelerator = Accelerator(mixed_precision="no", device_placement=False, **several)
        if accelerator.num_processes == started:
            return accelerator
        reason = f"accelerate joins {accelerator.num_processes}"
    except ValueError as error:  # it was set up for another device
        reason = str(error)
    raise ConfigError(
        f"{started} processes were started to train a model on {device.type}, but {reason}; start them with torchrun "
        "or accelerate launch, and make no Accelerator before training (or, on the CPU, set ACCELERATE_USE_CPU=true)"
    )


@contextmanager
def ending_together(processes: Processes) -> Generator[None]:
    """Say it in a sentence where this process must end because another one has.

    Raises:
        CheckFailedError: the connection to another process broke, or the launcher ended this one.
    """
    if processes.count == 1:
        yield
        return
    try:
        with _met_end_signal(processes):
            yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and not _LOST.search(str(error)):
            raise
        raise _ended(processes, "another process of this run ended") from error


@contextmanager
def _met_end_signal(processes: Processes) -> Generator[None]:
    """Meet a launcher's SIGTERM, which otherwise ends a process without a word."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise _ended(processes, "the launcher ended this process, as it does when another process of the run ended")

    if threading.current_thread() is not threading.main_thread():  # only there can signals be met
        yield
        return
    earlier = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _ended(processes: Processes, what: str) -> CheckFailedError:
    return CheckFailedError(
        f"process {processes.rank} of {processes.count}: {what}; see what that one said, then run the same command "
        "with --resume (resume=True): it goes on from the last state that was written"
    )


def _first_number(names: tuple[str, ...], missing: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), missing)

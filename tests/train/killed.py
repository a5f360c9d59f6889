"""Trainings in several processes, any of which may be made to die: what starts them, and what each of them runs."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.distributed import TCPStore

from vitslim.cli.main import main
from vitslim.train.loop import _Run
from vitslim.train.state import STATE_FILE

Moment = Literal["batch", "evaluation", "log", "state"]


@dataclass(frozen=True)
class Death:
    """Which processes are killed, in the middle of what, after how many whole steps."""

    ranks: tuple[int, ...]
    step: int
    moment: Moment = "batch"


@dataclass(frozen=True)
class Ended:
    """What a process left: its exit code (less than 0: the signal that killed it), and what it said."""

    code: int | None
    out: str
    err: str


def train_together(words: Sequence[object], logs: Path, *, count: int = 2, death: Death | None = None) -> list[Ended]:
    """Run ``vitslim`` in several processes that know of each other as torchrun tells them, and wait for all.

    The processes are forked from a server that has imported everything once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # As torchrun's agent does, the one who starts them keeps the store in which they find each other.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    given = [str(word) for word in words]
    logs.mkdir(parents=True, exist_ok=True)
    processes = [
        context.Process(target=_work, args=(rank, count, store.port, given, logs, death)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
    assert not hanging, f"processes {hanging} did not end"
    return [
        Ended(process.exitcode, *((logs / f"{rank}.{stream}").read_text() for stream in ("out", "err")))
        for rank, process in enumerate(processes)
    ]


def _work(rank: int, count: int, port: int, words: list[str], logs: Path, death: Death | None) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in {**names, **agent, "OMP_NUM_THREADS": 1}.items()})
    os.environ.pop("ACCELERATE_USE_CPU", None)
    torch.set_num_threads(1)
    for number, stream in ((1, "out"), (2, "err")):
        with (logs / f"{rank}.{stream}").open("w") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    run_and_die(words, death)


def run_and_die(words: Sequence[str], death: Death | None) -> None:
    """Run ``vitslim`` in this process, and kill it where that is due."""
    if death is not None and int(os.environ["RANK"]) in death.ranks:
        _prepare(death)
    main(words)


def _prepare(death: Death) -> None:
    method = {"batch": "_backward", "evaluation": "_evaluate", "log": "_log", "state": "_save"}[death.moment]
    original: Any = getattr(_Run, method)

    def die(run: Any, *arguments: Any) -> Any:
        # A batch belongs to a step that is being made; all else comes after one that was made.
        steps = arguments[1] if death.moment == "batch" else arguments[0].step
        if steps == death.step and death.moment == "state" and run.processes.is_main:
            _kill_before_the_new_state_is_in_place()
        elif steps == death.step:
            _kill()
        return original(run, *arguments)

    setattr(_Run, method, die)


def _kill_before_the_new_state_is_in_place() -> None:
    replace = os.replace

    def die(source: Any, target: Any) -> None:
        if Path(target).name == STATE_FILE:
            _kill()
        replace(source, target)

    os.replace = die


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":  # under torchrun: RANK to be killed, step, then the words of vitslim
    run_and_die(sys.argv[3:], Death((int(sys.argv[1]),), int(sys.argv[2])))

"""``python -m tests.fuzz --cases 10000 --seed 0``: cases in worker processes, which a watchdog ends when they hang.

``--case N`` tries that one alone.
"""

import argparse
import multiprocessing as mp
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from tests.fuzz.oracle import SURFACES, Verdict, judge
from tests.fuzz.place import make_originals

MEMORY = 24 * 2**30  # bytes of address space; what asks for more was not bounded


def main() -> int:
    """Run the cases, print each failure as it is found, a summary, and say by the exit code whether there are any."""
    asked = _asked()
    _quiet_surroundings()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        originals = Path(root) / "originals"
        maker = mp.Process(target=_make, args=(originals,))  # apart: threads of ONNX Runtime do not survive a fork
        maker.start()
        maker.join()
        if maker.exitcode:
            sys.exit("what the cases start from could not be made; see tests.fuzz.place.make_originals")
        numbers = [asked.case] if asked.case is not None else list(range(asked.first, asked.first + asked.cases))
        verdicts = _all(numbers, asked, originals, Path(root))
    return _summary(verdicts, asked.seed)


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="one case by its number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--surface", choices=list(SURFACES), help="only this one")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20, help="that one case may take")
    return parser.parse_args()


def _quiet_surroundings() -> None:
    os.environ.update(HF_HUB_OFFLINE="1", COLUMNS="100", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)


def _make(originals: Path) -> None:
    os.environ["VITSLIM_CACHE"] = str(originals.parent / "cache")
    _mute()
    make_originals(originals, trained=True)


def _mute() -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def _work(pipe: Connection, asked: argparse.Namespace, originals: Path, folder: Path) -> None:
    os.environ["VITSLIM_CACHE"] = str(originals.parent / "cache")
    if asked.case is None:
        _mute()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    while (number := pipe.recv()) is not None:
        pipe.send(judge(number, asked.seed, originals, folder, asked.surface, tell=pipe.send))


class _Worker:
    """A process that tries one case after the other, with the case it is at."""

    def __init__(self, asked: argparse.Namespace, originals: Path, folder: Path) -> None:
        self._given = asked, originals, folder
        self.number, self.started, self._what = -1, 0.0, ""
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = mp.Pipe()
        self._process = mp.Process(target=_work, args=(theirs, *self._given), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, number: int | None) -> None:
        self.number, self.started, self._what = -1 if number is None else number, time.monotonic(), ""
        self.pipe.send(number)

    def outcome(self, seconds: float) -> Verdict | None:
        """What became of its case; None while that goes on."""
        if self.pipe.poll():
            try:
                heard = self.pipe.recv()
                if isinstance(heard, Verdict):
                    return heard
                self._what = heard
            except EOFError:
                self._process.join()
                return self._replaced(f"the process ended with {self._process.exitcode}")
        if time.monotonic() - self.started > seconds:
            self._process.kill()
            self._process.join()
            return self._replaced(f"hang: more than {seconds:g} s")
        return None

    def _replaced(self, failure: str) -> Verdict:
        self._start()
        return Verdict(self.number, "?", self._what, "failure", failure)


def _all(numbers: list[int], asked: argparse.Namespace, originals: Path, root: Path) -> list[Verdict]:
    left = iter(numbers)
    workers = [_Worker(asked, originals, root / f"worker-{i}") for i in range(min(asked.workers, len(numbers)))]
    busy = [worker for worker in workers if (number := next(left, None)) is not None and not worker.give(number)]
    verdicts: list[Verdict] = []
    while busy:
        wait([worker.pipe for worker in busy], timeout=1)
        for worker in list(busy):
            verdict = worker.outcome(asked.seconds)
            if verdict is None:
                continue
            verdicts.append(verdict)
            if verdict.failure or asked.case is not None:
                ended = verdict.failure or verdict.ended
                print(f"case {verdict.number} [{verdict.surface}] {verdict.what}\n    {ended}")
            following = next(left, None)
            worker.give(following)
            if following is None:
                busy.remove(worker)
    return verdicts


def _summary(verdicts: list[Verdict], seed: int) -> int:
    errors = Counter(verdict.failure.split(": ")[0] for verdict in verdicts if verdict.failure)
    ended = Counter(verdict.ended for verdict in verdicts)
    print(
        f"\nseed {seed}: {len(verdicts)} cases, {ended['ok']} ok, {ended['refused']} refused, {ended['failure']} errors"
    )
    for place, count in errors.most_common():
        numbers = [verdict.number for verdict in verdicts if verdict.failure and verdict.failure.startswith(place)]
        print(f"{count:5d}  {place}  (--case {numbers[0]})")
    return min(1, len(errors))


if __name__ == "__main__":
    sys.exit(main())

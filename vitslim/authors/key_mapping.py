"""From the names of an authors' state dict to ours, with every tensor accounted for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitslim.errors import CheckpointError
from vitslim.shapes import Result


class ImportReport(Result):
    """What became of every tensor of a checkpoint; every tensor of the model was filled from one or more of them.

    Args:
        source: whose checkpoint it was.
        method: the method that the base was converted with; ``None`` where the base is the authors' own network.
        options: the method's options as they were resolved, or arguments of the network.
        used: their name → our name.
        dropped: their name → why the model does without it.
    """

    source: str
    method: str | None
    options: dict[str, Any]
    used: dict[str, str]
    dropped: dict[str, str]


class KeyMapping:
    """Fills the tensors of a model from a state dict; what is missing is collected, to be reported at once.

    Args:
        state: the authors' tensors by their names.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state
        self.filled: dict[str, Tensor] = {}
        self.used: dict[str, str] = {}
        self.dropped: dict[str, str] = {}
        self.missing: list[str] = []

    def use(self, own: str, given: str) -> None:
        """Fill one of our tensors with one of theirs."""
        self._fill(own, (given,), lambda tensors: tensors[0])

    def transpose(self, own: str, given: str) -> None:
        """Fill one of our matrices with the transpose of one of theirs."""
        self._fill(own, (given,), lambda tensors: tensors[0].t())

    def join(self, own: str, first: str, second: str) -> None:
        """Fill one of our tensors with two of theirs, one below the other."""
        self._fill(own, (first, second), torch.cat)

    def drop(self, given: str, reason: str) -> None:
        """Leave one of theirs out."""
        self.dropped[given] = reason

    def drop_below(self, prefixes: tuple[str, ...], reason: str) -> None:
        """Leave out all of theirs whose names start so; there may be none."""
        for name in self.state:
            if name.startswith(prefixes):
                self.drop(name, reason)

    def unexpected(self) -> list[str]:
        """Theirs that nothing accounts for, in the order of the file."""
        return [name for name in self.state if name not in self.used and name not in self.dropped]

    def _fill(self, own: str, given: tuple[str, ...], made: Callable[[list[Tensor]], Tensor]) -> None:
        absent = [name for name in given if name not in self.state]
        self.missing += absent
        if not absent:
            self.filled[own] = made([self.state[name] for name in given])
            self.used |= dict.fromkeys(given, own)


@dataclass(frozen=True)
class Source:
    """One row of the table of authors.

    Args:
        name: as users type it.
        method: the method to convert the base with; ``None`` where the base is the authors' own network.
        containers: keys under which a file may hold the state dict, in the order in which the authors' loader looks.
        infer: options of the method that the shapes and names of the tensors show.
        map_keys: fills the model's tensors.
    """

    name: str
    method: str | None
    containers: tuple[str, ...]
    infer: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    map_keys: Callable[[KeyMapping, nn.Module], None]


def shape_of(state: Mapping[str, Tensor], name: str, source: str) -> tuple[int, ...]:
    """The shape of a tensor by which a checkpoint of these authors is known.

    Raises:
        CheckpointError: there is none of that name.
    """
    if name not in state:
        first = next(iter(state), "nothing")
        raise CheckpointError(f"no checkpoint of {source}: it has no tensor {name!r}; its first is {first!r}")
    return tuple(state[name].shape)

"""What a model chooses on the way, tokens or keys: recorded in one run, imposed on another, and judged there.

Two runtimes round differently, so that of two candidates as good as equal one takes the first and the other the second.
With the choices of the file imposed on it, the model has to give the file's outputs to the last bit but rounding, and
each choice has to be one that the model's own scores allow but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vitslim.errors import CheckFailedError
from vitslim.kernels.sparse_attention import scores_of_rows


class OtherChoicesError(CheckFailedError):
    """A file makes more or fewer choices than its model, so that they cannot be matched."""


class Choices(TorchDispatchMode):
    """While it is entered, every choice of a model is recorded; or made as it was in another run.

    A choice is where indices depend on scores: a falling ``sort``, ``topk``, ``max`` along an axis,
    ``vitslim::kept_keys``. What sorts upwards turns a permutation round.

    Args:
        imposed: the indices of each choice, in the order in which the model makes them, of as many elements as the
            model's own; ``None`` to record.

    Attributes:
        made: the model's own indices at each choice, of the run as it went.
        differs: which images have a choice that is not the model's own; ``None`` before the first.
        excess: by how much, per image, the model's scores speak against the worst of what was imposed, as a share of
            the image's largest score at that choice; infinite where something was taken twice.
    """

    def __init__(self, imposed: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self._imposed = imposed
        self.made: list[Tensor] = []
        self.differs: Bool[Tensor, " b"] | None = None
        self.excess: Float[Tensor, " b"] | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        own = func(*args, **(kwargs or {}))
        if func not in _SCORES and func is not _KEPT_KEYS:
            return own
        if func is _KEPT_KEYS:
            return self._keys(own, *args)
        found = _SCORES[func](*args, **(kwargs or {}))
        if found is None:
            return own
        scores, dim = found
        given = self._taken(own[1], scores, dim)
        wide = given if given.ndim == scores.ndim else given.unsqueeze(dim)
        return own if self._imposed is None else (args[0].gather(dim, wide).reshape(given.shape), given)

    def _keys(
        self, own: Tensor, coefficients: Tensor, basis: Tensor, top: int, keys: int, tile: int, prefix: int
    ) -> Tensor:
        """Two choices: the coefficients that count, where not all do, and the keys."""
        rows = coefficients.float()
        if top < rows.shape[-1]:
            # by a threshold: all that equal the least of them count, of which there may be more in one runtime
            mask = rows >= rows.topk(top, dim=-1).values[..., -1:]
            self.made.append(mask)
            if self._imposed is not None:
                unforced, mask = mask, self._given(mask)
                least, most = torch.where(mask, rows, float("inf")), torch.where(mask, float("-inf"), rows)
                self._note(
                    unforced != mask, (most.amax(-1) - least.amin(-1)).clamp_min(0.0).flatten(1).amax(1) / _scale(rows)
                )
            rows = torch.where(mask, rows, 0.0)
        return self._taken(own, scores_of_rows(rows, basis, tile, prefix), -1)

    def _taken(self, own: Tensor, scores: Tensor, dim: int) -> Tensor:
        """The choice as it was imposed, or the model's own."""
        self.made.append(own)
        if self._imposed is None:
            return own
        given = self._given(own)
        if int(given.min()) < 0 or int(given.max()) >= scores.shape[dim]:
            raise CheckFailedError(
                f"choice {len(self.made) - 1}: the file names number {int(given.max())} of {scores.shape[dim]}"
            )
        wide = given if given.ndim == scores.ndim else given.unsqueeze(dim)
        self._note(given != own, _excess(scores.double(), wide, dim))
        return given

    def require_all_taken(self) -> None:
        """Refuse choices that the model did not get to.

        Raises:
            OtherChoicesError: the file makes more of them than the model.
        """
        if self._imposed is not None and len(self.made) != len(self._imposed):
            raise OtherChoicesError(f"the file makes {len(self._imposed)} choices, the model {len(self.made)}")

    def _given(self, indices: Tensor) -> Tensor:
        assert self._imposed is not None
        at = len(self.made) - 1
        if at >= len(self._imposed):
            raise OtherChoicesError(f"the file makes {len(self._imposed)} choices, the model more")
        given = self._imposed[at]
        if given.numel() != indices.numel():
            raise CheckFailedError(
                f"choice {at}: the file chooses {given.numel() // len(indices)} of an image, the model "
                f"{indices.numel() // len(indices)}"
            )
        return given.reshape(indices.shape).to(indices)

    def _note(self, differing: Tensor, excess: Float[Tensor, " b"]) -> None:
        differs, excess = differing.flatten(1).any(1), excess.double()
        self.differs = differs if self.differs is None else self.differs | differs
        self.excess = excess if self.excess is None else torch.maximum(self.excess, excess)


def _excess(scores: Tensor, given: Tensor, dim: int) -> Float[Tensor, " b"]:
    """How far from the scores' own order what was chosen is, for each image; see ``Choices``."""
    scale = _scale(scores).reshape(-1, *[1] * (scores.ndim - 1))
    # what is to be taken in any case lies above all others
    scores = torch.where(scores == float("inf"), 2 * scale, scores)
    is_choice = (given.sort(dim).values.diff(dim=dim) != 0).all(dim)
    taken = scores.gather(dim, given)
    # max_{j > i} s_j - s_i among what was taken, in its order; max of the rest - min of what was taken
    later = taken.flip(dim).cummax(dim).values.flip(dim)
    rest = scores.scatter(dim, given, float("-inf")).amax(dim, keepdim=True)
    worst = torch.maximum((later - taken).amax(dim, keepdim=True), rest - taken.amin(dim, keepdim=True))
    relative = torch.where(is_choice, (worst / scale).clamp_min(0.0).squeeze(dim), float("inf"))
    return relative.flatten(1).amax(1) if relative.ndim > 1 else relative


def _scale(scores: Tensor) -> Float[Tensor, " b"]:
    """The largest of each image: rows of small scores have the rounding of large ones."""
    return torch.where(scores.isfinite(), scores, 0.0).abs().flatten(1).amax(1).clamp_min(1e-30)


def _largest(scores: Tensor, dim: int = -1, descending: bool = True) -> tuple[Tensor, int] | None:
    return (scores, dim) if descending else None


_ATEN, _KEPT_KEYS = torch.ops.aten, torch.ops.vitslim.kept_keys.default
_SCORES: dict[Any, Callable[..., tuple[Tensor, int] | None]] = {
    _ATEN.sort.default: lambda scores, dim=-1, descending=False: _largest(scores, dim, descending),
    _ATEN.sort.stable: lambda scores, *, stable=False, dim=-1, descending=False: _largest(scores, dim, descending),
    _ATEN.topk.default: lambda scores, k, dim=-1, largest=True, sorted=True: _largest(scores, dim, largest),
    _ATEN.max.dim: lambda scores, dim, keepdim=False: _largest(scores, dim),
}
"""What is chosen among by an operator's arguments, the larger the better, and along which axis, or nothing."""

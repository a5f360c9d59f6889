"""The torch ops that choose tokens: what torch asks of a custom op, and that through them numbers stay the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vitslim.kernels import token_selection
from vitslim.kernels.token_selection import argsort_by_score, class_row, gather_split, scatter_back

ops = torch.ops.vitslim


def noise(*shape: int, seed: int = 0, grad: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(dtype).requires_grad_(grad)


def permutation(images: int, count: int) -> Tensor:
    return noise(images, count, seed=9).argsort(dim=1)


def operands(grad: bool, dtype: torch.dtype = torch.float64) -> dict[str, tuple[Any, ...]]:
    first, second = noise(2, 5, 3, grad=grad, dtype=dtype), noise(2, 2, 3, seed=1, grad=grad, dtype=dtype)
    row = noise(2, 3, 1, 4, grad=grad, dtype=dtype), noise(2, 3, 6, 4, seed=1, grad=grad, dtype=dtype)
    return {
        "class_row": (*row, 0.5),
        "argsort_by_score": (noise(2, 7, grad=grad, dtype=dtype), 1),
        "gather_split": (first, second, permutation(2, 7), 3),
        "scatter_back": (first, second, permutation(2, 7), 4),
    }


@pytest.mark.parametrize("name", ["class_row", "argsort_by_score", "gather_split", "scatter_back"])
def test_gradients_are_those_of_differences(name: str) -> None:
    def floats(*given: Any) -> Any:
        found = getattr(ops, name)(*given)
        return found[0] if name == "argsort_by_score" else found

    assert torch.autograd.gradcheck(floats, operands(grad=True)[name])


def everything() -> list[Tensor]:
    """A selection, another one on top of it, and the way back, with all gradients."""
    tokens, query, key = noise(2, 9, 4, grad=True), noise(2, 3, 1, 4, grad=True), noise(2, 3, 9, 4, seed=1, grad=True)
    falling, indices = argsort_by_score(class_row(query, key, None, 0.5)[:, :, 1:].sum(dim=1), 1)
    active, inactive = gather_split(tokens, None, indices, 5)
    other = torch.cat([torch.zeros(2, 1, dtype=torch.int64), permutation(2, 8) + 1], dim=1)
    fewer, more = gather_split(active * 2.0, inactive, other, 3)
    back = scatter_back(fewer, more * 3.0, indices.gather(1, other))
    loss = (back * noise(*back.shape, seed=7)).sum() + (falling * noise(*falling.shape, seed=8)).sum()
    return [falling, indices, fewer, back, *torch.autograd.grad(loss, [tokens, query, key])]


def test_through_the_ops_numbers_and_gradients_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = everything()
    monkeypatch.setattr(token_selection, "use_triton", lambda *_: True)
    for found, expected in zip(everything(), plain, strict=True):
        torch.testing.assert_close(found, expected)


def test_putting_back_undoes_taking_apart() -> None:
    tokens, order = noise(3, 8, 2), permutation(3, 8)
    assert torch.equal(scatter_back(*gather_split(tokens, None, order, 3), order), tokens)


def test_a_bias_and_many_scores_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_selection, "use_triton", lambda *_: True)
    monkeypatch.setattr(token_selection, "MOST_SCORES", 4)
    query, key, bias = noise(1, 2, 1, 4), noise(1, 2, 5, 4, seed=1), noise(1, 2, 1, 5, seed=2)
    expected = ((query * 0.5) @ key.transpose(2, 3) + bias).softmax(dim=3).squeeze(2)
    torch.testing.assert_close(class_row(query, key, bias, 0.5), expected)
    scores = noise(1, 5)
    assert torch.equal(argsort_by_score(scores, 0)[1], scores.argsort(dim=1, descending=True))

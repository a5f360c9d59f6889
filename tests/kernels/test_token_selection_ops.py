"""The torch ops that choose tokens: what torch asks of a custom op, and that through them numbers stay the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vitslim.kernels import token_selection
from vitslim.kernels.token_selection import class_row, put_back, ranked, taken_apart

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
        "ranked": (noise(2, 7, grad=grad, dtype=dtype), 1),
        "taken_apart": (first, second, permutation(2, 7), 3),
        "put_back": (first, second, permutation(2, 7), 4),
    }


@pytest.mark.parametrize("name", ["class_row", "ranked", "taken_apart", "put_back"])
def test_gradients_are_those_of_differences(name: str) -> None:
    def floats(*given: Any) -> Any:
        found = getattr(ops, name)(*given)
        return found[0] if name == "ranked" else found

    assert torch.autograd.gradcheck(floats, operands(grad=True)[name])


def everything() -> list[Tensor]:
    """A selection, another one on top of it, and the way back, with all gradients."""
    tokens, query, key = noise(2, 9, 4, grad=True), noise(2, 3, 1, 4, grad=True), noise(2, 3, 9, 4, seed=1, grad=True)
    falling, places = ranked(class_row(query, key, None, 0.5)[:, :, 1:].sum(dim=1), 1)
    active, waiting = taken_apart(tokens, None, places, 5)
    other = torch.cat([torch.zeros(2, 1, dtype=torch.int64), permutation(2, 8) + 1], dim=1)
    fewer, more = taken_apart(active * 2.0, waiting, other, 3)
    back = put_back(fewer, more * 3.0, places.gather(1, other))
    loss = (back * noise(*back.shape, seed=7)).sum() + (falling * noise(*falling.shape, seed=8)).sum()
    return [falling, places, fewer, back, *torch.autograd.grad(loss, [tokens, query, key])]


def test_through_the_ops_numbers_and_gradients_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = everything()
    monkeypatch.setattr(token_selection, "kernels_serve", lambda _: True)
    for found, expected in zip(everything(), plain, strict=True):
        torch.testing.assert_close(found, expected)


def test_putting_back_undoes_taking_apart() -> None:
    tokens, order = noise(3, 8, 2), permutation(3, 8)
    assert torch.equal(put_back(*taken_apart(tokens, None, order, 3), order), tokens)


def test_a_bias_and_many_scores_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_selection, "kernels_serve", lambda _: True)
    monkeypatch.setattr(token_selection, "MOST_SCORES", 4)
    query, key, bias = noise(1, 2, 1, 4), noise(1, 2, 5, 4, seed=1), noise(1, 2, 1, 5, seed=2)
    expected = ((query * 0.5) @ key.transpose(2, 3) + bias).softmax(dim=3).squeeze(2)
    torch.testing.assert_close(class_row(query, key, bias, 0.5), expected)
    scores = noise(1, 5)
    assert torch.equal(ranked(scores, 0)[1], scores.argsort(dim=1, descending=True))

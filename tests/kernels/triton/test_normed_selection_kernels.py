"""Triton's kernels that norm tokens as they move them, against their plain forms in float64."""

import pytest
import torch
from torch import Tensor

from tests.kernels.triton.closeness import DEVICES, DTYPES, drawn, require_close, sizes_in_types
from vitslim.kernels.normed_selection import plain_gather_split_normed, plain_gradients

pytest.importorskip("triton")
from vitslim.kernels.triton import normed_selection

EPS = 1e-6
# Tokens and norm: one type, or as under autocast.
TYPES = [*((one, one) for one in DTYPES), (torch.bfloat16, torch.float32)]
SIZES = [
    (17, 17, 9, 12),  # all in one part
    (17, 5, 17, 1),  # nobody waits
    (5, 2, 1, 2500),  # a program for each row
    (17, 9, 5, 260),
]
CASES = pytest.mark.parametrize(("size", "types", "device"), sizes_in_types(SIZES, [(4097, 2049, 1025, 768)], TYPES))


def shuffled(images: int, count: int, device: str) -> Tensor:
    return torch.rand(images, count, generator=torch.Generator().manual_seed(4)).argsort(dim=1).to(device)


def affine(width: int, norm: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    weight, bias = (drawn(width, dtype=norm, device=device, seed=seed) for seed in (2, 3))
    return weight, bias


@CASES
def test_moves_are_exact_and_the_norm_is_close(
    size: tuple[int, ...], types: tuple[torch.dtype, torch.dtype], device: str
) -> None:
    (count, cut, ahead, width), (dtype, norm) = size, types
    # Rows far from zero, whose variance a difference of squares would lose.
    wide = drawn(2, count, width + 3, dtype=dtype, device=device) + 8.0
    first, second, indices = wide[:, :cut, 2:-1], wide[:, cut:, 2:-1], shuffled(2, count, device)
    weight, bias = affine(width, norm, device)
    active, inactive, normed = normed_selection.gather_split_normed(first, second, indices, ahead, weight, bias, EPS)
    doubles = (first.double(), second.double(), indices, ahead, weight.double(), bias.double(), EPS)
    exact = plain_gather_split_normed(*doubles)
    assert (active.dtype, inactive.dtype, normed.dtype) == (dtype, dtype, norm)
    assert torch.equal(active.double(), exact[0])
    assert torch.equal(inactive.double(), exact[1])
    require_close(normed, exact[2])


@CASES
def test_gradients_come_from_both_outputs(
    size: tuple[int, ...], types: tuple[torch.dtype, torch.dtype], device: str
) -> None:
    (count, cut, ahead, width), (dtype, norm) = size, types
    active, active_grad = (drawn(2, ahead, width, dtype=dtype, device=device, seed=seed) for seed in (0, 5))
    inactive_grad = drawn(2, count - ahead, width, dtype=dtype, device=device, seed=6)
    # Not dense, as behind a slice.
    normed_grad = drawn(2, ahead, 2 * width, dtype=norm, device=device, seed=7)[:, :, ::2]
    weight, _ = affine(width, norm, device)
    indices = shuffled(2, count, device)
    found = normed_selection.gradients(active_grad, inactive_grad, normed_grad, active, indices, weight, EPS, cut)
    doubles = (part.double() for part in (active_grad, inactive_grad, normed_grad, active))
    exact = plain_gradients(*doubles, indices, weight.double(), EPS, cut)
    assert [part.dtype for part in found] == [dtype, dtype, norm, norm]
    for part, wanted in zip(found[:2], exact[:2], strict=True):
        require_close(part, wanted)
    if width > 1:  # else x̂ is 0, and the gradient of γ rounding alone
        require_close(found[2], exact[2])
    require_close(found[3], exact[3])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows_for_each_program(dtype: torch.dtype) -> None:
    active = drawn(64, 99, 384, dtype=dtype, device="cuda")
    grads = [drawn(64, rows, 384, dtype=dtype, device="cuda", seed=rows) for rows in (99, 98, 99)]
    weight, _ = affine(384, dtype, "cuda")
    indices = shuffled(64, 197, "cuda")
    found = normed_selection.gradients(*grads, active, indices, weight, EPS, 197)
    exact = plain_gradients(*(part.double() for part in (*grads, active)), indices, weight.double(), EPS, 197)
    for part, wanted in zip(found, exact, strict=True):
        require_close(part, wanted)


@pytest.mark.parametrize("device", DEVICES)
def test_a_program_walks_over_the_rows_of_several_images(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normed_selection, "PROGRAMS", 2)
    active, indices = drawn(5, 3, 600, dtype=torch.float32, device=device), shuffled(5, 7, device)
    grads = [drawn(5, rows, 600, dtype=torch.float32, device=device, seed=rows) for rows in (3, 4, 3)]
    weight, _ = affine(600, torch.float32, device)
    found = normed_selection.gradients(*grads, active, indices, weight, EPS, 6)
    exact = plain_gradients(*(part.double() for part in (*grads, active)), indices, weight.double(), EPS, 6)
    for part, wanted in zip(found, exact, strict=True):
        require_close(part, wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("images", "count"), [(0, 6), (2, 0), (0, 0)])
def test_without_images_or_tokens_there_is_no_gradient(images: int, count: int, device: str) -> None:
    rows = drawn(images, count, 40, dtype=torch.float32, device=device)
    indices, (weight, bias) = shuffled(images, count, device), affine(40, torch.float32, device)
    active, inactive, normed = normed_selection.gather_split_normed(
        rows, rows[:, :0], indices, count, weight, bias, EPS
    )
    assert [part.shape for part in (active, inactive, normed)] == [rows.shape, (images, 0, 40), rows.shape]
    *parts, by_weight, by_bias = normed_selection.gradients(
        active, inactive, normed, active, indices, weight, EPS, count
    )
    assert [part.shape for part in parts] == [rows.shape, (images, 0, 40)]
    assert torch.equal(by_weight, torch.zeros_like(weight))
    assert torch.equal(by_bias, torch.zeros_like(bias))

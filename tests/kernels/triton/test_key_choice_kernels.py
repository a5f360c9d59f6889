"""The Triton kernel that chooses keys against ``vitslim::kept_keys``: interpreted on a CPU, compiled on a GPU."""

import pytest
import torch
from torch import Tensor

from tests.kernels.triton.closeness import DEVICES
from vitslim.kernels.key_bits import bits_of_keys
from vitslim.kernels.sparse_attention import topk_keys

pytest.importorskip("triton")
from vitslim.kernels.triton import key_choice

# A basis for all images or one for each, with tiles of one patch, whose strongest the kernel takes, and of several.
SIZES = [
    (37, 17, 1, 1, 9, 3, False),
    (32, 3, 4, 0, 31, 9, True),
    pytest.param(37, 17, 5, 2, 20, 4, True, marks=pytest.mark.slow),
    pytest.param(16, 4, 1, 0, 1, 1, True, marks=pytest.mark.slow),
]
NAMES = ("tokens", "directions", "tile", "prefix", "keys", "top", "own_basis")


@pytest.fixture(params=["fused", "by parts"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores in the kernel, or by torch, a few rows at a time."""
    if request.param == "by parts":
        monkeypatch.setattr(key_choice, "FUSED_TOKENS", 0)
        monkeypatch.setattr(key_choice, "SCORES_AT_ONCE", 100)


def of_few_bits(tokens: int, directions: int, patches: int, *, own_basis: bool) -> tuple[Tensor, Tensor]:
    """Coefficients and basis whose products are exact in any order, and mostly equal to some others."""
    generator = torch.Generator().manual_seed(tokens)
    coefficients = torch.randint(0, 6, (2, 1, patches, directions), generator=generator) / 8
    shape = (2, directions, tokens) if own_basis else (directions, tokens)
    return coefficients, torch.randint(0, 4, shape, generator=generator) / 4


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(NAMES, SIZES)
def test_exact_scores_give_exactly_the_reference_s_keys_and_bits(
    tokens: int, directions: int, tile: int, prefix: int, keys: int, top: int, own_basis: bool, device: str
) -> None:
    coefficients, basis = (part.to(device) for part in of_few_bits(tokens, directions, tile + 2, own_basis=own_basis))
    expected = topk_keys(coefficients, basis, top, keys, tile, prefix).sort(dim=-1).values
    assert torch.equal(key_choice.kept_keys(coefficients, basis, top, keys, tile, prefix), expected)
    bits = key_choice.kept_bits(coefficients, basis, top, keys, tile, prefix)
    assert torch.equal(bits, bits_of_keys(expected, tokens))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("device", DEVICES)
def test_only_near_equals_change_places_with_the_reference(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.rand(1, 1, 9, 12, generator=generator).softmax(dim=-1).to(device)
    basis = torch.rand(12, 41, generator=generator).to(device, torch.bfloat16)
    chosen = key_choice.kept_keys(coefficients, basis, 4, 10, 1, 1)
    expected = topk_keys(coefficients, basis, 4, 10, 1, 1)
    scores = (topk_sums(coefficients, 4).double() @ basis.double()).index_fill(-1, torch.tensor([0]).to(device), 9)
    least = scores.gather(-1, expected).amin(dim=-1)
    # What is chosen reaches the reference's least score, but for the order of a sum of four products.
    assert (scores.gather(-1, chosen).amin(dim=-1) >= least * (1 - 1e-6)).all()
    assert (chosen.diff(dim=-1) > 0).all()


def topk_sums(coefficients: Tensor, top: int) -> Tensor:
    least = coefficients.topk(top, dim=-1).values[..., -1:]
    return torch.where(coefficients >= least, coefficients, 0.0)


@pytest.mark.parametrize("device", DEVICES)
def test_equal_scores_go_to_the_lower_index(device: str) -> None:
    ones = torch.ones(1, 1, 3, 2, device=device)
    kept = key_choice.kept_keys(ones, torch.ones(2, 37, device=device), 2, 34, 1, 1)
    assert torch.equal(kept, torch.arange(34, device=device).expand(1, 1, 3, -1))


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_no_number_still_gives_as_many_keys_as_asked_for(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_choice, "FUSED_TOKENS", 0)
    basis = torch.rand(3, 37, generator=torch.Generator().manual_seed(1)).to(device)
    basis[0, 5], basis[1, 7], basis[2, 9] = float("nan"), float("inf"), -1.0
    kept = key_choice.kept_keys(torch.ones(1, 1, 2, 3, device=device), basis, 3, 8, 1, 0)
    assert kept.shape == (1, 1, 2, 8)
    assert (kept.diff(dim=-1) > 0).all()
    assert kept.amin() >= 0
    assert kept.amax() < 37

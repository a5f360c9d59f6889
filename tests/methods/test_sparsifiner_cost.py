"""What Sparsifiner costs, term by term; the numbers of METHODS.md, section 4."""

import pytest
import timm
import torch
from torch import nn

from vitslim.bench import count_macs, count_parameters
from vitslim.methods import convert

# DeiT-S at 224 px: tokens, patches, heads, head width, narrow width, rows of the basis, coefficients, keys, blocks.
n, p, h, e, c, m, top, k, blocks = 197, 196, 6, 64, 32, 32, 8, 50, 12
# "Attention core" of the dense model: Q Kᵀ and A V. Not in it, here as in all figures below: qkv, projection, MLP.
dense_core = 2 * h * n * n * e
# The kept pairs: 197 of the class row, 50 of each patch row.
kept_pairs = 2 * h * (n + p * k) * e


@pytest.fixture(scope="module")
def deit_small() -> nn.Module:
    with torch.device("meta"):
        return timm.create_model("deit_small_patch16_224")


def core(model: nn.Module, dense: nn.Module) -> float:
    """Multiply-accumulates of one block's attention core, counted: what is not the dense model's linear part."""
    rest = count_macs(dense) - blocks * dense_core
    return (count_macs(model) - rest) / blocks


def test_the_dense_core(deit_small: nn.Module) -> None:
    assert core(deit_small, deit_small) == dense_core
    assert dense_core / 1e6 == pytest.approx(29.8, abs=0.05)


def test_the_default_term_by_term(deit_small: nn.Module) -> None:
    sums_of_keys = h * m * n * e  # P K
    narrow_sums = h * m * e * c  # (P K) W_kᵀ
    folded = h * m * c * e  # K_down W_q
    logits = h * p * e * m  # Q (K_down W_q)ᵀ
    guess = h * p * top * n  # coef · basis, on the coefficients that count
    expected = sums_of_keys + narrow_sums + folded + logits + guess + kept_pairs
    model = convert(deit_small, "sparsifiner")
    assert core(model, deit_small) == expected
    assert 1 - expected / dense_core == pytest.approx(0.492, abs=5e-4)
    # Of the whole model that is little: 4.60 to 4.42 GMAC.
    assert count_macs(model) / 1e9 == pytest.approx(4.423, abs=5e-4)


def test_the_authors_count_of_their_default() -> None:
    # The 15.4 million and 48.3 % of METHODS.md come out if one takes the products in the order of the paper, ...
    narrow = 2 * h * n * e * c  # Q W_qᵀ and K W_kᵀ
    sums_of_keys = h * m * n * c  # P (K W_kᵀ)
    logits = h * p * c * m
    # ... counts the basis' entries above 0.02 only, which is one deviation of the normal start, ...
    density = 2 * (1 - torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(1.0))).item()
    guess = h * p * top * n * density
    # ... and takes the class row to have as few keys as the others.
    kept = 2 * h * n * k * e
    published = narrow + sums_of_keys + logits + guess + kept
    assert published / 1e6 == pytest.approx(15.4, abs=0.05)
    assert 1 - published / dense_core == pytest.approx(0.483, abs=5e-4)
    # With the full class row, which their code computes, it is 47.9 %; with all entries of the basis besides, 43.7 %.
    assert 1 - (published - kept + kept_pairs) / dense_core == pytest.approx(0.479, abs=5e-4)
    assert 1 - (published - kept + kept_pairs - guess + guess / density) / dense_core == pytest.approx(0.437, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        ({"granularity": "tile"}, 0.549),
        ({"granularity": "image"}, 0.553),
        ({"keep_rate": 0.1}, 0.643),
        ({"keep_rate": 0.5}, 0.244),
    ],
)
def test_other_settings(deit_small: nn.Module, options: dict, saved: float) -> None:
    model = convert(deit_small, "sparsifiner", **options)
    assert 1 - core(model, deit_small) / dense_core == pytest.approx(saved, abs=5e-4)


def test_keeping_every_key_costs_what_the_dense_model_costs(deit_small: nn.Module) -> None:
    assert count_macs(convert(deit_small, "sparsifiner", keep_rate=1.0)) == count_macs(deit_small)


def test_the_predictor_is_small(deit_small: nn.Module) -> None:
    model = convert(deit_small, "sparsifiner")
    # Two linear maps 64 → 32 and two matrices of 32 rows over 197 tokens, in each block.
    assert count_parameters(model) - count_parameters(deit_small) == blocks * (2 * (e * c + c) + 2 * m * n)


def test_pruned_patches_cost_nothing(deit_small: nn.Module) -> None:
    pruned = convert(deit_small, "sparsifiner", keep_rate=1.0, token_keep_rate=0.7)
    tokens = [1 + 196] * 4 + [1 + 138] * 3 + [1 + 97] * 3 + [1 + 68] * 2
    block = sum(12 * t * 384**2 + 2 * t**2 * 384 for t in tokens)
    # Three class rows apart, by which patches are chosen.
    rows = sum(384 * t for t in (197, 139, 98))
    embedding_and_head = count_macs(deit_small) - blocks * (12 * n * 384**2 + 2 * n**2 * 384)
    assert count_macs(pruned) == embedding_and_head + block + rows

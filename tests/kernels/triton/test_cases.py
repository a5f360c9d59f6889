import pytest
import torch

from vitslim.errors import ConfigError
from vitslim.kernels.triton.cases import TOKENS, kernel_cases


def test_every_granularity_is_called_with_and_without_its_choice() -> None:
    cases = kernel_cases("cpu", torch.float32, 82, 2)
    assert [case.name for case in cases] == ["tiles of 64", "tiles of 64, keys given", "image"]
    for case in cases:
        assert case.tokens == 82
        assert case.call().shape == case.dense().shape == (2, 6, 82, 64)
        assert not case.call().requires_grad
        assert case.bytes > 4 * case.dense().numel() * 4
    chosen, given, image = cases
    assert image.flops < chosen.flops
    assert chosen.flops > given.flops
    torch.testing.assert_close(chosen.call(), given.call())


def test_a_quarter_of_the_keys_is_about_a_quarter_of_the_work() -> None:
    given = kernel_cases("cpu", torch.float32, 197, 1)[1]
    dense_flops = 2 * 2 * 6 * 197**2 * 64
    assert 0.25 * dense_flops < given.flops < 0.26 * dense_flops


def test_tokens_that_are_no_square_are_refused() -> None:
    with pytest.raises(ConfigError, match="100 tokens are no class token and a square of patches; choose from"):
        kernel_cases("cpu", torch.float32, 100, 1)
    assert TOKENS == (197, 577, 1025, 4097)

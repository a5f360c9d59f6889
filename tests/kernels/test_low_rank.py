import pytest
import torch
from torch import Tensor

from vitslim.kernels import low_rank_factors


def matrix(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


SHAPES = [(7, 7), (12, 5), (5, 12)]


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_gives_the_matrix_back(shape: tuple[int, int]) -> None:
    up, down = low_rank_factors(matrix(*shape), min(shape))
    assert (up.shape, down.shape) == ((shape[0], min(shape)), (min(shape), shape[1]))
    torch.testing.assert_close(up @ down, matrix(*shape).double(), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3])
def test_a_part_is_the_truncated_singular_value_decomposition(shape: tuple[int, int], rank: int) -> None:
    left, values, right = torch.linalg.svd(matrix(*shape).double(), full_matrices=False)
    best = left[:, :rank] * values[:rank] @ right[:rank]
    up, down = low_rank_factors(matrix(*shape), rank)
    torch.testing.assert_close(up @ down, best, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_rank_nought_has_no_columns(shape: tuple[int, int]) -> None:
    up, down = low_rank_factors(matrix(*shape), 0)
    assert (up.shape, down.shape) == ((shape[0], 0), (0, shape[1]))


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_gives_one_factor_of_zeros_and_one_that_training_can_use(shape: tuple[int, int]) -> None:
    up, down = low_rank_factors(torch.zeros(shape), 3)
    assert torch.equal(up @ down, torch.zeros(shape, dtype=torch.float64))
    norms = sorted([float(up.norm()), float(down.norm())])
    assert norms == pytest.approx([0.0, 3**0.5])

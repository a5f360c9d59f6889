import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitslim.kernels.token_axis import columns_at, regions, resized

SIDES = st.integers(1, 9)


def test_the_same_grid_is_the_same_matrix() -> None:
    matrix = torch.randn(3, 13)
    assert resized(matrix, 1, (3, 4), (3, 4)) is matrix


@given(rows=SIDES, columns=SIDES, wanted_rows=SIDES, wanted_columns=SIDES, prefix=st.sampled_from([0, 1, 5]))
def test_constants_stay_and_the_prefix_is_untouched(
    rows: int, columns: int, wanted_rows: int, wanted_columns: int, prefix: int
) -> None:
    matrix = torch.ones(2, prefix + rows * columns)
    matrix[:, :prefix] = torch.randn(2, prefix)
    wanted = (wanted_rows, wanted_columns)
    other = resized(matrix, prefix, (rows, columns), wanted)
    assert other.shape == (2, prefix + wanted_rows * wanted_columns)
    assert torch.equal(other[:, :prefix], matrix[:, :prefix])
    torch.testing.assert_close(other[:, prefix:], torch.ones(2, wanted_rows * wanted_columns))
    summing = resized(matrix, prefix, (rows, columns), wanted, keeps_sums=True)
    torch.testing.assert_close(summing[:, prefix:].sum(dim=1), torch.full((2,), float(rows * columns)))


def test_a_slope_over_the_grid_stays_a_slope() -> None:
    slope = torch.arange(4.0).repeat(4, 1).reshape(1, 16)
    # Pixel centres at half distances, held at the borders.
    expected = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]).repeat(8, 1).reshape(1, 64)
    torch.testing.assert_close(resized(slope, 0, (4, 4), (8, 8)), expected)


def test_resizing_has_a_gradient() -> None:
    matrix = torch.randn(2, 17, requires_grad=True)
    resized(matrix, 1, (4, 4), (6, 3)).square().sum().backward()
    assert (matrix.grad.abs() > 0).any(dim=0).sum() > 12


@given(rows=SIDES, columns=SIDES, count=st.integers(1, 40))
def test_regions_cover_the_grid_and_are_means(rows: int, columns: int, count: int) -> None:
    found = regions((rows, columns), count)
    assert 1 <= len(found) <= min(count, rows * columns)
    assert (found >= 0).all()
    assert (found.sum(dim=0) > 0).all()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(len(found)))


def test_enough_regions_are_the_patches_themselves() -> None:
    assert torch.equal(regions((3, 4), 12), torch.eye(12))


@pytest.mark.parametrize(("grid", "count", "expected"), [((14, 14), 32, 30), ((8, 8), 10, 9), ((4, 6), 4, 4)])
def test_regions_are_nearly_square(grid: tuple[int, int], count: int, expected: int) -> None:
    assert len(regions(grid, count)) == expected


def test_columns_are_picked_for_each_image() -> None:
    matrix, indices = torch.randn(3, 6), torch.tensor([[0, 5, 2], [1, 1, 4]])
    picked = columns_at(matrix, indices)
    assert torch.equal(picked, torch.stack([matrix[:, row] for row in indices]))

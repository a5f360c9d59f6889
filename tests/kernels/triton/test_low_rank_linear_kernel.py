"""The kernel of a shared matrix with a residual against float64: Triton's interpreter on a CPU, compiled on a GPU."""

import pytest
import torch
from torch import Tensor

from tests.kernels.counting import Counting
from tests.kernels.triton.closeness import DEVICES, DTYPES, drawn, require_close, sizes_in_types
from vitslim.kernels.low_rank_linear import low_rank_linear, plain_low_rank_linear

pytest.importorskip("triton")
from vitslim.kernels.triton import low_rank_linear as kernel
from vitslim.kernels.triton.tuning import TILE_SIDES, Tiles

# (leading sizes, inner, columns, rank): rows that fill no tile, sizes that fill no vector, one row, one column, ranks
# below and above the least block, a visit longer than the inner axis and several visits.
SHAPES = [
    ((2, 17), 48, 144, 4),
    ((197,), 40, 33, 17),
    ((3, 1, 5), 7, 9, 7),
    ((1,), 300, 1, 1),
    ((1, 40), 130, 70, 100),
]
# One image of DeiT-S and of ViT-L: too much for an interpreter.
LARGE = [((1, 197), 384, 1536, 32), ((1, 197), 1536, 384, 32), ((1, 197), 1024, 4096, 85)]


def operands(shape: tuple[tuple[int, ...], int, int, int], dtype: torch.dtype, device: str) -> list[Tensor]:
    leading, inner, columns, rank = shape
    sizes = [((*leading, inner), 1.0), ((columns, inner), inner**-0.5), ((columns, rank), rank**-0.5)]
    sizes += [((rank, inner), inner**-0.5), ((columns,), 1.0)]
    return [
        drawn(*size, dtype=dtype, device=device, seed=seed, scale=scale) for seed, (size, scale) in enumerate(sizes)
    ]


@pytest.mark.parametrize(("shape", "dtype", "device"), sizes_in_types(SHAPES, LARGE))
def test_the_result_is_that_of_float64(
    shape: tuple[tuple[int, ...], int, int, int], dtype: torch.dtype, device: str
) -> None:
    parts = operands(shape, dtype, device)
    exact = [part.double() for part in parts]
    require_close(kernel.mapped(*parts, walked_again=True), plain_low_rank_linear(*exact))
    require_close(kernel.mapped(*parts[:4], None, walked_again=False), plain_low_rank_linear(*exact[:4], None))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sides", TILE_SIDES)
def test_however_the_result_is_cut_it_is_the_same(sides: tuple[int, int], device: str) -> None:
    parts = operands(((70,), 50, 130, 5), torch.float32, device)
    found = kernel.mapped(*parts, walked_again=True, tiles=Tiles(*sides, depth=16, warps=4, stages=2))
    require_close(found, plain_low_rank_linear(*(part.double() for part in parts)))


@pytest.mark.parametrize("device", DEVICES)
def test_rows_may_lie_apart(device: str) -> None:
    tokens, *matrices = operands(((2, 9), 24, 10, 3), torch.bfloat16, device)
    joined = torch.cat([tokens, tokens], dim=2)
    for apart in (joined[:, :, 24:], tokens.transpose(0, 1), tokens.transpose(1, 2).contiguous().transpose(1, 2)):
        assert not apart.is_contiguous()
        exact = plain_low_rank_linear(apart.double(), *(part.double() for part in matrices))
        require_close(kernel.mapped(apart, *matrices, walked_again=True), exact)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_the_op_are_those_of_float64(dtype: torch.dtype, device: str) -> None:
    parts = [part.requires_grad_() for part in operands(((2, 17), 48, 144, 4), dtype, device)]
    exact = [part.detach().double().requires_grad_() for part in parts]
    found, expected = torch.ops.vitslim.low_rank_linear(*parts, True), plain_low_rank_linear(*exact)
    # Plain forms round x W'ᵀ and the residual before they add them, and gradients x Aᵀ and g B.
    require_close(found, expected, roundings=4.0)
    grad = drawn(*found.shape, dtype=dtype, device=device, seed=9)
    for slope, wanted in zip(
        torch.autograd.grad(found, parts, grad), torch.autograd.grad(expected, exact, grad.double()), strict=True
    ):
        require_close(slope, wanted, roundings=4.0)


@pytest.mark.gpu
def test_a_gpu_is_served_by_the_kernel() -> None:
    parts = operands(((1, 197), 384, 384, 32), torch.bfloat16, "cuda")
    with Counting() as counting:
        found = low_rank_linear(*parts)
    assert counting.called == {"low_rank_linear"}
    require_close(found, plain_low_rank_linear(*(part.double() for part in parts)))


@pytest.mark.gpu
def test_the_kernel_can_be_recorded_into_a_cuda_graph() -> None:
    parts = operands(((1, 197), 384, 384, 32), torch.bfloat16, "cuda")
    expected = low_rank_linear(*parts)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = low_rank_linear(*parts)
    graph.replay()
    assert torch.equal(found, expected)

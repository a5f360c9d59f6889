"""The torch op of a shared matrix with a residual: what torch asks of it, when it is called, and what files hold."""

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.kernels.counting import Counting
from vitslim.kernels.low_rank_linear import LARGEST_RANK, MOST_PRODUCTS, low_rank_linear, plain_low_rank_linear
from vitslim.targets.quiet import captured

op = torch.ops.vitslim.low_rank_linear
module = importlib.import_module("vitslim.kernels.low_rank_linear")


def parts(*, bias: bool = True, grad: bool = False, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
    """Two images of three tokens 6 wide, mapped to 5 by a residual of rank 2."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 3, 6), (5, 6), (5, 2), (2, 6), (5,))
    drawn = [torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]
    drawn = [part.requires_grad_(grad) for part in drawn]
    return [*drawn[:4], drawn[4] if bias else None]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the op on a CPU too, where it computes the plain form."""
    monkeypatch.setattr(module, "kernels_serve", lambda _: True)


def test_the_map_is_that_of_the_sum() -> None:
    tokens, weight, up, down, bias = parts()
    expected = F.linear(tokens, weight + up @ down, bias)
    torch.testing.assert_close(low_rank_linear(tokens, weight, up, down, bias), expected)
    torch.testing.assert_close(op(tokens, weight, up, down, bias, True), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_differences(bias: bool) -> None:
    assert torch.autograd.gradcheck(op, (*parts(bias=bias, grad=True), True))


@pytest.mark.parametrize("leading", [(), (7,), (1, 2, 4)])
def test_gradients_have_the_form_of_what_they_are_of(leading: tuple[int, ...]) -> None:
    _, *matrices = parts(grad=True)
    tokens = torch.randn(*leading, 6, dtype=torch.float64, requires_grad=True)
    wanted = [tokens, *matrices]
    mapped, exact = op(tokens, *matrices, False), plain_low_rank_linear(tokens, *matrices)
    # A sum's gradient is one number, expanded.
    for found, expected in zip(
        torch.autograd.grad(mapped.sum(), wanted), torch.autograd.grad(exact.sum(), wanted), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_what_is_frozen_has_no_gradient() -> None:
    tokens, weight, up, down, bias = parts(grad=True)
    mapped = op(tokens.detach(), weight.detach(), up, down, bias.detach(), True)
    mapped.sum().backward()
    assert [part.grad is None for part in (tokens, weight, up, down, bias)] == [True, True, False, False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_that_of_a_linear_map(dtype: torch.dtype, served: None) -> None:
    given = parts(grad=True, dtype=torch.float32)
    with torch.autocast("cpu", dtype), Counting() as counting:
        mapped = low_rank_linear(*given)
        plain = plain_low_rank_linear(*given)
    assert counting.called == {"low_rank_linear"}
    assert mapped.dtype == plain.dtype == dtype
    torch.testing.assert_close(mapped, plain)
    for found, expected in zip(
        torch.autograd.grad(mapped.sum(), given), torch.autograd.grad(plain.sum(), given), strict=True
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * expected.abs().max().item())


def called(*given: Any) -> set[str]:
    with Counting() as counting:
        low_rank_linear(*given)
    return counting.called


def test_a_cpu_has_three_products() -> None:
    assert called(*parts()) == set()


@pytest.mark.usefixtures("served")
def test_many_rows_high_ranks_and_several_precisions_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, weight, up, down, bias = parts()
    assert called(tokens, weight, up, down, bias) == {"low_rank_linear"}
    high = torch.zeros(5, LARGEST_RANK + 1, dtype=torch.float64), torch.zeros(LARGEST_RANK + 1, 6, dtype=torch.float64)
    assert called(tokens, weight, *high, bias) == set()
    assert called(tokens, weight, up[:, :0], down[:0], bias) == set()
    with pytest.raises(RuntimeError, match="dtype"):
        low_rank_linear(tokens, weight.float(), up, down, bias)
    monkeypatch.setattr(module, "MOST_PRODUCTS", 6 * 6 * 5)
    assert called(tokens, weight, up, down, bias) == {"low_rank_linear"}
    monkeypatch.setattr(module, "MOST_PRODUCTS", 6 * 6 * 5 - 1)
    assert called(tokens, weight, up, down, bias) == set()


@pytest.mark.parametrize(("width", "rows"), [(384, 8 * 197), (768, 2 * 197), (1024, 197)])
def test_the_bound_holds_the_widest_map_of_a_few_images(width: int, rows: int) -> None:
    assert rows * width * 4 * width <= MOST_PRODUCTS < 3 * rows * width * 4 * width


@pytest.mark.compiled
@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_op_is_one_graph_forward_and_backward(dtype: torch.dtype | None) -> None:
    given = parts(grad=True, dtype=torch.float32)

    def mapped(*given: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            return low_rank_linear(*given, walked_again=True)

    expected = torch.autograd.grad(mapped(*given).square().sum(), given)
    found = torch.compile(mapped, fullgraph=True, backend="aot_eager")(*given)
    for slope, wanted in zip(torch.autograd.grad(found.square().sum(), given), expected, strict=True):
        torch.testing.assert_close(slope, wanted)


class Mapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        _, *matrices = parts(dtype=torch.float32)
        self.weight, self.up, self.down, self.bias = (nn.Parameter(part) for part in matrices)

    def forward(self, tokens: Tensor) -> Tensor:
        return low_rank_linear(tokens, self.weight, self.up, self.down, self.bias)


def test_a_file_has_three_products_and_their_sums(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    tokens = parts(dtype=torch.float32)[0]
    path = tmp_path / "map.onnx"
    with captured():
        torch.onnx.export(Mapped(), (tokens,), path, dynamo=True, verbose=False)
    nodes = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert nodes == {"MatMul": 3, "Add": 2}

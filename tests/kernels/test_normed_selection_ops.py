"""The torch op that norms tokens as it takes them apart: what torch asks of a custom op, and nn.LayerNorm's numbers."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.kernels.triton.closeness import require_close
from vitslim.kernels import normed_selection, token_selection
from vitslim.kernels.normed_selection import gather_split_normed
from vitslim.kernels.token_selection import gather_split

op = torch.ops.vitslim.gather_split_normed
TYPES = [torch.float32, torch.float16, torch.bfloat16]


def noise(*shape: int, seed: int = 0, grad: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(dtype).requires_grad_(grad)


def operands(grad: bool, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    first, second = (noise(2, rows, 3, seed=rows, grad=grad, dtype=dtype) for rows in (5, 2))
    weight, bias = (noise(3, seed=seed, grad=grad, dtype=dtype) for seed in (0, 1))
    return first, second, noise(2, 7, seed=9).argsort(dim=1), 3, weight, bias, 1e-2


def test_gradients_are_those_of_differences() -> None:
    assert torch.autograd.gradcheck(op, operands(grad=True))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setattr(token_selection, "kernels_serve", lambda _: True)
    return monkeypatch


@pytest.mark.parametrize("has_second", [False, True])
@pytest.mark.usefixtures("served")
def test_it_is_the_norm_of_what_comes_ahead_with_all_gradients(has_second: bool) -> None:
    norm = nn.LayerNorm(3, eps=1e-2, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    first, second, indices, ahead, *_ = operands(grad=True)
    first, second = (first, second) if has_second else (noise(2, 7, 3, grad=True), None)
    leaves = [part for part in (first, second, norm.weight, norm.bias) if part is not None]
    found = gather_split_normed(first, second, indices, ahead, norm.weight, norm.bias, norm.eps)
    active, inactive = gather_split(first, second, indices, ahead)
    expected = (active, inactive, norm(active))
    for part, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(part, wanted)
    losses = [sum((part * noise(*part.shape, seed=4)).sum() for part in parts) for parts in (found, expected)]
    gradients = [torch.autograd.grad(loss, leaves) for loss in losses]
    for part, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(part, wanted)


@pytest.mark.usefixtures("served")
def test_what_torch_norms_better_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *rest = operands(grad=False)
    *others, eps = rest
    assert gather_split_normed(first, second, *others, eps)[2] is not None
    # Rows of zeros in a kernel would be divided by zero.
    assert gather_split_normed(first, second, *others, 0.0)[2] is None
    indices, ahead, weight, bias = others
    assert gather_split_normed(first, second, indices, ahead, weight.float(), bias.float(), eps)[2] is None
    monkeypatch.setattr(normed_selection, "WIDEST", 2)
    left = gather_split_normed(first, second, *others, eps)
    assert left[2] is None
    assert all(map(torch.equal, left[:2], gather_split(first, second, indices, ahead)))


def test_without_a_kernel_nothing_is_normed() -> None:
    assert gather_split_normed(*operands(grad=False))[2] is None


@pytest.mark.compiled
@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(("grad", "has_second", "norms"), [(False, False, 0), (False, True, 1), (True, False, 1)])
def test_the_compiler_keeps_the_first_selection_of_an_inference(grad: bool, has_second: bool, norms: int) -> None:
    first, second, indices, ahead, *affine = operands(grad=grad, dtype=torch.float32)
    first, second = (first, second) if has_second else (noise(2, 7, 3, grad=grad, dtype=torch.float32), None)
    graphs: list[torch.fx.GraphModule] = []

    def kept(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def selected(first: Tensor) -> tuple[Tensor, ...]:
        return tuple(part for part in gather_split_normed(first, second, indices, ahead, *affine) if part is not None)

    torch.compiler.reset()
    with torch.set_grad_enabled(grad):
        found = torch.compile(selected, fullgraph=True, backend=kept)(first)
    assert len(found) == 2 + norms
    assert sum("gather_split_normed" in str(node.target) for node in graphs[0].graph.nodes) == norms


@pytest.fixture(params=[None, torch.float16, torch.bfloat16])
def autocast(request: pytest.FixtureRequest) -> Iterator[None]:
    """As ``torch.autocast`` does it, which without a GPU does nothing."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", request.param is not None)
    torch.set_autocast_dtype("cuda", request.param or before[1])
    yield
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


@pytest.mark.usefixtures("served", "autocast")
@pytest.mark.parametrize(("tokens", "parameters"), list(itertools.product(TYPES, TYPES)))
def test_the_norm_has_the_type_that_the_block_would_get(tokens: torch.dtype, parameters: torch.dtype) -> None:
    with FakeTensorMode():  # on a GPU that need not be there
        rows = torch.empty(2, 7, 3, dtype=tokens, device="cuda")
        norm = nn.LayerNorm(3, dtype=parameters, device="cuda")
        indices = torch.empty(2, 7, dtype=torch.int64, device="cuda")
        normed = gather_split_normed(rows, None, indices, 4, norm.weight, norm.bias, norm.eps)[2]
        # Parameters in another type than the norm's output are torch's to widen, or to refuse.
        given = torch.float32 if torch.is_autocast_enabled("cuda") else tokens
        assert (normed is not None) == (parameters == given)
        if normed is not None:
            assert normed.dtype == norm(rows).dtype


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "autocast"), [*((one, None) for one in TYPES), *((one, one) for one in TYPES[1:])])
@pytest.mark.parametrize("grad", [False, True])
def test_on_a_gpu_it_agrees_with_the_module(dtype: torch.dtype, autocast: torch.dtype | None, grad: bool) -> None:
    norm = nn.LayerNorm(384, eps=1e-6, device="cuda", dtype=dtype if autocast is None else torch.float32)
    nn.init.normal_(norm.weight)
    rows = noise(4, 197, 384, dtype=dtype).to("cuda").requires_grad_(grad)
    indices = noise(4, 197, seed=1).argsort(dim=1).to("cuda")
    with torch.autocast("cuda", autocast, enabled=autocast is not None), torch.set_grad_enabled(grad):
        active, _, normed = gather_split_normed(rows, None, indices, 99, norm.weight, norm.bias, norm.eps)
        expected = norm(active.detach())
    assert normed is not None
    assert normed.dtype == expected.dtype
    exact = copy_in_float64(norm)(active.detach().double())
    require_close(normed.detach(), exact)
    if grad:
        upstream = noise(*normed.shape, seed=2, dtype=normed.dtype).to("cuda")
        normed.backward(upstream)
        twin = rows.detach().double().requires_grad_()
        copy_in_float64(norm)(gather_split(twin, None, indices, 99)[0]).backward(upstream.double())
        require_close(rows.grad, twin.grad)


def copy_in_float64(norm: nn.LayerNorm) -> nn.LayerNorm:
    copied = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, device=norm.weight.device, dtype=torch.float64)
    copied.load_state_dict(norm.state_dict())
    return copied

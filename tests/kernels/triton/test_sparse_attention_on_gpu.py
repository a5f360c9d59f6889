"""Sparse attention on a GPU: real sizes, autograd, autocast, torch.compile, CUDA graphs, whole models."""

import copy

import pytest
import torch
from torch import Tensor

from tests.kernels.triton.closeness import DTYPES, drawn, require_close
from tests.variants import dense, images_for
from vitslim.kernels import kept_keys, sparse_attention
from vitslim.methods import convert

pytestmark = pytest.mark.gpu

SCALE = 0.125
SIZES = [(197, 64), (577, 64), (1025, 48), (1025, 128)]


def operands(tokens: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    joined = drawn(2, tokens, 3, 3, width, dtype=dtype, device="cuda").permute(2, 0, 3, 1, 4)
    return [part.detach().requires_grad_() for part in joined.unbind(0)]


def guess(tokens: int, directions: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    coefficients = torch.rand(2, 3, tokens - 1, directions, generator=generator).softmax(dim=-1)
    return coefficients.cuda(), torch.rand(directions, tokens, generator=generator).cuda()


def run(attention, parts: list[Tensor], weight: Tensor) -> list[Tensor]:
    mixed = attention(*parts)
    return [mixed.detach(), *torch.autograd.grad((mixed * weight).sum(), parts)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width"), SIZES)
@pytest.mark.parametrize("tile", [1, 64])
def test_it_agrees_with_the_reference_in_float64(tokens: int, width: int, tile: int, dtype: torch.dtype) -> None:
    parts, (coefficients, basis) = operands(tokens, width, dtype), guess(tokens)
    kept = kept_keys(coefficients, basis, top=8, keys=tokens // 4, tile=tile, prefix=1)
    how = {"tile": tile, "prefix": 1, "scale": SCALE}
    weight = drawn(2, 3, tokens, width, dtype=dtype, device="cuda", seed=2)
    found = run(lambda *qkv: sparse_attention(*qkv, kept, **how), parts, weight)
    exact = [part.detach().cpu().double().requires_grad_() for part in parts]
    expected = run(lambda *qkv: sparse_attention(*qkv, kept.cpu(), **how), exact, weight.cpu().double())
    for one, other in zip(found, expected, strict=True):
        require_close(one, other, roundings=4.0)


def choose_and_attend(query: Tensor, key: Tensor, value: Tensor, coefficients: Tensor, basis: Tensor) -> Tensor:
    kept = kept_keys(coefficients, basis, tile=64, top=8, keys=144, prefix=1)
    return sparse_attention(query, key, value, kept, tile=64, prefix=1, scale=SCALE)


def test_a_cuda_graph_replays_on_new_inputs() -> None:
    inputs = [part.detach() for part in (*operands(577, 64, torch.float16), *guess(577))]
    choose_and_attend(*inputs)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = choose_and_attend(*inputs)
    for part in inputs:
        part.copy_(part.flip(0).clone())
    graph.replay()
    assert torch.equal(captured, choose_and_attend(*inputs))


@pytest.mark.compiled
def test_the_compiler_takes_forward_and_backward_whole() -> None:
    weight = drawn(2, 3, 577, 64, dtype=torch.float16, device="cuda", seed=2)
    parts, chosen = operands(577, 64, torch.float16), guess(577)
    plain = run(lambda *qkv: choose_and_attend(*qkv, *chosen), parts, weight)
    whole = torch.compile(choose_and_attend, fullgraph=True)
    for one, other in zip(run(lambda *qkv: whole(*qkv, *chosen), parts, weight), plain, strict=True):
        require_close(one, other)


@pytest.mark.parametrize("options", [{"granularity": "query"}, {"granularity": "tile", "tile": 16}])
def test_a_model_gives_what_it_gives_on_a_cpu(options: dict) -> None:
    model = convert(dense("vit_oblong"), "sparsifiner", keep_rate=0.4, n_down=5, **options).eval()
    images = images_for(model)
    on_gpu = copy.deepcopy(model).cuda()
    with torch.no_grad():
        torch.testing.assert_close(on_gpu(images.cuda()).cpu(), model(images), rtol=1e-3, atol=1e-4)
        with torch.autocast("cuda", torch.bfloat16):
            assert on_gpu(images.cuda()).isfinite().all()

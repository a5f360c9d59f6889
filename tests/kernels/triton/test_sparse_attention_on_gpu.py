"""The ops of sparse attention on a GPU: real sizes, autograd, autocast, torch.compile, CUDA graphs, whole models."""

import copy

import pytest
import torch
from torch import Tensor

from tests.kernels.counting import Counting
from tests.kernels.triton.closeness import DTYPES, drawn, require_close
from tests.variants import dense, images_for
from vitslim.kernels import bit_attention, kept_bits, kept_keys, sparse_attention
from vitslim.kernels.key_bits import bits_of_keys, unpacked_bits
from vitslim.kernels.sparse_attention import topk_keys
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
def test_ops_agree_with_the_reference_in_float64(tokens: int, width: int, tile: int, dtype: torch.dtype) -> None:
    parts, (coefficients, basis) = operands(tokens, width, dtype), guess(tokens)
    kept = kept_keys(coefficients, basis, top=8, keys=tokens // 4, tile=tile, prefix=1)
    how = {"tile": tile, "prefix": 1, "scale": SCALE}
    weight = drawn(2, 3, tokens, width, dtype=dtype, device="cuda", seed=2)
    if tile == 1:
        found = run(lambda *qkv: bit_attention(*qkv, bits_of_keys(kept, tokens), **how), parts, weight)
    else:
        found = run(lambda *qkv: sparse_attention(*qkv, kept, **how), parts, weight)
    exact = [part.detach().cpu().double().requires_grad_() for part in parts]
    expected = run(lambda *qkv: sparse_attention(*qkv, kept.cpu(), **how), exact, weight.cpu().double())
    for one, other in zip(found, expected, strict=True):
        require_close(one, other, roundings=4.0)


@pytest.mark.parametrize(("tokens", "directions"), [(197, 32), (577, 96), (1025, 170), (4097, 682)])
@pytest.mark.parametrize("tile", [1, 64])
def test_the_choice_of_keys_on_exact_scores_is_the_reference_s(tokens: int, directions: int, tile: int) -> None:
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.randint(0, 6, (1, 2, 100, directions), generator=generator).cuda() / 8
    basis = torch.randint(0, 4, (directions, tokens), generator=generator).cuda() / 4
    expected = topk_keys(coefficients, basis, 8, tokens // 4, tile, 1).sort(dim=-1).values
    how = {"top": 8, "keys": tokens // 4, "tile": tile, "prefix": 1}
    assert torch.equal(kept_keys(coefficients, basis, **how).sort(dim=-1).values, expected)
    assert torch.equal(kept_bits(coefficients, basis, **how), bits_of_keys(expected, tokens))


def test_the_choice_of_keys_on_random_scores_differs_in_near_equals_alone() -> None:
    coefficients, basis = guess(577)
    bits = kept_bits(coefficients, basis, top=8, keys=144, tile=1, prefix=1)
    assert (unpacked_bits(bits, 577).sum(dim=-1) == 144).all()
    expected = bits_of_keys(topk_keys(coefficients, basis, 8, 144, 1, 1), 577)
    differing = unpacked_bits(bits ^ expected, 577).float().mean()
    assert differing < 1e-4


def choose_and_attend(query: Tensor, key: Tensor, value: Tensor, coefficients: Tensor, basis: Tensor) -> Tensor:
    how = {"top": 8, "keys": 144, "prefix": 1}
    bits = kept_bits(coefficients, basis, tile=1, **how)
    mixed = bit_attention(query, key, value, bits, tile=1, prefix=1, scale=SCALE)
    kept = kept_keys(coefficients, basis, tile=64, **how)
    return mixed + sparse_attention(query, key, value, kept, tile=64, prefix=1, scale=SCALE)


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


@pytest.mark.parametrize("options", [{"granularity": "query"}, {"granularity": "tile", "tile": 4}])
def test_a_model_goes_through_the_kernels_and_gives_what_it_gives_on_a_cpu(options: dict) -> None:
    model = convert(dense("vit_plain"), "sparsifiner", keep_rate=0.4, n_down=5, **options).eval()
    images = images_for(model)
    on_gpu = copy.deepcopy(model).cuda()
    with torch.no_grad(), Counting() as counting:
        logits = on_gpu(images.cuda())
    assert "bit_attention" in counting.called
    with torch.no_grad():
        torch.testing.assert_close(logits.cpu(), model(images), rtol=1e-3, atol=1e-4)
        with torch.autocast("cuda", torch.bfloat16):
            assert on_gpu(images.cuda()).isfinite().all()

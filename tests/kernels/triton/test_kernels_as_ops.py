"""What the kernels give lies in memory as the ops' fake forms tell the compiler, which relies on it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.kernels.on_kernels import FORMS_ON_GPU, form_on_gpu, through_ops
from tests.kernels.triton.closeness import DEVICES, drawn
from vitslim.kernels.key_bits import bits_of_keys

pytest.importorskip("triton")

ops = torch.ops.vitslim
LINEAR = ((36, 20), (36, 3), (3, 20))


def joined(parts: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Queries, keys, values of a joined projection, and gradients that lie as the outputs do."""
    return list(drawn(2, 17, parts, 3, 16, dtype=dtype, device=device).permute(2, 0, 3, 1, 4).unbind(0))


def operands(name: str, dtype: torch.dtype, device: str) -> tuple[Any, ...]:
    query, key, value, grad = joined(4, dtype, device)
    coefficients = torch.rand(2, 3, 15, 4, generator=torch.Generator().manual_seed(0)).to(device)
    basis = torch.rand(4, 17, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    kept = torch.rand(2, 3, 4, 17, generator=torch.Generator().manual_seed(2)).topk(5, dim=-1).indices.to(device)
    bits, wide = bits_of_keys(kept, 17), drawn(2, 11, 24, dtype=dtype, device=device)
    rows = wide[:, :, :20]
    places = torch.rand(2, 11, generator=torch.Generator().manual_seed(3)).argsort(dim=1).to(device)
    convolution = (drawn(20, 1, 3, 3, dtype=torch.float32, device=device), drawn(20, dtype=dtype, device=device), 2, 5)
    # LayerNorm under autocast: float32, whatever the tokens are.
    norm = [drawn(20, dtype=torch.float32, device=device, seed=seed) for seed in (4, 5)]
    norms, dense = drawn(2, 4, 20, dtype=torch.float32, device=device), drawn(2, 4, 20, dtype=dtype, device=device)
    sums = torch.zeros(2, 3, 17, device=device)
    return {
        "kept_bits": (coefficients, basis, 2, 6, 1, 2),
        "kept_keys": (coefficients.transpose(1, 2).contiguous().transpose(1, 2), basis, 2, 6, 4, 2),
        "bit_attention": (query, key, value, bits, 4, 2, 0.3),
        "tile_attention": (query, key, value, kept, 4, 2, 0.3),
        "bit_attention_backward": (grad, query, key, value, bits, value, sums, 4, 2, 0.3),
        "depthwise_gelu": (rows, *convolution),
        "depthwise_gelu_backward": (rows[:, 1:], rows, *convolution),
        "channel_attention": (rows[:, :1], rows[:, 1:], drawn(1, 1, 3, dtype=dtype, device=device), rows[:, 1:]),
        "token_sums": (rows, wide[:, :, 4:]),
        "low_rank_linear": (rows, *(drawn(*shape, dtype=dtype, device=device) for shape in LINEAR), None, True),
        "class_row": (query[:, :, :1], key, 0.3),
        "ranked": (wide[:, :, 0], 1),
        "taken_apart": (rows[:, :7], rows[:, 7:], places, 4),
        "put_back": (rows[:, :7], rows[:, 7:], places, 4),
        "taken_apart_normed": (rows[:, :7], rows[:, 7:], places, 4, *norm, 1e-6),
        "taken_apart_normed_backward": (rows[:, :4], rows[:, 4:], norms, dense, places, norm[0], 1e-6, 7),
    }[name]


def layouts(found: Tensor | tuple[Tensor, ...]) -> list[tuple[Any, ...]]:
    parts = [found] if isinstance(found, Tensor) else found
    return [(part.shape, part.stride(), part.dtype) for part in parts]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMS_ON_GPU)
def test_the_compiler_is_told_how_results_lie(
    name: str, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    through_ops(monkeypatch)
    given = operands(name, dtype, device)
    before = [part.clone() if isinstance(part, Tensor) else part for part in given]
    found = layouts(form_on_gpu(name)(*given))
    with FakeTensorMode() as mode:
        unreal = [mode.from_tensor(part) if isinstance(part, Tensor) else part for part in given]
        assert found == layouts(getattr(ops, name)(*unreal))
    for part, kept in zip(given, before, strict=True):
        assert torch.equal(part, kept) if isinstance(part, Tensor) else part == kept

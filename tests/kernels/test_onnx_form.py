"""The ops spelled out in ONNX compute what the reference computes, in onnxruntime."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vitslim.kernels import kept_keys, onnx_forms, sparse_attention
from vitslim.targets.quiet import captured

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


class Chosen(nn.Module):
    """Choose keys and attend to them."""

    def __init__(self, tile: int, prefix: int, always: int, top: int) -> None:
        super().__init__()
        self.tile, self.prefix, self.always, self.top = tile, prefix, always, top

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, coefficients: Tensor, basis: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        kept = kept_keys(coefficients, basis, top=self.top, keys=6, tile=self.tile, prefix=self.always)
        settings = {"tile": self.tile, "prefix": self.prefix, "scale": 0.3}
        return sparse_attention(query, key, value, kept, bias=bias, **settings), kept


def operands(batch: int, prefix: int, *, bias: bool, own_basis: bool, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)
    tokens = 15 + prefix
    parts = [torch.randn(batch, 3, tokens, 8, generator=generator) for _ in range(3)]
    parts.append(torch.rand(batch, 3, 15, 5, generator=generator))
    parts.append(torch.rand(batch, 5, tokens, generator=generator) if own_basis else torch.rand(5, tokens))
    if bias:
        parts.append(torch.randn(1, 3, tokens, tokens, generator=generator))
    return tuple(part.to(dtype) for part in parts)


@pytest.mark.parametrize(
    ("tile", "prefix", "always", "top", "bias", "own_basis", "dtype"),
    [
        (1, 0, 0, 9, True, True, torch.float32),
        (4, 2, 0, 3, True, False, torch.float32),
        (5, 1, 1, 3, False, True, torch.float16),
        pytest.param(1, 1, 1, 3, False, False, torch.float32, marks=pytest.mark.slow),
        pytest.param(1, 1, 0, 3, False, False, torch.float32, marks=pytest.mark.slow),
        pytest.param(4, 2, 2, 3, True, False, torch.float32, marks=pytest.mark.slow),
        (15, 2, 2, 3, True, False, torch.float32),
        pytest.param(15, 2, 0, 3, True, False, torch.float32, marks=pytest.mark.slow),
    ],
)
def test_onnxruntime_computes_the_same_at_any_batch(
    tmp_path: Path, tile: int, prefix: int, always: int, top: int, bias: bool, own_basis: bool, dtype: torch.dtype
) -> None:
    model = Chosen(tile, prefix, always, top).eval()
    options = {"bias": bias, "own_basis": own_basis, "dtype": dtype}
    example = operands(2, prefix, **options)
    batch = torch.export.Dim("batch")
    moving = [{0: batch}] * 4 + [{0: batch} if own_basis else {}] + [{}] * bias
    names = ["query", "key", "value", "coefficients", "basis", "bias"][: len(example)]
    with captured():
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            opset_version=20,
            input_names=names,
            dynamic_shapes=tuple(moving),
            custom_translation_table=dict(onnx_forms()),
            verbose=False,
        )
        program.save(tmp_path / "ops.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "ops.onnx", providers=["CPUExecutionProvider"])
    for size in (1, 2, 3):
        given = operands(size, prefix, **options)
        given = (*given[:4], example[4], *given[5:]) if not own_basis else given
        mixed, kept = session.run(None, {name: part.numpy() for name, part in zip(names, given, strict=True)})
        expected, chosen = model(*given)
        assert torch.equal(torch.from_numpy(kept), chosen)
        # float16 keeps 11 bits; the sums over 17 keys are of unit size.
        close = {"atol": 5e-3, "rtol": 5e-3} if dtype == torch.float16 else {"atol": 1e-5, "rtol": 1e-4}
        torch.testing.assert_close(torch.from_numpy(mixed), expected, **close)


class Attending(nn.Module):
    def __init__(self, tile: int) -> None:
        super().__init__()
        self.tile = tile

    def forward(self, query: Tensor, key: Tensor, value: Tensor, kept: Tensor) -> Tensor:
        return sparse_attention(query, key, value, kept, tile=self.tile, prefix=1, scale=0.3)


@pytest.mark.parametrize(
    ("width", "tile", "is_node"), [(128, 16, True), (136, 16, False), (60, 16, False), (64, 15, False)]
)
def test_what_has_no_kernel_is_written_out(tmp_path: Path, width: int, tile: int, is_node: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 2, 29, width, generator=generator) for _ in range(3)]
    kept = torch.randint(0, 29, (2, 2, 2, 1), generator=generator)
    kept = torch.cat([kept, (kept + 1) % 29, (kept + 3) % 29], dim=3)
    attending = Attending(tile)
    with captured():
        program = torch.onnx.export(
            attending,
            (*parts, kept),
            dynamo=True,
            opset_version=20,
            input_names=["query", "key", "value", "kept"],
            custom_translation_table=dict(onnx_forms(nodes=True)),
            verbose=False,
        )
    written = {node.op_type for node in program.model_proto.graph.node}
    assert ("SparseAttention" in written, "ScatterElements" in written) == (is_node, not is_node)
    if not is_node:
        program.save(tmp_path / "ops.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "ops.onnx", providers=["CPUExecutionProvider"])
        names = ("query", "key", "value", "kept")
        given = {name: part.numpy() for name, part in zip(names, (*parts, kept), strict=True)}
        torch.testing.assert_close(torch.from_numpy(session.run(None, given)[0]), attending(*parts, kept))

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.variants import ALL, dense, images_for
from vitslim.models import adapter_for
from vitslim.models.trace import DenseTrace, trace
from vitslim.trunk import BoundBlock, DenseAttention, Stream

# Two orders of summation in float32 over rows of unit scale.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    # torch takes another attention kernel once a relative position bias wants a gradient.
    with torch.no_grad():
        yield


@pytest.fixture(params=ALL)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return dense(request.param)


@pytest.fixture
def seen(model: nn.Module) -> DenseTrace:
    return trace(model, images_for(model), attention=True)


def steps(seen: DenseTrace) -> list[tuple[BoundBlock, Tensor, dict]]:
    return [
        (BoundBlock(seen.adapter, block), tokens, dict(context))
        for block, tokens, context in zip(seen.blocks, seen.block_inputs, seen.contexts, strict=True)
    ]


def slow_softmax(bound: BoundBlock, attention_input: Tensor, context: dict) -> tuple[Tensor, Tensor]:
    """All rows of the attention, and the values they mix."""
    query, key, value = bound.queries_keys_values(attention_input, context)
    scores = torch.einsum("bhie,bhje->bhij", query, key) * bound.scale
    bias = bound.attention_bias(context, key.shape[2])
    return (scores if bias is None else scores + bias).softmax(dim=-1), value


def test_the_functions_in_a_row_are_the_block(seen: DenseTrace) -> None:
    for (bound, tokens, context), expected in zip(steps(seen), seen.block_outputs, strict=True):
        z = bound.attend(bound.attention_input(tokens), context)
        assert torch.equal(bound.add_mlp(bound.add_attention(tokens, z)), expected)


def test_the_trace_holds_what_the_attention_read_and_gave(model: nn.Module, seen: DenseTrace) -> None:
    assert len(seen.z) == len(seen.block_inputs) == len(seen.class_attention) == len(model.blocks)
    for index, (bound, tokens, context) in enumerate(steps(seen)):
        assert torch.equal(seen.attention_inputs[index], bound.attention_input(tokens))
        assert torch.equal(seen.z[index], bound.attend(seen.attention_inputs[index], context))
        assert tokens.shape == (2, seen.layout.tokens, model.embed_dim)
    assert torch.equal(seen.logits, model(images_for(model)))
    assert torch.equal(seen.features, model.forward_features(images_for(model)))


def test_attention_from_its_operands_equals_the_module(seen: DenseTrace) -> None:
    for index, (bound, tokens, context) in enumerate(steps(seen)):
        attention_input = bound.attention_input(tokens)
        rows, value = slow_softmax(bound, attention_input, context)
        torch.testing.assert_close(bound.merge_heads(attention_input, rows @ value), seen.z[index], **CLOSE)


def test_class_attention_is_the_row_of_a_slow_softmax(seen: DenseTrace) -> None:
    for index, (bound, tokens, context) in enumerate(steps(seen)):
        row = seen.class_attention[index]
        assert row.shape == (2, int(bound.block.attn.num_heads), seen.layout.tokens)
        torch.testing.assert_close(row.sum(dim=-1), torch.ones(row.shape[:2]))
        torch.testing.assert_close(row, slow_class_row(bound, bound.attention_input(tokens), context), **CLOSE)


def slow_class_row(bound: BoundBlock, attention_input: Tensor, context: dict) -> Tensor:
    if bound.adapter.has_class_token:
        return slow_softmax(bound, attention_input, context)[0][:, :, 0]
    query, key, _ = bound.queries_keys_values(attention_input, context)
    mean_query = query[:, :, bound.adapter.prefix :].mean(dim=2)
    scores = torch.einsum("bhe,bhje->bhj", mean_query, key) * bound.scale
    assert bound.attention_bias(context, key.shape[2]) is None
    return scores.softmax(dim=-1)


def test_dense_attention_gives_the_same_z_when_class_attention_is_wanted(seen: DenseTrace) -> None:
    attention = DenseAttention()
    for index, (bound, tokens, context) in enumerate(steps(seen)):
        stream = Stream(layout=seen.layout, context=context)
        plain, after_plain = attention(bound, tokens, stream)
        wanted, after_wanted = attention(
            bound, tokens, Stream(layout=seen.layout, context=context, wants_class_attention=True)
        )
        assert torch.equal(plain, seen.z[index])
        assert after_plain.class_attention is None
        assert after_wanted.z is wanted
        torch.testing.assert_close(wanted, plain, **CLOSE)
        torch.testing.assert_close(after_wanted.class_attention, seen.class_attention[index], **CLOSE)


@pytest.mark.parametrize("name", ["vit_plain", "vit_registers_without_class_token", "eva_rotary", "eva_post_norm"])
@pytest.mark.parametrize("kind", ["float", "bool", "keys alone", "causal"])
def test_masks_enter_the_class_row_as_they_enter_the_attention(name: str, kind: str) -> None:
    model = dense(name)
    adapter, count = adapter_for(model), trace(model, images_for(model)).layout.tokens
    context = {**trace(model, images_for(model)).contexts[0], **mask_of(kind, count)}
    bound = BoundBlock(adapter, model.blocks[0])
    read = bound.attention_input(trace(model, images_for(model)).block_inputs[0])
    rows, value = slow_softmax(bound, read, context)
    torch.testing.assert_close(bound.merge_heads(read, rows @ value), bound.attend(read, context), **CLOSE)
    row = adapter.class_attention(bound.block, read, context)
    torch.testing.assert_close(row.sum(dim=-1), torch.ones(row.shape[:2]))
    if adapter.has_class_token:
        torch.testing.assert_close(row, rows[:, :, 0], **CLOSE)
    elif kind == "keys alone":
        assert torch.equal(row[..., ::3], torch.zeros_like(row[..., ::3]))


def mask_of(kind: str, count: int) -> dict:
    if kind == "causal":
        return {"is_causal": True, "attn_mask": None}
    if kind == "keys alone":
        return {"is_causal": False, "attn_mask": (torch.arange(count) % 3 != 0).expand(2, 1, 1, count)}
    scores = torch.randn(count, count, generator=torch.Generator().manual_seed(0))
    # Nobody may be left without any key.
    return {"is_causal": False, "attn_mask": scores if kind == "float" else (scores > 0) | torch.eye(count).bool()}


def test_class_attention_is_computed_in_float32_whatever_the_model(seen: DenseTrace) -> None:
    bound, tokens, context = steps(seen)[0]
    row = seen.adapter.class_attention(bound.block, bound.attention_input(tokens), context)
    assert row.dtype == tokens.dtype


def test_a_trace_differentiates_nothing_unless_asked() -> None:
    model = dense("vit_plain")
    assert not trace(model, images_for(model)).logits.requires_grad
    assert trace(model, images_for(model), grad=True).logits.requires_grad


def test_a_trace_leaves_no_hooks_behind() -> None:
    model = dense("vit_plain")
    trace(model, images_for(model), attention=True)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    with pytest.raises(RuntimeError):
        trace(model, torch.randn(2, 5, 32, 32))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())

"""Sliced attention inside converted models."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.variants import CHARACTERISTIC, dense, images_for
from vitslim.errors import ConfigError
from vitslim.kernels import seeded_permutation, sliced_mask
from vitslim.methods import convert
from vitslim.methods.slices import SlicedAttention, token_order
from vitslim.models import TokenLayout, adapter_for, trace
from vitslim.trunk import BoundBlock, DenseAttention, Stream, plan_of, trunk_of

# Two orders of summation in float32 over rows of unit scale.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def slow_slices(bound: BoundBlock, attention: SlicedAttention, tokens: Tensor, stream: Stream) -> Tensor:
    """Dense attention, the slices as a mask between tokens in natural order."""
    layout, count = stream.layout, stream.layout.tokens
    order = torch.arange(count) if attention.seed is None else torch.tensor(token_order(layout, attention.seed))
    place = order.argsort()
    mask = sliced_mask(count, attention.groups, prefix=layout.prefix)[place][:, place]
    read = bound.attention_input(tokens)
    query, key, value = bound.queries_keys_values(read, stream.context)
    scores = torch.einsum("bhie,bhje->bhij", query, key) * bound.scale
    bias = bound.attention_bias(stream.context, count)
    scores = scores if bias is None else scores + bias
    return bound.merge_heads(read, scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value)


@pytest.mark.parametrize("name", CHARACTERISTIC)
@pytest.mark.parametrize("seed", [None, 3])
@torch.no_grad()
def test_slices_equal_masked_attention_on_every_kind_of_block(name: str, seed: int | None) -> None:
    model = dense(name)
    found = trace(model, images_for(model))
    bound = BoundBlock(adapter_for(model), model.blocks[1])
    stream = Stream(layout=found.layout, context=found.contexts[1], wants_class_attention=True)
    attention, tokens = SlicedAttention(4, found.layout, seed), found.block_inputs[1]
    z, after = attention(bound, tokens, stream)
    torch.testing.assert_close(z, slow_slices(bound, attention, tokens, stream), **CLOSE)
    assert after.z is z
    # The class row reads all keys, as it does in the dense block.
    _, whole = DenseAttention()(bound, tokens, stream)
    torch.testing.assert_close(after.class_attention, whole.class_attention)
    single, _ = SlicedAttention(1, found.layout, seed)(bound, tokens, stream)
    torch.testing.assert_close(single, found.z[1], **CLOSE)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_the_prefix_stays_in_front(prefix: int) -> None:
    order = token_order(TokenLayout(prefix, (4, 5)), seed=1)
    assert order[:prefix] == list(range(prefix))
    assert order[prefix:] == [prefix + place for place in seeded_permutation(20, 1)]


def attentions(model: nn.Module) -> list[str]:
    return [step.attention.describe() for step in plan_of(model).steps]


def test_the_first_application_of_a_group_is_cut_in_raster_order_the_others_permuted() -> None:
    model = convert(dense("vit_plain"), "sret", groups=((0, 1), (2, 3)), slices=(4, 2))
    assert attentions(model) == ["4 slices, raster order", "2 slices, permuted"] * 2
    model = convert(dense("vit_plain"), "sret", slices=4, recursions=2)
    assert attentions(model) == ["dense", "4 slices, raster order", *["4 slices, permuted"] * 3, "dense"]
    orders = [step.attention.order.tolist() for step in list(trunk_of(model).steps)[2:5]]
    assert orders[0] != orders[1] != orders[2]
    assert attentions(convert(dense("vit_plain"), "sret", slices=(1, 4)))[1:3] == ["dense", "4 slices, permuted"]


def test_the_seed_decides_and_is_no_part_of_the_state() -> None:
    images = images_for(dense("vit_plain"))
    one, same, other = (convert(dense("vit_plain"), "sret", slices=4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one(images), same(images))
    assert not torch.equal(one(images), other(images))
    assert not [name for name in one.state_dict() if "order" in name or "inverse" in name]


@torch.no_grad()
def test_fewer_scores_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, scores = convert(dense("vit_four_registers"), "sret", slices=(4, 2)), []
    fused = F.scaled_dot_product_attention

    def counted(query: Tensor, key: Tensor, value: Tensor, **options: object) -> Tensor:
        scores.append(query.shape[1] * query.shape[2] * key.shape[2])
        return fused(query, key, value, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    model(images_for(model))
    heads, prefix, patches, n = 3, 5, 16, 21
    sliced = [[heads * patches * (prefix + patches // groups), heads * prefix * n] for groups in (4, 2)]
    assert scores == [heads * n * n, *sliced[0], *sliced[1], heads * n * n]


@torch.no_grad()
def test_other_image_sizes_get_their_own_permutation() -> None:
    model = convert(dense("vit_dynamic_size"), "sret", slices=(2, 4))
    assert model(torch.randn(1, 3, 48, 48)).isfinite().all()
    resized = copy.deepcopy(model)
    resized.set_input_size((32, 64))
    assert resized(torch.randn(1, 3, 32, 64)).isfinite().all()
    with pytest.raises(ConfigError, match="5×5 patches cannot be cut into 2 equal slices; choose another image size"):
        model(torch.randn(1, 3, 40, 40))


def test_attention_dropout_is_drawn_in_training_alone() -> None:
    model = copy.deepcopy(dense("vit_plain"))
    for block in model.blocks:
        block.attn.attn_drop.p = 0.5
    model = convert(model, "sret", slices=4)
    images = images_for(model)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))

"""The mathematics of Sparsifiner; what holds for every method is proven in tests/properties."""

import copy
import itertools
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.variants import SIZE, dense, images_for, lively_
from vitslim.checkpoint import load, save
from vitslim.errors import ConfigError
from vitslim.kernels.connectivity import ConnectivityPredictor
from vitslim.methods import convert
from vitslim.methods.sparsifiner import Sparse, SparseAttention, phase_parameters
from vitslim.models import TokenLayout, trace
from vitslim.models.trace import DenseTrace
from vitslim.plans import check
from vitslim.trunk import BoundBlock, Stream, plan_of, trunk_of

# Two orders of summation in float32 over rows of unit scale.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}

MODELS = ["vit_plain", "vit_four_registers", "vit_no_class_token", "eva_mixed_rotary", "beit_both_biases"]


def sparse(name: str = "vit_plain", **options: object) -> nn.Module:
    """A converted variant whose predictor has weights that all matter."""
    model = convert(dense(name), "sparsifiner", **{"keep_rate": 0.4, "n_down": 5, **options})
    lively_(nn.ParameterList(trunk_of(model).new_parameters().values()))
    return model


def block_of(seen: DenseTrace, index: int) -> BoundBlock:
    return BoundBlock(seen.adapter, seen.blocks[index])


def slow_scores(attention: SparseAttention, query: Tensor, key: Tensor, prefix: int) -> Tensor:
    """Ã of the patch queries in the order of the paper's equations, as it is when keys are chosen."""
    predictor, rule = attention.predictor, attention.choice
    narrow_query = F.linear(query[:, :, prefix:], predictor.query.weight, predictor.query.bias)
    narrow_key = F.linear(key, predictor.key.weight, predictor.key.bias)
    summed = torch.einsum("mn,bhnc->bhmc", predictor.down, narrow_key)
    coefficients = (torch.einsum("bhpc,bhmc->bhpm", narrow_query, summed) * predictor.scale).softmax(dim=-1)
    weakest = coefficients.argsort(dim=-1)[..., : max(0, coefficients.shape[-1] - rule.coefficients)]
    basis = predictor.basis.abs()
    basis = basis * (basis > rule.basis_threshold)
    return coefficients.scatter(-1, weakest, 0.0) @ basis


def slow_z(bound: BoundBlock, attention: SparseAttention, read: Tensor, context: dict, layout: TokenLayout) -> Tensor:
    """Dense attention with a mask made row by row."""
    prefix, keys = layout.prefix, attention.choice.keys(layout.prefix, layout.patches)
    query, key, value = bound.queries_keys_values(read, context)
    scores = slow_scores(attention, query, key, prefix)
    tile = attention.choice.queries(layout.patches)
    mask = torch.zeros(*query.shape[:3], layout.tokens, dtype=torch.bool)
    mask[:, :, :prefix] = True
    always = prefix if attention.choice.prefix_keys == "kept" else 0
    mask[..., :always] = True
    for b, h, row in itertools.product(range(query.shape[0]), range(query.shape[1]), range(layout.patches)):
        first = row // tile * tile
        shared = scores[b, h, first : first + tile].sum(dim=0)[always:]
        mask[b, h, prefix + row, always + shared.topk(keys - always).indices] = True
    products = query @ key.transpose(-2, -1) * bound.scale
    bias = bound.attention_bias(context, layout.tokens)
    products = products if bias is None else products + bias
    return bound.merge_heads(read, products.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("granularity", ["query", "tile", "image"])
@pytest.mark.parametrize("prefix_keys", ["kept", "chosen"])
@torch.no_grad()
def test_z_is_that_of_a_slow_masked_attention(name: str, granularity: str, prefix_keys: str) -> None:
    model = sparse(name, granularity=granularity, tile=6, coefficients=3, prefix_keys=prefix_keys)
    seen = trace(dense(name), images_for(model))
    for index, step in enumerate(trunk_of(model).steps):
        bound, context = block_of(seen, index), dict(seen.contexts[index])
        stream = Stream(layout=seen.layout, context=context, wants_class_attention=True)
        z, after = step.attention(bound, seen.block_inputs[index], stream)
        expected = slow_z(bound, step.attention, seen.attention_inputs[index], context, seen.layout)
        torch.testing.assert_close(z, expected, **CLOSE)
        row = seen.adapter.class_attention(bound.block, seen.attention_inputs[index], context)
        torch.testing.assert_close(after.class_attention, row, **CLOSE)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_rows_of_prefix_queries_are_dense(name: str) -> None:
    seen = trace(dense(name), images_for(dense(name)))
    prefix = seen.layout.prefix
    for granularity in ("query", "tile", "image"):
        step = trunk_of(sparse(name, granularity=granularity)).steps[0]
        z, _ = step.attention(
            block_of(seen, 0), seen.block_inputs[0], Stream(layout=seen.layout, context=seen.contexts[0])
        )
        torch.testing.assert_close(z[:, :prefix], seen.z[0][:, :prefix], **CLOSE)
        assert not torch.allclose(z[:, prefix:], seen.z[0][:, prefix:], **CLOSE)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("granularity", ["query", "tile", "image"])
@torch.no_grad()
def test_one_key_less_than_all_is_nearly_dense_and_all_is_dense(name: str, granularity: str) -> None:
    model, images = dense(name), images_for(dense(name))
    tokens = trunk_of(sparse(name)).layout.tokens
    expected = model.forward_features(images)
    gaps = [
        (sparse(name, k=keys, granularity=granularity).forward_features(images) - expected).abs().mean()
        for keys in (tokens, tokens - 1, tokens // 2)
    ]
    assert gaps[0] == 0.0
    assert 0.0 < gaps[1] < gaps[2]


@given(rate=st.floats(0.01, 1.0), prefix=st.integers(0, 5), side=st.integers(2, 40))
def test_the_number_of_keys(rate: float, prefix: int, side: int) -> None:
    layout = TokenLayout(prefix, (side, side))
    for prefix_keys, always in (("kept", prefix), ("chosen", 0)):
        sparse = Sparse(keep_rate=rate, prefix_keys=prefix_keys, n_down=4, grid=layout.grid)
        keys = sparse.keys(prefix, layout.patches)
        assert always < keys <= layout.tokens
        assert keys >= min(layout.tokens, rate * layout.tokens - 1e-6)
        assert keys <= max(always + 1, rate * layout.tokens + 1)


@pytest.mark.parametrize("granularity", ["query", "tile", "image"])
@torch.no_grad()
def test_a_class_key_with_a_small_score_is_kept_or_not_as_the_config_says(granularity: str) -> None:
    seen = trace(dense("vit_plain"), images_for(dense("vit_plain")))
    query, key, _ = block_of(seen, 0).queries_keys_values(seen.attention_inputs[0], {})

    def class_kept(prefix_keys: str, score: float) -> Tensor:
        attention = trunk_of(sparse(granularity=granularity, tile=6, prefix_keys=prefix_keys)).steps[0].attention
        attention.predictor.basis[:, 0] = score
        keys, tile = (
            attention.choice.keys(seen.layout.prefix, seen.layout.patches),
            attention.choice.queries(seen.layout.patches),
        )
        return (attention.choose(query, key, Stream(layout=seen.layout), keys=keys, tile=tile) == 0).any(dim=-1)

    assert class_kept("kept", 0.0).all()
    assert not class_kept("chosen", 0.0).any()
    assert class_kept("chosen", 1e3).all()


@torch.no_grad()
def test_a_single_key_is_enough_where_the_class_key_is_chosen_like_the_others() -> None:
    seen = trace(dense("vit_plain"), images_for(dense("vit_plain")))
    step = trunk_of(sparse(k=1, prefix_keys="chosen")).steps[0]
    bound = block_of(seen, 0)
    query, key, value = bound.queries_keys_values(seen.attention_inputs[0], {})
    kept = step.attention.choose(query, key, Stream(layout=seen.layout), keys=1, tile=1)
    read = value.gather(2, kept.expand(-1, -1, -1, value.shape[-1]))
    expected = bound.merge_heads(seen.attention_inputs[0], torch.cat([value[:, :, :1], read], dim=2))
    z, _ = step.attention(bound, seen.block_inputs[0], Stream(layout=seen.layout))
    torch.testing.assert_close(z[:, 1:], expected[:, 1:], **CLOSE)


def test_the_authors_numbers_on_deit_small() -> None:
    model = convert(_meta_deit(), "sparsifiner")
    choice = plan_of(model).steps[0].attention
    assert (choice.n_down, choice.coefficients, choice.basis_threshold) == (32, 8, 0.02)
    assert trunk_of(model).steps[0].attention.choice.keys(1, 196) == 50
    predictor = trunk_of(model).steps[0].attention.predictor
    assert predictor.scale == pytest.approx(6**-0.5)
    assert (predictor.query.out_features, predictor.basis.shape) == (32, (32, 197))


@pytest.mark.parametrize(("granularity", "rows"), [("query", 96), ("tile", 32), ("image", 32)])
def test_the_basis_grows_with_the_tokens_unless_queries_share_a_key_set(granularity: str, rows: int) -> None:
    model = convert(_meta_deit(384), "sparsifiner", granularity=granularity)
    assert trunk_of(model).steps[0].attention.predictor.basis.shape == (rows, 577)


def _meta_deit(size: int = 224) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model("deit_small_patch16_224", img_size=size)


def test_keys_are_chosen_without_a_gradient_and_all_else_has_one() -> None:
    model = sparse().train()
    model(images_for(model)).square().mean().backward()
    predictor, backbone = phase_parameters(model, "predictor"), phase_parameters(model, "backbone")
    assert all(value.grad is None for value in predictor.values())
    assert all(value.grad is not None for value in backbone.values())


def test_the_phases_share_out_all_parameters() -> None:
    model = sparse(layers=(1, 2))
    predictor, backbone = phase_parameters(model, "predictor"), phase_parameters(model, "backbone")
    assert {**predictor, **backbone}.keys() == dict(model.named_parameters()).keys()
    assert not predictor.keys() & backbone.keys()
    assert predictor.keys() == {f"blocks.{name}" for name in trunk_of(model).new_parameters()}
    with pytest.raises(ConfigError, match="no step of this model has a predictor; convert it with 'sparsifiner'"):
        phase_parameters(convert(dense("vit_plain"), "sparsifiner", keep_rate=1.0), "predictor")


@pytest.mark.parametrize("name", MODELS)
def test_the_first_phase_brings_the_guess_nearer_and_leaves_the_backbone(name: str) -> None:
    model, images = sparse(name), images_for(dense(name), batch=4)
    seen, before = trace(dense(name), images), copy.deepcopy(model.state_dict())
    predictor = phase_parameters(model, "predictor")
    optimizer = torch.optim.Adam(predictor.values(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = sum(trunk_of(model).local_loss(seen).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(value, before[key]) == (key not in predictor) for key, value in model.state_dict().items())


@torch.no_grad()
def test_the_local_loss_is_the_relative_distance_to_the_dense_rows() -> None:
    model, images = sparse(layers=(2,), coefficients=2), images_for(dense("vit_plain"))
    seen = trace(dense("vit_plain"), images)
    attention = trunk_of(model).steps[2].attention
    query, key, _ = block_of(seen, 2).queries_keys_values(seen.attention_inputs[2], {})
    rows = (query @ key.transpose(-2, -1) * 0.25).softmax(dim=-1)[:, :, 1:]
    down, _ = attention.predictor.matrices((4, 4))
    # All coefficients count, and the basis with its signs.
    predicted = attention.predictor(query[:, :, 1:], key, down) @ attention.predictor.basis
    constant = rows.mean(dim=(0, 1, 2))
    expected = (predicted - rows).square().sum() / (rows - constant).square().sum()
    losses = trunk_of(model).local_loss(seen)
    assert set(losses) == {2}
    torch.testing.assert_close(losses[2], expected)


def test_the_start_is_better_than_a_random_one() -> None:
    # A model with a sense of place: neighbours attend to each other.
    seen = trace(_smooth_model(), torch.zeros(1, 3, 64, 64))
    found = {init: _kept_attention(convert(_smooth_model(), "sparsifiner", init=init), seen) for init in STARTS}
    # A quarter of the keys, chosen blindly, holds about a quarter of the attention.
    assert found["regions"] > 1.3 * found["scratch"]
    assert found["scratch"] == pytest.approx(0.25, abs=0.1)


STARTS = ("regions", "scratch")


def _smooth_model() -> nn.Module:
    model = lively_(VisionTransformer(**{**SIZE, "img_size": 64, "depth": 1})).eval()
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij")
    waves = [wave(f * place.flatten()) for place in (rows, columns) for wave in (torch.sin, torch.cos) for f in (1, 2)]
    with torch.no_grad():
        model.pos_embed[0, 1:] = torch.stack(waves * 6, dim=1)
        # Queries like keys, so that tokens attend to what resembles them.
        attn = model.blocks[0].attn
        attn.qkv.weight[48:96] = attn.qkv.weight[:48]
        attn.qkv.weight[:96] *= 2
        attn.qkv.bias[:96] = 0
    return model


@torch.no_grad()
def _kept_attention(model: nn.Module, seen: DenseTrace) -> float:
    """The share of the dense attention of patch queries that falls on the kept keys, prefix aside."""
    attention, layout = trunk_of(model).steps[0].attention, seen.layout
    query, key, _ = block_of(seen, 0).queries_keys_values(seen.attention_inputs[0], {})
    keys = attention.choice.keys(layout.prefix, layout.patches)
    kept = attention.choose(query, key, Stream(layout=layout), keys=keys, tile=1)
    rows = (query @ key.transpose(-2, -1) * 0.25)[:, :, 1:, 1:].softmax(dim=-1)
    return rows.gather(-1, kept[..., 1:] - 1).sum(dim=-1).mean().item()


def test_the_start_imitates_attention_to_the_mean_keys_of_regions() -> None:
    predictor = ConnectivityPredictor(8, 0.5, 1, (4, 4), 4)
    generator = torch.Generator().manual_seed(0)
    # Queries and keys that live in four of the eight directions: the projection loses nothing.
    mix = torch.randn(4, 8, generator=generator)
    query, key = (torch.randn(1, 2, 17, 4, generator=generator) @ mix for _ in range(2))
    predictor.start_at_regions_(query, key)
    down, basis = predictor.matrices((4, 4))
    assert torch.equal(down, basis)
    torch.testing.assert_close(down.sum(dim=1), torch.ones(4))
    expected = (query[:, :, 1:] @ (down @ key).transpose(-2, -1) * 8**-0.5).softmax(dim=-1)
    torch.testing.assert_close(predictor(query[:, :, 1:], key, down), expected, **CLOSE)


@pytest.mark.parametrize(("size", "options"), [((48, 64), {"keep_rate": 0.4}), ((16, 24), {"k": 9})])
@torch.no_grad()
def test_a_model_resized_before_saving_is_the_one_that_is_loaded(
    tmp_path: Path, size: tuple[int, int], options: dict
) -> None:
    model = convert(_describable(), "sparsifiner", **options)
    lively_(nn.ParameterList(trunk_of(model).new_parameters().values()))
    model.set_input_size(size)
    images = torch.randn(2, 3, *size)
    again = load(save(model, tmp_path / "out"))
    assert trunk_of(again).layout.grid == (size[0] // 8, size[1] // 8)
    assert plan_of(again).steps[0].attention.grid == (4, 4)
    assert torch.equal(again(images), model(images))


def _describable() -> nn.Module:
    return lively_(VisionTransformer(**SIZE)).eval()


@torch.no_grad()
def test_a_square_image_of_another_size_gets_matrices_of_its_own_size() -> None:
    model = sparse("vit_dynamic_size")
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()
    predictor = trunk_of(model).steps[0].attention.predictor
    assert predictor.basis.shape == (5, 17)


def test_the_plan_says_what_is_kept() -> None:
    def words(index: int, **options: object) -> str:
        return plan_of(sparse(**options)).steps[index].attention.describe()

    assert [words(index, layers=(1, 3)) for index in range(2)] == ["dense", "sparse (40 % of the keys per query)"]
    assert words(0, k=6, granularity="tile", tile=8) == "sparse (6 keys per 8 queries)"
    assert words(0, granularity="image") == "sparse (40 % of the keys per image)"
    assert words(0, prefix_keys="chosen") == "sparse (40 % of the keys per query, prefix keys chosen too)"


def test_a_plan_without_patches_for_its_matrices_is_refused() -> None:
    plan = plan_of(sparse())
    step = plan.steps[1]
    broken = plan.with_steps({1: step.but(attention=step.attention.model_copy(update={"grid": (0, 4)}))})
    assert check(broken) == ["step 1: grid=(0, 4) has no patches; give rows and columns"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (1, 9)}, r"sparsifiner.layers: block 9 does not exist; choose from 0..3"),
        ({"k": 1}, r"sparsifiner: step 0: k=1: of 17 tokens the first 1 are always kept; choose from 2..17"),
        ({"k": 18}, r"sparsifiner: step 0: k=18: of 17 tokens the first 1 are always kept; choose from 2..17"),
        ({"k": 18, "prefix_keys": "chosen"}, r"of 17 tokens the first 0 are always kept; choose from 1..17"),
        ({"prefix_keys": "dropped"}, r"sparsifiner.prefix_keys='dropped': "),
        ({"keep_rate": 0.0}, r"sparsifiner.keep_rate=0.0: "),
        ({"granularity": "row"}, r"sparsifiner.granularity='row': "),
        ({"grid": (0, 4)}, r"grid=\(0, 4\) has no patches; give rows and columns"),
        (
            {"token_keep_rate": 0.5, "prune_layers": (3,)},
            r"sparsifiner.prune_layers: no block comes after 3; choose from 0..2",
        ),
    ],
)
def test_what_cannot_work_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(dense("vit_plain"), "sparsifiner", **options)


def test_a_step_without_dense_attention_is_refused() -> None:
    skipped = convert(dense("vit_plain"), "skipat", layers=(2,))
    message = r"sparsifiner.layers: block 2 has no dense attention any more \(reuse \(expansion 2\)\)"
    with pytest.raises(ConfigError, match=message):
        convert(skipped, "sparsifiner", layers=(1, 2))
    kinds = [step.attention.kind for step in plan_of(convert(skipped, "sparsifiner")).steps]
    assert kinds == ["sparse", "sparse", "reuse", "sparse"]


def test_attention_dropout_is_refused() -> None:
    message = r"block 0 drops attention weights in training \(rate 0.1\).*open the model with attn_drop_rate=0"
    with pytest.raises(ConfigError, match=message):
        convert(VisionTransformer(**SIZE, attn_drop_rate=0.1), "sparsifiner")
    convert(VisionTransformer(**SIZE, attn_drop_rate=0.1), "sparsifiner", keep_rate=1.0)

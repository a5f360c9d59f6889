"""Sparse attention while patches are pruned, wait, or reuse attention; and as a file for onnxruntime."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.variants import dense, images_for, lively_
from vitslim.errors import ConfigError
from vitslim.methods import convert
from vitslim.methods.sparsifiner import SparseAttention
from vitslim.models import trace
from vitslim.plans import cost
from vitslim.targets import verify
from vitslim.targets.onnx.export import export_onnx
from vitslim.trunk import BoundBlock, SortedTokens, Stream, plan_of, trunk_of

# Two orders of summation in float32 over rows of unit scale, through four blocks.
CLOSE = {"atol": 2e-4, "rtol": 1e-3}

SPARSE: dict[str, Any] = {"keep_rate": 0.4, "n_down": 5}
NAMES = ["vit_four_registers", "vit_no_class_token", "eva_mixed_rotary", "beit_both_biases"]


def sparse(model: nn.Module, **options: object) -> nn.Module:
    converted = convert(model, "sparsifiner", **{**SPARSE, **options})
    lively_(nn.ParameterList(trunk_of(converted).new_parameters().values()))
    return converted


def pruned(name: str, **options: object) -> nn.Module:
    return sparse(dense(name), token_keep_rate=0.6, prune_layers=(0, 2), **options)


def numbers_of_tokens(model: nn.Module) -> list[int]:
    """How many tokens the MLP of each block computed."""
    seen: list[int] = []
    handles = [
        model.blocks[index].mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
        for index in range(len(model.blocks))
    ]
    model(images_for(model))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep_rate", [0.4, 1.0])
@torch.no_grad()
def test_pruned_patches_are_not_computed(name: str, keep_rate: float) -> None:
    model = pruned(name, keep_rate=keep_rate)
    prefix = trunk_of(model).layout.prefix
    # ⌈0.6 · 16⌉ = 10 after block 0, ⌈0.36 · 16⌉ = 6 after block 2.
    assert numbers_of_tokens(model) == [prefix + 16, prefix + 10, prefix + 10, prefix + 6]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_least_attended_patches_are_pruned_and_come_back_as_they_were(name: str) -> None:
    model, images = pruned(name, keep_rate=1.0), images_for(dense(name))
    seen = trace(dense(name), images, attention=True)
    prefix = seen.layout.prefix
    _, outputs = model.forward_intermediates(images, output_fmt="NLC", norm=False)
    # All is dense up to the first pruning: the class row of block 0 decides, by its mean over heads.
    leaving = seen.class_attention[0].mean(dim=1)[:, prefix:].argsort(dim=1)[:, :6]
    for image, patches in enumerate(leaving):
        assert torch.equal(outputs[1][image, patches], seen.block_outputs[0][image, prefix + patches])
        assert torch.equal(outputs[3][image, patches], seen.block_outputs[0][image, prefix + patches])
        staying = [patch for patch in range(16) if patch not in patches.tolist()]
        assert not torch.isclose(outputs[1][image, staying], outputs[0][image, staying]).all(dim=1).any()


@torch.no_grad()
def test_the_readout_of_a_pruned_model_is_that_of_a_model_that_never_had_the_patches() -> None:
    model, images = pruned("vit_plain", keep_rate=1.0, layers=()), images_for(dense("vit_plain"))
    seen = trace(dense("vit_plain"), images, attention=True)
    kept = 1 + seen.class_attention[0].mean(dim=1)[:, 1:].argsort(dim=1, descending=True)[:, :10]
    blocks, tokens = dense("vit_plain").blocks, seen.block_outputs[0]
    rows = torch.arange(2).unsqueeze(1)
    tokens = torch.cat([tokens[:, :1], tokens[rows, kept]], dim=1)
    tokens = blocks[1](tokens)
    read = blocks[2].norm1(tokens)
    query, key, _ = trace(dense("vit_plain"), images).adapter.queries_keys_values(blocks[2], read, {})
    row = (query[:, :, :1] @ key.transpose(-2, -1) * 0.25).softmax(dim=-1).mean(dim=1)[:, 0]
    tokens = blocks[2](tokens)
    left = 1 + row[:, 1:].argsort(dim=1, descending=True)[:, :6]
    tokens = blocks[3](torch.cat([tokens[:, :1], tokens[rows, left]], dim=1))
    torch.testing.assert_close(model.forward_features(images)[:, 0], dense("vit_plain").norm(tokens)[:, 0], **CLOSE)


@torch.no_grad()
def test_keys_of_sorted_tokens_are_chosen_by_their_places() -> None:
    """The same tokens in another order: the same keys, hence the same Z in that order."""
    model, seen = sparse(dense("vit_plain")), trace(dense("vit_plain"), images_for(dense("vit_plain")))
    step, tokens = trunk_of(model).steps[1], seen.block_inputs[1]
    patches = torch.rand(2, 16, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    order = torch.cat([torch.zeros(2, 1, dtype=torch.int64), 1 + patches], dim=1)
    state = SortedTokens(prefix=1, order=order)
    bound = BoundBlock(seen.adapter, seen.blocks[1])
    plain, _ = step.attention(bound, tokens, Stream(layout=seen.layout))
    shuffled = tokens.take_along_dim(order.unsqueeze(2), dim=1)
    sorted_z, _ = step.attention(bound, shuffled, Stream(layout=seen.layout, token_state=state))
    torch.testing.assert_close(sorted_z, plain.take_along_dim(order.unsqueeze(2), dim=1), **CLOSE)


@pytest.mark.parametrize("placeholders", ["frozen", "slow_fast"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("granularity", ["query", "image"])
def test_sparse_attention_and_evo_vit_in_either_order(name: str, placeholders: str, granularity: str) -> None:
    evo = {"stages": (1, 2), "keep": 0.6, "placeholders": placeholders}
    one = convert(sparse(dense(name), granularity=granularity), "evo_vit", **evo)
    other = convert(convert(dense(name), "evo_vit", **evo), "sparsifiner", **SPARSE, granularity=granularity)
    other.load_state_dict(one.state_dict())
    images = images_for(one)
    logits = one(images)
    assert torch.equal(other(images), logits)
    assert logits.isfinite().all()
    logits.square().mean().backward()
    assert {step.attention.kind for step in plan_of(one).steps} == {"sparse"}
    assert cost(plan_of(one)).steps[2].tokens == plan_of(one).model.prefix + 9 + (placeholders == "slow_fast")


@pytest.mark.parametrize("options", [{}, {"prefix_keys": "chosen"}, {"prefix_keys": "chosen", "k": 1}])
@torch.no_grad()
def test_a_representative_is_always_kept_as_a_key(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    model = sparse(dense("vit_plain"), **options)
    model = convert(model, "evo_vit", stages=(1,), keep=0.6, placeholders="slow_fast")
    chosen: list[Tensor] = []
    choose = SparseAttention.choose

    def watched(self: SparseAttention, *args: Any, **kwargs: Any) -> Tensor:
        chosen.append(choose(self, *args, **kwargs))
        return chosen[-1]

    monkeypatch.setattr(SparseAttention, "choose", watched)
    model(images_for(model))
    # One class token, nine patches, and the representative behind them.
    assert all((kept == 10).any(dim=-1).all() for kept in chosen[1:])
    assert bool(options) or all((kept == 0).any(dim=-1).all() for kept in chosen)


def test_sparse_attention_feeds_reuse() -> None:
    one = convert(sparse(dense("vit_plain"), layers=(1, 3)), "skipat", layers=(2,))
    assert [step.attention.kind for step in plan_of(one).steps] == ["dense", "sparse", "reuse", "sparse"]
    assert one(images_for(one)).isfinite().all()
    # A skipped block needs no predictor.
    over = convert(sparse(dense("vit_plain")), "skipat", layers=(2,))
    assert not [name for name in trunk_of(over).new_parameters() if name.startswith("steps.2.attention.predictor")]


def test_steps_that_share_a_block_have_predictors_of_their_own() -> None:
    model = sparse(convert(dense("vit_plain"), "sret"))
    steps = trunk_of(model).steps
    assert len({step.home for step in steps}) < len(steps)
    assert len({step.attention.predictor for step in steps}) == len(steps)
    assert model(images_for(model)).isfinite().all()
    losses = trunk_of(model).local_loss(trace(dense("vit_plain"), images_for(model)))
    assert all(losses[index].isfinite() for index in range(len(steps)))


def test_two_rules_for_the_tokens_are_refused() -> None:
    evolved = convert(dense("vit_plain"), "evo_vit", stages=(1, 2))
    with pytest.raises(ConfigError, match=r"sparsifiner: step 1 already has a rule for its tokens \(kept 50 %"):
        convert(evolved, "sparsifiner", token_keep_rate=0.5)
    with pytest.raises(ConfigError, match=r"evo_vit: step 1 already has a rule for its tokens \(kept 60 %"):
        convert(pruned("vit_plain"), "evo_vit", stages=(1, 2))


def test_a_block_that_prunes_has_to_attend() -> None:
    reason = r"step 3 \(kept .* pruned .*\) chooses patches by the attention of step 2, which computes none \(reuse"
    skipped = convert(dense("vit_plain"), "skipat", layers=(2,))
    with pytest.raises(ConfigError, match=reason):
        convert(skipped, "sparsifiner", token_keep_rate=0.5, prune_layers=(2,))
    model = pruned("vit_plain")
    with pytest.raises(ConfigError, match=reason):
        convert(model, "skipat", layers=(2,))
    convert(model, "skipat", layers=(1,))


def test_the_class_row_is_computed_only_where_it_prunes() -> None:
    assert [step.wants_row for step in trunk_of(pruned("vit_plain")).steps] == [True, False, True, False]


@torch.no_grad()
def test_compaction_gives_fused_attention_fewer_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int]] = []
    fused = F.scaled_dot_product_attention

    def watched(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        shapes.append((query.shape[2], key.shape[2]))
        return fused(query, key, value, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    model = sparse(dense("vit_plain"), granularity="image", k=6)
    model(images_for(model))
    assert shapes == [(16, 6)] * 4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        # As files these are in tests/targets/test_methods_in_every_precision.py too.
        pytest.param("vit_plain", {}, marks=pytest.mark.slow),
        ("beit_both_biases", {"granularity": "tile", "tile": 5}),
        ("eva_mixed_rotary", {"granularity": "image"}),
        pytest.param("vit_four_registers", {"token_keep_rate": 0.6, "prune_layers": (0,)}, marks=pytest.mark.slow),
    ],
)
def test_onnxruntime_computes_the_same(tmp_path: Path, name: str, options: dict) -> None:
    pytest.importorskip("onnxruntime")
    # Two sparse blocks, the second of which has what the first left to it.
    model = sparse(dense(name, depth=2), **options)
    path = tmp_path / "model.onnx"
    record = export_onnx(model, path)
    assert "NonZero" not in record.operators
    report = verify(model, path, images_for(model, batch=4))
    assert report.passed, report.failures()


def test_a_resized_model_exports_with_its_matrices_as_constants(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = sparse(dense("vit_plain", depth=2), layers=(1,))
    model.set_input_size((48, 64))
    record = export_onnx(model, tmp_path / "model.onnx")
    assert "Resize" not in record.operators
    assert verify(model, tmp_path / "model.onnx", torch.randn(3, 3, 48, 64)).passed

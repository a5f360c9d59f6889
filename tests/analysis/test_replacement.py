from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vitslim.analysis.linear_map import LinearMap
from vitslim.analysis.replacement import ChangeMeter, output_with_replaced, stand_ins_for
from vitslim.models import output_behind_blocks, trace

FAMILIES = ("vit", "vit_layer_scale", "vit_no_class_token", "eva", "eva_post_norm", "beit")
IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def output_by_hooks(model: nn.Module, layers: dict[int, Callable[[Tensor], Tensor]]) -> Tensor:
    """The slow way: the whole model runs, and hooks on the attention modules give what is wanted instead."""
    latest: list[Tensor] = []

    def hook(layer: int) -> Callable[..., Tensor]:
        def replace(module: nn.Module, args: object, z: Tensor) -> Tensor:
            latest.append(layers[layer](latest[-1]) if layer in layers else z)
            return latest[-1]

        return replace

    handles = [block.attn.register_forward_hook(hook(layer)) for layer, block in enumerate(model.blocks)]
    try:
        with torch.no_grad():
            return model(IMAGES)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [[1], [3], [1, 2], [1, 3]])
def test_short_road_equals_the_whole_model_under_hooks(
    build: Callable[[str], nn.Module], family: str, layers: list[int]
) -> None:
    model = build(family)
    functions = {layer: lambda z: 0.7 * z + 0.1 for layer in layers}
    dense = trace(model, IMAGES)
    with torch.no_grad():
        replaced = output_with_replaced(model, IMAGES, dense, functions)
    # the same operations in the same order; float32 leaves a little for fused kernels
    torch.testing.assert_close(replaced, output_by_hooks(model, functions), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(replaced, dense.logits, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_own_attention_output_put_back_changes_nothing(build: Callable[[str], nn.Module], family: str) -> None:
    model = build(family)
    dense = trace(model, IMAGES)
    with torch.no_grad():
        for layer in (1, 2, 3):
            same = output_with_replaced(model, IMAGES, dense, {layer: lambda z, own=dense.z[layer]: own})
            torch.testing.assert_close(same, dense.logits, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            output_behind_blocks(model, IMAGES, dense.block_outputs[-1]), dense.logits, rtol=0, atol=0
        )


def test_identity_reuse_of_an_equal_attention_output_has_no_effect(vit: nn.Module) -> None:
    with torch.no_grad():
        for layer in (1, 2):  # both give their bias alone, whatever they read
            vit.blocks[layer].attn.proj.weight.zero_()
            vit.blocks[layer].attn.proj.bias.fill_(0.3)
    dense = trace(vit, IMAGES)
    meter = ChangeMeter("kl")
    with torch.no_grad():
        meter.update(dense.logits, output_with_replaced(vit, IMAGES, dense, stand_ins_for([2], "identity", [])))
    change = meter.change()
    assert change.kl == pytest.approx(0, abs=1e-12)
    assert change.top1_agreement == 1


def test_linear_stand_ins_use_each_layers_own_map() -> None:
    maps = [None, *(LinearMap(torch.eye(2) * layer, torch.zeros(2), 1.0, 0.0) for layer in (1, 2, 3))]
    chosen = stand_ins_for([2, 3], "linear", maps)
    assert [float(chosen[layer](torch.ones(1, 1, 2))[0, 0, 0]) for layer in (2, 3)] == [2, 3]


def test_blocks_below_the_replaced_one_are_not_run_again(vit: nn.Module) -> None:
    dense = trace(vit, IMAGES)
    calls = [0] * 4
    handles = [
        block.mlp.register_forward_hook(lambda *_, layer=layer: calls.__setitem__(layer, calls[layer] + 1))
        for layer, block in enumerate(vit.blocks)
    ]
    with torch.no_grad():
        output_with_replaced(vit, IMAGES, dense, {2: lambda z: z})
    for handle in handles:
        handle.remove()
    assert calls == [0, 0, 1, 1]


def test_the_model_keeps_its_blocks_even_when_its_head_fails(vit: nn.Module) -> None:
    dense = trace(vit, IMAGES)
    blocks, parts = vit.blocks, list(vit.named_modules())
    vit.head = nn.Linear(1, 1)
    with pytest.raises(RuntimeError), torch.no_grad():
        output_behind_blocks(vit, IMAGES, dense.block_outputs[-1])
    assert vit.blocks is blocks
    assert len(list(vit.named_modules())) == len(parts)


def test_kl_is_in_nats_from_dense_to_replaced() -> None:
    dense, replaced = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.5, 0.5]]).log()
    meter = ChangeMeter("kl")
    meter.update(dense, replaced)
    assert meter.change().kl == pytest.approx(0.8 * torch.tensor(1.6).log() + 0.2 * torch.tensor(0.4).log())


def test_changes_are_means_over_images_not_over_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    dense, replaced = (torch.randn(7, 5, generator=generator) for _ in range(2))
    whole, parts = ChangeMeter("kl"), ChangeMeter("kl")
    whole.update(dense, replaced)
    parts.update(dense[:6], replaced[:6])
    parts.update(dense[6:], replaced[6:])
    assert whole.change().kl == pytest.approx(parts.change().kl)
    assert whole.change().top1_agreement == pytest.approx(parts.change().top1_agreement)
    wanted = nn.functional.kl_div(replaced.log_softmax(1), dense.log_softmax(1), reduction="batchmean", log_target=True)
    assert whole.change().kl == pytest.approx(float(wanted), rel=1e-5)


def test_features_change_relative_to_their_length() -> None:
    meter = ChangeMeter("feature_change")
    meter.update(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 5.0]]))
    change = meter.change()
    assert (change.feature_change, change.kl, change.top1_agreement) == (pytest.approx(0.2), None, None)
    assert change.size == pytest.approx(0.2)


def test_a_change_that_is_not_finite_is_none() -> None:
    meter = ChangeMeter("kl")
    meter.update(torch.zeros(1, 2), torch.tensor([[float("inf"), 0.0]]))
    assert meter.change().size is None

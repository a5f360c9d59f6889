"""The simple competitors: fewer blocks, fewer pixels, and what the user has installed."""

import copy
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.variants import images_for
from vitslim import checkpoint
from vitslim.bench import count_macs
from vitslim.bench.baselines import (
    BASELINES,
    at_lower_size,
    block_influences,
    blocks_to_drop,
    drop_blocks,
    dropped_in_the_middle,
    lower_size,
    with_tome,
    with_torch_pruning,
)
from vitslim.errors import ConfigError, MissingDependencyError
from vitslim.opening import open_model


def test_a_dropped_block_is_gone_and_the_others_are_the_same(dense: nn.Module) -> None:
    shallow = drop_blocks(dense, [1, 2])
    assert len(dense.blocks) == 4
    assert len(shallow.blocks) == 2
    tokens = torch.randn(2, 17, 48)
    assert torch.equal(shallow.blocks(tokens), dense.blocks[3](dense.blocks[0](tokens)))
    assert count_macs(shallow) < 0.6 * count_macs(dense)


@pytest.mark.parametrize("opened", [{}, {"depth": 4}, None])
def test_a_shallow_model_is_saved_and_loaded_like_any_other(dense: nn.Module, tmp_path, opened) -> None:
    """Built by hand, by name, or by name with options of its own."""
    model = dense if opened is None else open_model("builtin", pretrained=False, img_size=32, **opened)
    shallow = drop_blocks(model, [1])
    loaded = checkpoint.load(checkpoint.save(shallow, tmp_path / "shallow"))
    images = images_for(dense)
    assert torch.equal(loaded(images), shallow(images))


def test_a_third_of_the_blocks_goes_from_the_middle() -> None:
    assert blocks_to_drop(12) == [4, 5, 6, 7]
    assert blocks_to_drop(24) == list(range(8, 16))
    assert blocks_to_drop(4) == [1]


def test_the_blocks_that_change_least_go_but_never_the_first_or_the_last() -> None:
    influences = [0.0, 0.5, 0.1, 0.9, 0.2, 0.9, 0.3, 0.9, 0.9, 0.9, 0.4, 0.0]
    assert blocks_to_drop(12, influences=influences) == [2, 4, 6, 10]


@pytest.mark.parametrize(("depth", "share"), [(2, 0.5), (12, 1.0), (3, 0.3)])
def test_a_model_that_is_too_shallow_is_refused(depth: int, share: float) -> None:
    with pytest.raises(ConfigError, match="cannot be dropped"):
        blocks_to_drop(depth, share)


@pytest.mark.parametrize("dropped", [[4], [0, 1, 2, 3]])
def test_blocks_that_are_not_there_or_all_of_them_are_refused(dense: nn.Module, dropped: list[int]) -> None:
    with pytest.raises(ConfigError, match="wanted some but not all"):
        drop_blocks(dense, dropped)


def test_a_block_that_does_nothing_has_no_influence(dense: nn.Module) -> None:
    idle = copy.deepcopy(dense)
    with torch.no_grad():
        for layer in (idle.blocks[2].attn.proj, idle.blocks[2].mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
    influences = block_influences(idle, images_for(idle))
    assert influences[2] == pytest.approx(0, abs=1e-6)  # rounding of the cosine
    assert min(influences[0], influences[1], influences[3]) > 1e-4


def test_a_lower_size_has_two_thirds_of_the_patches_in_whole_patches(dense: nn.Module) -> None:
    # 4 * sqrt(2 / 3) = 3.27 patches along a side
    assert lower_size(dense) == (24, 24)
    big = VisionTransformer(img_size=224, patch_size=16, embed_dim=8, depth=1, num_heads=1)
    assert lower_size(big) == (176, 176)
    oblong = VisionTransformer(img_size=(32, 64), patch_size=8, embed_dim=8, depth=1, num_heads=1)
    assert lower_size(oblong) == (24, 48)


def test_a_model_at_a_lower_size_takes_smaller_images_and_keeps_its_weights(dense: nn.Module) -> None:
    smaller = at_lower_size(dense)
    assert smaller(torch.randn(2, 3, 24, 24)).shape == (2, 10)
    assert dense.patch_embed.img_size == (32, 32)
    assert torch.equal(smaller.blocks[0].mlp.fc1.weight, dense.blocks[0].mlp.fc1.weight)


@pytest.mark.parametrize("name", ["tome", "torch-pruning"])
def test_what_is_not_installed_says_so(name: str, dense: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitslim.bench.baselines.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="is not installed; install it to have its row"):
        BASELINES[name](dense)


def test_an_installed_tome_patches_a_copy_at_its_papers_rate(dense: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[nn.Module] = []
    tome = ModuleType("tome")
    tome.patch = SimpleNamespace(timm=seen.append)
    monkeypatch.setitem(sys.modules, "tome", tome)
    monkeypatch.setattr("vitslim.bench.baselines.find_spec", lambda name: tome)
    merged = with_tome(dense)
    assert seen == [merged]
    assert merged is not dense
    assert merged.r == 1  # 13 of 197 tokens, of 17


def test_an_installed_torch_pruning_narrows_the_mlps_of_a_copy(
    dense: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pruner:
        def __init__(self, model, example, *, importance, pruning_ratio, ignored_layers) -> None:
            linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
            self.pruned = [layer for layer in linear if layer not in ignored_layers]
            assert example.shape == (1, 3, 32, 32)
            assert pruning_ratio == 0.5

        def step(self) -> None:
            for layer in self.pruned:
                layer.out_features //= 2

    library = ModuleType("torch_pruning")
    library.pruner = SimpleNamespace(MagnitudePruner=Pruner)
    library.importance = SimpleNamespace(MagnitudeImportance=lambda p: p)
    monkeypatch.setitem(sys.modules, "torch_pruning", library)
    monkeypatch.setattr("vitslim.bench.baselines.find_spec", lambda name: library)
    pruned = with_torch_pruning(dense)
    assert [block.mlp.fc1.out_features for block in pruned.blocks] == [96] * 4
    assert [block.attn.qkv.out_features for block in pruned.blocks] == [144] * 4
    assert [block.mlp.fc1.out_features for block in dense.blocks] == [192] * 4


def test_the_middle_goes_where_only_speed_is_measured(dense: nn.Module) -> None:
    assert len(dropped_in_the_middle(dense).blocks) == 3

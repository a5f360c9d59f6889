"""The simple baselines: fewer blocks, neurons, pixels, and what the user has installed."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from torch import nn

from tests import variants
from tests.variants import images_for
from vitslim.bench import count_macs
from vitslim.errors import MissingDependencyError
from vitslim.pipeline.baselines import BASELINES, with_tome, with_torch_pruning


@pytest.fixture
def dense() -> nn.Module:
    return variants.dense("vit_plain")


@pytest.mark.parametrize("name", ["depth-drop", "narrow-mlp", "lower-resolution"])
def test_every_simple_baseline_costs_less(dense: nn.Module, name: str) -> None:
    cheaper = BASELINES[name](dense)
    assert count_macs(cheaper) < 0.85 * count_macs(dense)
    assert cheaper(images_for(cheaper)).shape == (2, 10)


@pytest.mark.parametrize("name", ["tome", "torch-pruning"])
def test_what_is_not_installed_says_so(name: str, dense: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitslim.pipeline.baselines.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="is not installed; install it to have its row"):
        BASELINES[name](dense)


def test_an_installed_tome_patches_a_copy_at_its_papers_rate(dense: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[nn.Module] = []
    tome = ModuleType("tome")
    tome.patch = SimpleNamespace(timm=seen.append)
    monkeypatch.setitem(sys.modules, "tome", tome)
    monkeypatch.setattr("vitslim.pipeline.baselines.find_spec", lambda name: tome)
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
    monkeypatch.setattr("vitslim.pipeline.baselines.find_spec", lambda name: library)
    pruned = with_torch_pruning(dense)
    assert [block.mlp.fc1.out_features for block in pruned.blocks] == [96] * 4
    assert [block.attn.qkv.out_features for block in pruned.blocks] == [144] * 4
    assert [block.mlp.fc1.out_features for block in dense.blocks] == [192] * 4

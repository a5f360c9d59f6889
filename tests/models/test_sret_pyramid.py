import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitslim.bench import count_macs, count_parameters
from vitslim.checkpoint import load, save
from vitslim.errors import CheckpointError, ConfigError, UnsupportedModelError
from vitslim.kernels import seeded_permutation
from vitslim.models import SretPyramid, adapter_for
from vitslim.models.sret_parts import NonLinearProjection, RecursiveBlock, Stage
from vitslim.models.sret_pyramid import checkpoint_filter_fn
from vitslim.opening import open_model

# 8 × 8, 4 × 4, 2 × 2 tokens; 8 and 4 slices at first, 2 at the second application in the first stage.
SMALL = {"img_size": 64, "base_dims": (4, 4, 4), "num_classes": 10}


def small(**options: object) -> SretPyramid:
    torch.manual_seed(0)
    return timm.create_model("vitslim_sret_tiny", **{**SMALL, **options}).eval()


def images(batch: int = 2, size: tuple[int, int] = (64, 64)) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "sliced", "parameters", "gmac"),
    [
        # Counted on the authors' code; their README says 4.8 M and 1.1 G, 5.0 M and 1.2 G, 20.9 M and 4.2 G.
        ("tiny", True, 4_755_979, 1.112),
        ("lt", True, 4_988_024, 1.164),
        ("lt", False, 4_988_024, 1.418),
        ("small", True, 20_899_692, 4.173),
        ("small", False, 20_899_692, 4.671),
    ],
)
def test_the_networks_cost_what_the_authors_do(name: str, sliced: bool, parameters: int, gmac: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(f"vitslim_sret_{name}", sliced=sliced)
    assert count_parameters(model) == parameters
    assert round(count_macs(model) / 1e9, 3) == gmac


def test_names_are_the_authors_without_repetitions() -> None:
    names = set(small().state_dict())
    stage = sorted({int(name.split(".")[3]) for name in names if name.startswith("transformers.1.")})
    # Ten applications of five blocks: each block at its first place of two, a projection after every application.
    assert stage == sorted([0, 4, 8, 12, 16, *range(1, 20, 2)])
    assert {"pos_embed", "patch_embed.conv1.weight", "patch_embed.bn3.running_mean", "pools.0.conv.weight"} <= names
    assert {"transformers.0.blocks.0.attn.qkv.bias", "transformers.0.blocks.0.coefficient4.bias"} <= names
    assert {"transformers.2.blocks.11.mlp.fc2.weight", "transformers.2.blocks.11.coefficient2.bias"} <= names
    assert not [name for name in names if "order" in name or "inverse" in name]


def authors_form(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every shared block under the names of both applications, as the released files have it."""
    doubled = dict(state)
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "transformers" and int(parts[3]) % 2 == 0:
            doubled[".".join([*parts[:3], str(int(parts[3]) + 2), *parts[4:]])] = value.clone()
    return doubled


def test_the_authors_weights_load(tmp_path: Path) -> None:
    model, path = small(), tmp_path / "authors.safetensors"
    state = authors_form(model.state_dict())
    assert len(state) > len(model.state_dict())
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    opened = open_model("vitslim_sret_tiny", weights=path, img_size=64, base_dims=(4, 4, 4))
    assert torch.equal(opened(images()), model(images()))
    other = checkpoint_filter_fn(state, small(img_size=96))
    assert other["pos_embed"].shape == (1, 8, 12, 12)


def test_weights_that_are_not_shared_are_refused(tmp_path: Path) -> None:
    state = authors_form(small().state_dict())
    state["transformers.0.blocks.2.attn.qkv.weight"] += 1
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"blocks\.2\.attn\.qkv\.weight differs from transformers\.0\.blocks\.0"):
        open_model("vitslim_sret_tiny", weights=tmp_path / "other.safetensors", img_size=64, base_dims=(4, 4, 4))


@torch.no_grad()
def test_a_stage_is_its_applications_in_a_row() -> None:
    stage = small().transformers[0]
    grid = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    tokens = grid.flatten(2).transpose(1, 2)
    order = torch.tensor(seeded_permutation(64, 0))
    for block, projections in ((0, (1, 3)), (4, (5, 7))):
        shared = stage.blocks[str(block)]
        tokens = stage.blocks[str(projections[0])](slow_block(shared, tokens, 8, torch.arange(64)))
        tokens = stage.blocks[str(projections[1])](slow_block(shared, tokens, 2, order))
    torch.testing.assert_close(stage(grid).flatten(2).transpose(1, 2), tokens, atol=1e-5, rtol=1e-4)


def slow_block(block: RecursiveBlock, tokens: Tensor, groups: int, order: Tensor) -> Tensor:
    """The application by the paper's formulas, slices as a mask between tokens in natural order."""
    place = order.argsort() // (len(order) // groups)
    joined = block.attn.qkv(block.norm1(tokens)).unflatten(2, (3, block.attn.num_heads, -1))
    query, key, value = joined.permute(2, 0, 3, 1, 4)
    scores = (query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5
    rows = scores.masked_fill(place[:, None] != place[None, :], float("-inf")).softmax(dim=-1)
    attended = block.attn.proj((rows @ value).transpose(1, 2).flatten(2))
    tokens = block.coefficient1.bias * tokens + block.coefficient2.bias * attended
    return block.coefficient3.bias * tokens + block.coefficient4.bias * block.mlp(block.norm2(tokens))


def test_a_projection_has_two_coefficients() -> None:
    projection, tokens = NonLinearProjection(8, 2.0), torch.randn(2, 5, 8)
    assert projection.mlp.fc1.out_features == 16
    with torch.no_grad():
        projection.coefficient1.bias.fill_(0.5)
        projection.coefficient2.bias.fill_(3.0)
    expected = 0.5 * tokens + 3.0 * projection.mlp(projection.norm1(tokens))
    torch.testing.assert_close(projection(tokens), expected)


@torch.no_grad()
def test_outputs_are_deterministic_and_the_seed_matters() -> None:
    model = small()
    assert torch.equal(model(images()), model(images()))
    other = small(seed=1)
    other.load_state_dict(model.state_dict())
    assert not torch.equal(other(images()), model(images()))
    whole, same = small(sliced=False), small(sliced=False, seed=1)
    assert torch.equal(whole(images()), same(images()))


@torch.no_grad()
def test_heads_features_and_intermediates_agree() -> None:
    model = small()
    features = model.forward_features(images())
    assert features.shape == (2, 32, 2, 2)
    assert torch.equal(model.forward_head(features), model(images()))
    assert model.forward_head(features, pre_logits=True).shape == (2, 32)
    last, grids = model.forward_intermediates(images())
    assert torch.equal(last, features)
    assert [tuple(grid.shape[1:]) for grid in grids] == [(8, 8, 8), (16, 4, 4), (32, 2, 2)]
    early = model.forward_intermediates(images(), indices=[0], stop_early=True, intermediates_only=True)
    assert torch.equal(early[0], grids[0])
    listed = timm.create_model("vitslim_sret_tiny", features_only=True, **SMALL).eval()
    assert [grid.shape for grid in listed(images())] == [grid.shape for grid in grids]


def test_the_classifier_can_be_replaced() -> None:
    model = small()
    model.reset_classifier(3)
    assert model(images()).shape == (2, 3)
    assert model.get_classifier() is model.head
    model.reset_classifier(0, "")
    assert model(images()).shape == (2, 32, 2, 2)
    assert small(num_classes=0)(images()).shape == (2, 32)


def test_gradients_reach_everything_and_checkpointing_changes_none() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = small(drop_path_rate=0.0).train()
        model.set_grad_checkpointing(checkpointing)
        model(images()).square().mean().backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_timm_finds_the_layers_for_its_learning_rates() -> None:
    from timm.models import group_parameters

    model = small()
    groups = group_parameters(model, model.group_matcher())
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    assert model.no_weight_decay() == {"pos_embed"}


@pytest.mark.parametrize("options", [{}, {"sliced": False}])
def test_other_sizes_and_shapes_build(options: dict[str, object]) -> None:
    model = small(img_size=(64, 96), **options)
    assert model(images(size=(64, 96))).shape == (2, 10)
    with pytest.raises(ConfigError, match="an image of 64×64 pixels reached a pyramid built for 64×96"):
        model(images())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": 60}, "choose multiples of 8"),
        ({"img_size": 40}, "stage 0: 5×5 tokens cannot be cut into slices of equal size"),
        ({"depths": (4, 9, 6)}, "stage 1: 5 blocks cannot share 9 applications evenly"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**options)
    assert small(img_size=40, sliced=False)(images(size=(40, 40))).shape == (2, 10)


def test_a_saved_network_loads_again(tmp_path: Path) -> None:
    model = open_model("vitslim_sret_tiny", pretrained=False, **SMALL)
    save(model, tmp_path / "pyramid")
    again = load(tmp_path / "pyramid")
    assert isinstance(again, SretPyramid)
    assert torch.equal(again(images()), model(images()))


def test_a_network_without_tensors_can_be_filled() -> None:
    model = small()
    with torch.device("meta"):
        empty = timm.create_model("vitslim_sret_tiny", **SMALL).eval()
    empty.to_empty(device="cpu")
    for stage in empty.transformers:
        assert isinstance(stage, Stage)
        stage.init_non_persistent_buffers()
    empty.load_state_dict(model.state_dict())
    assert torch.equal(empty(images()), model(images()))


def test_copies_half_precision_and_export() -> None:
    model = small(depths=(2, 2, 2), unique=(1, 1, 1))
    assert torch.equal(copy.deepcopy(model)(images()), model(images()))
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images(3)), model(images(3)))
    half = copy.deepcopy(model).bfloat16()(images().bfloat16())
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()


@pytest.mark.compiled
@torch.no_grad()
def test_the_network_is_one_graph() -> None:
    model = small()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(images()), model(images()))


def test_a_pyramid_is_no_isotropic_model() -> None:
    with pytest.raises(UnsupportedModelError, match="SretPyramid has no adapter"):
        adapter_for(small())
    assert isinstance(small(), nn.Module)

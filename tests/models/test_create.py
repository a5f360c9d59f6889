import copy
import logging
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from inline_snapshot import snapshot
from safetensors.torch import save_file
from torch import nn

from tests.variants import lively_
from vitslim.errors import CheckpointError, ConfigError
from vitslim.models import resolve_name
from vitslim.models.create import BUILTIN_CLASSES
from vitslim.names import ALIASES
from vitslim.opening import open_model

NAME = "vit_tiny_patch16_224"
TINY: dict[str, Any] = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


@cache
def source() -> nn.Module:
    return lively_(timm.create_model(NAME, img_size=32, num_classes=7, **TINY)).eval()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file(source().state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def refusal(kind: type[Exception], name: str, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        open_model(name, **options)
    return str(caught.value)


def test_every_alias_names_weights_that_timm_lists() -> None:
    assert all(timm.is_model_pretrained(resolve_name(alias)) for alias in ALIASES)


def test_names_that_are_no_alias_stay_as_they_are() -> None:
    for name in (NAME, f"{NAME}.augreg_in21k", "hf-hub:someone/something", "local-dir:somewhere", "builtin"):
        assert resolve_name(name) == name


def test_weights_from_any_kind_of_file_give_the_model_they_came_from(weights: Path, tmp_path: Path) -> None:
    torch.save(source().state_dict(), tmp_path / "weights.pth")
    # The authors of DeiT put their state dict under "model".
    torch.save({"model": source().state_dict()}, tmp_path / "nested.pth")
    images = torch.randn(2, 3, 32, 32)
    for path in (weights, tmp_path / "weights.pth", tmp_path / "nested.pth"):
        model = open_model(NAME, weights=path, img_size=32, **TINY)
        assert not model.training
        assert torch.equal(model(images), source()(images))
        assert "state_dict" not in {**model.pretrained_cfg, **model.default_cfg}  # not kept beside the parameters


def test_position_embeddings_are_resized_to_the_asked_image_size(weights: Path) -> None:
    model = open_model(NAME, weights=weights, img_size=64, **TINY)
    resized = copy.deepcopy(source())
    resized.set_input_size((64, 64))
    assert model.pos_embed.shape == (1, 1 + 8 * 8, 48)
    torch.testing.assert_close(model.pos_embed, resized.pos_embed)


def test_another_number_of_classes_starts_the_classifier_anew_and_keeps_the_rest(weights: Path) -> None:
    model = open_model(NAME, weights=weights, img_size=32, num_classes=4, **TINY)
    images = torch.randn(2, 3, 32, 32)
    assert model(images).shape == (2, 4)
    assert torch.equal(model.forward_features(images), source().forward_features(images))


def test_no_classes_give_features(weights: Path) -> None:
    model = open_model(NAME, weights=weights, img_size=32, num_classes=0, **TINY)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 48)


def test_a_file_without_classifier_leaves_the_number_of_classes_to_timm(tmp_path: Path) -> None:
    state = {name: value for name, value in source().state_dict().items() if not name.startswith("head.")}
    save_file(state, tmp_path / "trunk.safetensors")
    opened = open_model(NAME, weights=tmp_path / "trunk.safetensors", img_size=32, **TINY)
    images = torch.randn(2, 3, 32, 32)
    assert opened(images).shape == (2, 1000)
    assert torch.equal(opened.forward_features(images), source().forward_features(images))


def test_the_distilled_model_reads_both_classifiers(tmp_path: Path) -> None:
    name = "deit_tiny_distilled_patch16_224"
    teacher = lively_(timm.create_model(name, img_size=32, num_classes=6, **TINY)).eval()
    save_file(teacher.state_dict(), tmp_path / "distilled.safetensors")
    opened = open_model(name, weights=tmp_path / "distilled.safetensors", img_size=32, **TINY)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(opened(images), teacher(images))


@pytest.mark.parametrize("num_classes", [None, 4])
@pytest.mark.parametrize("other", ["deeper", "wider", "another family"])
def test_weights_of_another_model_are_never_loaded_in_part(tmp_path: Path, other: str, num_classes: int | None) -> None:
    foreign = {
        "deeper": lambda: timm.create_model(NAME, img_size=32, num_classes=7, **{**TINY, "depth": 3}),
        "wider": lambda: timm.create_model(NAME, img_size=32, num_classes=7, **{**TINY, "embed_dim": 96}),
        "another family": lambda: timm.create_model("test_resnet"),
    }[other]()
    path = tmp_path / "foreign.safetensors"
    save_file(foreign.state_dict(), path)
    message = refusal(CheckpointError, NAME, weights=path, img_size=32, num_classes=num_classes, **TINY)
    reason = {
        "deeper": "with depth=2: your file has depth=3, with 3 blocks of width 48. What is",
        "wider": "with embed_dim=48: your file has embed_dim=96, with 2 blocks of width 96. What is",
        "another family": "of the file's tensors are not in the model, first 'bn1.num_batches_tracked'",
    }[other]
    assert message.startswith(f"{path} does not hold weights of {NAME}")
    assert reason in message
    assert len(message) < 400


def test_a_model_opened_untrained_needs_no_file_and_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert open_model(NAME, pretrained=False, img_size=32, **TINY).num_classes == 1000


def test_the_builtin_architecture_is_a_small_vit() -> None:
    model = open_model("builtin", pretrained=False)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, BUILTIN_CLASSES)
    assert (len(model.blocks), model.embed_dim) == (12, 128)


def test_an_unknown_model_names_the_nearest() -> None:
    assert refusal(ConfigError, "deit_smal") == snapshot(
        "unknown model 'deit_smal'; did you mean 'deit_small' or 'deit3_small' or 'rdnet_small'? "
        "(`vitslim list models` shows all)"
    )
    assert refusal(ConfigError, "qqqqq") == snapshot("unknown model 'qqqqq' (`vitslim list models` shows all)")


def test_an_unknown_tag_names_the_known_ones() -> None:
    assert refusal(ConfigError, f"{NAME}.laion") == snapshot(
        "model 'vit_tiny_patch16_224' has no weights 'vit_tiny_patch16_224.laion'; timm lists the tags "
        "augreg_in21k, augreg_in21k_ft_in1k"
    )


def test_an_unknown_option_is_refused(weights: Path) -> None:
    expected = snapshot(
        "vit_tiny_patch16_224: VisionTransformer.__init__() got an unexpected keyword argument 'colour'; options are "
        "those of timm's vit_tiny_patch16_224"
    )
    assert refusal(ConfigError, NAME, pretrained=False, colour="red") == expected
    assert refusal(ConfigError, NAME, weights=weights, img_size=32, colour="red", **TINY) == expected


def test_a_size_that_does_not_divide_is_refused() -> None:
    assert refusal(ConfigError, NAME, pretrained=False, embed_dim=49) == snapshot(
        "vit_tiny_patch16_224 cannot be built with {'embed_dim': 49}: dim should be divisible by num_heads"
    )


def test_weights_come_in_one_way_only() -> None:
    assert refusal(ConfigError, NAME, pretrained=False, checkpoint_path="x.pth") == snapshot(
        "vit_tiny_patch16_224: checkpoint_path is not taken; weights come in through weights= (--weights FILE)"
    )


def test_a_missing_network_names_the_ways_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> nn.Module:
        raise OSError("We couldn't connect to 'https://huggingface.co'\nmore lines")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(timm, "create_model", offline)
    assert refusal(ConfigError, "deit_small") == snapshot(
        "the pretrained weights of deit_small_patch16_224.fb_in1k could not be fetched (We couldn't connect to "
        "'https://huggingface.co'). Without network: pass a local file with --weights FILE (weights=), or fill the "
        "hub's offline cache once (HF_HOME, then HF_HUB_OFFLINE=1), or start untrained with --no-pretrained "
        "(pretrained=False)"
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal(CheckpointError, NAME, weights="no/where.safetensors") == snapshot(
        "weights file no/where.safetensors does not exist"
    )


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.npz").write_bytes(b"")
    assert refusal(CheckpointError, NAME, weights="weights.npz") == snapshot(
        "weights file weights.npz is a .npz file; wanted ('.safetensors', '.pth', '.pt', '.bin', '.tar', '.t7')"
    )


def test_opening_weights_logs_no_warning(weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        open_model(NAME, weights=weights, img_size=32, num_classes=4, **TINY)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 2**31}, "depth=2147483648: wanted 1 to 1000 blocks"),
        ({"img_size": 3}, "an image of .3, 3. px holds no patch of .8, 8."),
    ],
)
def test_shapes_that_no_model_has_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_model("builtin", pretrained=False, **options)

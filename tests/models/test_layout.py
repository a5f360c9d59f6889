import pytest
import timm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.variants import ALL, SIZE, dense, images_for
from vitslim.errors import UnsupportedModelError
from vitslim.models import adapter_for, preprocessing, token_layout


@pytest.mark.parametrize("name", ALL)
def test_the_layout_counts_the_tokens_that_the_blocks_see(name: str) -> None:
    model = dense(name)
    layout = token_layout(model)
    assert model.forward_features(images_for(model)).shape[1] == layout.tokens == layout.prefix + layout.patches
    adapter = adapter_for(model)
    assert (adapter.prefix, adapter.has_class_token) == (layout.prefix, model.cls_token is not None)


def test_the_grid_is_rows_by_columns() -> None:
    assert token_layout(dense("vit_oblong")).grid == (4, 6)


def test_a_model_without_patches_has_no_layout() -> None:
    with pytest.raises(UnsupportedModelError, match="Linear has no patch grid"):
        token_layout(nn.Linear(2, 2))


def test_preprocessing_follows_the_weights_and_the_present_size() -> None:
    model = timm.create_model("test_vit", img_size=(96, 64))
    found = preprocessing(model)
    assert (found.image_size, found.mean, found.std) == ((96, 64), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (found.crop_pct, found.interpolation, found.channels) == (0.95, "bicubic", 3)


def test_preprocessing_of_a_model_built_by_hand_is_timms_default_at_its_size() -> None:
    found = preprocessing(VisionTransformer(**{**SIZE, "in_chans": 1}))
    assert (found.image_size, found.channels) == ((32, 32), 1)
    assert len(found.mean) == len(found.std) == 3

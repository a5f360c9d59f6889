import pytest
from torch import nn

from tests.variants import ALL, dense, images_for
from vitslim.errors import UnsupportedModelError
from vitslim.models import adapter_for, token_layout


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

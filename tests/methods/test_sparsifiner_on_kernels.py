"""Sparsifiner where kernels serve: other ops, the same numbers. The ops run in their readable form here."""

import pytest
import torch

from tests.kernels.counting import Counting
from tests.variants import dense, images_for
from vitslim.kernels import serving
from vitslim.methods import convert

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture
def kernels_serve(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(serving, "kernels_serve", lambda tensor: True)
    return monkeypatch


@pytest.mark.parametrize("name", ["vit_plain", "vit_four_registers", "vit_no_class_token", "eva_mixed_rotary"])
@pytest.mark.parametrize(
    ("options", "ops"),
    [
        ({"granularity": "query"}, {"kept_bits", "bit_attention"}),
        ({"granularity": "query", "prefix_keys": "chosen"}, {"kept_bits", "bit_attention"}),
        ({"granularity": "tile", "tile": 3}, {"kept_keys", "bit_attention"}),
    ],
)
def test_the_model_goes_through_the_kernels_ops_and_says_the_same(
    name: str, options: dict, ops: set[str], kernels_serve: pytest.MonkeyPatch
) -> None:
    model = convert(dense(name), "sparsifiner", keep_rate=0.4, n_down=5, **options).eval()
    images = images_for(model)
    with torch.no_grad(), Counting() as counting:
        fast = model(images)
        kernels_serve.undo()
        plain = model(images)
    assert ops <= counting.called
    torch.testing.assert_close(fast, plain, **CLOSE)


def test_training_reaches_every_weight_through_the_kernels_ops(kernels_serve: pytest.MonkeyPatch) -> None:
    model = convert(dense("vit_plain"), "sparsifiner", keep_rate=0.4, n_down=5)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(images_for(model)).square().sum().backward()
        gradients.append({name: part.grad for name, part in model.named_parameters() if part.grad is not None})
        kernels_serve.undo()
    assert gradients[0].keys() == gradients[1].keys()
    assert any(name.endswith("qkv.weight") for name in gradients[0])
    for name, fast in gradients[0].items():
        off = (fast - gradients[1][name]).norm() / gradients[1][name].norm().clamp_min(1e-6)
        assert off < 1e-4, name


@pytest.mark.usefixtures("kernels_serve")
def test_a_bias_goes_to_the_reference() -> None:
    model = convert(dense("beit_both_biases"), "sparsifiner", keep_rate=0.4, n_down=5).eval()
    with torch.no_grad(), Counting() as counting:
        model(images_for(model))
    assert {"kept_keys", "sparse_attention"} <= counting.called
    assert "bit_attention" not in counting.called

"""Whole models, forward and backward, on the Triton kernels themselves, which an interpreter runs without a GPU."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.kernels.on_kernels import OnKernels, through_ops
from tests.kernels.triton.closeness import interprets
from tests.variants import dense, images_for, lively_
from vitslim.methods import convert
from vitslim.trunk import trunk_of

pytestmark = pytest.mark.skipif(not interprets(), reason="Triton's interpreter is off or too old")

SELECTION = {"class_row", "argsort_by_score", "gather_split", "scatter_back"}
SKIP_FUNCTION = {"depthwise_gelu", "depthwise_gelu_backward"}
SPARSE = {"kept_keys", "sparse_attention"}
FORMS: dict[str, tuple[list[tuple[str, dict[str, Any]]], set[str]]] = {
    "skipat": ([("skipat", {"layers": (1,)})], SKIP_FUNCTION),
    "skipat_narrow": ([("skipat", {"layers": (2,), "expansion": 0.5, "kernel_size": 3})], SKIP_FUNCTION),
    "evo_vit": ([("evo_vit", {"stages": (1, 2), "keep": (0.7, 0.4)})], SELECTION),
    "evo_vit_slow_fast": ([("evo_vit", {"placeholders": "slow_fast"})], SELECTION),
    "sparsifiner": ([("sparsifiner", {"keep_rate": 0.4, "n_down": 5})], SPARSE),
    "sparsifiner_tile": (
        [("sparsifiner", {"keep_rate": 0.4, "n_down": 5, "granularity": "tile", "tile": 16})],
        SPARSE,
    ),
    "sparsifiner_image": ([("sparsifiner", {"keep_rate": 0.4, "n_down": 5, "granularity": "image"})], {"kept_keys"}),
    "skipat_then_evo_vit": (
        [("skipat", {"layers": (2,), "expansion": 0.5}), ("evo_vit", {"stages": (2,)})],
        SKIP_FUNCTION | SELECTION,
    ),
    "sparsifiner_then_evo_vit": (
        [("sparsifiner", {"keep_rate": 0.4, "n_down": 5}), ("evo_vit", {"stages": (2,)})],
        SPARSE | SELECTION,
    ),
}


def converted(form: str) -> nn.Module:
    # Of 16 patches one tile of 16 would be the whole image.
    model = dense("vit_oblong" if form == "sparsifiner_tile" else "vit_four_registers")
    for method, options in FORMS[form][0]:
        model = convert(model, method, **options)
    if "sparsifiner" not in form:  # whose scores would come to equals that rounding parts
        lively_(nn.ParameterList(trunk_of(model).new_parameters().values()))
    return model


# An interpreted kernel takes seconds: one form for each family of kernels, the others when there is time.
SOON = {"skipat_narrow", "evo_vit", "sparsifiner_tile"}


@pytest.mark.parametrize("form", [pytest.param(form, marks=() if form in SOON else pytest.mark.slow) for form in FORMS])
def test_a_model_on_the_kernels_computes_and_learns_the_same(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted(form)
    copied, images = copy.deepcopy(model), images_for(model)
    expected = model(images)
    expected.square().mean().backward()
    through_ops(monkeypatch)
    with OnKernels() as kernels:
        found = copied(images)
        found.square().mean().backward()
    assert kernels.called == FORMS[form][1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    gradients = dict(model.named_parameters())
    for name, parameter in copied.named_parameters():
        wanted = gradients[name].grad
        assert (parameter.grad is None) == (wanted is None), name
        if wanted is not None:
            assert (parameter.grad - wanted).norm() <= 1e-3 * wanted.norm() + 1e-6, name


@pytest.mark.slow
@pytest.mark.parametrize("form", ["skipat_narrow", "evo_vit_slow_fast", "sparsifiner"])
def test_training_steps_under_autocast_run_on_the_kernels(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted(form).train()
    images = images_for(model)
    through_ops(monkeypatch)
    with OnKernels() as kernels:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(images).float().square().mean()
        loss.backward()
    assert kernels.called == FORMS[form][1]
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name

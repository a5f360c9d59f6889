"""Models that prune, merge or read smaller images: saved, checkpointed, step by step, compiled, exported."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.variants import dense, images_for
from vitslim.checkpoint import load, save
from vitslim.methods import convert
from vitslim.trunk import plan_of, trunk_of

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "pruned": ("prune", {"layers": (0, 2), "keep": 0.6}),
    "pruned_plain": ("prune", {"layers": (0, 2), "keep": 0.6, "fuse": False}),
    "merged": ("merge", {"keep": 0.4}),
    "smaller": ("resolution", {"size": 24}),
}
NAMES = ["vit_no_class_token", "eva_mixed_rotary", "beit_both_biases"]
PAIRS = [(name, form) for name in NAMES for form in FORMS]
# A compiler or an exporter takes seconds: each form once, on the kinds of block in turn; the others when there is time.
SOON = list(zip([*NAMES, NAMES[0]], FORMS, strict=True))
IN_TURN = [pytest.param(*pair, marks=() if pair in SOON else pytest.mark.slow) for pair in PAIRS]

# timm's own resizing of relative position biases: warned of by torch, numbers unharmed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.searchsorted:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing:UserWarning"),
]


def changed(name: str, form: str, **size: int) -> nn.Module:
    method, options = FORMS[form]
    return convert(dense(name, **size), method, **options)


@pytest.mark.parametrize(("name", "form"), PAIRS)
@torch.no_grad()
def test_a_saved_model_comes_back_the_same(name: str, form: str, tmp_path: Path) -> None:
    model = changed(name, form)
    images = images_for(model)
    back = load(save(model, tmp_path / "model"))
    assert plan_of(back) == plan_of(model)
    assert torch.equal(back(images), model(images))


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_gradient_checkpointing_and_single_steps_change_nothing(name: str, form: str) -> None:
    model = changed(name, form)
    again = copy.deepcopy(model)
    again.set_grad_checkpointing(True)
    images = images_for(model)
    expected = model.forward_features(images)
    expected.square().mean().backward()
    features = again.train().forward_features(images)
    features.square().mean().backward()
    torch.testing.assert_close(features, expected)
    gradients = dict(model.named_parameters())
    for key, parameter in again.named_parameters():
        assert (parameter.grad is None) == (gradients[key].grad is None)
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[key].grad, atol=1e-6, rtol=1e-4)
    last, every = model.forward_intermediates(images, output_fmt="NLC", return_prefix_tokens=False)
    assert torch.equal(last, expected)
    assert {one.shape[1] for one in every} == {trunk_of(model).layout.patches}


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_half_precision_runs(form: str) -> None:
    model = copy.deepcopy(changed("eva_mixed_rotary", form)).bfloat16()
    logits = model(images_for(model).bfloat16())
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


@pytest.mark.parametrize(("name", "form"), IN_TURN)
@torch.no_grad()
def test_an_onnx_file_computes_the_same(name: str, form: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from vitslim.runtime import OrtRunner
    from vitslim.targets.onnx.export import export_onnx

    model = changed(name, form, depth=3)
    record = export_onnx(model, tmp_path / "model.onnx")
    assert not {"NonZero", "ScatterElements", "ScatterND", "Loop", "If"} & set(record.operators)
    with OrtRunner(tmp_path / "model.onnx") as runner:
        for batch in (1, 3):
            images = images_for(model, batch=batch)
            torch.testing.assert_close(runner.run(images), model(images), atol=2e-5, rtol=1e-4)


@pytest.mark.compiled
@pytest.mark.parametrize(("name", "form"), IN_TURN)
@torch.no_grad()
def test_the_compiler_and_the_exporter_take_it_whole(name: str, form: str) -> None:
    model = changed(name, form)
    images = images_for(model)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(images), model(images))
    program = torch.export.export(model, (images,))
    torch.testing.assert_close(program.module()(images), model(images))

"""Converted models through the custom ops: on a CPU the ops compute their plain forms, on a GPU Triton's kernels."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.kernels.counting import Counting
from tests.kernels.on_kernels import through_ops
from tests.variants import dense, images_for, lively_
from vitslim.methods import convert
from vitslim.trunk import trunk_of

FORMS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "skipat": [("skipat", {"layers": (1, 2)})],
    "skipat_narrow": [("skipat", {"layers": (1, 2, 3), "expansion": 0.5, "kernel_size": 3})],
    "skipat_prefix": [("skipat", {"layers": (2,), "expansion": 0.25, "prefix": "linear"})],
    "evo_vit": [("evo_vit", {"stages": (1, 2), "keep": (0.7, 0.4)})],
    "evo_vit_slow_fast": [("evo_vit", {"placeholders": "slow_fast", "schedule": "layer"})],
    "evo_vit_on_skipat": [("skipat", {"layers": (2, 3)}), ("evo_vit", {"stages": (2,)})],
    "pruning": [("sparsifiner", {"layers": (), "token_keep_rate": 0.7, "prune_layers": (0, 1)})],
}
PHI, CHOICE = {"depthwise_gelu"}, {"class_row", "argsort_by_score", "gather_split", "scatter_back"}
OPS = {
    **dict.fromkeys(("skipat", "skipat_narrow", "skipat_prefix"), PHI),
    **dict.fromkeys(("evo_vit", "evo_vit_slow_fast", "pruning"), CHOICE),
    "evo_vit_on_skipat": PHI | CHOICE,
}


def converted(form: str, variant: str = "vit_four_registers") -> nn.Module:
    model = dense(variant)
    for method, options in FORMS[form]:
        model = convert(model, method, **options)
    lively_(nn.ParameterList(trunk_of(model).new_parameters().values()))
    return model


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_model_through_the_ops_is_the_same_model(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted(form)
    images = images_for(model)
    plain = model(images)
    through_ops(monkeypatch)
    with Counting() as counting:
        torch.testing.assert_close(model(images), plain)
    assert counting.called == OPS[form]


@pytest.mark.parametrize("form", FORMS)
def test_its_gradients_are_the_same(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted(form)
    copied, images = copy.deepcopy(model), images_for(model)
    model(images).square().mean().backward()
    through_ops(monkeypatch)
    copied(images).square().mean().backward()
    gradients = dict(model.named_parameters())
    for name, parameter in copied.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name].grad, msg=lambda found, name=name: f"{name}: {found}"
        )


@pytest.mark.parametrize("form", ["skipat_narrow", "evo_vit_slow_fast"])
@torch.no_grad()
def test_autocast_goes_through_the_ops_too(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted(form)
    images = images_for(model)
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(images)
        through_ops(monkeypatch)
        torch.testing.assert_close(model(images), plain, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_has_none_of_the_ops(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted(form)
    through_ops(monkeypatch)
    program = torch.export.export(model, (images_for(model),), strict=False)
    assert not [node for node in program.graph.nodes if "vitslim" in str(node.target)]


@pytest.mark.compiled
@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_a_file_of_a_model_that_was_compiled_before_has_none_of_them_either(
    strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = converted("evo_vit"), list[str]()
    images = images_for(model)
    through_ops(monkeypatch)

    def kept(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=kept)
    compiled(images)
    assert any("vitslim" in name for name in seen)
    for source in (model, compiled):
        program = torch.export.export(source, (images,), strict=strict)
        assert not [node for node in program.graph.nodes if "vitslim" in str(node.target)]


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("form", "grad"),
    # With gradients or without in turn; the others when there is time.
    [
        pytest.param(form, grad, marks=() if grad == bool(turn % 2) else pytest.mark.slow)
        for turn, form in enumerate(FORMS)
        for grad in (False, True)
    ],
)
def test_through_the_ops_a_model_is_one_graph(form: str, grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    model = converted(form)
    images = images_for(model)
    through_ops(monkeypatch)
    with torch.set_grad_enabled(grad):
        expected = model(images)
        found = torch.compile(model, fullgraph=True, backend="aot_eager")(images)
        torch.testing.assert_close(found, expected)
        if grad:
            found.square().mean().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_a_model_on_a_gpu_is_the_same_model(form: str, dtype: torch.dtype) -> None:
    model = converted(form)
    images = images_for(model)
    with Counting() as counting:
        found = copy.deepcopy(model).to("cuda", dtype)(images.to("cuda", dtype))
    assert counting.called == OPS[form]
    # In half precision another patch may be chosen where two scores are nearly equal; float32 chooses alike.
    if dtype == torch.float32 or not OPS[form] & CHOICE:
        off = (found.float().cpu() - model(images)).norm() / model(images).norm()
        assert off < (1e-3 if dtype == torch.float32 else 0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_model_is_captured_in_a_cuda_graph(form: str) -> None:
    model = converted(form).to("cuda")
    images = images_for(model).to("cuda")
    expected = model(images)
    torch.cuda.synchronize()
    graph, fed = torch.cuda.CUDAGraph(), torch.zeros_like(images)
    with torch.cuda.graph(graph):
        given = model(fed)
    fed.copy_(images)
    graph.replay()
    torch.testing.assert_close(given, expected)


@pytest.mark.gpu
@pytest.mark.compiled
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@torch.no_grad()
def test_a_compiled_model_on_a_gpu_is_the_same_model(form: str, mode: str) -> None:
    torch.compiler.reset()
    model = converted(form).to("cuda")
    images = images_for(model).to("cuda")
    expected = model(images)
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    for _ in range(3):
        torch.testing.assert_close(compiled(images).clone(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
def test_fine_tuning_on_a_gpu_has_the_same_gradients(form: str) -> None:
    model = converted(form)
    copied, images = copy.deepcopy(model).to("cuda"), images_for(model)
    model(images).square().mean().backward()
    copied(images.to("cuda")).square().mean().backward()
    gradients: dict[str, Tensor] = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in copied.named_parameters():
        off = (parameter.grad.cpu() - gradients[name]).norm() / gradients[name].norm().clamp_min(1e-6)
        assert off < 1e-2, name

"""torch.compile on converted models; run without the shape checks: VITSLIM_SHAPE_CHECKS=0 pytest -m compiled."""

import copy

import pytest
import torch

from tests.properties.test_every_method_on_every_model import ALIKE, NARROW, PAIRS, WIDE, converted, on
from tests.variants import images_for

pytestmark = pytest.mark.compiled


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


@on(WIDE, NARROW)
@torch.no_grad()
def test_the_whole_model_is_one_graph(name: str, case: str) -> None:
    model, images = converted(name, case), images_for(converted(name, case))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), model(images))


@on(PAIRS, ALIKE)
def test_training_is_one_graph_too(name: str, case: str) -> None:
    plain = copy.deepcopy(converted(name, case))
    compiled = copy.deepcopy(converted(name, case))
    images = images_for(plain)
    plain(images).square().mean().backward()
    torch.compile(compiled, fullgraph=True, backend="aot_eager")(images).square().mean().backward()
    gradients = dict(plain.named_parameters())
    for key, parameter in compiled.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[key].grad, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), WIDE)
@torch.no_grad()
def test_inductor_gives_the_same_numbers(name: str, case: str) -> None:
    model, images = converted(name, case), images_for(converted(name, case))
    # Fused kernels add in another order.
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(images), model(images), atol=1e-4, rtol=1e-3)

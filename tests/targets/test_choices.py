"""Choices of one run imposed on another: the same outputs, and no choice that the scores speak against."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.targets.serving import small
from tests.variants import dense, images_for, lively_
from vitslim.errors import CheckFailedError
from vitslim.methods import convert
from vitslim.methods.prune import Prune
from vitslim.targets import verify
from vitslim.targets.onnx.export import export_onnx
from vitslim.targets.onnx.forms import forms_of
from vitslim.targets.onnx.graph import choosing_nodes
from vitslim.targets.parity.choices import Choices
from vitslim.targets.parity.comparing import AS_WRITTEN
from vitslim.targets.parity.tolerances import TOLERANCES
from vitslim.trunk import plan_of

FORMS = ["prune", "merge", "evo_vit", "sparsifiner"]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def run(model: nn.Module, images: Tensor, imposed: list[Tensor] | None = None) -> tuple[Tensor, Choices]:
    with torch.no_grad(), Choices(imposed) as choices:
        return model(images), choices


@pytest.mark.parametrize("method", FORMS)
def test_its_own_choices_change_nothing(method: str, images: Tensor) -> None:
    model = small(method)
    expected, recorded = run(model, images)
    with torch.no_grad():
        assert torch.equal(model(images), expected)
    given, choices = run(model, images, recorded.made)
    choices.require_all_taken()
    assert torch.equal(given, expected)
    assert choices.differs is not None
    assert not choices.differs.any()
    assert choices.excess is not None
    assert not choices.excess.any()


@pytest.mark.parametrize("method", FORMS)
def test_a_rounded_model_is_met_on_its_own_choices(method: str, images: Tensor) -> None:
    model = small(method)
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        parameter.data = parameter.to(torch.bfloat16).float()
    given, recorded = run(rounded, images)
    free = run(model, images)[0]
    met, choices = run(model, images, recorded.made)
    assert choices.differs is not None
    assert choices.excess is not None
    assert choices.differs.any()  # some fall otherwise
    assert choices.excess.max() < 0.08
    # an order among what is kept matters to none but the last bits
    assert (met - given).abs().max() <= 1.01 * (free - given).abs().max()
    alike = ~choices.differs
    assert torch.equal(met[alike], free[alike])


def swapped(one: Tensor) -> Tensor:
    """The last choice of the first image for the first."""
    other = one.clone()
    other[0] = one[0].flip(-1)
    return other


def doubled(one: Tensor) -> Tensor:
    return one[..., :1].expand_as(one) if one.shape[-1] > 1 else one


@pytest.mark.parametrize(("tamper", "least"), [(swapped, 0.01), (doubled, float("inf"))])
@pytest.mark.parametrize("method", ["prune", "evo_vit", "sparsifiner"])
def test_what_the_scores_speak_against_is_seen(
    method: str, tamper: Callable[[Tensor], Tensor], least: float, images: Tensor
) -> None:
    model = small(method)
    made = run(model, images)[1].made
    choices = run(model, images, [tamper(made[0]), *made[1:]])[1]
    assert choices.excess is not None
    assert choices.excess[0] >= least


def test_another_number_of_choices_is_refused(images: Tensor) -> None:
    model = small("prune")
    made = run(model, images)[1].made
    with pytest.raises(CheckFailedError, match="the file chooses 5 of an image, the model 16"):
        run(model, images, [made[0][:, :5], *made[1:]])
    with pytest.raises(CheckFailedError, match="the file makes 1 choices, the model more"):
        run(model, images, made[:1])
    with pytest.raises(CheckFailedError, match="choice 0: the file names number 114 of 16"):
        run(model, images, [made[0] + 99, *made[1:]])
    _, choices = run(model, images, [*made, made[0]])
    with pytest.raises(CheckFailedError, match="the file makes 3 choices, the model 2"):
        choices.require_all_taken()


@pytest.mark.parametrize("name", ["vit_four_registers", "eva_post_norm"])
def test_a_file_tells_the_choices_of_its_model_in_their_order(name: str, images: Tensor, tmp_path: Path) -> None:
    # The graph prunes by the class row of the block before, ahead of that block's keys. EVA's rotary angles come back
    # with the tokens, by one sort of the order in the file and two in the model, which are no choices.
    plan = plan_of(convert(dense(name), "sparsifiner", layers=(0, 1), keep_rate=0.4))
    tokens = Prune(keep=0.5, where="before", fuse=False, score="class")
    steps = (*plan.steps[:2], plan.steps[2].model_copy(update={"tokens": tokens}), *plan.steps[3:])
    model = lively_(convert(dense(name), plan=plan.model_copy(update={"steps": steps}))).eval()
    images = images_for(model)
    path = tmp_path / "model.onnx"
    export_onnx(model, path)
    made = run(model, images)[1].made
    ((_, opened, telling),) = [form for form in forms_of(path) if form[0] == AS_WRITTEN]
    assert telling is not None
    with opened, telling as tell:
        told = tell(images)[1]
    assert [one.numel() for one in told] == [one.numel() for one in made]
    for one, own in zip(told, made, strict=True):
        assert (one.reshape(own.shape) == own).float().mean() > 0.9


def test_a_file_whose_scores_are_wrong_fails_though_its_outputs_follow_from_its_choices(tmp_path: Path) -> None:
    model = small("prune")
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "model.onnx"
    export_onnx(model, path)
    graph = onnx.load(path)
    shapes = {one.name: one.type.tensor_type.shape.dim for one in graph.graph.value_info}
    for number, node in enumerate(choosing_nodes(graph)):
        # every second score up by 2 %, the others down
        factors = 1 + 0.02 * (-1.0) ** np.arange(shapes[node.input[0]][-1].dim_value, dtype=np.float32)
        graph.graph.initializer.append(onnx.numpy_helper.from_array(factors, f"factors{number}"))
        moved = onnx.helper.make_node("Mul", [node.input[0], f"factors{number}"], [f"moved{number}"])
        graph.graph.node.insert(list(graph.graph.node).index(node), moved)
        node.input[0] = moved.output[0]
    onnx.save(graph, path)
    report = verify(model, path, images, batches=(1,), tolerance=TOLERANCES["fp16"])
    (check,) = report.checks
    assert check.chosen_otherwise > 0
    assert check.max_abs < check.tolerance
    assert "speak against some by 0.0323 of the largest, of which rounding explains 0.02" in report.failures()[-1]
    assert not any("rounding does not tell apart" in note for note in report.notes)

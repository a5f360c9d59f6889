"""Choices of one run imposed on another: the same outputs, and no choice that the scores speak against."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.targets.serving import small
from vitslim.errors import CheckFailedError
from vitslim.targets.parity.choices import Choices

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
    with pytest.raises(CheckFailedError, match="the file makes 2 choices, the model more"):
        run(model, images, made[:2])
    with pytest.raises(CheckFailedError, match="choice 0: the file names number 114 of 16"):
        run(model, images, [made[0] + 99, *made[1:]])
    _, choices = run(model, images, [*made, made[0]])
    with pytest.raises(CheckFailedError, match="the file makes 4 choices, the model 3"):
        choices.require_all_taken()

import math
from typing import Any

import pytest
from pydantic import ValidationError

from vitslim.data import AugmentConfig
from vitslim.shapes import Config
from vitslim.train import DistillConfig, LoopConfig, PretrainConfig, WarmStartConfig, training_errors

NOT_FINITE = [
    (kind, name, value)
    for kind in (DistillConfig, WarmStartConfig, AugmentConfig)
    for name, field in kind.model_fields.items()
    if "float" in str(field.annotation)
    for value in (math.nan, math.inf)
]


@pytest.mark.parametrize(("kind", "name", "value"), NOT_FINITE)
def test_a_number_without_end_is_no_setting(kind: type[Config], name: str, value: float) -> None:
    given: Any = (value, 1.0) if name == "crop_scale" else value
    with pytest.raises(ValidationError, match="finite number"):
        kind(**{name: given})


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (LoopConfig, {"steps": True}),
        (LoopConfig, {"epochs": True}),
        (LoopConfig, {"seed": False}),
        (WarmStartConfig, {"steps": True}),
        (AugmentConfig, {"hflip": False}),
        (AugmentConfig, {"crop_scale": [0.5, True]}),
        (PretrainConfig, {"seed": True}),
    ],
)
def test_true_is_no_number(kind: type[Config], given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="true and false are no numbers"):
        kind(**given)


def test_true_and_words_for_it_stay_what_they_are() -> None:
    assert LoopConfig(tensorboard=False, compile=True).compile is True
    assert LoopConfig.model_validate({"tensorboard": "no"}).tensorboard is False


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (DistillConfig, "temperature", (1e-30, 0.01, 1e30)),
        (DistillConfig, "ce_weight", (1e30,)),
        (DistillConfig, "mixup", (1e30, 1e-300)),
        (DistillConfig, "cutmix", (1e30, 5e-324)),
        (LoopConfig, "steps", (10**100,)),
        (LoopConfig, "epochs", (1e300,)),
        (LoopConfig, "lr", (1e300,)),
        (LoopConfig, "weight_decay", (1e300,)),
        (LoopConfig, "accumulate", (10**12,)),
        (LoopConfig, "seed", (2**64,)),
        (AugmentConfig, "crop_scale", ((0.9, 0.2), (0.0, 1.0), (-0.5, 1.0), (0.5, 1.5))),
        (AugmentConfig, "repeats", (10**9,)),
        (AugmentConfig, "auto_augment", ("nonsense", "rand-q1", "rand-m9-n1000000000")),
    ],
)
def test_settings_beyond_use_are_refused(kind: type[Config], name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(ValidationError, match=name):
            kind(**{name: value})


def test_words_of_timm_for_augmentation_are_taken() -> None:
    for words in ("rand-m9-mstd0.5-inc1", "augmix-m3-w3", "original"):
        assert AugmentConfig(auto_augment=words).auto_augment == words


def test_what_settings_alone_can_be_wrong_in_is_reported_without_models_or_images() -> None:
    assert training_errors(DistillConfig()) == []
    assert training_errors(WarmStartConfig()) == []
    errors = training_errors(DistillConfig(optimizer="adamv", schedule="cosinus", kd_weight=0.0))
    assert len(errors) == 3
    assert errors[0].startswith("unknown optimizer 'adamv'; did you mean 'adam'?")
    assert errors[1].startswith("unknown schedule 'cosinus'; did you mean 'cosine'?")
    assert errors[2].startswith("every part of the loss has weight 0")
    # Its second derivatives are not computed, so that training would end in a traceback.
    assert training_errors(WarmStartConfig(optimizer="adahessian"))[0].startswith("unknown optimizer")

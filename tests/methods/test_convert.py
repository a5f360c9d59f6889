"""The function ``convert``: what it refuses, in which words, and that a refused model is an untouched model."""

import copy
from typing import Any

import pytest
import timm
import torch
from inline_snapshot import snapshot

from tests.variants import dense, images_for
from vitslim.errors import ConfigError, UnsupportedModelError
from vitslim.methods import METHODS, MethodConfig, convert, list_methods, method_support
from vitslim.methods.skipat import SkipAtConfig
from vitslim.shapes import Config
from vitslim.trunk import is_converted, plan_of, trunk_of


def refusal(*args: Any, kind: type[Exception] = ConfigError, **options: Any) -> str:
    model = dense("vit_plain")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kind) as caught:
        convert(model, *args, **options)
    assert not is_converted(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return str(caught.value)


def test_the_table_names_every_method_and_where_it_comes_from() -> None:
    assert list_methods() == METHODS.names()
    for name, method in METHODS.items():
        assert method.name == name
        assert issubclass(method.config, Config)
        assert method.source
    # The type of a config names its method, so no two may share one.
    assert len({method.config for _, method in METHODS.items()}) == len(METHODS.names())


def test_a_config_is_as_good_as_name_and_options() -> None:
    torch.manual_seed(0)
    by_name = convert(dense("vit_plain"), "skipat", layers=[2], expansion=0.5)
    torch.manual_seed(0)
    by_config = convert(dense("vit_plain"), SkipAtConfig(layers=(2,), expansion=0.5))
    images = images_for(by_name)
    assert torch.equal(by_name(images), by_config(images))
    assert trunk_of(by_name).history == trunk_of(by_config).history


def test_an_unknown_method_names_the_nearest() -> None:
    assert refusal("skipatt") == snapshot("unknown method 'skipatt'; did you mean 'skipat'?")
    assert "skipat" in refusal("zzz")


def test_an_unknown_option_names_the_nearest() -> None:
    assert refusal("skipat", layer=(1,)) == snapshot("unknown option skipat.layer; did you mean 'layers'?")
    assert refusal("skipat", zzz=1) == snapshot(
        "unknown option skipat.zzz; known: layers, expansion, kernel_size, identity, prefix, residual, init"
    )


def test_all_errors_are_reported_together() -> None:
    assert refusal("skipat", layer=(1,), expansion=0.0, kernel_size=4) == snapshot(
        "skipat.expansion=0.0: Input should be greater than 0; skipat.kernel_size=4: an even kernel would shift the "
        "grid; choose an odd number; unknown option skipat.layer; did you mean 'layers'?"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layers": (0, 2)},
            snapshot("skipat.layers=(0, 2): block 0 has no earlier attention to reuse; choose from 1..3"),
        ),
        ({"layers": (2, 4)}, snapshot("skipat.layers: block 4 does not exist; choose from 0..3")),
        ({"layers": (-1,)}, snapshot("skipat.layers: block -1 does not exist; choose from 0..3")),
        ({"layers": (1, 1)}, snapshot("skipat.layers=(1, 1): a layer is named twice")),
        ({"layers": (1.5,)}, snapshot("skipat.layers=(1.5,): every layer is a whole number")),
        (
            {"layers": True},
            snapshot("skipat.layers=True: wanted a number, a range, a list of numbers, text such as '3-8', or 'auto'"),
        ),
        (
            {"layers": "one"},
            snapshot("skipat.layers='one': 'one' is neither a number nor a span such as 3-8"),
        ),
        (
            {"layers": "3-1"},
            snapshot("skipat.layers='3-1': the span '3-1' is empty; write the smaller number first"),
        ),
        (
            {"layers": "auto"},
            snapshot(
                "skipat.layers='auto' needs an analysis: pass analysis=vitslim.analyze(model, data=...), "
                "or --data on the command line"
            ),
        ),
        (
            {"kernel_size": 4},
            snapshot("skipat.kernel_size=4: an even kernel would shift the grid; choose an odd number"),
        ),
        ({"expansion": 9.0}, snapshot("skipat.expansion=9.0: Input should be less than or equal to 8")),
        ({"init": "zeros"}, snapshot("skipat.init='zeros': Input should be 'identity' or 'scratch'")),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_values_that_cannot_be_used_say_what_was_wanted(options: dict[str, Any], message: str) -> None:
    assert refusal("skipat", **options) == message


def test_options_beside_a_config_are_refused() -> None:
    assert refusal(SkipAtConfig(), layers=(1,), identity=True) == snapshot(
        "options (layers, identity) were given beside a SkipAtConfig; put them into the config"
    )


def test_a_config_of_no_method_is_refused() -> None:
    class Other(MethodConfig):
        pass

    assert refusal(Other()).startswith("Other is not a method's config; wanted one of")


def test_the_same_method_twice_is_refused() -> None:
    model = convert(dense("vit_plain"), "skipat", layers=(1,))
    with pytest.raises(ConfigError) as caught:
        convert(model, "skipat", layers=(2,))
    assert str(caught.value) == snapshot(
        "the model was already converted with 'skipat' (history: skipat); start again from "
        "the dense model with other options"
    )


def test_a_family_without_adapter_is_refused_before_anything_happens() -> None:
    model = timm.create_model("test_resnet")
    with pytest.raises(UnsupportedModelError, match="ResNet has no adapter"):
        convert(model, "skipat")


def test_support_is_known_without_converting() -> None:
    assert method_support(plan_of(dense("vit_plain")))["skipat"] == {"supported": True, "reason": ""}
    once = convert(dense("vit_plain"), "skipat")
    again = method_support(plan_of(once), trunk_of(once).history)["skipat"]
    assert again["supported"] is False
    assert "already converted" in again["reason"]


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_kept(training: bool) -> None:
    model = copy.deepcopy(dense("vit_layer_scale")).train(training)
    converted = convert(model, "skipat", layers=(1,))
    assert {part.training for part in converted.modules()} == {training}


def test_frozen_parameters_stay_frozen_and_new_ones_learn() -> None:
    model = copy.deepcopy(dense("vit_plain")).requires_grad_(False)
    converted = convert(model, "skipat", layers=(1,))
    new = {f"blocks.{name}" for name in trunk_of(converted).new_parameters()}
    assert {name for name, parameter in converted.named_parameters() if parameter.requires_grad} == new


def test_layer_wise_learning_rates_of_timm_take_every_parameter_once() -> None:
    from timm.optim import param_groups_layer_decay

    converted = convert(dense("vit_plain"), "skipat")
    groups = param_groups_layer_decay(converted, layer_decay=0.7)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in converted.parameters())
    # What timm cannot place is new, and learns at the full rate.
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert {scales[id(parameter)] for parameter in trunk_of(converted).new_parameters().values()} == {1.0}


def test_a_config_made_in_python_says_what_is_wrong() -> None:
    with pytest.raises(
        ConfigError, match=r"^SkipAtConfig: kernel_size=True: true and .*unknown key 'layer'; did you mean 'layers'"
    ):
        SkipAtConfig(kernel_size=True, layer=3)  # pyright: ignore[reportCallIssue]

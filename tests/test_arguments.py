import inspect
from pathlib import Path
from typing import Any, Literal

import pytest
from torch import nn

from vitslim.arguments import checked
from vitslim.errors import ConfigError
from vitslim.shapes import AtLeastOne


@checked
def measure(
    model: nn.Module | str,
    images: AtLeastOne = 3,
    *,
    split: Literal["train", "val"] = "val",
    batches: tuple[AtLeastOne, ...] = (1,),
    share: float = 0.5,
    validate: bool = True,
    out: "str | Path | None" = None,
) -> dict[str, Any]:
    """Measure."""
    return {"model": model, "images": images, "split": split, "batches": batches, "out": out}


@checked
def configured(name: str, **options: Any) -> dict[str, Any]:
    return options


def test_arguments_arrive_as_they_are_wanted() -> None:
    model = nn.Linear(2, 2)
    got = measure(model, 4, batches=[1, 2], out=Path("x"))
    assert got["model"] is model
    assert got["batches"] == (1, 2)
    assert (got["images"], got["split"], got["out"]) == (4, "val", Path("x"))


def test_options_without_a_name_of_their_own_are_passed_on_untouched() -> None:
    value = object()
    assert configured("x", value=value)["value"] is value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "measure: model: Field required"),
        ({"model": 3}, "measure: model=3: Input should be "),
        ({"model": Path("x")}, "model=PosixPath('x'): Input should be "),
        ({"model": "x", "split": "y"}, "split='y': Input should be 'train' or 'val'"),
        ({"model": "x", "batches": [0]}, "batches.0=0: Input should be greater than or equal to 1"),
        ({"model": "x", "batches": nn.Linear(1, 1)}, "batches=a Linear: Input should be a valid tuple"),
        ({"model": "x", "images": True}, "images=True: true and false are no numbers"),
        ({"model": "x", "images": "²"}, "images='²': Input should be a valid integer"),
        ({"model": "x", "images": None}, "images=None: Input should be a valid integer"),
        ({"model": "x", "share": float("nan")}, "share=nan: Input should be a finite number"),
        ({"model": "x", "share": 10**5000}, "share=a number too long to show: "),
        ({"model": "x", "imags": 3}, "unknown key 'imags'; did you mean 'images'?"),
        ({"model": "x", "validate": "perhaps"}, "validate='perhaps': Input should be a valid boolean"),
    ],
)
def test_an_unusable_argument_is_named_with_what_was_wanted(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        measure(**given)
    assert message in str(caught.value)


def test_all_errors_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        measure(3, batches=(-1,), split="x", bathces=3)
    for part in ("model=3", "batches.0=-1", "split='x'", "did you mean 'batches'"):
        assert part in str(caught.value)


def test_a_wrong_number_of_places_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"3 arguments without a name; it takes 2 \(model, images\), others by name"):
        measure("x", 1, "val")
    with pytest.raises(ConfigError, match="model given by place and by name; give each once"):
        measure("x", model="y")


def test_editors_see_the_function_itself() -> None:
    assert measure.__doc__ == "Measure."
    assert list(inspect.signature(measure).parameters)[:3] == ["model", "images", "split"]

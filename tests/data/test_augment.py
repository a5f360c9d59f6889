from typing import Any

import pytest

from vitslim.data import AugmentConfig


@pytest.mark.parametrize(
    ("config", "built_in", "on"),
    [
        ({}, True, {"hflip": 0.5, "shift": 0.06}),
        ({}, False, {"hflip": 0.5, "crop_scale": (0.08, 1.0)}),
        ({"hflip": 0, "shift": 0}, True, {}),
        ({"hflip": 0, "crop_scale": (1.0, 1.0)}, False, {}),
        # Cropped image by image, the built-in images are not moved.
        ({"hflip": 0, "crop_scale": (0.5, 1.0)}, True, {"crop_scale": (0.5, 1.0)}),
        ({"vflip": 0.1, "hflip": 0, "repeats": 3}, True, {"vflip": 0.1, "repeats": 3, "shift": 0.06}),
    ],
)
def test_the_changes_that_are_on_are_named(config: dict[str, Any], built_in: bool, on: dict[str, Any]) -> None:
    assert AugmentConfig(**config).changes(built_in=built_in) == on

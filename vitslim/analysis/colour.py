"""A colour scale on which equal steps of the value look equally far apart."""

import math
from functools import cache
from itertools import pairwise

STEPS = 256
# Dark violet-blue to pale yellow in OKLCH: lightness alone orders the colours, so the scale survives a grey printer.
LIGHTNESS = (0.24, 0.95)
HUE_DEGREES = (285.0, 105.0)
CHROMA = (0.09, 0.13, 0.10)  # at the dark end, in the middle, at the light end


def heat_colour(value: float) -> str:
    """The colour of a value of 0..1 as #rrggbb; values outside take the colour of the nearer end."""
    return _scale()[round(min(1.0, max(0.0, value)) * (STEPS - 1))]


@cache
def _scale() -> list[str]:
    """The colours at equal distances along the path, found by walking it finely once."""
    fine = [_path_point(index / (8 * STEPS)) for index in range(8 * STEPS + 1)]
    travelled = [0.0]
    for before, after in pairwise(fine):
        travelled.append(travelled[-1] + math.dist(before, after))
    colours: list[str] = []
    position = 0
    for index in range(STEPS):
        wanted = travelled[-1] * index / (STEPS - 1)
        while travelled[position] < wanted - 1e-12:
            position += 1
        colours.append(_hex(oklab_to_srgb(*fine[position])))
    return colours


def _path_point(t: float) -> tuple[float, float, float]:
    """OKLab coordinates at share ``t`` of the path, pulled towards grey until a screen can show them."""
    lightness = LIGHTNESS[0] + t * (LIGHTNESS[1] - LIGHTNESS[0])
    hue = math.radians(HUE_DEGREES[0] + t * (HUE_DEGREES[1] - HUE_DEGREES[0]))
    start, middle, end = CHROMA
    chroma = start * (1 - t) ** 2 + 2 * (2 * middle - (start + end) / 2) * t * (1 - t) + end * t**2
    direction = (math.cos(hue), math.sin(hue))
    chroma = min(chroma, _largest_chroma(lightness, direction))
    return (lightness, chroma * direction[0], chroma * direction[1])


def _largest_chroma(lightness: float, direction: tuple[float, float]) -> float:
    """How colourful a screen can be at this lightness and hue, found by halving."""
    low, high = 0.0, 0.4  # no sRGB colour is more colourful than 0.33
    for _ in range(24):
        middle = (low + high) / 2
        channels = oklab_to_srgb(lightness, middle * direction[0], middle * direction[1])
        low, high = (middle, high) if all(0 <= channel <= 1 for channel in channels) else (low, middle)
    return low


def oklab_to_srgb(lightness: float, a: float, b: float) -> tuple[float, float, float]:
    """OKLab to sRGB channels; outside 0..1 the colour cannot be shown.

    Source: B. Ottosson 2020, "A perceptual color space for image processing"; transfer curve of IEC 61966-2-1.
    """
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        _gamma(4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short),
        _gamma(-1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short),
        _gamma(-0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short),
    )


def _gamma(linear: float) -> float:
    if linear <= 0.0031308:
        return 12.92 * linear
    return 1.055 * linear ** (1 / 2.4) - 0.055


def _hex(channels: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * min(1.0, max(0.0, channel))):02x}" for channel in channels)

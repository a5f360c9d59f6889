"""Formula-driven images: fractals of iterated function systems, one parameter set per class.

Every random number is a hash of (seed, split, class, repetition, purpose), never the next draw of a generator. So an
image is a pure function of its index, a class is a pure function of its number, and both can be made in any order,
in any batch, on any device.

Source: Kataoka et al. 2020, "Pre-training without Natural Images" (FractalDB), arXiv 2101.08515; the maps are drawn
by singular values as in Anderson and Farrell 2021, arXiv 2110.03091, which wastes fewer candidates.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vitslim.errors import ConfigError, DataError

Split = Literal["train", "val"]
Progress = Callable[[int, int], None]

GENERATOR_VERSION = 1  # raise it when the same config draws other images; it is part of the cache's name

MIN_MAPS, MAX_MAPS = 2, 6  # maps per system; FractalDB draws 2..8, the last two only blur the shape at 64 pixels
MAX_SINGULAR_VALUE = 0.92  # 1 and above need not contract; close to 1 the attractor is a haze
MIN_PROBABILITY = 0.03  # FractalDB's |det| alone starves nearly flat maps
FILL_RANGE = (0.15, 0.75)  # accepted share of touched cells: less is a few dots or a line, more a featureless blot
FILL_GRID = 32  # cells along one side of the grid on which the share is counted
CANDIDATES_PER_ROUND = 16  # parameter sets tried at once for one class; the first good one in order wins
MAX_ROUNDS = 64
BURN_IN_STEPS, RECORDED_STEPS = 10, 16  # each walker starts on the attractor, so burn-in only spreads the walkers
CLOUD_CELLS = 5  # side of the random grid that is stretched over the background

# One number per purpose: draws for different purposes never share a hash.
_CLASS, _IMAGE, _SHAPE, _WALK, _JITTER, _POSE, _COLOUR, _CLOUD, _NOISE = range(9)


@dataclass(frozen=True)
class FractalConfig:
    """What the fractal images look like and how many there are; the defaults are the built-in task.

    Raises:
        ConfigError: a field is out of its range; all errors are in one message.
    """

    classes: int = 200  # parameter sets, 2..100000; the first ones stay when more are asked for
    image_size: int = 64  # pixels along each side, 8..1024
    train_per_class: int = 150  # images, 1 and up
    val_per_class: int = 25  # images, 1 and up
    seed: int = 0  # 0..2**31-1; another seed gives other classes
    jitter: float = 0.13  # largest relative change of each map entry, 0..0.5; FractalDB's weights use 0.2
    rotation: float = 15.0  # largest turn either way, degrees, 0..180
    smallest: float = 0.75  # smallest size of a fractal beside the image, 0.2..1
    shift: float = 0.06  # largest move along each axis, as a share of the image, 0..0.5
    noise: float = 0.06  # standard deviation of the added pixel noise, 0..0.3 of the full range
    negatives: float = 0.0  # share of images with a dark fractal on a bright ground, 0..1
    points_per_pixel: float = 1.0  # chaos-game points drawn for each pixel of the image, 0.1..16

    def __post_init__(self) -> None:
        """Refuse values out of range, all of them at once."""
        ranges = {
            "classes": (2, 100_000),
            "image_size": (8, 1024),
            "train_per_class": (1, 10**6),
            "val_per_class": (1, 10**6),
            "seed": (0, 2**31 - 1),
            "jitter": (0, 0.5),
            "rotation": (0, 180),
            "smallest": (0.2, 1),
            "shift": (0, 0.5),
            "noise": (0, 0.3),
            "negatives": (0, 1),
            "points_per_pixel": (0.1, 16),
        }
        errors: list[str] = []
        for field in dataclasses.fields(self):
            value, (low, high) = getattr(self, field.name), ranges[field.name]
            numeric = isinstance(value, int | float if field.type is float else int) and not isinstance(value, bool)
            if not numeric or not low <= value <= high:
                kind = "a number" if field.type is float else "an integer"
                errors.append(f"{field.name}={value!r} must be {kind} in {low}..{high}")
        if errors:
            raise ConfigError("fractal images: " + "; ".join(errors))

    def count(self, split: Split) -> int:
        """How many images a split has.

        Raises:
            ConfigError: the split is neither 'train' nor 'val'.
        """
        _check_split(split)
        return self.classes * (self.train_per_class if split == "train" else self.val_per_class)


def labels_of(config: FractalConfig, indices: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The class of each image: classes take turns, so any run of images is balanced."""
    return indices % config.classes


def render(
    config: FractalConfig, split: Split, indices: Int[Tensor, " n"], device: torch.device | str | None = None
) -> UInt8[Tensor, "n 3 h w"]:
    """Draw images by their index in a split; fast enough to be called for every training batch.

    The result does not depend on which other indices are asked for. Two devices agree up to rounding.

    Args:
        indices: whole numbers from 0 to `config.count(split)` - 1, in any order, repeats allowed.
        device: where to compute and to leave the images; not given means the device of `indices`.

    Raises:
        ConfigError: the split is unknown, or `indices` is no list of whole numbers within the split.
        DataError: no usable parameter set was found for some class of this seed.
    """
    count = config.count(split)
    if indices.ndim != 1 or indices.dtype not in (torch.int64, torch.int32):
        raise ConfigError(f"indices of shape {tuple(indices.shape)}, {indices.dtype}; pass a 1-d tensor of int64")
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < count:
        raise ConfigError(
            f"indices {int(indices.min())}..{int(indices.max())}: split {split!r} has images 0..{count - 1}"
        )
    indices = indices.to(device=device, dtype=torch.int64)
    systems = tuple(part.to(indices.device) for part in _class_systems(config.seed, config.classes))
    # About 2 MB of float32 per intermediate on a CPU (it stays in the cache), 512 MB on an accelerator.
    budget = 2**19 if indices.device.type == "cpu" else 2**27
    chunk = max(1, budget // (3 * config.image_size**2))
    side = config.image_size
    images = torch.empty((len(indices), 3, side, side), dtype=torch.uint8, device=indices.device)
    for start in range(0, len(indices), chunk):
        images[start : start + chunk] = _render_chunk(config, split, indices[start : start + chunk], systems)
    return images


def _check_split(split: str) -> None:
    if split not in get_args(Split):
        raise ConfigError(f"unknown split {split!r}; choose 'train' or 'val'")


def split_shape(config: FractalConfig, split: Split) -> tuple[int, int, int, int]:
    """Shape of all images of a split: (images, channels, height, width)."""
    return config.count(split), 3, config.image_size, config.image_size


# --- random numbers by hashing ---------------------------------------------------------------------------------------

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # the constants of splitmix64, written as signed 64-bit numbers
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def _mix(words: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Scramble 64-bit words so that neighbouring ones have nothing in common.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" (splitmix64).
    """
    # torch shifts signed words arithmetically; the mask makes each shift a logical one.
    words = (words ^ ((words >> 30) & (2**34 - 1))) * _FIRST
    words = (words ^ ((words >> 27) & (2**37 - 1))) * _SECOND
    return words ^ ((words >> 31) & (2**33 - 1))


def _key(parent: Tensor | int, *words: Tensor | int) -> Tensor:
    """Derive keys from parent keys: one hash per further word."""
    key = torch.as_tensor(parent)
    for word in words:
        key = _mix((key ^ (torch.as_tensor(word, device=key.device) * _FIRST)) + _GOLDEN)
    return key


def _words(keys: Int[Tensor, " n"], purpose: int, count: int) -> Int[Tensor, "n count"]:
    """`count` random 64-bit words per key."""
    steps = torch.arange(1, count + 1, device=keys.device) * _GOLDEN
    return _mix(_key(keys, purpose)[:, None] + steps)


def _uniform(keys: Int[Tensor, " n"], purpose: int, count: int) -> Float[Tensor, "n count"]:
    """`count` random numbers in 0..1 (1 excluded) per key."""
    return ((_words(keys, purpose, count) >> 40) & (2**24 - 1)).float() * 2.0**-24


# --- classes ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _class_systems(seed: int, classes: int) -> tuple[Tensor, Tensor]:
    """The function systems of the first `classes` classes: maps [c, k, 6] and choice tables [c, 256].

    A map is (a, b, c, d, e, f): x' = a x + b y + e, y' = c x + d y + f. A random byte looked up in a class's choice
    table gives the map to apply, so that a map's share of the table is its probability.
    """
    keys = _key(seed, _CLASS, torch.arange(classes))
    maps = torch.zeros(classes, MAX_MAPS, 6)
    tables = torch.zeros(classes, 256, dtype=torch.int64)
    missing = torch.arange(classes)
    for first in range(0, MAX_ROUNDS * CANDIDATES_PER_ROUND, CANDIDATES_PER_ROUND):
        attempts = torch.arange(first, first + CANDIDATES_PER_ROUND)
        candidates = _key(keys[missing][:, None], attempts)
        drawn, choices, fits = _draw_systems(candidates.flatten())
        fits = fits.view(len(missing), CANDIDATES_PER_ROUND)
        found = fits.any(dim=1)
        chosen = (torch.arange(len(missing)) * CANDIDATES_PER_ROUND + fits.int().argmax(dim=1))[found]
        maps[missing[found]], tables[missing[found]] = drawn[chosen], choices[chosen]
        missing = missing[~found]
        if not len(missing):
            return maps, tables
    raise DataError(f"seed {seed}: no usable function system for classes {missing.tolist()}; choose another seed")


def _draw_systems(keys: Int[Tensor, " n"]) -> tuple[Tensor, Tensor, Tensor]:
    """One candidate system per key: maps [n, k, 6], choice tables [n, 256], and whether it is worth drawing [n]."""
    draws = _uniform(keys, _SHAPE, 2 + 7 * MAX_MAPS)
    number = MIN_MAPS + (draws[:, 0] * (MAX_MAPS - MIN_MAPS + 1)).long()
    used = torch.arange(MAX_MAPS) < number[:, None]
    first, second, turn_in, turn_out, mirror, right, up = draws[:, 2:].view(len(keys), MAX_MAPS, 7).unbind(dim=2)
    large, small = torch.maximum(first, second) * used, torch.minimum(first, second) * used
    # arXiv 2110.03091, section 4: sum_k (s_k1 + 2 s_k2) in [(5 + k) / 2, (6 + k) / 2] gives well spread attractors.
    wanted = (5 + number + draws[:, 1]) / 2
    stretch = (wanted / (large + 2 * small).sum(dim=1))[:, None]
    large, small = large * stretch, small * stretch
    contracts = (large <= MAX_SINGULAR_VALUE).all(dim=1)
    # A = R(turn_out) diag(large, +-small) R(turn_in)
    cos_in, sin_in = torch.cos(2 * math.pi * turn_in), torch.sin(2 * math.pi * turn_in)
    cos_out, sin_out = torch.cos(2 * math.pi * turn_out), torch.sin(2 * math.pi * turn_out)
    signed = torch.where(mirror < 0.5, small, -small)
    a = cos_out * large * cos_in - sin_out * signed * sin_in
    b = -cos_out * large * sin_in - sin_out * signed * cos_in
    c = sin_out * large * cos_in + cos_out * signed * sin_in
    d = -sin_out * large * sin_in + cos_out * signed * cos_in
    maps = torch.stack([a, b, c, d, 2 * right - 1, 2 * up - 1], dim=2) * used[:, :, None]
    # FractalDB: p_k proportional to |det A_k|
    shares = large * small
    shares = (shares / shares.sum(dim=1, keepdim=True)).clamp(min=MIN_PROBABILITY) * used
    upper = (shares / shares.sum(dim=1, keepdim=True)).cumsum(dim=1)
    table = torch.searchsorted(upper, ((torch.arange(256) + 0.5) / 256).expand(len(keys), 256).contiguous())
    table = torch.minimum(table, number[:, None] - 1)
    fill = _fill_rates(maps, table, keys)
    return maps, table, contracts & (fill >= FILL_RANGE[0]) & (fill <= FILL_RANGE[1])


def _fill_rates(maps: Float[Tensor, "n k 6"], tables: Int[Tensor, "n 256"], keys: Int[Tensor, " n"]) -> Tensor:
    """The share of grid cells of its bounding square that each attractor touches, 0..1."""
    points, _ = _play_chaos_game(maps, tables, keys, walkers=FILL_GRID**2 // 4)
    cells = ((_fit_to_square(points) + 1) / 2 * FILL_GRID).long().clamp(0, FILL_GRID - 1)
    touched = torch.zeros(len(maps), FILL_GRID**2)
    touched.scatter_(1, cells[0] * FILL_GRID + cells[1], 1.0)
    return touched.mean(dim=1)


# --- drawing ---------------------------------------------------------------------------------------------------------


def _render_chunk(
    config: FractalConfig, split: Split, indices: Int[Tensor, " n"], systems: tuple[Tensor, ...]
) -> UInt8[Tensor, "n 3 h w"]:
    labels = labels_of(config, indices)
    # Keyed by class and repetition, so that a class keeps its images when classes or images per class grow.
    seed = torch.tensor(config.seed, device=indices.device)
    keys = _key(seed, _IMAGE, get_args(Split).index(split), labels, indices // config.classes)
    maps, tables = systems[0][labels], systems[1][labels]
    side = config.image_size
    walkers = math.ceil(config.points_per_pixel * side**2 / RECORDED_STEPS)
    points, chosen = _play_chaos_game(_jitter_maps(maps, keys, config.jitter), tables, keys, walkers)
    points = _pose(config, _fit_to_square(points), keys)
    cover, tint = _splat(points, chosen, _uniform(keys, _COLOUR, MAX_MAPS), side)
    images = _paint(cover, tint, keys, config.negatives)
    if config.noise:
        levels = _words(keys, _NOISE, math.ceil(3 * side**2 / 8)).view(torch.uint8)[:, : 3 * side**2]
        # A uniform byte has standard deviation 1 / sqrt(12) of its range.
        images = images + (levels.view_as(images).float() - 127.5) * (config.noise * math.sqrt(12) / 256)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def _jitter_maps(maps: Float[Tensor, "n k 6"], keys: Int[Tensor, " n"], jitter: float) -> Float[Tensor, "n k 6"]:
    """Change each entry of each map by a relative amount up to `jitter`, keeping every map a contraction."""
    factors = 1 + jitter * (2 * _uniform(keys, _JITTER, 6 * MAX_MAPS).view_as(maps) - 1)
    maps = maps * factors
    a, b, c, d = maps[..., :4].unbind(dim=2)
    # largest singular value of a 2 x 2 matrix: (|(a + d, b - c)| + |(a - d, b + c)|) / 2
    large = (((a + d) ** 2 + (b - c) ** 2).sqrt() + ((a - d) ** 2 + (b + c) ** 2).sqrt()) / 2
    shrink = (MAX_SINGULAR_VALUE / large.clamp(min=MAX_SINGULAR_VALUE))[..., None]
    return torch.cat([maps[..., :4] * shrink, maps[..., 4:]], dim=2)


def _play_chaos_game(
    maps: Float[Tensor, "n k 6"], tables: Int[Tensor, "n 256"], keys: Int[Tensor, " n"], walkers: int
) -> tuple[Float[Tensor, "2 n p"], Int[Tensor, "n p"]]:
    """Random walks over the attractors: points (x and y) with the map that each came from."""
    n = len(maps)
    steps = BURN_IN_STEPS + RECORDED_STEPS
    chances = _words(keys, _WALK, math.ceil(steps * walkers / 8)).view(torch.uint8)[:, : steps * walkers]
    chosen = tables.gather(1, chances.long())
    rows = (chosen + torch.arange(n, device=maps.device)[:, None] * MAX_MAPS).view(n, steps, walkers)
    flat = maps.view(n * MAX_MAPS, 6)
    # Every walker starts at the fixed point of the first map, which is on the attractor: (I - A) p = t.
    a, b, c, d, e, f = maps[:, 0].unbind(dim=1)
    determinant = (1 - a) * (1 - d) - b * c
    x = (((1 - d) * e + b * f) / determinant)[:, None].expand(n, walkers)
    y = ((c * e + (1 - a) * f) / determinant)[:, None].expand(n, walkers)
    points = torch.empty(2, n, RECORDED_STEPS, walkers, device=maps.device)
    for step in range(steps):
        a, b, c, d, e, f = flat[rows[:, step]].unbind(dim=2)
        x, y = a * x + b * y + e, c * x + d * y + f
        if step >= BURN_IN_STEPS:
            points[0, :, step - BURN_IN_STEPS], points[1, :, step - BURN_IN_STEPS] = x, y
    return points.flatten(2), chosen[:, BURN_IN_STEPS * walkers :]


def _fit_to_square(points: Float[Tensor, "2 n p"]) -> Float[Tensor, "2 n p"]:
    """Move and scale each set of points so that its bounding box fills -1..1 along its longer side."""
    low, high = points.amin(dim=2, keepdim=True), points.amax(dim=2, keepdim=True)
    longer = (high - low).amax(dim=0, keepdim=True).clamp(min=1e-6)
    return (points - (low + high) / 2) * (2 / longer)


def _pose(config: FractalConfig, points: Float[Tensor, "2 n p"], keys: Int[Tensor, " n"]) -> Float[Tensor, "2 n p"]:
    """Mirror, turn, scale and move each set of points at random."""
    mirror, turn, scale, right, up = _uniform(keys, _POSE, 5)[:, :, None].unbind(dim=1)
    size = config.smallest + (1 - config.smallest) * scale
    angle = (2 * turn - 1) * math.radians(config.rotation)
    x = torch.where(mirror < 0.5, points[0], -points[0])
    along, across = size * torch.cos(angle), size * torch.sin(angle)
    # Points span -1..1, so a share of the image is twice as much here.
    moved_x = along * x - across * points[1] + 2 * config.shift * (2 * right - 1)
    moved_y = across * x + along * points[1] + 2 * config.shift * (2 * up - 1)
    return torch.stack([moved_x, moved_y])


def _splat(
    points: Float[Tensor, "2 n p"], chosen: Int[Tensor, "n p"], tints: Float[Tensor, "n k"], side: int
) -> tuple[Float[Tensor, "n 1 h w"], Float[Tensor, "n 1 h w"]]:
    """Count points per pixel: how opaque the fractal is there and the mean tint of its maps, both 0..1."""
    cells = ((points + 1) * (side / 2)).floor().long()
    inside = ((cells >= 0) & (cells < side)).all(dim=0)
    # Points off the image fall into one extra cell, which is cut away.
    target = torch.where(inside, cells[1] * side + cells[0], side**2)
    # Count and tint travel in one whole number (count above bit 32), so that sums are exact in any order.
    value = (2**32 + (tints * 255).long()).gather(1, chosen)
    sums = torch.zeros(len(tints), side**2 + 1, dtype=torch.int64, device=points.device).scatter_add_(1, target, value)
    sums = sums[:, :-1].reshape(-1, 1, side, side)
    counts, tint_sums = (sums >> 32).float(), (sums & (2**32 - 1)).float()
    return counts / (counts + 0.5), tint_sums / (255 * counts.clamp(min=1))


def _paint(
    cover: Float[Tensor, "n 1 h w"], tint: Float[Tensor, "n 1 h w"], keys: Int[Tensor, " n"], negatives: float
) -> Float[Tensor, "n 3 h w"]:
    """Put each fractal, in two bright colours, over a clouded dark gradient; a share are negatives."""
    n, side = len(keys), cover.shape[-1]
    draws = _uniform(keys, _CLOUD, 14 + 3 * CLOUD_CELLS**2)
    near, far, bright, dark = draws[:, :12].view(n, 4, 3, 1, 1).unbind(dim=1)
    angle = 2 * math.pi * draws[:, 12, None, None, None]
    axis = torch.linspace(-1, 1, side, device=keys.device)
    slope = (torch.cos(angle) * axis[:, None] + torch.sin(angle) * axis) * 0.35 + 0.5
    clouds = F.interpolate(draws[:, 14:].view(n, 3, CLOUD_CELLS, CLOUD_CELLS), size=(side, side), mode="bilinear")
    background = 0.3 * (near + (far - near) * slope) + 0.3 * clouds
    foreground = 0.5 + 0.5 * (dark + (bright - dark) * tint)
    images = background + (foreground - background) * cover
    return torch.where(draws[:, 13, None, None, None] >= negatives, images, 1 - images)

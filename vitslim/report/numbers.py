"""How numbers are written on the page: one place for units, decimals and signs."""

import math
from typing import Any

ABSENT = "–"
NARROW_SPACE = "\u202f"

# Both spelled out: the run-time check of the tests takes an annotation at its word.
Number = int | float


def fixed(value: Number | None, decimals: int = 2) -> str:
    """A number with a fixed count of decimals and a true minus sign; a dash when it was not measured."""
    return ABSENT if value is None else f"{value:,.{decimals}f}".replace("-", "−").replace(",", NARROW_SPACE)


def scientific(value: Number | None) -> str:
    """A small error such as 3.1e−06."""
    return ABSENT if value is None else f"{value:.1e}".replace("-", "−")


def digits(value: Number | None, count: int) -> str:
    """A number to so many significant digits."""
    return ABSENT if value is None else f"{value:.{count}g}".replace("-", "−")


def percent(share: Number | None, decimals: int = 2) -> str:
    """A share of 0..1 as percent."""
    return ABSENT if share is None else f"{fixed(100 * share, decimals)}{NARROW_SPACE}%"


def points(share_difference: Number) -> str:
    """A difference of two shares in signed percentage points."""
    sign = "+" if share_difference > 0 else ""
    return f"{sign}{fixed(100 * share_difference)} points"


def amount(value: Number | None, unit: str = "") -> str:
    """A large count to four digits with its decimal prefix: 22.16 M, 4.439 GMAC."""
    if value is None:
        return ABSENT
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            scaled = value / factor
            return f"{scaled:.{max(0, 3 - int(math.log10(abs(scaled))))}f}{NARROW_SPACE}{prefix}{unit}"
    return f"{value:.0f}{NARROW_SPACE}{unit}" if unit else f"{value:.0f}"


def whole(value: int | None) -> str:
    """A count with its thousands apart."""
    return ABSENT if value is None else f"{value:,}".replace(",", NARROW_SPACE)


def times(ratio: Number | None) -> str:
    """A speed ratio: 1.31×."""
    return ABSENT if ratio is None else f"{ratio:.2f}×"


def half_width(share: float, samples: int) -> float:
    """Half of the 95 % interval of a share counted over ``samples`` images (binomial, normal approximation)."""
    return 1.96 * math.sqrt(max(0.0, share * (1 - share)) / samples) if samples else 0.0


def block_list(blocks: list[int]) -> str:
    """Block numbers with runs drawn together: 3–8, 10."""
    runs: list[list[int]] = []
    for block in sorted(blocks):
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def plain(value: Any) -> str:
    """Any value out of a JSON file, as a reader would write it; lists within a list stand in brackets."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}".replace("-", "−")
    if isinstance(value, list):
        return ", ".join(f"({plain(one)})" if isinstance(one, list) else plain(one) for one in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(entry)}" for name, entry in value.items())
    return str(value)


def flatten(document: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as one flat list of dotted names with their values in words."""
    flat: dict[str, str] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = plain(value)
    return flat

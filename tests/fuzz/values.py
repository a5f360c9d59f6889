"""Values that break things, and small changes to documents, text and bytes that put them where they hurt."""

import copy
import random
from typing import Any

LONG = "x" * 5000


def nested(levels: int) -> list[Any]:
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


NUMBERS: list[Any] = [
    *(0, -1, 1, 3, 2**31, 2**63 - 1, 2**64, -(2**63), 10**18, 10**400),
    *(0.0, -0.5, 1e-30, 1e-3, 0.999, 1.5, 1e308, float("nan"), float("inf"), float("-inf")),
]
TEXTS = [
    *("", " ", "²", "٣", "1e-3", "0x10", "1_000", "no", "null", "auto", "all", "nan", "3-8", "8-3", "0-99999999999"),
    *("a\0b", "\ud800", "é" * 300, LONG, "%s%n", "{0}", "a\nb", "a: b", "[1", "*x", "&x", "!!int x", "a=b", "\x1b[2J"),
    *("nowhere", "./nowhere/deep/er", "hf-hub:a/b", "local-dir:nowhere", "hfds/nowhere", "wds/nowhere", "builtin"),
    *("fractals:classes=1000000000", "fractals:image_size=1000000", "fractals:noise=nan", "fractals:clases=3"),
    *(
        "deit_tiny_patch16",
        "skipatt",
        "evo_vit",
        "sret",
        "sparsifiner",
        "fp16",
        "bf16",
        "fp8",
        "cuda",
        "cuda:99",
        "tpu",
    ),
]
KINDS: list[Any] = [
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    [1, "2", None],
    {"1": 2},
    (),
    b"bytes",
    nested(70),
]
NASTY: list[Any] = [*NUMBERS, *TEXTS, *KINDS]
PLACES = ["a-folder", "a-pipe", "a-device", "a-loop", "an-empty-file", "a-text.onnx", "a-text.safetensors"]
"""What ``tests.fuzz.place`` puts into the folder of every case."""


WORK = ("steps", "epochs", "rounds", "warmup", "depth")
"""What may be asked for without end: a training of 10**18 steps is a long one, not a hang."""


def value(rng: random.Random, usual: Any = None, key: object = None) -> Any:
    """Something nobody expects, half of the time of the usual kind."""
    found = _value(rng, usual)
    return 3 if key in WORK and isinstance(found, int | float) and found > 100 else found


def _value(rng: random.Random, usual: Any) -> Any:
    alike = [one for one in [*NASTY, *PLACES] if type(one) is type(usual)]
    if alike and rng.random() < 0.5:
        return copy.deepcopy(rng.choice(alike))
    return rng.choice(PLACES) if rng.random() < 0.15 else copy.deepcopy(rng.choice(rng.choice([NUMBERS, TEXTS, KINDS])))


def text(rng: random.Random, usual: str = "") -> str:
    """A word nobody expects; instead of a number half of the time a number."""
    if usual.isdecimal() and rng.random() < 0.5:
        return shown(rng.choice(NUMBERS))
    return str(
        rng.choice([rng.choice(PLACES), rng.choice(TEXTS), shown(rng.choice(NUMBERS)), rng.choice(["[]", "{}"])])
    )


def shown(number: Any) -> str:
    """A number as a user types it."""
    return "1" + "0" * 400 if number == 10**400 else repr(number)


def changed_document(document: Any, rng: random.Random) -> Any:
    """A copy of plain data with one or two entries replaced, left out, doubled or called otherwise."""
    changed = copy.deepcopy(document)
    for _ in range(rng.choice([1, 1, 2])):
        places = [(holder, key) for holder, key in _entries(changed)]
        if not places:
            return value(rng)
        holder, key = rng.choice(places)
        how = rng.random()
        if how < 0.7:
            holder[key] = value(rng, holder[key], key)
        elif how < 0.8:
            del holder[key]
        elif isinstance(holder, dict):
            holder[rng.choice([f"{key}s", "unknown", "1", ""])] = holder[key] if how < 0.9 else holder.pop(key)
        else:
            holder.append(holder[key])
    return changed


def _entries(document: Any) -> list[tuple[Any, Any]]:
    keys = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else []
    return [(document, key) for key in keys] + [found for key in keys for found in _entries(document[key])]


def changed_text(original: str, rng: random.Random) -> str:
    """Text with something cut out, put in, or repeated."""
    start, end = sorted(rng.randrange(len(original) + 1) for _ in range(2))
    end = min(end, start + rng.choice([1, 5, 50, 10**6]))
    middle = rng.choice(
        ["", text(rng), "[" * 3000, "9" * 5000, original[start:end] * 3, "&a [*a]", "\t", "\ufeff", "# "]
    )
    return original[:start] + middle + original[end:]


def changed_bytes(original: bytes, rng: random.Random, *, front: int = 4096) -> bytes:
    """Bytes with some flipped, cut off or put in, more often at the front, where formats keep their tables."""
    data = bytearray(original)
    for _ in range(rng.choice([1, 1, 2, 8])):
        place = rng.randrange(min(front, len(data)) if rng.random() < 0.7 else len(data)) if data else 0
        how = rng.random()
        if how < 0.6 and data:
            data[place] = rng.choice([0, 255, 127, 128, data[place] ^ (1 << rng.randrange(8)), rng.randrange(256)])
        elif how < 0.75:
            del data[place:]
        elif how < 0.9:
            del data[place : place + rng.choice([1, 4, 64])]
        else:
            data[place:place] = rng.randbytes(rng.choice([1, 8, 100]))
    return bytes(data)

"""The JSON of saved models and of runs: config.json, metrics, analysis, parity."""

import json
import random
from pathlib import Path
from typing import Any

from tests.fuzz import values
from tests.fuzz.place import Case


def case(rng: random.Random, folder: Path) -> Case:
    """A folder of which one JSON file was changed by somebody, loaded or reported."""
    student = folder / "student"
    written = sorted(path for path in student.rglob("*.json") if path.stat().st_size < 300_000)
    path = rng.choice([student / "config.json", rng.choice(written)])
    path.write_text(_changed(path.read_text(), rng), errors="surrogatepass")
    act = _load if path.name == "config.json" and rng.random() < 0.8 else _report
    return Case(f"{act.__name__} with a changed {path.name}", lambda: act(student))


def _changed(text: str, rng: random.Random) -> str:
    if rng.random() < 0.3:
        return values.changed_text(text, rng)
    try:
        return json.dumps(values.changed_document(json.loads(text), rng))
    except (TypeError, ValueError):  # bytes, or a number too long to write
        return "[" * 100_000


def _load(student: Path) -> Any:
    import vitslim

    return vitslim.load(student)


def _report(student: Path) -> Any:
    from vitslim.report import write_report

    return write_report(student)

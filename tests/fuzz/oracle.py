"""Making a case from its number, and judging how it ended."""

import contextlib
import io
import os
import random
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import api, commands, files, recipes, saved
from tests.fuzz.place import Case, digest, lay_out
from vitslim.errors import CheckFailedError, VitslimError

SURFACES = {"recipes": recipes, "saved": saved, "commands": commands, "files": files, "api": api}
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Verdict:
    """How a case ended: ``failure`` is None where all is well, else says what is wrong and where."""

    number: int
    surface: str
    what: str
    ended: str  # "ok", "refused", or "failure"
    failure: str | None = None


def judge(
    number: int,
    seed: int,
    originals: Path,
    folder: Path,
    surface: str | None = None,
    tell: Callable[[str], object] = lambda what: None,
) -> Verdict:
    """Make a case, tell what it is, try it in a folder of its own, and look at everything that it left."""
    surface = surface or list(SURFACES)[number % len(SURFACES)]
    rng = random.Random(f"{seed}:{number}")
    lay_out(originals, folder)
    with contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = SURFACES[surface].case(rng, folder)
        tell(f"[{surface}] {case.what[:2000]}")
        before = digest(folder)
        ended, failure = _command(case) if case.is_command else _call(case)
        failure = failure or _left_behind(before, digest(folder), ended)
    return Verdict(number, surface, case.what[:2000], "failure" if failure else ended, failure)


def _call(case: Case) -> tuple[str, str | None]:
    try:
        case.act()
    except CheckFailedError:
        return "ok", None
    except VitslimError as error:
        return "refused", _unreadable(str(error))
    except BaseException as error:
        return "failure", _place(error)
    return "ok", None


def _command(case: Case) -> tuple[str, str | None]:
    # As strict as the real streams are.
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    code: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            case.act()
        except SystemExit as leaving:
            code = leaving.code or 0
        except BaseException as error:
            return "failure", _place(error)
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(errors="replace"))  # type: ignore[attr-defined]
    errors = [line for line in texts[1].splitlines() if line.startswith("error: ")]
    if code not in (0, 1, 2, 3) or "Traceback" in "".join(texts):
        return "failure", f"exit code {code!r}, or a traceback in the output"
    if code and len(errors) != 1:
        return "failure", f"exit code {code} with {len(errors)} lines of error"
    return ("refused" if code in (2, 3) else "ok"), None


def _unreadable(message: str) -> str | None:
    if not message.strip() or len(message) > 20_000:
        return f"a message of {len(message)} characters"
    return None


def _place(error: BaseException) -> str:
    """The exception with the last line of ours that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_ROOT / "vitslim")] or list(frames)
    last = ours[-1]
    where = f"{os.path.relpath(last.filename, _ROOT)}:{last.lineno} {last.name}"
    return f"{type(error).__name__} at {where}: {str(error)[:200]}"


def _left_behind(before: dict[str, str], after: dict[str, str], ended: str) -> str | None:
    new, gone = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    touched = sorted(name for name in before.keys() & after.keys() if before[name] != after[name])
    if ended == "refused" and (new or gone or touched):
        return f"refused, but left {new[:3]}, removed {gone[:3]}, touched {touched[:3]}"
    parts = [name for name in new if name.endswith((".part", ".old", ".next"))]
    return f"left {parts[:3]}" if parts else None

"""What is written in Markdown for people, tried: commands by the real parser, Python by running it."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from vitslim.cli.early import CheckedCommand, check_model
from vitslim.names import check_method

ROOT = Path(__file__).parents[1]
FEW = "fractals:train_per_class=1,val_per_class=1"


def blocks(text: str, language: str = r"\w*") -> list[tuple[str, str]]:
    """The fenced blocks of a page in a language, as (language, content)."""
    return re.findall(rf"^```({language})\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(content: str) -> list[list[str]]:
    """The words of each command line of vitslim in a block, without the comment behind it."""
    lines = [shlex.split(line, comments=True) for line in content.splitlines() if line.startswith("vitslim ")]
    return [words[1:] for words in lines]


def run_python(content: str) -> None:
    exec(compile(content, "<page>", "exec"), {"__name__": "page"})  # the pages are ours


def check_commands(content: str, vitslim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every command line read by the command that it names, which does not run."""
    given: list[dict[str, Any]] = []
    with monkeypatch.context() as patch:
        patch.setattr(CheckedCommand, "invoke", lambda self, ctx: given.append(ctx.params))
        for words in commands(content):
            outcome = vitslim(*words)
            assert outcome.code == 0, (words, outcome.err)
    assert len(given) == len(commands(content))
    for params in given:
        for name in ("model", "teacher", "base", "baseline"):
            if params.get(name) not in (None, "out", "dense", "MODEL"):
                check_model(params[name])
        for method in params.get("method") or ():
            check_method(method)
        for name in ("recipe", "settings"):
            if isinstance(params.get(name), Path):
                assert (ROOT / params[name]).is_file()

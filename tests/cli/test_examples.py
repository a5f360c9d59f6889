"""The examples below the help of every command."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.cli.conftest import Command
from vitslim.cli.early import CheckedCommand, check_model
from vitslim.cli.examples import EXAMPLES
from vitslim.cli.main import app
from vitslim.names import check_method

ROOT = Path(__file__).parents[2]


def commands(group: Any, path: tuple[str, ...] = ()) -> list[str]:
    """All commands and groups below one that the help shows."""
    found: list[str] = []
    for name, inner in getattr(group, "commands", {}).items():
        found += [] if inner.hidden else [" ".join((*path, name)), *commands(inner, (*path, name))]
    return found


COMMANDS = commands(typer.main.get_command(app))


def test_every_command_has_an_example_and_no_other_has() -> None:
    assert sorted(EXAMPLES) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_ends_in_examples_that_fit_a_narrow_terminal(
    command: str, vitslim: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = [line.strip() for line in vitslim(*command.split(), "--help").out.splitlines()]
        assert lines[-1] == "" or lines[-1] == EXAMPLES[command][-1]
        assert set(EXAMPLES[command]) <= set(lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_taken_by_the_command_they_stand_below(
    command: str, vitslim: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, dict[str, Any]]] = []
    # In place of the command: what the real parser made of the line.
    monkeypatch.setattr(CheckedCommand, "invoke", lambda self, ctx: given.append((ctx.command_path, ctx.params)))
    for line in EXAMPLES[command]:
        program, *words = shlex.split(line)
        assert program == "vitslim"
        outcome = vitslim(*words)
        assert outcome.code == 0, outcome.err
    assert len(given) == len(EXAMPLES[command])
    for path, params in given:
        assert path.startswith(f"vitslim {command}")
        for name in ("model", "teacher", "base", "baseline"):
            if params.get(name) not in (None, "out", "dense"):
                check_model(params[name])
        for method in params.get("method") or ():
            check_method(method)
        for name in ("recipe", "settings"):
            if isinstance(params.get(name), Path):
                assert (ROOT / params[name]).is_file()

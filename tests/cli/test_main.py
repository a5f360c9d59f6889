"""The command as a whole: help, exit codes, how errors leave it."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command
from vitslim.errors import CheckFailedError, ConfigError, MissingDependencyError

VERBS = (
    *("list", "inspect", "analyze", "doctor"),
    *("convert", "train", "pretrain", "run", "demo"),
    *("eval", "export", "verify", "bench", "report"),
)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, vitslim: Command) -> None:
    for option in ("--help", "-h"):
        outcome = vitslim(verb, option)
        assert outcome.code == 0
        assert f"Usage: vitslim {verb}" in outcome.out
        assert outcome.err == ""


def test_the_help_names_every_verb_and_fits_the_terminal(vitslim: Command) -> None:
    outcome = vitslim("--help")
    assert outcome.code == 0
    for verb in VERBS:
        assert f" {verb} " in outcome.out
    assert max(len(line) for line in outcome.out.splitlines()) <= 100


def test_no_words_at_all_show_the_help(vitslim: Command) -> None:
    assert vitslim().out == vitslim("--help").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convertt"], "No such command 'convertt'"),
        (["convert"], "Missing argument 'MODEL' (see `vitslim convert --help`)"),
        (["convert", "builtin", "--out", "x"], "Missing option '--method'"),
        (["convert", "builtin", "--metod", "skipat"], "No such option: --metod"),
        (["bench", "builtin", "--threads", "none"], "Invalid value for '--threads'"),
        (["bench", "builtin", "--threads", "0"], "Invalid value for '--threads'"),
    ],
)
def test_wrong_words_are_one_line_on_stderr(words: list[str], message: str, vitslim: Command) -> None:
    outcome = vitslim(*words)
    assert outcome.code == 2
    assert message in outcome.error
    assert outcome.out == ""


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (ConfigError("wrong\n  layer"), 2, "wrong layer"),
        (CheckFailedError("out of tolerance"), 1, "out of tolerance"),
        (MissingDependencyError("pip install 'vitslim[onnx]'"), 3, "pip install 'vitslim[onnx]'"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 2, "/data/x: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2, "/root/x: Permission denied"),
    ],
)
def test_faults_leave_as_one_line_with_their_exit_code(
    fault: Exception, code: int, message: str, vitslim: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise fault

    monkeypatch.setattr("vitslim.cli.look._list_methods", fail)
    outcome = vitslim("list", "methods")
    assert (outcome.code, outcome.error) == (code, message)


def test_a_fault_of_ours_keeps_its_traceback(vitslim: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("vitslim.cli.look._list_methods", fail)
    with pytest.raises(ZeroDivisionError):
        vitslim("list", "methods")


def test_an_interruption_says_that_the_work_is_kept(vitslim: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vitslim.cli.look._list_methods", interrupt)
    outcome = vitslim("list", "methods")
    assert outcome.code == 130
    assert "run the same command again to go on" in outcome.err


def test_a_full_disk_is_one_line(student: Path, tmp_path: Path, vitslim: Command, monkeypatch: Any) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    outcome = vitslim("convert", student, "--method", "evo_vit", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert outcome.error.startswith(f"{tmp_path}/out/recipe.yaml cannot be written (No space left on device)")


def test_the_real_command_answers_with_its_exit_code() -> None:
    command = Path(sys.executable).parent / "vitslim"
    found = subprocess.run([command, "list", "models?"], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr == "error: list 'models?' is not known; wanted models, methods or aliases\n"

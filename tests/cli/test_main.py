"""The command as a whole: help, exit codes, how errors leave it."""

import errno
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command
from vitslim.cli.screen import Screen, print_json, print_table
from vitslim.errors import CheckFailedError, ConfigError, MissingDependencyError
from vitslim.progress import Progress

COMMANDS = (
    *("list", "inspect", "analyze", "doctor"),
    *("convert", "train", "pretrain", "run", "demo", "import"),
    *("plugin", "eval", "export", "verify", "bench", "report"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, vitslim: Command) -> None:
    for option in ("--help", "-h"):
        outcome = vitslim(command, option)
        assert outcome.code == 0
        assert f"Usage: vitslim {command}" in outcome.out
        assert outcome.err == ""


def test_the_help_names_every_command_and_fits_the_terminal(vitslim: Command) -> None:
    outcome = vitslim("--help")
    assert outcome.code == 0
    for command in COMMANDS:
        assert f" {command} " in outcome.out
    assert " deploy " not in outcome.out
    assert max(len(line) for line in outcome.out.splitlines()) <= 100


def test_no_words_at_all_show_the_help(vitslim: Command) -> None:
    assert vitslim().out == vitslim("--help").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["covert"], "No such command 'covert'. Did you mean 'convert'? (see `vitslim --help`)"),
        (["deploy", "out", "--to", "rtx"], "there is no `deploy`; use `vitslim export DIR --to TARGET`"),
        (["convert"], "Missing argument 'MODEL' (see `vitslim convert --help`)"),
        (
            ["convert", "builtin", "--out", "x"],
            "name a method (--method depth; `vitslim list methods` shows all), a plan (--plan FILE) or a budget",
        ),
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
    ("error", "code", "message"),
    [
        (ConfigError("wrong\n  layer"), 2, "wrong layer"),
        (CheckFailedError("out of tolerance"), 1, "out of tolerance"),
        (MissingDependencyError("pip install 'vitslim[onnx]'"), 3, "pip install 'vitslim[onnx]'"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 2, "/data/x: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), 2, "/data/x: Permission denied"),
    ],
)
def test_errors_leave_as_one_line_with_their_exit_code(
    error: Exception, code: int, message: str, vitslim: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("vitslim.cli.inspect._list_methods", fail)
    outcome = vitslim("list", "methods")
    assert (outcome.code, outcome.error) == (code, message)


def test_an_error_of_ours_keeps_its_traceback(vitslim: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("vitslim.cli.inspect._list_methods", fail)
    with pytest.raises(ZeroDivisionError):
        vitslim("list", "methods")


def test_an_interruption_says_that_the_work_is_kept(vitslim: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vitslim.cli.inspect._list_methods", interrupt)
    outcome = vitslim("list", "methods")
    assert outcome.code == 130
    assert "run the same command again to go on" in outcome.err


def test_a_full_disk_is_one_line(student: Path, tmp_path: Path, vitslim: Command, monkeypatch: Any) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    outcome = vitslim("convert", student, "--method", "evo_vit", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert outcome.error.startswith(f"{tmp_path}/out/stages.json cannot be written (No space left on device)")


def test_the_real_command_answers_with_its_exit_code() -> None:
    command = Path(sys.executable).parent / "vitslim"
    found = subprocess.run([command, "list", "colours"], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr == "error: list 'colours' is not known; wanted models, methods, targets, aliases, pairs\n"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    found = subprocess.Popen(
        [sys.executable, "-m", "vitslim", "list", "aliases"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert found.stdout is not None
    assert found.stderr is not None
    found.stdout.close()
    with found.stderr as messages:
        assert messages.read() == ""
    assert found.wait() == 1


def test_the_version_is_that_of_the_package(vitslim: Command) -> None:
    outcome = vitslim("--version")
    assert (outcome.code, outcome.out) == (0, f"vitslim {installed_version('vitslim')}\n")


def test_a_checkout_that_is_not_installed_has_no_version(vitslim: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("vitslim.cli.main.version", none)
    outcome = vitslim("--version")
    assert (outcome.code, outcome.out) == (0, "vitslim (a checkout that is not installed)\n")


# --- what a person sees ---------------------------------------------------------------------------------------------


def test_a_log_gets_a_line_at_the_start_and_the_end_of_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen() as screen:
        for done in range(0, 101, 10):
            screen(Progress("distill", done, 100, "step", {"loss": 0.5, "img_per_s": 123.4, "eta_s": 3.0}))
        screen(Progress("distill", 1, 1, "done"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[   0.0 s] distill                0/100 step  loss 0.5  img_per_s 123.4"
    assert lines[1].endswith("distill                100/100 step  loss 0.5  img_per_s 123.4")
    assert lines[2].endswith("distill                done")
    assert len(lines) == 3


def test_square_brackets_in_a_table_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("", ("", ""), [("install", "pip install 'vitslim[onnx]'")])
    assert capsys.readouterr().out == "install  pip install 'vitslim[onnx]'\n"


def test_figures_stand_to_the_right_and_words_to_the_left(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("sizes", ("model", "MACs"), [("a", "1.25 G"), ("bc", "12.50 G"), ("d", "-")])
    assert capsys.readouterr().out.splitlines() == [
        "",
        "sizes",
        "model     MACs",
        "a       1.25 G",
        "bc     12.50 G",
        "d            -",
    ]


def test_json_refuses_what_json_does_not_know() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"kl": float("nan")})

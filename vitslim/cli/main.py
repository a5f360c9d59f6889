"""The `vitslim` command: its commands, and how errors leave it.

Exit codes: 0 ok, 1 a check failed, 2 usage, 3 something optional is missing, 130 interrupted. Nothing heavy
is imported before a command runs, so that `vitslim --help` and a misspelt name are answered at once.
"""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, NoReturn, cast

import typer

from vitslim.cli import bench, convert, evaluate, export, import_weights, inspect, plan, plugin, train
from vitslim.cli.early import check_early
from vitslim.cli.examples import add_examples
from vitslim.cli.screen import say
from vitslim.errors import VitslimError, VitslimWarning

_show_warning = warnings.showwarning
_INTERRUPTED = 130  # typer's exit code for a KeyboardInterrupt

# Typer has brought its own click since 0.26 and used the installed one before; both know this class only by its heir.
_UsageError = cast("type[Exception]", typer.BadParameter.__base__)

app = typer.Typer(
    name="vitslim",
    help="Convert pretrained vision transformers into efficient ones, with the evidence.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
inspect.register(app)
plan.register(app)
convert.register(app)
train.register(app)
import_weights.register(app)
evaluate.register(app)
export.register(app)
bench.register(app)
plugin.register(app)
add_examples(app)
check_early(app)


class _LogLines(logging.Handler):
    """What vitslim logs, as lines for a person."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def _show_version(wanted: bool) -> bool:
    if wanted:
        try:
            found = version("vitslim")
        except PackageNotFoundError:
            found = "(a checkout that is not installed)"
        typer.echo(f"vitslim {found}")
        raise typer.Exit
    return wanted


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="say the version", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options of the command itself."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and turn errors into one line on stderr and an exit code."""
    # Before torch is imported: OpenMP's waiting threads should sleep, not spin. On a machine with other work to do the
    # spinning made training five times slower (18 instead of 94 img/s).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    log = logging.getLogger("vitslim")
    log.handlers = [_LogLines()]
    log.setLevel(logging.INFO)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", VitslimWarning)
            warnings.showwarning = _note
            code = app(given or ["--help"], prog_name="vitslim", standalone_mode=False) or 0
        sys.stdout.flush()
    except VitslimError as error:
        _leave(str(error), error.exit_code)
    except _UsageError as error:
        _leave(f"{_reason(error)} (see `{_command(error)} --help`)", 2)
    except BrokenPipeError:
        # The reader has what it wanted, as `head` does. What is still in the buffer goes nowhere when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        _leave(f"{named}{error.strerror or error}", 2)
    else:
        if code == _INTERRUPTED:
            typer.secho(
                "\ninterrupted; what was finished stays, run the same command again to go on", fg="yellow", err=True
            )
        sys.exit(code)


def _note(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
    if issubclass(category, VitslimWarning):
        say(f"note: {message}", style="yellow")
    else:
        _show_warning(message, category, *place, **rest)


def _leave(message: str, code: int) -> NoReturn:
    typer.secho(f"error: {' '.join(message.split())}", fg="red", err=True)
    sys.exit(code)


def _reason(error: Exception) -> str:
    return str(error.format_message()).rstrip(" .")  # pyright: ignore[reportAttributeAccessIssue]


def _command(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return "vitslim" if context is None else str(context.command_path)


if __name__ == "__main__":
    main()

"""The `vitslim` command: its verbs, and how errors leave it.

Exit codes: 0 ok, 1 a check failed, 2 usage, 3 something optional is missing, 130 interrupted. Nothing heavy
is imported before a verb runs, so that `vitslim --help` answers at once.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

from vitslim.cli import bench, bring, check, look, make, plugin, serve
from vitslim.cli.screen import say
from vitslim.errors import VitslimError, VitslimWarning

_show_warning = warnings.showwarning
_INTERRUPTED = 130  # typer's exit code for a KeyboardInterrupt

app = typer.Typer(
    name="vitslim",
    help="Convert pretrained vision transformers into efficient ones, with the evidence.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
look.register(app)
make.register(app)
bring.register(app)
check.register(app)
bench.register(app)
serve.register(app)
plugin.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and turn errors into one line on stderr and an exit code."""
    # Before torch is imported: OpenMP's waiting threads shall sleep, not spin. On a machine with other work to do the
    # spinning made training five times slower (18 instead of 94 img/s).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", VitslimWarning)
            warnings.showwarning = _note
            code = app(given or ["--help"], prog_name="vitslim", standalone_mode=False) or 0
    except VitslimError as error:
        _leave(str(error), error.exit_code)
    except typer.TyperException as error:
        _leave(f"{error.format_message().rstrip(' .')} (see `{_command(error)} --help`)", 2)
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


def _command(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return "vitslim" if context is None else str(context.command_path)


if __name__ == "__main__":
    main()

"""The `vitslim` command: its verbs, and how errors leave it.

Exit codes: 0 ok, 1 a check failed, 2 usage, 3 something optional is missing. Nothing heavy is imported before a verb
runs, so that `vitslim --help` answers at once.
"""

import sys

import typer

from vitslim.cli import check, look, make
from vitslim.errors import VitslimError

app = typer.Typer(
    name="vitslim",
    help="Convert pretrained vision transformers into efficient ones, with the evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
look.register(app)
make.register(app)
check.register(app)


def main() -> None:
    """Run the command line and turn errors into messages and exit codes."""
    try:
        app()
    except VitslimError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.secho("interrupted; what was finished stays, run the same command again to go on", fg="yellow", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()

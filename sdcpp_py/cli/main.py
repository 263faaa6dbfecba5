"""The command and its sub-commands, and the exit status that each end has."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .._version import __version__
from ..errors import SdcppError
from ..modes import DRAWING
from . import devices, doctor, txt2img
from .flags import PanelCommand

app = typer.Typer(
    name="sdcpp",
    help="Pictures from text with stable-diffusion.cpp.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class _Drawing(PanelCommand):
    """A command with the flags of a mode's options."""

    alone = frozenset(
        name
        for found in (*txt2img.DRAWING_FLAGS.values(), txt2img.LOADING_FLAGS)
        for flag in found
        if flag.may_stand_alone
        for name in flag.names
    )


for _mode in DRAWING:
    app.command(_mode.name, cls=_Drawing)(txt2img.drawing_command(_mode))
app.command("devices")(devices.command)
app.command("doctor")(doctor.command)


def _version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        typer.echo(f"sdcpp {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Pictures from text with stable-diffusion.cpp."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 for an error with one line, 2 for usage, 130 for Ctrl-C."""
    try:
        result = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except SdcppError as error:
        message = str(error).encode("utf-8", "backslashreplace").decode("utf-8")
        typer.echo(f"sdcpp: error: {message}", err=True)
        return 1
    except typer.Abort:
        typer.echo("sdcpp: interrupted", err=True)
        return 128 + signal.SIGINT
    except Exception as error:
        usage = getattr(error, "show", None)
        if usage is None:
            raise
        usage()
        return int(getattr(error, "exit_code", 2))
    return result if isinstance(result, int) else 0


def run() -> None:
    """Run the command for the console script."""
    sys.exit(main())

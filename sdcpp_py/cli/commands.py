"""The command and its sub-commands, and the exit status that each end has."""

from __future__ import annotations

import contextlib
import signal
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from .._version import __version__
from ..errors import SdcppError
from ..modes import DRAWING, FILMING
from . import batch, convert, devices, doctor, drawing, info, pull, serve, upscale
from .flags import CommandGroup, PanelCommand

app = typer.Typer(
    name="sdcpp",
    cls=CommandGroup,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="Pictures and videos from text with stable-diffusion.cpp.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 128 + signal.SIGINT


class _Drawing(PanelCommand):
    """A command with the flags of a mode's options."""

    instead = drawing.FROM
    alone = frozenset(
        name
        for found in (*drawing.DRAWING_FLAGS.values(), drawing.LOADING_FLAGS)
        for flag in found
        if flag.may_stand_alone
        for name in flag.names
    )


for _mode in (*DRAWING, *FILMING):
    app.command(_mode.name, cls=_Drawing)(drawing.drawing_command(_mode))
app.command("upscale", cls=PanelCommand)(upscale.command)
app.command("convert", cls=PanelCommand)(convert.command)
app.command("info", cls=PanelCommand)(info.command)
app.command("serve", cls=PanelCommand)(serve.command)
app.command("batch", cls=PanelCommand)(batch.command)
app.command("pull", cls=PanelCommand)(pull.command)
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
    """Pictures and videos from text with stable-diffusion.cpp."""


def _say(kind: str, message: str) -> None:
    """Write a line to standard error, if anybody listens."""
    with contextlib.suppress(OSError):
        typer.echo(f"sdcpp: {kind}{message}".encode("utf-8", "backslashreplace").decode("utf-8"), err=True)


@contextlib.contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Show warnings as the command shows errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)

        def show(message: Warning | str, *_: object, **__: object) -> None:
            _say("warning: ", " ".join(str(message).split()))

        warnings.showwarning = show
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    try:
        with _warnings_in_a_line():
            result = app(args=None if arguments is None else list(arguments), prog_name="sdcpp", standalone_mode=False)
    except SdcppError as error:
        _say("error: ", str(error))
        return 1
    except MemoryError:
        _say("error: ", "there is not enough memory; make the pictures smaller or fewer")
        return 1
    except (KeyboardInterrupt, typer.Abort):
        result = INTERRUPTED
    except SystemExit as error:
        return int(error.code or 0)  # of typer, when nobody reads standard output
    except Exception as error:
        usage = getattr(error, "show", None)
        if usage is None:
            raise
        usage()
        return int(getattr(error, "exit_code", 2))
    if result == INTERRUPTED:  # some versions of typer return it
        _say("", "interrupted")
    return result if isinstance(result, int) else 0

"""``sdcpp upscale``: a larger picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .._version import __version__
from ..devices import devices
from ..images import check_output, save_all
from ..model_files import show_path
from ..modes import UPSCALE, UPSCALER
from ..upscaler import Upscaler
from .drawing import Verbose, start_logging
from .flags import Flag, flags, options_of, take_flags
from .output import check_report, echo, write_report
from .sd_cli import PLACING

_UPSCALER_FLAGS = flags(UPSCALER.declared)
_UPSCALE_FLAGS = flags(UPSCALE.declared)


def _upscale(
    output: Annotated[
        str, typer.Option("--output", "-o", help="Picture to write.", rich_help_panel="Output")
    ] = "output.png",
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Write plan and reports as JSON.", rich_help_panel="Output"),
    ] = None,
    verbose: Verbose = False,
    *,
    given: Mapping[Flag, Any],
) -> None:
    """Make a picture larger."""
    start_logging(verbose)
    loading = options_of({flag: given[flag] for flag in _UPSCALER_FLAGS if flag in given}, UPSCALER.declared)
    options = options_of({flag: given[flag] for flag in _UPSCALE_FLAGS if flag in given}, UPSCALE.declared)
    UPSCALER.check(loading)
    UPSCALE.check(options)
    files = check_output(output)
    check_report(report, files)
    with Upscaler(**loading) as upscaler:
        image = upscaler.upscale(**options)
        save_all([image], check_output(output, size=image.size))
        if report is not None:
            made = {
                "version": __version__,
                "files": [show_path(file) for file in files],
                "parameters": image.info["parameters"],
                "devices": [device.to_dict() for device in devices()],
                "plan": upscaler.plan.to_dict(),
                "memory": upscaler.memory_report().to_dict(),
                "transfer": upscaler.transfer_report().to_dict(),
            }
            write_report(report, made)
    echo(f"{show_path(files[0])}  {image.width}x{image.height}")


command: Callable[..., None] = take_flags(
    _upscale, [*_UPSCALE_FLAGS, *_UPSCALER_FLAGS], [each for each in PLACING if "=" not in each.value]
)

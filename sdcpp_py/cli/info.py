"""``sdcpp info``: what a file is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .. import info as describe_file
from .output import echo


def command(
    file: Annotated[str, typer.Argument(help="A model's file, index of shards or folder, a picture or a video.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a file is: a model's, a picture or a video."""
    found = describe_file(file)
    echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False) if as_json else str(found))

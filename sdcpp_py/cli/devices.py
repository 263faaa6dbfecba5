"""``sdcpp devices``: what can compute or hold weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from ..devices import Device, devices
from ..reports import GIB, table
from .output import echo


def _device_table(found: Sequence[Device]) -> str:
    """Return the table of ``sdcpp devices``."""
    rows = []
    for device in found:
        memory = [f"{size / GIB:.1f} GiB" if size else "?" for size in (device.memory_total, device.memory_free)]
        rows.append((device.name, device.kind, *memory, device.host_buffer_type or "-", device.description))
    return table(("device", "kind", "memory", "free", "host buffer type", "description"), rows, ("memory", "free"))


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the devices that can compute or hold weights."""
    found = devices()
    if as_json:
        echo(json.dumps([device.to_dict() for device in found], indent=2))
    else:
        echo(_device_table(found))

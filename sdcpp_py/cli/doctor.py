"""``sdcpp doctor``: what is installed, and what is missing."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ..devices import choices, doctor
from .output import echo


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    names: Annotated[bool, typer.Option("--names", help="List the samplers, schedulers and other names too.")] = False,
) -> None:
    """Say what is installed, what is loaded from where, and what is missing."""
    report = doctor()
    if names and not report["problems"]:
        report["names"] = {name: list(valid) for name, valid in choices().items()}
    if as_json:
        echo(json.dumps(report, indent=2))
    else:
        built = report["engine"] or {}
        echo(f"sdcpp-py  {report['sdcpp_py']}, Python {report['python']}, {report['platform']}")
        if built:
            echo(f"engine    stable-diffusion.cpp {built['engine_commit']}, patched")
            echo(f"ggml      {built['ggml']} ({built['ggml_commit']})")
            echo(f"library   {built['library']}")
        for device in report["devices"]:
            features = " ".join(
                name if value == "1" else f"{name}={value}" for name, value in device["features"].items()
            )
            echo(f"{device['name']:<9} {device['description']}, module {device['module_path'] or 'built in'}")
            if features:
                echo(f"{'':<9} {features}")
        for name, valid in report.get("names", {}).items():
            echo(f"{name}: {', '.join(valid)}")
        for hint in report["hints"]:
            echo(f"hint      {hint}")
        for problem in report["problems"]:
            echo(f"problem   {problem}")
    if report["problems"]:
        raise typer.Exit(1)

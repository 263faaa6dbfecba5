"""Adding an option of the engine is one declaration: all else follows, shown with one that is made up."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, TypedDict

import pytest
import typer
from typer.testing import CliRunner

from sdcpp_py import ArgumentError, engine
from sdcpp_py.cli.flags import Flag, PanelCommand, flags, options_of, take_flags
from sdcpp_py.metadata import parameters_text
from sdcpp_py.modes import Mode, make_request
from sdcpp_py.options import Opt, Range, declared
from sdcpp_py.options.docs import table
from sdcpp_py.options.generation import Subject
from sdcpp_py.options.signature import describe


class Options(TypedDict, total=False):
    """What a later engine might have."""

    sharpness: Annotated[
        float | None,
        Range(0.0, 2.0),
        Opt(
            "how sharp edges are",
            field="sample_params.eta",
            flags="--sharpness",
            png="Sharpness",
            panel="Sampling",
            engine_default=1.0,
        ),
    ]


MODE = Mode("made_up", "Draw.", Subject, Options, engine.fields.IMAGE)


class Drawer:
    def draw(self, prompt: str, **options: Any) -> dict[str, Any]:
        """Draw.

        Returns:
            The engine's fields.
        """
        return make_request(MODE, {"prompt": prompt, **options}).settings


describe(Drawer.draw, declared(MODE.subject), declared(MODE.options))


def test_signature_and_help() -> None:
    assert str(inspect.signature(Drawer.draw)).startswith("(self, prompt: str, *, sharpness: float | None = None)")
    assert "    sharpness: how sharp edges are (0 to 2; default: 1).\n\nReturns:" in (Drawer.draw.__doc__ or "")


def test_check_and_field() -> None:
    assert Drawer().draw("a", sharpness=0.5) == {"prompt": "a", "sample_params": {"eta": 0.5}}
    assert Drawer().draw("a") == {"prompt": "a"}
    with pytest.raises(ArgumentError, match="^sharpness must be a finite number from 0 to 2, not 3"):
        Drawer().draw("a", sharpness=3)


def test_pictures() -> None:
    request = make_request(MODE, {"prompt": "a", "sharpness": 0.25})
    assert parameters_text(request.used, MODE.declared) == "a\nSharpness: 0.25"


def test_flag() -> None:
    seen: list[dict[str, Any]] = []

    def draw(*, given: dict[Flag, Any]) -> None:
        seen.append(options_of(given, MODE.declared))

    app = typer.Typer(rich_markup_mode=None)
    app.command(cls=PanelCommand)(take_flags(draw, flags(MODE.declared)))
    done = CliRunner().invoke(app, ["-p", "a", "--sharpness", "0.5"])
    assert done.exit_code == 0, done.output
    assert seen == [{"prompt": "a", "sharpness": 0.5}]
    said = CliRunner().invoke(app, ["--help"]).output
    assert "Sampling:\n  --sharpness NUMBER  How sharp edges are (0 to 2; default: 1)." in said


def test_schema() -> None:
    schema = MODE.schema(names=None)
    assert schema["properties"]["sharpness"] == {
        "type": "number",
        "description": "how sharp edges are",
        "minimum": 0.0,
        "maximum": 2.0,
    }
    assert schema["required"] == ["prompt"]


def test_docs() -> None:
    row = "number | how sharp edges are | 0 to 2 | *1* | `--sharpness` | Sharpness | `sample_params.eta`"
    assert f"| `sharpness` | {row} |" in table(MODE.declared).splitlines()

from __future__ import annotations

from pathlib import Path

from sdcpp_py.options.__main__ import text

PAGE = Path(__file__).resolve().parents[2] / "docs" / "options.md"


def test_the_table_of_options_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == text(), "run: python -m sdcpp_py.options docs/options.md"

from __future__ import annotations

import fractions
import math
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcpp_py import options
from sdcpp_py.errors import ArgumentError


class Hostile:
    """An object that raises whatever it is asked."""

    def __repr__(self) -> str:
        raise LookupError("no")

    def __index__(self) -> int:
        raise LookupError("no")

    def __float__(self) -> float:
        raise LookupError("no")


@given(st.integers())
def test_check_int_takes_what_is_in_range_and_a_multiple(side: int) -> None:
    if 8 <= side <= 16384 and side % 8 == 0:
        assert options.check_int("width", side, 8, 16384, multiple=8) == side
    else:
        with pytest.raises(ArgumentError, match="width must be"):
            options.check_int("width", side, 8, 16384, multiple=8)


@pytest.mark.parametrize(("side", "near"), [(100, 96), (9, 8), (12, 8), (13, 8)])
def test_check_int_names_the_next_multiple(side: int, near: int) -> None:
    with pytest.raises(ArgumentError, match=f"a multiple of 8, not {side}; try {near}$"):
        options.check_int("width", side, 8, 16384, multiple=8)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_check_float_refuses_what_is_not_finite(value: float) -> None:
    if math.isfinite(value):
        assert options.check_float("x", value) == value
    else:
        with pytest.raises(ArgumentError, match="x must be a finite number"):
            options.check_float("x", value)


@pytest.mark.parametrize("value", ["7", None, 1.5, True, np.True_, [1], np.array([1]), np.float32(1), Hostile()])
def test_check_int_refuses_what_is_no_integer(value: object) -> None:
    with pytest.raises(ArgumentError, match="n must be an integer"):
        options.check_int("n", value, 0, 10)


@pytest.mark.parametrize("value", ["7", None, 1j, True, np.True_, [1.0], np.array([1.0]), Hostile()])
def test_check_float_refuses_what_is_no_number(value: object) -> None:
    with pytest.raises(ArgumentError, match="x must be a number"):
        options.check_float("x", value)


@pytest.mark.parametrize("value", [0, 1, None, "True", [], np.int64(1), Hostile()])
def test_check_bool_refuses_what_is_neither(value: object) -> None:
    with pytest.raises(ArgumentError, match="b must be True or False"):
        options.check_bool("b", value)


def test_numpy_scalars_will_do() -> None:
    checked: list[Any] = [
        options.check_int("n", np.int64(3), 0, 10),
        options.check_float("x", np.float32(0.5)),
        options.check_float("x", np.int8(2)),
        options.check_bool("b", np.True_),
    ]
    assert checked == [3, 0.5, 2.0, True]
    assert [type(each) for each in checked] == [int, float, float, bool]
    assert options.check_float("x", fractions.Fraction(1, 2)) == 0.5


@pytest.mark.parametrize("value", [10**400, -(10**400), 10 ** (sys.get_int_max_str_digits() + 1)], ids=type)
def test_huge_integers_get_a_short_message(value: int) -> None:
    for check in (lambda: options.check_int("n", value, 0, 10), lambda: options.check_float("n", value, 0, 10)):
        with pytest.raises(ArgumentError, match=r"^n must be .* 0 to 10, not") as caught:
            check()
        assert len(str(caught.value)) < 100


def test_messages_are_one_short_line() -> None:
    for value in ("a\nb" * 1000, ["x"] * 1000, np.zeros((40, 40))):
        with pytest.raises(ArgumentError) as caught:
            options.check_int("n", value, 0, 10)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 100


def test_check_choice_lists_the_valid_names() -> None:
    with pytest.raises(ArgumentError, match=r"^sampler 'eul' is unknown; valid: euler, heun"):
        options.check_choice("sampler", "eul", ["euler", "heun"])
    with pytest.raises(ArgumentError, match="^sampler 5 is unknown"):
        options.check_choice("sampler", 5, ["euler", "heun"])


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("LANCZOS", "Lanczos"),
        ("cache-dit", "cache_dit"),
        ("latent (NEAREST-exact)", None),
        ("DPM++ 2M", "dpm++2m"),
        ("Euler a", "euler_a"),
    ],
)
def test_check_choice_is_not_particular_about_case(said: str, meant: str | None) -> None:
    names = ["Latent (nearest)", "Latent (nearest-exact)", "Lanczos", "cache_dit", "euler", "euler_a", "dpm++2m"]
    assert options.check_choice("x", said, names) == (meant or "Latent (nearest-exact)")


@pytest.mark.parametrize("text", ["a\0b", "\udcff", 3, b"bytes", None])
def test_check_text_refuses_what_the_engine_cannot_read(text: object) -> None:
    with pytest.raises(ArgumentError, match="^prompt"):
        options.check_text("prompt", text)

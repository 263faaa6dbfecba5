from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcpp_py import options
from sdcpp_py.errors import ArgumentError


@given(st.integers())
def test_check_side_takes_multiples_of_eight(side: int) -> None:
    if 8 <= side <= options.MAX_SIDE and side % 8 == 0:
        assert options.check_side("width", side) == side
    else:
        with pytest.raises(ArgumentError, match="width must be"):
            options.check_side("width", side)


def test_check_side_names_the_next_size() -> None:
    with pytest.raises(ArgumentError, match="not 100; try 96"):
        options.check_side("width", 100)


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_check_float_refuses_what_is_not_finite(value: float) -> None:
    if math.isfinite(value):
        assert options.check_float("x", value) == value
    else:
        with pytest.raises(ArgumentError, match="x must be a finite number"):
            options.check_float("x", value)


@pytest.mark.parametrize("value", ["7", None, 1.5, True, [1]])
def test_check_int_refuses_what_is_no_integer(value: object) -> None:
    with pytest.raises(ArgumentError, match="n must be an integer"):
        options.check_int("n", value, 0, 10)


def test_check_int_takes_numpy_integers() -> None:
    numpy = pytest.importorskip("numpy")
    assert options.check_int("n", numpy.int64(3), 0, 10) == 3


def test_check_choice_lists_the_valid_names() -> None:
    with pytest.raises(ArgumentError, match=r"sampler 'eul' is unknown; valid: euler, heun"):
        options.check_choice("sampler", "eul", ["euler", "heun"])


@pytest.mark.parametrize("text", ["a\0b", "\udcff", 3, b"bytes", None])
def test_check_text_refuses_what_the_engine_cannot_read(text: object) -> None:
    with pytest.raises(ArgumentError, match="prompt"):
        options.check_text("prompt", text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: options.Lora("a", math.nan),
        lambda: options.Tiling(target_overlap=0.9),
        lambda: options.Tiling(tile_size_x=-1),
        lambda: options.Cache("ucache", reuse_threshold=math.inf),
        lambda: options.SkipLayerGuidance([-1], 2.0),
        lambda: options.Hires(scale=0.0),
        lambda: options.Hires(target_width=100),
        lambda: options.Hires(denoising_strength=2.0),
        lambda: options.PhotoMaker([]),
    ],
)
def test_options_check_themselves(make: object) -> None:
    assert callable(make)
    with pytest.raises(ArgumentError):
        make()


def test_given_leaves_out_what_keeps_the_default() -> None:
    assert options.given(options.Tiling(tile_size_x=32)) == {"tile_size_x": 32}
    assert options.given(options.Tiling()) == {}


def test_as_loras() -> None:
    one = options.Lora("a.safetensors", 0.5)
    assert options.as_loras([one, "b.safetensors"]) == [one, options.Lora("b.safetensors")]
    assert options.as_loras({"a.safetensors": 0.5}) == [one]
    assert options.as_loras("b.safetensors") == [options.Lora("b.safetensors")]
    assert options.as_loras(Path("b.safetensors"))[0].multiplier == 1.0

"""The host's arithmetic: the engine's noise and its walk through broadcast tensors, against references of their own."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from support.build_tree import probe


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Return the four numbers of Philox4x32-10 at a counter, as the paper of Salmon and others defines it."""
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * counter[0], 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * counter[2], 1 << 32)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B9) % (1 << 32), (key[1] + 0xBB67AE85) % (1 << 32)]
    return counter


def numbers(count: int, seed: int, offset: int) -> list[list[float]]:
    """Return the first and the second numbers."""
    ffi, lib = probe("host_math_probe")
    found = ffi.new("float[]", count)
    both = []
    for second in (False, True):
        lib.host_math_philox(count, seed, offset, second, found)
        both.append(list(found))
    return both


def test_philox_gives_the_published_numbers() -> None:
    # Of the known answers that come with Random123, for a counter and a key of zeros.
    known = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox([0] * 4, [0] * 2) == known
    assert numbers(1, 0, 0) == [[float(np.float32(number))] for number in known[:2]]


@given(count=st.integers(0, 9), seed=st.integers(0, (1 << 64) - 1), offset=st.integers(0, (1 << 32) - 1))
def test_philox_counts_elements_and_calls(count: int, seed: int, offset: int) -> None:
    expected = [philox([offset, 0, i, 0], [seed % (1 << 32), seed >> 32]) for i in range(count)]
    assert numbers(count, seed, offset) == [[float(np.float32(row[place])) for row in expected] for place in (0, 1)]


@st.composite
def broadcast_shapes(draw: st.DrawFn) -> list[list[int]]:
    """Return a shape and those of two tensors that are broadcast to it."""
    shape = draw(st.lists(st.integers(0, 4), max_size=5))
    return [shape, *([draw(st.sampled_from([size, 1])) for size in shape] for _ in range(2))]


@given(shapes=broadcast_shapes())
def test_offsets_are_those_of_broadcast_tensors(shapes: list[list[int]]) -> None:
    shape, left, right = shapes
    strides = [[math.prod(operand[:i]) for i in range(len(operand))] for operand in (left, right)]
    ffi, lib = probe("host_math_probe")
    offsets = ffi.new("int64_t[]", 2 * math.prod(shape))
    count = lib.host_math_offsets(len(shape), shape, left, strides[0], right, strides[1], offsets)
    assert count == (math.prod(shape) if shape else 0)  # without dimensions, the engine means no element
    for side, operand in enumerate((left, right)):
        # numpy's last dimension is the contiguous one.
        places = np.arange(math.prod(operand)).reshape(operand[::-1])
        assert list(offsets)[side : 2 * count : 2] == np.broadcast_to(places, shape[::-1]).ravel().tolist()[:count]

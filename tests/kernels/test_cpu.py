"""Our kernels for the CPU against ggml's own and against float64, for shapes and layouts that nothing fits into."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sdcpp_py import engine
from sdcpp_py.engine import Run
from support.children import in_child

TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "q4_K": 12, "q6_K": 14, "bf16": 30}  # ggml's numbers
BLOCKS = {"q4_0": 32, "q8_0": 32, "q4_K": 256, "q6_K": 256}
LENGTHS = st.one_of(st.sampled_from([1, 2, 7, 16, 31, 33, 97, 129, 257]), st.integers(1, 80))


class Operand(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int64),
        ("ne", ctypes.c_int64 * 4),
        ("padding", ctypes.c_int64),
        ("permuted", ctypes.c_int64),
    ]


class Case(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int64),
        ("left", Operand),
        ("right", Operand),
        ("third", Operand),
        ("stride", ctypes.c_int64 * 2),
        ("pad", ctypes.c_int64 * 2),
        ("dilation", ctypes.c_int64 * 2),
        ("threads", ctypes.c_int64),
        ("fast", ctypes.c_int64),
        ("scale", ctypes.c_float),
    ]


@dataclass(frozen=True)
class Values:
    """An operand: its type, its shape as ggml counts it (the first dimension lies side by side), and its layout."""

    type: str
    shape: tuple[int, int, int, int]
    padding: int = 0
    permuted: bool = False

    def operand(self) -> Operand:
        return Operand(TYPES[self.type], (ctypes.c_int64 * 4)(*self.shape), self.padding, self.permuted)

    def numbers(self, random: np.random.Generator) -> NDArray[np.float32]:
        return random.standard_normal(self.shape[::-1], dtype=np.float32)


@dataclass(frozen=True)
class Window:
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def size(self, picture: tuple[int, ...], kernel: tuple[int, ...]) -> list[int]:
        """Width and height of the result."""
        rows = zip(picture[:2], kernel[:2], self.stride, self.pad, self.dilation, strict=True)
        return [
            (side + 2 * pad - dilation * (taps - 1) - 1) // stride + 1 for side, taps, stride, pad, dilation in rows
        ]


def compute(
    left: Values,
    right: Values,
    more: Window | Values | None = None,
    *,
    fast: bool,
    threads: int = 2,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return a result under a policy, and what it should be.

    Args:
        left: the weights; of attention the keys.
        right: the input; of attention the queries.
        more: a window for a convolution, values for attention, nothing for a product.
        fast: whether our kernels may compute it.
        threads: how many threads do.
    """
    engine.library()
    probe = ctypes.CDLL(str(engine.versions()["library"])).sdcpp_probe_kernel
    probe.argtypes = [ctypes.c_void_p, ctypes.POINTER(Case), *[ctypes.c_void_p] * 4]
    ffi, lib = engine.library()
    random = np.random.default_rng(1)
    a, b = left.numbers(random), right.numbers(random)
    c = more.numbers(random) if isinstance(more, Values) else a
    kind, shape = 0, (*right.shape[:0:-1], left.shape[1])
    if isinstance(more, Window):
        width, height = more.size(right.shape, left.shape)
        kind, shape = 1, (right.shape[3], left.shape[3], height, width)
    elif isinstance(more, Values):
        kind, shape = 2, (right.shape[3], right.shape[1], right.shape[2], more.shape[0])
    result = np.full(shape, np.nan, np.float32)
    window = more if isinstance(more, Window) else Window()
    third = more if isinstance(more, Values) else left
    case = Case(kind, left.operand(), right.operand(), third.operand(), window.stride, window.pad, window.dilation)
    case.threads, case.fast, case.scale = threads, fast, left.shape[0] ** -0.5
    with Run() as run:
        handle = int(ffi.cast("uintptr_t", run.native))
        arrays = [array.ctypes.data for array in (a, b, c, result)]
        assert probe(handle, ctypes.byref(case), *arrays) == lib.SDCPP_OK
    a, b, c = (array.astype(np.float64) for array in (a, b, c))
    if isinstance(more, Window):
        return result, convolved(a, b, more, shape)
    for axis in (0, 1):
        a, c = (np.repeat(array, b.shape[axis] // array.shape[axis], axis) for array in (a, c))
    scores = b @ a.swapaxes(-1, -2)
    if more is None:
        return result, scores
    weights = np.exp(case.scale * (scores - scores.max(axis=-1, keepdims=True)))
    return result, ((weights / weights.sum(axis=-1, keepdims=True)) @ c).swapaxes(1, 2)


def convolved(
    kernel: NDArray[np.float64], picture: NDArray[np.float64], window: Window, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return the convolution, a tap of the kernel at a time."""
    (px, py), (sx, sy), (dx, dy) = window.pad, window.stride, window.dilation
    padded = np.pad(picture, ((0, 0), (0, 0), (py, py), (px, px)))
    result = np.zeros(shape)
    for y in range(kernel.shape[2]):
        for x in range(kernel.shape[3]):
            part = padded[:, :, y * dy :: sy, x * dx :: sx][:, :, : shape[2], : shape[3]]
            result += np.einsum("nchw,oc->nohw", part, kernel[:, :, y, x])
    return result


def error(result: NDArray[np.float32], exact: NDArray[np.float64]) -> float:
    """The root of the mean square of the errors over that of the values."""
    return float(np.linalg.norm(result - exact) / max(np.linalg.norm(exact), 1e-30))


def check(left: Values, right: Values, more: Window | Values | None = None) -> None:
    """Compare both policies with float64: ours errs no more, or no more than sums of floats do."""
    ours, exact = compute(left, right, more, fast=True)
    ggml, _ = compute(left, right, more, fast=False)
    assert np.isfinite(ours).all()
    assert error(ours, exact) <= max(1.1 * error(ggml, exact), 4e-7), (error(ours, exact), error(ggml, exact))
    # Whatever the threads divide, each sum is made in the same order.
    for threads in (1, 3):
        assert np.array_equal(compute(left, right, more, fast=True, threads=threads)[0], ours)


@st.composite
def products(draw: st.DrawFn) -> tuple[Values, Values]:
    kind = draw(st.sampled_from(sorted(TYPES)))
    depth = draw(LENGTHS) if kind not in BLOCKS else BLOCKS[kind] * draw(st.integers(1, 3))
    batches = draw(st.sampled_from([(1, 1), (2, 1), (3, 2)]))
    times = draw(st.sampled_from([(1, 1), (2, 1), (2, 3)]))
    left = Values(kind, (depth, draw(LENGTHS), *batches), draw(st.integers(0, 1)), draw(st.booleans()))
    shape = (depth, draw(LENGTHS), batches[0] * times[0], batches[1] * times[1])
    return left, Values("f32", shape, draw(st.sampled_from([0, 3])), draw(st.booleans()))


@in_child
def test_products_of_any_shape_and_layout() -> None:
    @settings(max_examples=40, derandomize=True, database=None, deadline=None)
    @given(products())
    def search(case: tuple[Values, Values]) -> None:
        check(*case)

    search()
    # What is deeper and wider than a block, and an input of halves.
    check(Values("f16", (700, 300, 1, 1)), Values("f32", (700, 401, 1, 1)))
    check(Values("f16", (64, 50, 1, 1)), Values("f16", (64, 40, 1, 1)))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Values, Values, Window]:
    def pair(most: int, least: int = 1) -> tuple[int, int]:
        numbers = st.integers(least, most)
        return draw(numbers), draw(numbers)

    window = Window(pair(3), pair(2, 0), pair(2))
    taps = pair(4)
    channels = draw(st.integers(1, 40))
    # At least as large as the kernel.
    sides = [draw(st.integers(2 * (tap - 1) + 1, 40)) for tap in taps]
    kernel = Values(draw(st.sampled_from(["f16", "f32"])), (*taps, channels, draw(st.integers(1, 40))))
    return kernel, Values("f32", (sides[0], sides[1], channels, draw(st.integers(1, 2)))), window


@in_child
def test_convolutions_of_any_shape() -> None:
    @settings(max_examples=40, derandomize=True, database=None, deadline=None)
    @given(convolutions())
    def search(case: tuple[Values, Values, Window]) -> None:
        check(*case)

    search()
    kernel = Values("f16", (3, 3, 96, 64))
    check(kernel, Values("f32", (64, 64, 96, 1)), Window(pad=(1, 1)))
    check(replace(kernel, shape=(1, 1, 96, 64)), Values("f32", (33, 33, 96, 2)), Window())


@st.composite
def attentions(draw: st.DrawFn) -> tuple[Values, Values, Values]:
    depth, width, queries = draw(st.sampled_from([1, 8, 40, 64, 80, 160, 300])), draw(LENGTHS), draw(LENGTHS)
    keys = draw(st.one_of(LENGTHS, st.sampled_from([256, 512, 700])))
    heads, times, n = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    layout = draw(st.booleans())
    return (
        Values("f32", (depth, keys, heads, n), permuted=layout),
        Values("f32", (depth, queries, heads * times, n), padding=draw(st.sampled_from([0, 5]))),
        Values("f32", (width, keys, heads, n), permuted=draw(st.booleans())),
    )


@in_child
def test_attention_of_any_shape() -> None:
    @settings(max_examples=40, derandomize=True, database=None, deadline=None)
    @given(attentions())
    def search(case: tuple[Values, Values, Values]) -> None:
        check(*case)

    search()

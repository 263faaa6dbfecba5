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

# ggml's numbers, and how many values a block has.
TYPES = {"f32": 0, "f16": 1, "bf16": 30, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}
TYPES |= {"q2_K": 10, "q3_K": 11, "q4_K": 12, "q5_K": 13, "q6_K": 14, "iq4_nl": 20}
BLOCKS = {kind: 256 if kind.endswith("_K") else 32 for kind in TYPES if "q" in kind}
ENOUGH = 4096  # values of a result for a root of a mean square
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
        ("operands", Operand * 4),
        ("stride", ctypes.c_int64 * 2),
        ("pad", ctypes.c_int64 * 2),
        ("dilation", ctypes.c_int64 * 2),
        ("threads", ctypes.c_int64),
        ("fast", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("silu", ctypes.c_int64),
        ("quick", ctypes.c_int64),
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


@dataclass(frozen=True)
class Attention:
    values: Values
    mask: Values | None = None


@dataclass(frozen=True)
class Norm:
    groups: int
    silu: bool


@dataclass(frozen=True)
class Gelu:
    quick: bool


class Rotation:
    """The input are matrices for pairs of values."""


More = Window | Attention | Norm | Gelu | Rotation


def compute(
    left: Values,
    right: Values | None,
    more: More | None = None,
    *,
    fast: bool,
    threads: int = 2,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return a result under a policy, and what it should be.

    Args:
        left: the weights; of attention the keys, of a norm the picture, of a rotation the values.
        right: the input; of attention the queries, of a norm whether there is a factor and a summand.
        more: a window for a convolution, values for attention, groups for a norm, which GELU, nothing for a product.
        fast: whether our kernels may compute it.
        threads: how many threads do.
    """
    engine.library()
    probe = ctypes.CDLL(str(engine.versions()["library"])).sdcpp_probe_kernel
    probe.argtypes = [ctypes.c_void_p, ctypes.POINTER(Case), ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p]
    ffi, lib = engine.library()
    random = np.random.default_rng(1)
    operands: list[Values | None] = [left, right]
    if isinstance(more, Attention):
        operands += [more.values, more.mask]
    elif isinstance(more, Norm):
        operands += [right]
    operands += [None] * (4 - len(operands))
    arrays = [each.numbers(random) if each else np.empty(0, np.float32) for each in operands]
    a, b, _, d = arrays
    if isinstance(more, Attention):
        kind, shape = 2, (b.shape[0], b.shape[2], b.shape[1], more.values.shape[0])
        if more.mask:
            d[random.random(d.shape) < 0.3] = -np.inf  # keys that are not for a query,
            d[..., -1] = 0.0  # but for one
    elif isinstance(more, Window):
        width, height = more.size(b.shape[::-1], left.shape)
        kind, shape = 1, (b.shape[0], a.shape[0], height, width)
    elif isinstance(more, Norm):
        kind, shape = 3, a.shape
        a *= 3.0
        a += 2.0
    elif isinstance(more, Gelu):
        kind, shape = 4, a.shape
        a *= 5.0
    elif isinstance(more, Rotation):
        kind, shape = 5, (a.shape[0], a.shape[2], a.shape[1], a.shape[3])
    else:
        kind, shape = 0, (*b.shape[:3], a.shape[2])
    result = np.full(shape, np.nan, np.float32)
    window = more if isinstance(more, Window) else Window()
    case = Case(kind, (Operand * 4)(*[each.operand() if each else Operand(-1) for each in operands]))
    case.stride, case.pad, case.dilation = window.stride, window.pad, window.dilation
    case.threads, case.fast, case.scale = threads, fast, left.shape[0] ** -0.5
    if isinstance(more, Norm):
        case.groups, case.silu = more.groups, more.silu
    if isinstance(more, Gelu):
        case.quick = more.quick
    with Run() as run:
        handle = int(ffi.cast("uintptr_t", run.native))
        pointers = (ctypes.c_void_p * 4)(*[array.ctypes.data for array in arrays])
        assert probe(handle, ctypes.byref(case), pointers, result.ctypes.data) == lib.SDCPP_OK
    return result, exact(*[array.astype(np.float64) for array in arrays], more, shape, case.scale)


def exact(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    c: NDArray[np.float64],
    d: NDArray[np.float64],
    more: More | None,
    shape: tuple[int, ...],
    scale: float,
) -> NDArray[np.float64]:
    """Return what a result should be."""
    if isinstance(more, Window):
        return convolved(a, b, more, shape)
    if isinstance(more, Norm):
        parts = a.reshape(a.shape[0], more.groups, -1)
        normed = (parts - parts.mean(axis=2, keepdims=True)) / np.sqrt(parts.var(axis=2, keepdims=True) + 1e-6)
        normed = normed.reshape(shape) * b + c if b.size else normed.reshape(shape)
        return np.asarray(normed / (1.0 + np.exp(-normed)) if more.silu else normed)
    if isinstance(more, Gelu):
        slope = 1.702 if more.quick else np.sqrt(8.0 / np.pi) * (1.0 + 0.044715 * a**2)
        return np.asarray(a / (1.0 + np.exp(-slope * a)))
    if isinstance(more, Rotation):
        pairs = a.reshape(*a.shape[:3], -1, 2)
        return np.asarray(np.einsum("tjrc,nthjc->nhtjr", b, pairs).reshape(shape))
    for axis in (0, 1):
        a = np.repeat(a, b.shape[axis] // a.shape[axis], axis)
    scores = b @ a.swapaxes(-1, -2)
    if more is None:
        return scores
    for axis in (0, 1):
        c = np.repeat(c, b.shape[axis] // c.shape[axis], axis)
    scores *= scale
    if d.size:
        scores += np.tile(d, (b.shape[0] // d.shape[0], b.shape[1] // d.shape[1], 1, 1))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(((weights / weights.sum(axis=-1, keepdims=True)) @ c).swapaxes(1, 2))


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


def check(left: Values, right: Values | None, more: More | None = None) -> None:
    """Compare both policies with float64: ours errs no more than the engine's, and is the same with any threads."""
    ours, exact = compute(left, right, more, fast=True)
    ggml, _ = compute(left, right, more, fast=False)
    assert np.isfinite(ours).all()
    # Of few values chance decides which errs more, and one may be near zero.
    least = 1e-6 if ours.size < ENOUGH else 0.0
    assert error(ours, exact) <= max(1.1 * error(ggml, exact), least), (error(ours, exact), error(ggml, exact))
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
    @settings(max_examples=30, derandomize=True, database=None, deadline=None)
    @given(products())
    def search(case: tuple[Values, Values]) -> None:
        check(*case)

    search()
    # As many parts as ggml's sums of f32 have, and fewer; what is deeper and wider than a block; an input of halves.
    for depth in (64, 320, 1280, 2048):
        check(Values("f32", (depth, 128, 1, 1)), Values("f32", (depth, 96, 1, 1)))
    for kind, block in BLOCKS.items():
        check(Values(kind, (2 * block, 40, 1, 1)), Values("f32", (2 * block, 24, 1, 1)))
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
    @settings(max_examples=30, derandomize=True, database=None, deadline=None)
    @given(convolutions())
    def search(case: tuple[Values, Values, Window]) -> None:
        check(*case)

    search()
    kernel = Values("f16", (3, 3, 96, 64))
    check(kernel, Values("f32", (64, 64, 96, 1)), Window(pad=(1, 1)))
    check(replace(kernel, type="f32"), Values("f32", (16, 16, 96, 1)), Window(pad=(1, 1)))
    check(replace(kernel, shape=(1, 1, 96, 64)), Values("f32", (33, 33, 96, 2)), Window())
    check(replace(kernel, shape=(1, 1, 96, 64)), Values("f32", (8, 8, 96, 1), padding=3), Window())
    # Planes that a vector holds, and those of half the size.
    check(kernel, Values("f32", (4, 4, 96, 2)), Window(pad=(1, 1)))
    check(kernel, Values("f32", (16, 16, 96, 1)), Window(stride=(2, 2), pad=(1, 1)))


@st.composite
def tiled(draw: st.DrawFn) -> tuple[Values, Values, Window]:
    pad = st.integers(0, 3)
    channels, filters = draw(st.integers(24, 140)), draw(st.integers(24, 70))
    side = st.one_of(st.integers(9, 24), st.just(32))
    kernel = Values("f16", (3, 3, channels, filters))
    picture = Values("f32", (draw(side), draw(side), channels, draw(st.integers(1, 2))), draw(st.sampled_from([0, 3])))
    return kernel, picture, Window(pad=(draw(pad), draw(pad)))


@in_child
def test_convolutions_of_3x3_in_tiles() -> None:
    @settings(max_examples=12, derandomize=True, database=None, deadline=None)
    @given(tiled())
    def search(case: tuple[Values, Values, Window]) -> None:
        check(*case)

    search()


@st.composite
def attentions(draw: st.DrawFn) -> tuple[Values, Values, Attention]:
    depth, width, queries = draw(st.sampled_from([1, 8, 40, 64, 80, 160, 300])), draw(LENGTHS), draw(LENGTHS)
    keys = draw(st.one_of(LENGTHS, st.sampled_from([256, 512, 700])))
    heads, times, n = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    layout = draw(st.booleans())
    mask = draw(st.sampled_from([0, 1, heads * times]))
    return (
        Values("f32", (depth, keys, heads, n), permuted=layout),
        Values("f32", (depth, queries, heads * times, n), padding=draw(st.sampled_from([0, 5]))),
        Attention(
            Values("f32", (width, keys, heads, n), permuted=draw(st.booleans())),
            Values("f32", (keys, queries, mask, 1)) if mask else None,
        ),
    )


@in_child
def test_attention_of_any_shape() -> None:
    @settings(max_examples=30, derandomize=True, database=None, deadline=None)
    @given(attentions())
    def search(case: tuple[Values, Values, Attention]) -> None:
        check(*case)

    search()
    # A head of CLIP's, and keys in several blocks.
    for keys, mask in ((77, None), (700, Values("f32", (700, 77, 2, 1)))):
        values = Values("f32", (64, keys, 2, 1))
        check(values, Values("f32", (64, 77, 2, 1)), Attention(values, mask))


@st.composite
def norms(draw: st.DrawFn) -> tuple[Values, Values | None, Norm]:
    groups = draw(st.integers(1, 5))
    channels = groups * draw(st.integers(1, 7))
    picture = (draw(LENGTHS), draw(LENGTHS), channels, draw(st.integers(1, 2)))
    padding = draw(st.sampled_from([0, 0, 3]))
    numbers = Values("f32", (1, 1, channels, 1)) if draw(st.booleans()) else None
    return Values("f32", picture, padding), numbers, Norm(groups, draw(st.booleans()))


@in_child
def test_norms_of_any_shape_with_what_follows() -> None:
    @settings(max_examples=30, derandomize=True, database=None, deadline=None)
    @given(norms())
    def search(case: tuple[Values, Values | None, Norm]) -> None:
        check(*case)

    search()


@in_child
def test_gelu_of_any_shape() -> None:
    for quick in (False, True):
        check(Values("f32", (64, 65, 2, 1)), None, Gelu(quick))
        check(Values("f32", (1100, 5, 3, 2), padding=3), None, Gelu(quick))


@in_child
def test_rotations_of_any_shape() -> None:
    for depth, heads, tokens, n, padding in ((128, 3, 70, 1, 0), (64, 2, 9, 2, 6), (6, 1, 50, 1, 0), (600, 2, 5, 1, 2)):
        check(Values("f32", (depth, heads, tokens, n), padding), Values("f32", (2, 2, depth // 2, tokens)), Rotation())

"""Weights come out of every format and type as they went in; some pictures show that the engine gets them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from sdcpp_py import ModelError, StableDiffusion
from support.build_tree import built
from support.model_formats import (
    ORDERED_DICT,
    Bits,
    Global,
    Object,
    Tensor,
    bf16,
    fp8,
    gguf_of,
    parameter,
    read_safetensors,
    safetensors_of,
    torch_legacy,
    torch_zip,
)
from support.read_model import read_model

Weights = dict[str, np.ndarray]
UNET = "model.diffusion_model."


def draw(model: Path, **options: object) -> bytes:
    with StableDiffusion(model, threads=1, **options) as sd:  # type: ignore[arg-type]
        return sd.txt2img("a cat", width=64, height=64, steps=1, seed=3)[0].tobytes()


@pytest.fixture(scope="module")
def weights(checkpoint: Path) -> Weights:
    return read_safetensors(checkpoint)


@pytest.fixture(scope="module")
def some(weights: Weights) -> Weights:
    """A few of the weights, of each number of dimensions; for what is read alone."""
    built("libggml-loopback.so")
    names = ["time_embed.0.weight", "time_embed.0.bias", "out.2.weight", "input_blocks.1.1.proj_in.weight"]
    attention = "input_blocks.1.1.transformer_blocks.0.attn1"
    return {UNET + name: weights[UNET + name] for name in [*names, f"{attention}.to_q.weight"]}


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> bytes:
    return draw(checkpoint)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Callable[[bytes], Path]]:
    path = tmp_path / "model.bin"

    def write(content: bytes) -> Path:
        path.write_bytes(content)
        return path

    yield write
    path.unlink(missing_ok=True)


def tensors(weights: Weights) -> dict[str, Tensor]:
    return {name: Tensor(array) for name, array in weights.items()}


def turned(array: np.ndarray) -> Tensor:
    """Return a tensor whose numbers lie in another order than they count in."""
    axes = tuple(reversed(range(array.ndim)))
    stored = np.ascontiguousarray(array.transpose(axes))
    strides = [stride // array.itemsize for stride in stored.transpose(axes).strides]
    return Tensor(stored, shape=array.shape, stride=tuple(strides))


def sliced(array: np.ndarray) -> Tensor:
    """Return a tensor in the middle of a larger storage."""
    stored = np.concatenate([np.full(7, 9, array.dtype), array.ravel(), np.full(5, 9, array.dtype)])
    return Tensor(stored, shape=array.shape, offset=7)


def spread(array: np.ndarray) -> Tensor:
    """Return a tensor whose numbers have others between them."""
    stored = np.full((array.size, 3), 9, array.dtype)
    stored[:, 1] = array.ravel()
    steps = [3 * int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
    return Tensor(stored, shape=array.shape, stride=tuple(steps), offset=1)


NAMESPACE = Object(Global("argparse", "Namespace"), (), {"lr": 0.1, "names": ["a"], "more": {"x": None}}, new=True)
STRAY = {
    "mask": np.zeros((2, 2), bool),
    "bytes": np.zeros(3, np.int8),
    "shorts": np.zeros(3, np.int16),
    "steps": np.asarray(12, np.int64),
    "text": np.zeros(9, np.uint8),
    "none": np.zeros((0, 4), np.float32),
}
PYTORCH: Mapping[str, Callable[[Weights], object]] = {
    "state dict": tensors,
    "nested": lambda given: {"state_dict": tensors(given), "epoch": 3},
    "ordered": lambda given: Object(ORDERED_DICT.made_by, (), tensors(given)),
    "with a Namespace": lambda given: {"args": NAMESPACE, "state_dict": tensors(given)},
    "with large numbers": lambda given: {"state_dict": tensors(given), "a": 1 << 40, "b": 1 << 200, "c": -(1 << 90)},
    "with parameters": lambda given: {name: parameter(tensor) for name, tensor in tensors(given).items()},
    "with stray tensors": lambda given: tensors({**given, **STRAY}),
    "turned": lambda given: {name: turned(array) for name, array in given.items()},
    "sliced": lambda given: {name: sliced(array) for name, array in given.items()},
    "spread": lambda given: {name: spread(array) for name, array in given.items()},
    "oldest function": lambda given: {name: Tensor(array, version=1) for name, array in given.items()},
}


@pytest.mark.parametrize("write", [torch_zip, torch_legacy])
@pytest.mark.parametrize("name", PYTORCH)
def test_pytorch(name: str, write: Callable[[object], bytes], some: Weights, file: Callable[[bytes], Path]) -> None:
    wanted = read_model(file(safetensors_of(some)))
    assert len(wanted) == len(some)
    found = read_model(file(write(PYTORCH[name](some))))
    assert {name: found[name] for name in wanted} == wanted
    assert set(found) - set(wanted) <= set(STRAY)


def test_pytorch_of_today(some: Weights, file: Callable[[bytes], Path]) -> None:
    wanted = read_model(file(safetensors_of(some)))
    assert read_model(file(torch_zip({name: Tensor(array, version=3) for name, array in some.items()}))) == wanted
    assert read_model(file(torch_zip(tensors(some), compress=True))) == wanted


@pytest.mark.parametrize("write", [torch_zip, torch_legacy])
def test_pytorch_draws(
    write: Callable[[object], bytes], weights: Weights, plain: bytes, file: Callable[[bytes], Path]
) -> None:
    assert draw(file(write(PYTORCH["nested"](weights)))) == plain


def test_a_packed_archive_draws(weights: Weights, plain: bytes, file: Callable[[bytes], Path]) -> None:
    content = torch_zip(tensors(weights), folder="any name", compress=True)
    assert draw(file(content), mmap=True) == plain


def test_gguf(weights: Weights, plain: bytes, file: Callable[[bytes], Path]) -> None:
    assert draw(file(gguf_of(weights))) == plain


def test_stray_tensors_in_safetensors(weights: Weights, plain: bytes, file: Callable[[bytes], Path]) -> None:
    assert draw(file(safetensors_of({**weights, **STRAY})), mmap=True) == plain


# --- fp8 --------------------------------------------------------------------------------------------------------------


def picked(name: str, array: np.ndarray) -> bool:
    """Tell whether fp8 checkpoints have a tensor in fp8: the matrices of the diffusion model."""
    return name.startswith(UNET) and name.endswith("weight") and array.ndim == 2


def rows(array: np.ndarray) -> np.ndarray:
    return np.abs(array.reshape(len(array), -1).astype(np.float32)).max(axis=1) / np.float32(300) + np.float32(1e-6)


def blocks(array: np.ndarray) -> np.ndarray:
    """Return a scale for each block of 128 rows and columns."""
    count = [-(-size // 128) for size in array.shape]
    return np.random.default_rng(len(array)).uniform(0.5, 2, count).astype(np.float32)


def over(scale: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Return a scale for each number."""
    if scale.size == 1:
        return np.broadcast_to(scale.reshape(()), array.shape)
    if scale.size == len(array):
        return np.broadcast_to(scale.reshape(-1, 1), array.shape)
    rows, columns = array.shape
    return scale.repeat(128, axis=0)[:rows].repeat(128, axis=1)[:, :columns]


SCALES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "one number": lambda array: np.asarray(rows(array).max(), np.float32),
    "one number in a list": lambda array: rows(array).max(keepdims=True),
    "one a row": rows,
    "one a row, as a column": lambda array: rows(array).reshape(-1, 1),
    "one a block": blocks,
    "f16": lambda array: rows(array).max(keepdims=True).astype(np.float16),
}


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize("scale", SCALES)
def test_scaled_fp8(scale: str, ending: str, dtype: str, some: Weights, file: Callable[[bytes], Path]) -> None:
    given, multiplied = scaled(scale, ending, dtype, some)
    found = read_model(file(safetensors_of(given)))
    as_f16 = {
        name: (shape, np.frombuffer(numbers, np.float32).astype(np.float16).astype(np.float32).tobytes())
        for name, (shape, numbers) in found.items()
    }
    assert as_f16 == read_model(file(safetensors_of(multiplied)))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_scaled_fp8_draws(dtype: str, weights: Weights, file: Callable[[bytes], Path]) -> None:
    given, multiplied = scaled("one a row", "weight_scale", dtype, weights)
    wanted = draw(file(safetensors_of(multiplied)))
    assert draw(file(safetensors_of(given))) == wanted


def scaled(scale: str, ending: str, dtype: str, weights: Weights) -> tuple[dict[str, np.ndarray | Bits], Weights]:
    """Return weights in fp8 with their scales beside them, and the numbers that they stand for."""
    given: dict[str, np.ndarray | Bits] = {}
    multiplied: Weights = {}
    for name, array in weights.items():
        given[name] = multiplied[name] = array
        if picked(name, array):
            factors = SCALES[scale](array)
            factor = over(factors.astype(np.float32), array)
            bits = fp8(array.astype(np.float32) / factor, dtype)
            given[name] = bits
            given[name.replace("weight", ending)] = factors
            given[name.replace("weight", "input_scale")] = np.asarray(1, np.float32)
            multiplied[name] = (bits.values() * factor).astype(np.float16)
    given[f"{UNET}scaled_fp8"] = Bits(np.zeros(2, np.uint8), dtype)
    return given, multiplied


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_plain_fp8(dtype: str, weights: Weights, plain: bytes, file: Callable[[bytes], Path]) -> None:
    bits = {name: fp8(array, dtype) if picked(name, array) else array for name, array in weights.items()}
    values = {name: each.values().astype(np.float16) if isinstance(each, Bits) else each for name, each in bits.items()}
    wanted = draw(file(safetensors_of(values)))
    assert wanted != plain
    assert draw(file(safetensors_of(bits))) == wanted
    torch = {name: Tensor(each, version=3) for name, each in bits.items()}
    assert draw(file(torch_zip(torch))) == wanted


def test_every_byte_of_fp8(weights: Weights, file: Callable[[bytes], Path]) -> None:
    # Each finite value, its scale included; the layer's weights are small whatever they are.
    name = f"{UNET}time_embed.0.weight"
    shape = weights[name].shape
    for dtype, top in (("F8_E4M3", 448.0), ("F8_E5M2", 57344.0)):
        code = (np.arange(np.prod(shape)) % 256).astype(np.uint8)
        code[~np.isfinite(Bits(code, dtype).values())] = 0
        bits = Bits(code.reshape(shape), dtype)
        scale = np.asarray(0.1 / top, np.float32)
        multiplied = {**weights, name: (bits.values() * scale).astype(np.float16)}
        wanted = draw(file(safetensors_of(multiplied)))
        assert (
            draw(file(safetensors_of({**weights, name: bits, name.replace("weight", "weight_scale"): scale}))) == wanted
        )


def test_scaled_int8(weights: Weights, file: Callable[[bytes], Path]) -> None:
    given: dict[str, np.ndarray] = {}
    multiplied: Weights = {}
    for name, array in weights.items():
        given[name] = multiplied[name] = array
        if picked(name, array):
            scale = np.abs(array.astype(np.float32)).max(axis=1, keepdims=True) / np.float32(127)
            given[name] = np.round(array / scale).astype(np.int8)
            given[name.replace("weight", "weight_scale")] = scale
            multiplied[name] = (given[name].astype(np.float32) * scale).astype(np.float16)
    wanted = draw(file(safetensors_of(multiplied)))
    assert draw(file(safetensors_of(given))) == wanted


def test_scales_that_do_not_fit(weights: Weights, file: Callable[[bytes], Path]) -> None:
    name = f"{UNET}time_embed.0.weight"
    scale = name.replace("weight", "weight_scale")
    given = {**weights, name: fp8(weights[name], "F8_E4M3"), scale: np.ones(7, np.float32)}
    with pytest.raises(ModelError, match=f"tensor '{scale}' holds 7 scales"):
        StableDiffusion(file(safetensors_of(given)))
    given = {**weights, name: weights[name].view(np.uint8), scale: np.ones(1, np.float32)}
    with pytest.raises(ModelError, match=f"tensor '{name}' has scales and a type that this engine does not know"):
        StableDiffusion(file(safetensors_of(given)))


def test_bf16(weights: Weights, file: Callable[[bytes], Path]) -> None:
    bits = {name: bf16(array) if picked(name, array) else array for name, array in weights.items()}
    by_torch = draw(file(torch_zip({name: Tensor(each) for name, each in bits.items()})))
    assert draw(file(safetensors_of(bits))) == by_torch

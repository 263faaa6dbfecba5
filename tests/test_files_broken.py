"""Broken model files, in every role: an error that names argument, file and tensor, and never an end of the process."""

from __future__ import annotations

import itertools
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdcpp_py
from sdcpp_py import ModelError, StableDiffusion, engine
from sdcpp_py.file_kinds import file_kind
from sdcpp_py.model_files import ROLES, check_model_file
from support.model_formats import (
    GgufTensor,
    Tensor,
    gguf,
    gguf_array,
    gguf_of,
    gguf_text,
    gguf_u32,
    safetensors,
    safetensors_of,
    torch_legacy,
    torch_zip,
    torch_zip_of,
)

DATA = b"\0" * 64
SHAPE = (2, 4)


def one(shape: tuple[int, ...] = SHAPE, kind: int = 0, offset: int = 0, **entry: Any) -> GgufTensor:
    return GgufTensor("a.weight", shape, kind, offset, **entry)


GGUF = {
    "zero dimension": (gguf([one((0, 4))], DATA), "'a.weight' has a dimension of 0"),
    "zero dimensions": (gguf([one((0, 0, 0, 0))], DATA), "'a.weight' has a dimension of 0"),
    "negative dimension": (gguf([one((-1, 4))], DATA), "'a.weight' has a dimension of -1"),
    "long name, zero dimension": (gguf([GgufTensor("b" * 200, (0, 4), 0, 0)], DATA), "'bbb"),
    "data beyond the file": (gguf([one(offset=1 << 40)], DATA), "cut off: tensor 'a.weight'"),
    "data cut off": (gguf([one((4, 8))], DATA), "cut off: tensor 'a.weight'"),
    "offset wraps around": (gguf([one(offset=2**64 - 16)], DATA), "cut off: tensor 'a.weight'"),
    "more numbers than 2^62": (gguf([one((1 << 31, 1 << 31))], DATA), "more numbers than a file can hold"),
    "size wraps around": (gguf([one((1 << 62, 4, 4))], DATA), "more numbers than a file can hold"),
    "removed type": (gguf([one((2, 32), kind=4)], DATA), "'a.weight' is of type 4"),
    "unknown type": (gguf([one((2, 32), kind=200)], DATA), "'a.weight' is of type 200"),
    "negative type": (gguf([one((2, 32), kind=-1)], DATA), "'a.weight' is of type 4294967295"),
    "rows that no blocks make": (gguf([one((2, 33), kind=8)], DATA * 2), "'a.weight' has rows of 33"),
    "overlapping": (gguf([one(), GgufTensor("b", SHAPE, 0, 16)], DATA), "'a.weight' and 'b' lie in the same bytes"),
    "one name twice": (gguf([one(), one(offset=32)], DATA), "two tensors of the name 'a.weight'"),
    "2^60 tensors": (gguf([one()], DATA, count=1 << 60), "1152921504606846976 tensors"),
    "2^31 tensors": (gguf([one()], DATA, count=1 << 31), "2147483648 tensors"),
    "2^60 values": (gguf([one()], DATA, pair_count=1 << 60), "1152921504606846976 values"),
    "name of 2^60 bytes": (gguf([one(name_length=1 << 60)], DATA), "a tensor name of 1152921504606846976"),
    "2^32 dimensions": (gguf([one(dims=2**32 - 1)], DATA), "'a.weight' has 4294967295 dimensions"),
    "text of 2^60 bytes": (gguf([one()], DATA, pairs=[gguf_text("k", "x", 1 << 60)]), "cut off"),
    "list of 2^60": (gguf([one()], DATA, pairs=[gguf_array("k", 4, 1 << 60, b"")]), "'k' is no list"),
    "list of 2^40 texts": (gguf([one()], DATA, pairs=[gguf_array("k", 8, 1 << 40, b"")]), "'k' is no list"),
    "list of lists": (gguf([one()], DATA, pairs=[gguf_array("k", 9, 1, b"")]), "'k' is no list"),
    "unknown type of value": (gguf([one()], DATA, pairs=[struct.pack("<Q", 1) + b"k\x4d\0\0\0"]), "'k' is of type 77"),
    "alignment 0": (gguf([one()], DATA, pairs=[gguf_u32("general.alignment", 0)]), "alignment is no power of 2"),
    "alignment 48": (gguf([one()], DATA, pairs=[gguf_u32("general.alignment", 48)]), "alignment is no power of 2"),
    "alignment as text": (
        gguf([one()], DATA, pairs=[gguf_text("general.alignment", "x")]),
        "alignment is no power of 2",
    ),
    "version 1": (gguf([one()], DATA, version=1), "GGUF of version 1"),
    "other byte order": (gguf([one()], DATA, version=3 << 24), "GGUF of version 50331648"),
    "cut in its header": (gguf([one()], DATA)[:50], "cut off"),
    "no more than the first word": (b"GGUF", "cut off"),
}


def entry(dtype: object = "F32", shape: object = (4,), offsets: object = (0, 16)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


TWO_KEYS = (
    b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],"data_offsets":[16,32]}}'
)
SAFETENSORS = {
    "absurd dimension": (safetensors({"a": entry(shape=(1 << 62, 4), offsets=(0, 0))}), "damaged header at tensor .a."),
    "size wraps around": (safetensors({"a": entry(shape=(1 << 61, 8), offsets=(0, 0))}), "more numbers than a file"),
    "data beyond the file": (safetensors({"a": entry(offsets=(1 << 40, (1 << 40) + 16))}, DATA), "cut off: tensor 'a'"),
    "offset wraps around": (
        safetensors({"a": entry(offsets=(2**64 - 16, 2**64 - 1))}, DATA),
        "damaged header at tensor 'a'",
    ),
    "negative dimension": (safetensors({"a": entry(shape=(-4,))}, DATA), "'a' has the number -4"),
    "ends before it begins": (safetensors({"a": entry(offsets=(16, 0))}, DATA), "'a' ends before it begins"),
    "overlapping": (
        safetensors({"a": entry(), "b": entry(offsets=(8, 24))}, DATA),
        "'a' and 'b' lie in the same bytes",
    ),
    "one name twice": (safetensors(TWO_KEYS, DATA), "two tensors of the name 'a'"),
    "size of another type": (safetensors({"a": entry(dtype="F16")}, DATA), "'a' has 16 bytes"),
    "type is a number": (safetensors({"a": entry(dtype=5)}, DATA), "damaged header at tensor 'a'"),
    "shape is a text": (safetensors({"a": entry(shape="x")}, DATA), "damaged header at tensor 'a'"),
    "shape holds a text": (safetensors({"a": entry(shape=["x"])}, DATA), "damaged header at tensor 'a'"),
    "shape holds lists": (safetensors({"a": entry(shape=[[4]])}, DATA), "damaged header at tensor 'a'"),
    "one offset": (safetensors({"a": entry(offsets=(0,))}, DATA), "damaged header at tensor 'a'"),
    "no shape": (safetensors({"a": {"dtype": "F32", "data_offsets": (0, 4)}}, DATA), "damaged header at tensor 'a'"),
    "tensor is a number": (safetensors({"a": 3}, DATA), "damaged header at tensor 'a'"),
    "fraction": (safetensors({"a": entry(shape=(4.5,))}, DATA), "damaged header at tensor 'a'"),
    "nested for ever": (safetensors(b'{"a":' + b"[" * 100_000), "damaged header"),
    "metadata for ever": (safetensors(b'{"__metadata__":' + b"[" * 100_000), "damaged header"),
    "header longer than the file": (safetensors({"a": entry()}, DATA, length=1000), "ends inside its header"),
    "no utf-8": (safetensors(b'{"\xff": {}}'), "damaged header"),
}


def pickled(opcodes: bytes) -> bytes:
    return torch_zip_of(b"\x80\x02" + opcodes, {"0": DATA})


SQUARE = np.ones((4, 4), np.float32)
DOUBLING = b"]q\0" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(40))
NESTED = b"}" + b"X\1\0\0\0a}" * 300_000 + b"s" * 300_000
TORCH = {
    "reaches beyond its storage": (
        torch_zip({"a": Tensor(SQUARE, shape=(40, 4), stride=(4, 1))}),
        "'a' reaches beyond",
    ),
    "offset beyond its storage": (torch_zip({"a": Tensor(SQUARE, offset=1 << 40)}), "'a' reaches beyond"),
    "negative offset": (torch_zip({"a": Tensor(SQUARE, offset=-4)}), "damaged pickle"),
    "negative dimension": (torch_zip({"a": Tensor(SQUARE, shape=(-4, -4))}), "damaged pickle"),
    "negative stride": (torch_zip({"a": Tensor(SQUARE, stride=(-4, 1))}), "damaged pickle"),
    "size wraps around": (
        torch_zip({"a": Tensor(SQUARE, shape=(1 << 40, 1 << 40), stride=(0, 0))}),
        "more numbers than",
    ),
    "one number for many": (
        torch_zip({"a": Tensor(SQUARE, shape=(1 << 40,), stride=(0,))}),
        "'a' has more numbers than",
    ),
    "stride wraps around": (
        torch_zip({"a": Tensor(SQUARE, shape=(2, 2), stride=(1 << 54, 1 << 54))}),
        "'a' reaches beyond",
    ),
    "doubles 40 times": (pickled(DOUBLING + b"."), "without tensors"),
    "3 million marks": (pickled(b"(" * 3_000_000 + b"."), "more objects than its size warrants"),
    "dicts in dicts": (pickled(NESTED + b"."), "more objects than its size warrants"),
    "a dict in itself": (pickled(b"}q\0X\1\0\0\0ah\0s."), "without tensors"),
    "ends in an instruction": (pickled(b"}q"), "cut off"),
    "text of 4 GiB": (pickled(b"X\xff\xff\xff\xff"), "cut off"),
    "no mark": (pickled(b"t."), "a mark is missing"),
    "nothing to build": (pickled(b"}b."), "takes what it never made"),
    "key without a value": (pickled(b"}(X\1\0\0\0au."), "a key has no value"),
    "recalls nothing": (pickled(b"h\7."), "recalls what it never noted"),
    "unknown instruction": (pickled(b"\xfe."), "has an instruction"),
    "storage that is not there": (torch_zip_of(torch_zip({}), {}), "damaged pickle|no PyTorch"),
    "no pickle in it": (torch_zip({"a": Tensor(SQUARE)}).replace(b"data.pkl", b"data.txt"), "holds no data.pkl"),
    "no directory": (torch_zip({"a": Tensor(SQUARE)})[:200], "zip archive without its directory"),
    "legacy, cut off": (torch_legacy({"a": Tensor(SQUARE)})[:-8], "cut off: storage '0'"),
    "pickle of no tensors": (b"\x80\x02}q\0.\x80\x02]q\0.", "without tensors"),
    "pickle of nothing else": (b"\x80\x02}q\0.", "cut off"),
    "protocol 9": (b"\x80\x09}.", "is no model file"),
}
FILES = {
    f"{kind}: {name}": case
    for kind, cases in (("gguf", GGUF), ("safetensors", SAFETENSORS), ("torch", TORCH))
    for name, case in cases.items()
}


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("broken")

    def write(name: str) -> Path:
        path = folder / name.replace(": ", "-").replace(" ", "_")
        if not path.exists():
            path.write_bytes(FILES[name][0])
        return path

    return write


@pytest.mark.parametrize("name", FILES)
def test_error_names_argument_file_and_tensor(name: str, broken: Callable[[str], Path]) -> None:
    path = broken(name)
    for role in ROLES:
        with pytest.raises(ModelError, match=FILES[name][1]) as caught:
            check_model_file(path, role)
        assert str(caught.value).startswith(f"{role}: {path} ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_the_engine_refuses_it_as_well(name: str, broken: Callable[[str], Path]) -> None:
    # A file may be replaced between the check and the loading.
    with pytest.raises(ModelError):
        engine.weights_survey({"model_path": bytes(broken(name))})


def test_zip_archives_are_searched_once(tmp_path: Path) -> None:
    # Found by the fuzzer: the end of the file was copied for each place where its directory could be, in 45 ms.
    path = tmp_path / "file"
    path.write_bytes(b"PK\3\4" + bytes(200_000))
    start = time.process_time()
    with pytest.raises(ModelError, match="zip archive without its directory"):
        check_model_file(path, "model")
    assert time.process_time() - start < 0.01


def test_names_that_end_early(tmp_path: Path) -> None:
    # Found by the fuzzer: an internal message about a position in a text.
    path = tmp_path / "file"
    name = "cond_stage_model.model.transformer.resblocks.0"
    path.write_bytes(
        safetensors_of({name: np.ones(SHAPE, np.float32), "model.diffusion_model.x": np.ones(3, np.float32)})
    )
    with pytest.raises(ModelError) as caught:
        engine.weights_survey({"model_path": bytes(path)})
    assert "substr" not in str(caught.value)


LOADING_ROLES = [role for role in ROLES if role not in ("model", "LoRA", "embedding", "hires.model", "upscaler")]


@pytest.mark.parametrize("name", ["gguf: zero dimension", "gguf: unknown type", "torch: dicts in dicts"])
def test_every_argument_is_checked(
    name: str, broken: Callable[[str], Path], checkpoint: Path, sd: StableDiffusion
) -> None:
    path = broken(name)
    with pytest.raises(ModelError, match=r"^model: "):
        StableDiffusion(path)
    for role in LOADING_ROLES:
        with pytest.raises(ModelError, match=f"^{role}: "):
            StableDiffusion(checkpoint, **{role: path})
    with pytest.raises(ModelError, match=r"^embedding word: "):
        StableDiffusion(checkpoint, embeddings={"word": path})
    with pytest.raises(ModelError, match=r"^LoRA: "):
        sd.txt2img("a", width=64, height=64, steps=1, loras=[sdcpp_py.Lora(path)])
    with pytest.raises(ModelError, match=r"^hires.model: "):
        sd.txt2img("a", width=64, height=64, steps=1, hires=sdcpp_py.Hires(model=path))


@pytest.mark.parametrize(
    "content",
    [
        gguf_of({"a.weight": np.ones(SHAPE, np.float32)}),
        gguf([one()], DATA, pairs=[gguf_u32("general.alignment", 64)], alignment=64),
        gguf([GgufTensor("x" * 200, (2, 1, 1, 1, 4), 0, 0)], DATA),
        safetensors_of({"a.weight": np.ones(SHAPE, np.float32), "none": np.ones((0, 4), np.float32)}),
        safetensors(json.dumps({"a": entry()}).encode() + b"   ", DATA),
        safetensors({"__metadata__": {"a": {"b": [1, {"c": None}]}}, "a": entry()}, DATA),
        torch_zip({"a": Tensor(SQUARE)}),
        torch_zip({"a": Tensor(SQUARE)}, compress=True),
        torch_legacy({"a": Tensor(SQUARE)}),
    ],
    # Not the bytes: those of a zip hold the time, which differs between the workers that collect.
    ids=itertools.count(),
)
def test_whole_files_are_listed(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert sum(file_kind(path).types.values()) == 1

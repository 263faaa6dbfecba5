"""Model files written byte by byte, valid ones and broken ones: safetensors, GGUF, and PyTorch's two formats.

The PyTorch ones are assembled from opcodes, so that no torch is needed and files that torch no longer writes, or never
wrote, can be made.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]

# --- fp8 and bf16, which numpy lacks: arrays of their bits -----------------------------------------------------------


def _fp8_values(exponent_bits: int) -> np.ndarray:
    """Return the value of each of the 256 bytes of an 8-bit float; the E4M3 kind has no infinities."""
    code = np.arange(256)
    mantissa_bits = 7 - exponent_bits
    bias = 2 ** (exponent_bits - 1) - 1
    exponent = (code >> mantissa_bits) & (2**exponent_bits - 1)
    mantissa = (code & (2**mantissa_bits - 1)) / 2**mantissa_bits
    values = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias))
    if exponent_bits == 4:
        values[[0x7F, 0xFF]] = np.nan
    else:
        values[exponent == 31] = np.where(mantissa[exponent == 31] == 0, np.inf, np.nan)
    return np.where(code & 0x80, -values, values).astype(np.float32)


FP8_VALUES = {"F8_E4M3": _fp8_values(4), "F8_E5M2": _fp8_values(5)}


@dataclass(frozen=True)
class Bits:
    """An array of a type that numpy lacks: its bits, and the name of its type in safetensors."""

    array: np.ndarray
    dtype: str

    def values(self) -> np.ndarray:
        """Return the numbers, as float32."""
        if self.dtype == "BF16":
            return (self.array.astype(np.uint32) << 16).view(np.float32)
        return FP8_VALUES[self.dtype][self.array]


def fp8(array: np.ndarray, dtype: str) -> Bits:
    """Return an array rounded to the nearest 8-bit float, what is too large to the largest."""
    values = FP8_VALUES[dtype]
    order = np.argsort(values, kind="stable")
    order = order[np.isfinite(values[order])]
    known = values[order].astype(np.float64)
    wanted = np.asarray(array, np.float64)
    index = np.clip(np.searchsorted(known, wanted), 1, len(known) - 1)
    index -= wanted - known[index - 1] < known[index] - wanted
    return Bits(order[index].astype(np.uint8), dtype)


def bf16(array: np.ndarray) -> Bits:
    """Return an array cut to bfloat16."""
    return Bits((np.asarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16), "BF16")


# --- safetensors ------------------------------------------------------------------------------------------------------

_SAFETENSORS_TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16",
    "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a file with this header (text as it is, anything else as JSON) and this data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def safetensors_of(tensors: Mapping[str, np.ndarray | Bits]) -> bytes:
    """Return a whole file with these tensors."""
    header, pieces, end = {}, [], 0
    for name, tensor in tensors.items():
        array = tensor.array if isinstance(tensor, Bits) else np.asarray(tensor)
        dtype = tensor.dtype if isinstance(tensor, Bits) else _SAFETENSORS_TYPES[array.dtype.name]
        piece = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": dtype, "shape": list(array.shape), "data_offsets": [end, end + len(piece)],
        }  # fmt: skip
        pieces.append(piece)
        end += len(piece)
    return safetensors(header, b"".join(pieces))


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a file of plain types."""
    kinds = {dtype: name for name, dtype in _SAFETENSORS_TYPES.items()}
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        found[name] = np.frombuffer(content[begin:end], kinds[entry["dtype"]]).reshape(entry["shape"])
    return found


# --- GGUF -------------------------------------------------------------------------------------------------------------

GGUF_F32, GGUF_F16, GGUF_Q8_0 = 0, 1, 8
_U32, _STRING, _ARRAY = 4, 8, 9


@dataclass
class GgufTensor:
    """A tensor's entry; the fields say what is written, whether it is true or not."""

    name: str
    shape: Sequence[int]  # as numpy has it: the last dimension is the one in a row
    type: int
    offset: int
    dims: int | None = None  # by default, what shape has
    name_length: int | None = None


def gguf(
    tensors: Sequence[GgufTensor],
    data: bytes = b"",
    *,
    version: int = 3,
    count: int | None = None,
    pairs: Sequence[bytes] = (),
    pair_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """Return a file with these entries; the counts say what is written, whether it is true or not."""
    out = b"GGUF" + struct.pack(
        "<IQQ", version, len(tensors) if count is None else count, len(pairs) if pair_count is None else pair_count
    )
    out += b"".join(pairs)
    for tensor in tensors:
        name = tensor.name.encode()
        out += struct.pack("<Q", len(name) if tensor.name_length is None else tensor.name_length) + name
        out += struct.pack("<I", len(tensor.shape) if tensor.dims is None else tensor.dims)
        out += b"".join(struct.pack("<Q", size % 2**64) for size in reversed(tensor.shape))
        out += struct.pack("<IQ", tensor.type % 2**32, tensor.offset)
    return out + b"\0" * (-len(out) % alignment) + data


def gguf_u32(key: str, value: int) -> bytes:
    """Return a pair of a name and a number."""
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<II", _U32, value)


def gguf_text(key: str, value: str, length: int | None = None) -> bytes:
    """Return a pair of a name and a text."""
    text = value.encode()
    return (
        struct.pack("<Q", len(key)) + key.encode()
        + struct.pack("<IQ", _STRING, len(text) if length is None else length) + text
    )  # fmt: skip


def gguf_array(key: str, kind: int, count: int, content: bytes) -> bytes:
    """Return a pair of a name and an array."""
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<IIQ", _ARRAY, kind, count) + content


def gguf_of(tensors: Arrays) -> bytes:
    """Return a whole file with these float32 or float16 tensors."""
    entries, data = [], b""
    for name, array in tensors.items():
        kind = {"float32": GGUF_F32, "float16": GGUF_F16}[array.dtype.name]
        entries.append(GgufTensor(name, array.shape, kind, len(data)))
        data += np.ascontiguousarray(array).tobytes()
        data += b"\0" * (-len(data) % 32)
    return gguf(entries, data)


# --- PyTorch ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Global:
    """A name that a pickle imports."""

    module: str
    name: str


@dataclass(frozen=True)
class Object:
    """An object as pickle makes it: what is called, with what, and the state it is given afterwards."""

    made_by: Global
    arguments: tuple[Any, ...] = ()
    state: Any = None
    new: bool = False  # made by __new__, as plain classes are


@dataclass(eq=False)
class Tensor:
    """A tensor in a pickle: by default all of its array, which is its storage."""

    array: np.ndarray | Bits
    shape: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None
    offset: int = 0  # elements
    numel: int | None = None  # what the storage is said to hold, in elements
    version: int = 2  # of torch's function that makes it

    def bits(self) -> np.ndarray:
        """Return the array that is stored."""
        return self.array.array if isinstance(self.array, Bits) else self.array


def parameter(tensor: Tensor) -> Object:
    """Return a tensor as torch.nn.Parameter pickles it."""
    return Object(Global("torch._utils", "_rebuild_parameter"), (tensor, True, ORDERED_DICT))


ORDERED_DICT = Object(Global("collections", "OrderedDict"))

_STORAGES = {
    "float64": "Double", "float32": "Float", "float16": "Half", "BF16": "BFloat16", "int64": "Long", "int32": "Int",
    "int16": "Short", "int8": "Char", "uint8": "Byte", "bool": "Bool",
}  # fmt: skip
_TORCH_DTYPES = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "BF16": "bfloat16"}


@dataclass
class _Pickler:
    """Assembles a pickle of protocol 2 and collects the storages."""

    legacy: bool = False
    out: io.BytesIO = field(default_factory=io.BytesIO)
    storages: dict[str, np.ndarray] = field(default_factory=dict)

    def write(self, value: Any) -> bytes:
        """Return the pickle of a value."""
        self.out.write(b"\x80\x02")
        self.save(value)
        self.out.write(b".")
        return self.out.getvalue()

    def save(self, value: Any) -> None:
        put = self.out.write
        if value is None:
            put(b"N")
        elif isinstance(value, bool):
            put(b"\x88" if value else b"\x89")
        elif isinstance(value, int):
            if -(2**31) <= value < 2**31:
                put(b"J" + struct.pack("<i", value))
            else:
                digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
                put(b"\x8a" + bytes([len(digits)]) + digits)
        elif isinstance(value, float):
            put(b"G" + struct.pack(">d", value))
        elif isinstance(value, str):
            put(b"X" + struct.pack("<I", len(value.encode())) + value.encode())
        elif isinstance(value, tuple):
            put(b"(")
            for item in value:
                self.save(item)
            put(b"t")
        elif isinstance(value, list):
            put(b"](")
            for item in value:
                self.save(item)
            put(b"e")
        elif isinstance(value, dict):
            put(b"}")
            self.items(value)
        elif isinstance(value, Global):
            put(f"c{value.module}\n{value.name}\n".encode())
        elif isinstance(value, Object):
            self.save(value.made_by)
            self.save(value.arguments)
            put(b"\x81" if value.new else b"R")
            if isinstance(value.state, dict) and value.made_by == ORDERED_DICT.made_by:
                self.items(value.state)
            elif value.state is not None:
                self.save(value.state)
                put(b"b")
        elif isinstance(value, Tensor):
            self.tensor(value)
        else:
            raise TypeError(type(value))

    def items(self, value: dict[Any, Any]) -> None:
        self.out.write(b"(")
        for key, item in value.items():
            self.save(key)
            self.save(item)
        self.out.write(b"u")

    def tensor(self, tensor: Tensor) -> None:
        array = tensor.bits()
        dtype = tensor.array.dtype if isinstance(tensor.array, Bits) else array.dtype.name
        shape = array.shape if tensor.shape is None else tensor.shape
        stride = tensor.stride
        if stride is None:
            stride = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        key = next((key for key, known in self.storages.items() if known is array), str(len(self.storages)))
        self.storages[key] = array
        untyped = tensor.version == 3
        storage = (
            Global("torch.storage", "UntypedStorage") if untyped else Global("torch", f"{_STORAGES[dtype]}Storage")
        )
        numel = array.nbytes if untyped else array.size
        view = (None,) if self.legacy else ()
        call = {1: "_rebuild_tensor", 2: "_rebuild_tensor_v2", 3: "_rebuild_tensor_v3"}[tensor.version]
        self.save(Global("torch._utils", call))
        self.out.write(b"(")
        self.save(("storage", storage, key, "cpu", numel if tensor.numel is None else tensor.numel, *view))
        self.out.write(b"Q")
        for value in (tensor.offset, tuple(shape), stride):
            self.save(value)
        if tensor.version > 1:
            self.save(False)
            self.save(ORDERED_DICT)
        if untyped:
            self.save(Global("torch", _TORCH_DTYPES.get(dtype, dtype)))
        self.out.write(b"tR")


def torch_zip(value: Any, *, compress: bool = False, folder: str = "archive") -> bytes:
    """Return a file as torch.save writes it since 1.6."""
    pickler = _Pickler()
    pickle = pickler.write(value)
    return torch_zip_of(pickle, {key: array.tobytes() for key, array in pickler.storages.items()}, compress, folder)


def torch_zip_of(
    pickle: bytes, storages: Mapping[str, bytes], compress: bool = False, folder: str = "archive"
) -> bytes:
    """Return such a file from its parts."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as file:
        file.writestr(f"{folder}/data.pkl", pickle)
        for key, content in storages.items():
            file.writestr(f"{folder}/data/{key}", content)
        file.writestr(f"{folder}/version", b"3\n")
    return out.getvalue()


def torch_legacy(value: Any) -> bytes:
    """Return a file as torch.save wrote it before 1.6."""
    magic = b"\x80\x02\x8a\n" + bytes.fromhex("6cfc9c46f9206aa85019") + b"."
    system = {
        "protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4},
    }  # fmt: skip
    pickler = _Pickler(legacy=True)
    pickle = pickler.write(value)
    keys = sorted(pickler.storages)
    out = magic + _Pickler().write(1001) + _Pickler().write(system) + pickle + _Pickler().write(keys)
    for key in keys:
        array = pickler.storages[key]
        out += struct.pack("<Q", array.size) + array.tobytes()
    return out

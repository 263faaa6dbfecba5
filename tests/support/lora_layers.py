"""Checkpoints as arrays, and their layers as LoRAs name them."""

from __future__ import annotations

import ctypes
import functools
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# --- files ----------------------------------------------------------------------------------------------------

CODES = {
    "F32": "<f4",
    "F16": "<f2",
    "F64": "<f8",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
}


def encode(array: Array, code: str) -> bytes:
    """Return an array's bytes in a dtype of safetensors."""
    if code == "BF16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        return bytes(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes())
    return bytes(np.ascontiguousarray(array).astype(CODES[code]).tobytes())


def write_tensors(
    path: Path, tensors: Mapping[str, Array], code: str | Callable[[str], str] = "F32", metadata: Any = None
) -> None:
    """Write a safetensors file; code is the dtype of all tensors, or returns that of a name."""
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    pieces, offset = [], 0
    for name, array in tensors.items():
        dtype = code if isinstance(code, str) else code(name)
        pieces.append(encode(array, dtype))
        shape = list(np.shape(array))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(pieces[-1])]}
        offset += len(pieces[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(pieces))


def read_tensors(path: Path) -> dict[str, Array]:
    """Read a safetensors file of F16 or F32 tensors as float32."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        raw = np.frombuffer(data[8 + length + first : 8 + length + last], CODES[entry["dtype"]])
        found[name] = raw.astype(np.float32).reshape(entry["shape"])
    return found


# --- layers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A layer as LoRAs name it."""

    component: str  # unet, transformer, te1, te2, te3
    path: str  # with dots, without prefix
    tensor: str  # the checkpoint's weight
    first: int = 0  # its rows of that weight
    rows: int = 0  # 0: all

    def of(self, weight: Array) -> Array:
        """Return the layer's own part of a weight (a view)."""
        return weight[self.first : self.first + self.rows] if self.rows else weight


RESIDUAL = {
    "in_layers.2": "conv1",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}


def diffusers_unet(path: str) -> str:
    """Return diffusers' name of a module of an LDM UNet, "" for what has another shape there."""
    outer = {"input_blocks.0.0": "conv_in", "out.2": "conv_out", "time_embed.0": "time_embedding.linear_1"}
    if path in outer:
        return outer[path]
    parts = path.split(".")
    inner = ".".join(parts[3:])
    if parts[0] == "middle_block":
        inner = ".".join(parts[2:])
        if parts[1] == "1":
            return f"mid_block.attentions.0.{inner}"
        return f"mid_block.resnets.{int(parts[1]) // 2}.{RESIDUAL[inner]}" if inner in RESIDUAL else ""
    if parts[0] not in ("input_blocks", "output_blocks"):
        return ""
    down = parts[0] == "input_blocks"
    level, block = divmod(int(parts[1]) - down, 3)
    stack = f"{'down' if down else 'up'}_blocks.{level}"
    if inner in ("op", "conv"):
        return f"{stack}.{'downsamplers' if down else 'upsamplers'}.0.conv"
    if parts[2] == "0":
        return f"{stack}.resnets.{block}.{RESIDUAL[inner]}" if inner in RESIDUAL else ""
    return f"{stack}.attentions.{block}.{inner}"


SPLIT: dict[str, dict[str, tuple[str, ...]]] = {
    "sd3": {
        "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "x_block.attn.proj": ("attn.to_out.0",),
        "context_block.attn.proj": ("attn.to_add_out",),
        "x_block.mlp.fc1": ("ff.net.0.proj",),
        "x_block.mlp.fc2": ("ff.net.2",),
        "context_block.mlp.fc1": ("ff_context.net.0.proj",),
        "x_block.adaLN_modulation.1": ("norm1.linear",),
    },
    "flux": {
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "img_attn.proj": ("attn.to_out.0",),
        "txt_attn.proj": ("attn.to_add_out",),
        "img_mlp.0": ("ff.net.0.proj",),
        "txt_mlp.2": ("ff_context.net.2",),
        "img_mod.lin": ("norm1.linear",),
        "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        "linear2": ("proj_out",),
        "modulation.lin": ("norm.linear",),
    },
    "zimage": {
        "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
        "attention.out": ("attention.to_out.0",),
        "feed_forward.w1": ("feed_forward.w1",),
        "feed_forward.w2": ("feed_forward.w2",),
    },
}
STACKS = {"joint_blocks": "transformer_blocks", "double_blocks": "transformer_blocks"}
STACKS["single_blocks"] = "single_transformer_blocks"


def diffusers_layers(family: str, tensor: str, shape: tuple[int, ...]) -> list[Layer]:
    """Return the layers that diffusers has for a weight of a transformer."""
    path = tensor.removeprefix("model.diffusion_model.").removesuffix(".weight")
    stack, _, rest = path.partition(".")
    number, _, inner = rest.partition(".")
    names = SPLIT.get(family, {}).get(inner)
    if names is None:
        return []
    columns, first, layers = shape[1], 0, []
    for name in names:
        rows = shape[0] // len(names)
        if len(names) == 4:
            rows = shape[0] - 3 * columns if name == "proj_mlp" else columns
        whole = f"{STACKS.get(stack, stack)}.{number}.{name}"
        layers.append(Layer("transformer", whole, tensor, first, rows))
        first += rows
    return layers


def clip_layers(component: str, prefix: str, tensor: str, shape: tuple[int, ...]) -> list[Layer]:
    """Return the layers that transformers' CLIP has for a text encoder's weight, in its own names or open_clip's."""
    path = tensor.removeprefix(prefix)
    if path.startswith("transformer.resblocks."):
        number, _, inner = path.removeprefix("transformer.resblocks.").partition(".")
        block = f"text_model.encoder.layers.{number}"
        if inner == "attn.in_proj_weight":
            rows = shape[0] // 3
            names = ("q_proj", "k_proj", "v_proj")
            return [Layer(component, f"{block}.self_attn.{n}", tensor, i * rows, rows) for i, n in enumerate(names)]
        other = {"attn.out_proj.weight": "self_attn.out_proj", "mlp.c_fc.weight": "mlp.fc1"}.get(inner)
        return [Layer(component, f"{block}.{other}", tensor)] if other else []
    module = path.removesuffix(".weight")
    wanted = ("q_proj", "k_proj", "v_proj", "out_proj", "mlp.fc1", "mlp.fc2")
    return [Layer(component, module, tensor)] if module.endswith(wanted) else []


UNETS = ("sd1", "sd2", "sdxl")
TEXT = {
    "sd1": {"te1": "cond_stage_model.transformer."},
    "sd2": {"te1": "cond_stage_model.model."},
    "sdxl": {"te1": "conditioner.embedders.0.transformer.", "te2": "conditioner.embedders.1.model."},
    "sd3": {"te1": "text_encoders.clip_l.transformer.", "te2": "text_encoders.clip_g.transformer."},
    "flux": {"te1": "text_encoders.clip_l.transformer."},
}


def layers_of(family: str, shapes: Mapping[str, tuple[int, ...]], naming: str = "diffusers") -> list[Layer]:
    """Return the layers of a family's checkpoint that a LoRA is made for, in diffusers' names or the release's own."""
    found: list[Layer] = []
    for tensor, shape in shapes.items():
        if len(shape) < 2:
            continue
        path = tensor.removeprefix("model.diffusion_model.").removesuffix(".weight")
        if path != tensor.removesuffix(".weight"):
            if family in UNETS:
                name = path if naming == "original" else diffusers_unet(path)
                if name and (diffusers_unet(path) or naming == "original"):
                    found.append(Layer("unet", name, tensor))
            elif naming == "original" or family == "qwen_image":
                blocks = ("joint_blocks", "double_blocks", "single_blocks", "layers", "transformer_blocks", "noise_ref")
                if path.startswith(blocks):
                    found.append(Layer("transformer", path, tensor))
            else:
                found.extend(diffusers_layers(family, tensor, shape))
        for component, prefix in TEXT.get(family, {}).items():
            if tensor.startswith(prefix):
                found.extend(clip_layers(component, prefix, tensor, shape))
        third = "text_encoders.t5xxl.transformer."
        if tensor.startswith(third) and tensor.endswith(("SelfAttention.q.weight", "wo.weight")):
            found.append(Layer("te3", tensor.removeprefix(third).removesuffix(".weight"), tensor))
        if tensor.startswith("text_encoders.llm.") and tensor.endswith(("q_proj.weight", "down_proj.weight")):
            name = tensor.removeprefix("text_encoders.llm.").removesuffix(".weight")
            found.append(Layer("te1", name, tensor))
    return found


# --- quantised weights --------------------------------------------------------------------------------------------


BLOCKS = {
    "q8_0": (8, np.dtype([("scale", "<f2"), ("values", "i1", 32)])),
    "q4_0": (2, np.dtype([("scale", "<f2"), ("values", "u1", 16)])),
}
"""ggml's number of a type, and its blocks of 32 values."""


@functools.cache
def ggml() -> ctypes.CDLL:
    """Return the engine's own ggml, which quantises as the loader does."""
    import sdcpp_py  # here, since the fuzzer needs no built package

    library = Path(sdcpp_py.doctor()["engine"]["library"])
    found = ctypes.CDLL(str(library.with_name(library.name.replace("stable-diffusion", "ggml-base"))))
    pointer, whole = ctypes.c_void_p, ctypes.c_int64
    found.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, whole, whole, whole, pointer]
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    return found


def dequantised(weight: Array, kind: str) -> Array:
    """Return the values that a matrix has once the loader quantised it."""
    number, block = BLOCKS[kind]
    source = np.ascontiguousarray(weight, np.float32)
    rows, columns = source.shape
    blocks = np.zeros(rows * columns // 32, block)
    importance = np.ones(columns, np.float32)
    ggml().ggml_quantize_chunk(number, source.ctypes.data, blocks.ctypes.data, 0, rows, columns, importance.ctypes.data)
    values = blocks["values"]
    if kind == "q4_0":
        values = np.concatenate([values & 15, values >> 4], axis=1).astype(np.int8) - 8
    return (values.astype(np.float32) * blocks["scale"].astype(np.float32)[:, None]).reshape(weight.shape)

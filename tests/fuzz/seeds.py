"""Valid inputs from which the fuzzer starts: small files of every format and layout, prompts, tensor names, LoRAs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from support.checkpoints import FAMILIES, checkpoint_shapes
from support.lora_formats import DIALECTS
from support.lora_layers import Layer, layers_of
from support.model_formats import (
    ORDERED_DICT,
    GgufTensor,
    Global,
    Object,
    Tensor,
    bf16,
    fp8,
    gguf,
    gguf_array,
    gguf_of,
    gguf_text,
    gguf_u32,
    parameter,
    safetensors,
    safetensors_of,
    torch_legacy,
    torch_zip,
)

PROMPTS = [
    "a photo of a cat",
    "(word:1.3) ((very)) [less] \\(text\\) BREAK more",
    "((((deep))))[[[[less]]]] (a:0.5) (b:-1) (c:1e3)",
    "it's, don't: 12345 caf\u00e9 \u732b \U0001f600",
]
NAMES = [
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k.lora_down.weight",
    "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
    "base_model.model.double_blocks.0.img_attn.qkv.lora_B.default.weight",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",
    "unet.up_blocks.0.attentions.0.processor.to_out_lora.up.weight",
    "first_stage_model.encoder.mid_block.attentions.0.to_q.weight",
    "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
    "lycoris_output_blocks_0_1_transformer_blocks_0_attn2_to_v.hada_w1_a",
    "text_encoders.t5xxl.enc.blk.0.attn_q.weight",
]


def random(*shape: int) -> np.ndarray:
    """Return the same numbers for each shape."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def safetensors_seeds() -> dict[str, bytes]:
    weight = fp8(random(4, 6), "F8_E4M3")
    return {
        "plain": safetensors_of({
            "a.weight": random(4, 6), "a.bias": random(4).astype(np.float16), "n": np.arange(3),
            "f": random(2).astype(np.float64),
        }),
        "types": safetensors_of({
            "b": np.zeros(3, bool), "c": np.zeros(2, np.int16), "d": np.zeros((2, 2), np.uint8), "e": random(1),
            "five": random(1, 2, 3, 1, 2), "none": np.zeros((0, 3), np.float32), "h": bf16(random(3)),
        }),
        "scaled": safetensors_of({
            "scaled_fp8": fp8(np.zeros(2), "F8_E4M3"), "a.weight": weight, "a.scale_weight": random(1),
            "b.weight": fp8(random(4, 6), "F8_E5M2"), "b.weight_scale": random(4), "b.input_scale": random(1),
            "c.weight": np.ones((4, 6), np.int8), "c.weight_scale": random(4, 1),
            "d.weight": weight, "d.weight_scale_inv": random(2, 3),
        }),
        "embedding": safetensors_of({"emb_params": random(2, 4)}),
        "pair": safetensors_of({"clip_l": random(2, 4), "clip_g": random(2, 8)}),
        "metadata": safetensors(
            {
                "__metadata__": {"format": "pt", "more": {"deep": [1, [2, {"x": None}]]}},
                "a": {"dtype": "F16", "shape": [], "data_offsets": [0, 2]},
            },
            b"\0\0",
        ),
    }  # fmt: skip


def gguf_seeds() -> dict[str, bytes]:
    pairs = [
        gguf_text("general.architecture", "flux"), gguf_u32("general.alignment", 64),
        gguf_array("tokens", 8, 2, b"\1\0\0\0\0\0\0\0a\2\0\0\0\0\0\0\0bc"), gguf_array("ids", 4, 3, b"\0" * 12),
    ]  # fmt: skip
    return {
        "plain": gguf_of({"a.weight": random(4, 6), "b.bias": random(3).astype(np.float16)}),
        "pairs": gguf(
            [GgufTensor("q", (2, 64), 8, 0), GgufTensor("s", (), 0, 192)], b"\1" * 256, pairs=pairs, alignment=64
        ),
        "five": gguf([GgufTensor("x" * 100, (2, 1, 3, 1, 4), 0, 0)], b"\0" * 96),
        "empty": gguf([]),
        "embedding": gguf_of({"emb_params": random(2, 4)}),
    }


def torch_seeds() -> dict[str, bytes]:
    whole = random(4, 6)
    state = {
        "a.weight": Tensor(whole),
        "b": Tensor(whole, shape=(6, 4), stride=(1, 6)),
        "c": Tensor(random(3).astype(np.float16)),
    }
    nested = {
        "state_dict": state, "epoch": 3, "lr": 0.5, "big": 1 << 80, "list": [1, (2, "x")],
        "args": Object(Global("argparse", "Namespace"), (), {"x": 1, "y": [None, True]}, new=True),
        "ordered": Object(ORDERED_DICT.made_by, (), dict(state)),
    }  # fmt: skip
    module = Object(Global("torch.nn", "Linear"), (), {
        "_parameters": {"weight": parameter(Tensor(random(2, 2)))},
        "_modules": {"0": Object(Global("torch.nn", "ReLU"), (), {"_parameters": {}, "_modules": {}}, new=True)},
    }, new=True)  # fmt: skip
    embedding = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": parameter(Tensor(random(2, 4)))},
        "name": "word", "step": 100,
    }  # fmt: skip
    v3 = {"e": Tensor(fp8(random(2, 3), "F8_E4M3"), version=3), "h": Tensor(bf16(random(2)), version=3)}
    made = {
        "state": state,
        "nested": nested,
        "module": module,
        "embedding": embedding,
        "bare": Tensor(random(2, 4)),
        "v3": v3,
    }
    seeds = {f"zip-{name}": torch_zip(value) for name, value in made.items()}
    seeds |= {f"legacy-{name}": torch_legacy(value) for name, value in made.items() if name != "v3"}
    seeds["packed"] = torch_zip(state, compress=True)
    return seeds


def index_seeds() -> dict[str, bytes]:
    return {
        "plain": json.dumps({"metadata": {"total_size": 8}, "weight_map": {"a": "shard.safetensors"}}).encode(),
        "two": json.dumps({"weight_map": {"a": "shard.safetensors", "b": "shard.safetensors"}}).encode(),
    }


ROLES = (
    "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale", "lora_magnitude_vector", "diff",
    "diff_b", "hada_w1_a", "hada_t2", "lokr_w1", "lokr_w2_b", "lora_B.bias", "scale", "w_norm",
)  # fmt: skip
LEVELS = (
    "model.diffusion_model.input_blocks", "model.diffusion_model.output_blocks", "first_stage_model.decoder.up",
    "first_stage_model.encoder.down",
)  # fmt: skip


def spread_out(layers: list[Layer], count: int) -> list[Layer]:
    """Return some of the layers, of every part of the model."""
    return layers[:: max(1, len(layers) // count)]


def lora_seeds() -> dict[str, bytes]:
    """Return the names of a LoRA's tensors, of every family in every dialect, and names of the models' own tensors."""
    seeds = {}
    for family in FAMILIES:
        shapes = checkpoint_shapes(family, tiny=True)
        for title, dialect in DIALECTS.items():
            layers = [each for each in layers_of(family, shapes, dialect.naming) if each.component in dialect.prefixes]
            names = [
                dialect.name(layer, ROLES[index % len(ROLES)]) for index, layer in enumerate(spread_out(layers, 6))
            ]
            if names:
                seeds[f"{family}-{title}".replace(" ", "_")] = "\n".join(names).encode()
        own = [*shapes][:: max(1, len(shapes) // 12)]
        own += [name.removesuffix("weight") + "diff" for name in own if name.endswith(".weight")]
        seeds[f"{family}-model"] = "\n".join(own).encode()
    # Found by the fuzzer: the numbers after these do not exist.
    odd = [f"{where}.{number}.0.conv.weight" for where in LEVELS for number in (2**31, 2**31 - 1, 10**30, -1)]
    seeds["numbers"] = "\n".join(["lora_unet_time_embed_0.diff", *odd]).encode()
    return seeds


def scale_seeds() -> dict[str, bytes]:
    """Return what says a LoRA's scales: PEFT's configuration, and diffusers' in a file's header."""
    peft = {"r": 4, "lora_alpha": 8, "use_rslora": True, "alpha_pattern": {"blocks.0.attn": 2.5, "b": 1}}
    diffusers = {f"transformer.{key}": value for key, value in peft.items()}
    header = {"__metadata__": {"lora_adapter_metadata": json.dumps(diffusers)}}
    tensor = {"a": {"dtype": "F16", "shape": [], "data_offsets": [0, 2]}}
    return {
        "peft": json.dumps(peft).encode(),
        "diffusers": json.dumps(diffusers).encode(),
        "header": safetensors({**header, **tensor}, b"\0\0"),
    }


SEEDS = {
    "safetensors": safetensors_seeds,
    "gguf": gguf_seeds,
    "torch": torch_seeds,
    "index": index_seeds,
    "prompts": lambda: {str(index): text.encode() for index, text in enumerate(PROMPTS)},
    "names": lambda: {str(index): text.encode() for index, text in enumerate(NAMES)},
    "loras": lora_seeds,
    "scales": scale_seeds,
}
"""Target of the fuzzer -> what makes its seeds."""


def write_seeds(target: str, folder: Path) -> None:
    """Write a target's seeds, a file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in SEEDS[target]().items():
        (folder / name).write_bytes(content)
    if target == "loras":
        models = [name for family in FAMILIES for name in checkpoint_shapes(family, tiny=True)]
        (folder.parent / "model-names").write_text("\n".join(models))

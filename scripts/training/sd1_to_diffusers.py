"""Read an SD 1.x checkpoint in one file (safetensors or GGUF, quantised or not) into diffusers' modules.

Sizes come from the tensors' shapes, so that the embedded model, the tiny random checkpoints and a full-size one are
read alike. Where a checkpoint leaves something open, the modules are set up as the engine computes: eight heads in
the UNet, one per 64 channels in CLIP, eps 1e-6 in every group normalisation (diffusers' own default in the UNet is
1e-5), CLIP with quick GELU. Needs torch, diffusers, transformers, and gguf for GGUF files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

Tensors = dict[str, Tensor]

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "clip": "cond_stage_model.transformer.text_model.",
}
UNET_PARTS = {
    r"^time_embed\.0\.": "time_embedding.linear_1.",
    r"^time_embed\.2\.": "time_embedding.linear_2.",
    r"^input_blocks\.0\.0\.": "conv_in.",
    r"^out\.0\.": "conv_norm_out.",
    r"^out\.2\.": "conv_out.",
    r"^middle_block\.0\.": "mid_block.resnets.0.",
    r"^middle_block\.1\.": "mid_block.attentions.0.",
    r"^middle_block\.2\.": "mid_block.resnets.1.",
    r"\.in_layers\.0\.": ".norm1.",
    r"\.in_layers\.2\.": ".conv1.",
    r"\.emb_layers\.1\.": ".time_emb_proj.",
    r"\.out_layers\.0\.": ".norm2.",
    r"\.out_layers\.3\.": ".conv2.",
    r"\.skip_connection\.": ".conv_shortcut.",
}
VAE_PARTS = {
    r"\.down\.(\d+)\.block\.": r".down_blocks.\1.resnets.",
    r"\.down\.(\d+)\.downsample\.": r".down_blocks.\1.downsamplers.0.",
    r"\.up\.(\d+)\.block\.": r".up_blocks.\1.resnets.",
    r"\.up\.(\d+)\.upsample\.": r".up_blocks.\1.upsamplers.0.",
    r"\.mid\.block_1\.": ".mid_block.resnets.0.",
    r"\.mid\.block_2\.": ".mid_block.resnets.1.",
    r"\.mid\.attn_1\.norm\.": ".mid_block.attentions.0.group_norm.",
    r"\.mid\.attn_1\.([qkv])\.": r".mid_block.attentions.0.to_\1.",
    r"\.mid\.attn_1\.proj_out\.": ".mid_block.attentions.0.to_out.0.",
    r"\.norm_out\.": ".conv_norm_out.",
    r"\.nin_shortcut\.": ".conv_shortcut.",
}


@dataclass(frozen=True)
class Modules:
    """A checkpoint as diffusers' modules, in f32 and ready to compute."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    clip: CLIPTextModel


def read_tensors(path: Path) -> Tensors:
    """Every tensor of a safetensors or GGUF file as f32, quantised ones dequantised."""
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        from safetensors.torch import load_file

        return {name: value.float() for name, value in load_file(path).items()}
    import gguf

    # from_numpy on a copy: the reader's arrays are views of the mapped file.
    return {
        each.name: torch.from_numpy(gguf.quants.dequantize(each.data, each.tensor_type).astype("f4", copy=True))
        for each in gguf.GGUFReader(path).tensors
    }


def part(tensors: Tensors, name: str) -> Tensors:
    """The tensors of one module, without their prefix."""
    prefix = PREFIXES[name]
    found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if not found:
        raise ValueError(f"the checkpoint holds no {prefix}*: it is not in the SD 1.x layout")
    return found


def renamed(name: str, rules: dict[str, str]) -> str:
    """A tensor's name after every rule."""
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name


def count(tensors: Tensors, pattern: str) -> int:
    """The number of different values that a pattern's group takes in the tensors' names."""
    return len({match.group(1) for name in tensors if (match := re.search(pattern, name))})


def unet_blocks(tensors: Tensors) -> tuple[dict[str, str], list[int], list[bool]]:
    """Where the UNet's numbered blocks go.

    Returns:
        ("input_blocks.1.0." -> "down_blocks.0.resnets.0." and so on, each level's channels, whether it has attention).
    """
    inputs = count(tensors, r"^input_blocks\.(\d+)\.")
    downs = [index for index in range(inputs) if f"input_blocks.{index}.0.op.weight" in tensors]
    ends = [*downs, inputs]
    layers = ends[0] - 1
    places: dict[str, str] = {}
    channels, attention = [], []

    def layer(source: str, block: str, index: int) -> None:
        places[f"{source}.0."] = f"{block}.resnets.{index}."
        if f"{source}.1.norm.weight" in tensors:
            places[f"{source}.1."] = f"{block}.attentions.{index}."

    for level, end in enumerate(ends):
        for index in range(layers):
            layer(f"input_blocks.{end - layers + index}", f"down_blocks.{level}", index)
        channels.append(tensors[f"input_blocks.{end - 1}.0.out_layers.3.weight"].shape[0])
        attention.append(f"input_blocks.{end - 1}.1.norm.weight" in tensors)
        if end < inputs:
            places[f"input_blocks.{end}.0.op."] = f"down_blocks.{level}.downsamplers.0.conv."
    for level in range(len(ends)):
        for index in range(layers + 1):
            source = f"output_blocks.{level * (layers + 1) + index}"
            layer(source, f"up_blocks.{level}", index)
            for last in (1, 2):
                if f"{source}.{last}.conv.weight" in tensors:
                    places[f"{source}.{last}."] = f"up_blocks.{level}.upsamplers.0."
    return places, channels, attention


def read_unet(tensors: Tensors) -> UNet2DConditionModel:
    """The UNet, in the engine's way: eight heads at every level."""
    places, channels, attention = unet_blocks(tensors)
    context = next(value.shape[1] for name, value in tensors.items() if name.endswith("attn2.to_k.weight"))
    unet = UNet2DConditionModel(
        in_channels=tensors["input_blocks.0.0.weight"].shape[1],
        out_channels=tensors["out.2.weight"].shape[0],
        block_out_channels=tuple(channels),
        down_block_types=tuple("CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attention)),
        layers_per_block=sum(place.startswith("down_blocks.0.resnets.") for place in places.values()),
        cross_attention_dim=context,
        attention_head_dim=8,  # diffusers takes this as the number of heads
        norm_eps=1e-6,
    )

    def place(name: str) -> str:
        for source, target in places.items():
            if name.startswith(source):
                name = target + name.removeprefix(source)
                break
        return renamed(name, UNET_PARTS)

    unet.load_state_dict({place(name): value for name, value in tensors.items()})
    return unet.eval()


def read_vae(tensors: Tensors) -> AutoencoderKL:
    """The autoencoder; the checkpoint counts the decoder's levels from its end."""
    levels = count(tensors, r"^decoder\.up\.(\d+)\.")
    widths = tuple(tensors[f"decoder.up.{level}.block.0.conv1.weight"].shape[0] for level in range(levels))
    vae = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=count(tensors, r"^decoder\.up\.0\.block\.(\d+)\.") - 1,
        latent_channels=tensors["post_quant_conv.weight"].shape[0],
        scaling_factor=0.18215,
    )

    def entries() -> Iterator[tuple[str, Tensor]]:
        for name, value in tensors.items():
            turned = re.sub(r"\.up\.(\d+)\.", lambda match: f".up.{levels - 1 - int(match.group(1))}.", name)
            # Attention in the checkpoint is made of 1x1 convolutions, in diffusers of linear layers.
            linear = ".attn_1." in name and value.dim() == 4
            yield renamed(turned, VAE_PARTS), value[:, :, 0, 0] if linear else value

    read = dict(entries())
    if "encoder.conv_in.weight" not in read:  # a checkpoint that only decodes; the encoder is not used
        own = vae.state_dict().items()
        read |= {name: value for name, value in own if name.startswith(("encoder.", "quant_conv."))}
    vae.load_state_dict(read)
    return vae.eval()


def read_clip(tensors: Tensors) -> CLIPTextModel:
    """CLIP's text encoder."""
    vocabulary, width = tensors["embeddings.token_embedding.weight"].shape
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=count(tensors, r"^encoder\.layers\.(\d+)\."),
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=tensors["embeddings.position_embedding.weight"].shape[0],
        hidden_act="quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
    )
    clip = CLIPTextModel(config)
    # Some checkpoints carry the numbers of the positions along.
    clip.load_state_dict({name: value for name, value in tensors.items() if not name.endswith("position_ids")})
    return clip.eval()


def read_checkpoint(path: Path) -> Modules:
    """Read an SD 1.x checkpoint.

    Args:
        path: a safetensors or GGUF file with UNet, autoencoder and CLIP under their CompVis names.

    Raises:
        ValueError: it is not in the SD 1.x layout.
        RuntimeError: a tensor is missing, or has another shape than its neighbours make it.
    """
    tensors = read_tensors(path)
    return Modules(read_unet(part(tensors, "unet")), read_vae(part(tensors, "vae")), read_clip(part(tensors, "clip")))

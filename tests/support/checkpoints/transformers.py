"""Denoisers that are transformers: those of SD 3, FLUX.1 and .2, Z-Image and Qwen-Image."""

from __future__ import annotations

from dataclasses import dataclass

from .layout import Layout


@dataclass(frozen=True)
class Mmdit:
    """Sizes of SD 3's transformer; its heads are 64 wide and as many as its blocks."""

    depth: int = 24
    context: int = 4096
    pooled: int = 2048
    positions: int = 192 * 192


def mmdit(size: Mmdit) -> Layout:
    """Return SD 3's transformer, without prefix."""
    out = Layout()
    width = 64 * size.depth
    out.put("pos_embed", 1, size.positions, width)
    out.put("x_embedder.proj.weight", width, 16, 2, 2)
    out.put("x_embedder.proj.bias", width)
    for name, inputs in (("t_embedder", 256), ("y_embedder", size.pooled)):
        out.linear(f"{name}.mlp.0", inputs, width)
        out.linear(f"{name}.mlp.2", width, width)
    out.linear("context_embedder", size.context, width)
    for index in range(size.depth):
        for stream in ("context_block", "x_block"):
            block = f"joint_blocks.{index}.{stream}"
            last = stream == "context_block" and index == size.depth - 1  # nothing reads its output
            out.linear(f"{block}.adaLN_modulation.1", width, (2 if last else 6) * width)
            out.linear(f"{block}.attn.qkv", width, 3 * width)
            if not last:
                out.linear(f"{block}.attn.proj", width, width)
                out.linear(f"{block}.mlp.fc1", width, 4 * width)
                out.linear(f"{block}.mlp.fc2", 4 * width, width)
    out.linear("final_layer.adaLN_modulation.1", width, 2 * width)
    out.linear("final_layer.linear", width, 2 * 2 * 16)
    return out


@dataclass(frozen=True)
class Flux:
    """Sizes of FLUX.1's transformer; its heads are 128 wide, as its rope axes (16, 56, 56) ask."""

    width: int = 3072
    double: int = 19
    single: int = 38
    context: int = 4096
    pooled: int = 768
    inputs: int = 64  # 384: with a mask and what is outside of it (Fill)


def flux_transformer(size: Flux) -> Layout:
    """Return FLUX.1 dev's transformer (with guidance embedding), without prefix."""
    out = Layout()
    width = size.width
    out.linear("img_in", size.inputs, width)
    out.linear("txt_in", size.context, width)
    for name, inputs in (("time_in", 256), ("vector_in", size.pooled), ("guidance_in", 256)):
        out.linear(f"{name}.in_layer", inputs, width)
        out.linear(f"{name}.out_layer", width, width)
    for index in range(size.double):
        for stream in ("img", "txt"):
            block = f"double_blocks.{index}.{stream}"
            out.linear(f"{block}_mod.lin", width, 6 * width)
            out.linear(f"{block}_attn.qkv", width, 3 * width)
            out.put(f"{block}_attn.norm.query_norm.scale", 128)
            out.put(f"{block}_attn.norm.key_norm.scale", 128)
            out.linear(f"{block}_attn.proj", width, width)
            out.linear(f"{block}_mlp.0", width, 4 * width)
            out.linear(f"{block}_mlp.2", 4 * width, width)
    for index in range(size.single):
        block = f"single_blocks.{index}"
        out.linear(f"{block}.modulation.lin", width, 3 * width)
        out.linear(f"{block}.linear1", width, (3 + 4) * width)
        out.linear(f"{block}.linear2", (1 + 4) * width, width)
        out.put(f"{block}.norm.query_norm.scale", 128)
        out.put(f"{block}.norm.key_norm.scale", 128)
    out.linear("final_layer.adaLN_modulation.1", width, 2 * width)
    out.linear("final_layer.linear", width, 64)
    return out


@dataclass(frozen=True)
class Flux2:
    """Sizes of FLUX.2 klein's transformer, 4B's; its heads are 128 wide, and its feed-forward layers gated."""

    width: int = 3072
    double: int = 5
    single: int = 20
    context: int = 7680


def flux2_transformer(size: Flux2) -> Layout:
    """Return FLUX.2's transformer without guidance embedding (klein's), without prefix; no layer has a bias."""
    out = Layout()
    width, feed = size.width, 3 * size.width

    def linear(name: str, inputs: int, outputs: int) -> None:
        out.linear(name, inputs, outputs, bias=False)

    def norms(name: str) -> None:
        for part in ("query_norm", "key_norm"):
            out.put(f"{name}.{part}.scale", 128)

    linear("img_in", 128, width)
    linear("txt_in", size.context, width)
    linear("time_in.in_layer", 256, width)
    linear("time_in.out_layer", width, width)
    for stream in ("img", "txt"):
        linear(f"double_stream_modulation_{stream}.lin", width, 6 * width)
    linear("single_stream_modulation.lin", width, 3 * width)
    for index in range(size.double):
        for stream in ("img", "txt"):
            block = f"double_blocks.{index}.{stream}"
            linear(f"{block}_attn.qkv", width, 3 * width)
            norms(f"{block}_attn.norm")
            linear(f"{block}_attn.proj", width, width)
            linear(f"{block}_mlp.0", width, 2 * feed)
            linear(f"{block}_mlp.2", feed, width)
    for index in range(size.single):
        block = f"single_blocks.{index}"
        linear(f"{block}.linear1", width, 3 * width + 2 * feed)
        linear(f"{block}.linear2", width + feed, width)
        norms(f"{block}.norm")
    linear("final_layer.adaLN_modulation.1", width, 2 * width)
    linear("final_layer.linear", width, 128)
    return out


@dataclass(frozen=True)
class ZImage:
    """Sizes of Z-Image's transformer; its heads are 128 wide, as its rope axes (32, 48, 48) ask."""

    width: int = 3840  # at least 256, the width of the time embedding that modulates the blocks
    layers: int = 30
    refiners: int = 2
    context: int = 2560


def zimage_transformer(size: ZImage) -> Layout:
    """Return Z-Image's transformer in the names of the original release, without prefix."""
    out = Layout()
    width, time = size.width, 256
    feed = -(-(width * 8 // 3) // 256) * 256
    out.linear("x_embedder", 2 * 2 * 16, width)
    out.linear("t_embedder.mlp.0", 256, min(width, 1024))
    out.linear("t_embedder.mlp.2", min(width, 1024), time)
    out.norm("cap_embedder.0", size.context, bias=False)
    out.linear("cap_embedder.1", size.context, width)
    out.put("x_pad_token", 1, width)
    out.put("cap_pad_token", 1, width)
    stacks = (("noise_refiner", size.refiners), ("context_refiner", size.refiners), ("layers", size.layers))
    for stack, count in stacks:
        for index in range(count):
            block = f"{stack}.{index}"
            out.linear(f"{block}.attention.qkv", width, 3 * width, bias=False)
            out.linear(f"{block}.attention.out", width, width, bias=False)
            out.norm(f"{block}.attention.q_norm", 128, bias=False)
            out.norm(f"{block}.attention.k_norm", 128, bias=False)
            out.linear(f"{block}.feed_forward.w1", width, feed, bias=False)
            out.linear(f"{block}.feed_forward.w2", feed, width, bias=False)
            out.linear(f"{block}.feed_forward.w3", width, feed, bias=False)
            for norm in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
                out.norm(f"{block}.{norm}", width, bias=False)
            if stack != "context_refiner":  # the prompt is refined once, for all time steps
                out.linear(f"{block}.adaLN_modulation.0", time, 4 * width)
    out.linear("final_layer.linear", width, 2 * 2 * 16)
    out.linear("final_layer.adaLN_modulation.1", time, width)
    return out


@dataclass(frozen=True)
class QwenImage:
    """Sizes of Qwen-Image's transformer; its heads are 128 wide, as its rope axes (16, 56, 56) ask."""

    width: int = 3072
    layers: int = 60
    context: int = 3584


def qwen_image_transformer(size: QwenImage) -> Layout:
    """Return Qwen-Image's transformer in the names of diffusers, without prefix."""
    out = Layout()
    width = size.width
    out.linear("time_text_embed.timestep_embedder.linear_1", 256, width)
    out.linear("time_text_embed.timestep_embedder.linear_2", width, width)
    out.norm("txt_norm", size.context, bias=False)
    out.linear("img_in", 2 * 2 * 16, width)
    out.linear("txt_in", size.context, width)
    for index in range(size.layers):
        block = f"transformer_blocks.{index}"
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            out.linear(f"{block}.attn.{part}", width, width)
        for part in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            out.linear(f"{block}.attn.{part}", width, width)
        for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            out.norm(f"{block}.attn.{norm}", 128, bias=False)
        for stream in ("img", "txt"):
            out.linear(f"{block}.{stream}_mod.1", width, 6 * width)
            out.linear(f"{block}.{stream}_mlp.net.0.proj", width, 4 * width)
            out.linear(f"{block}.{stream}_mlp.net.2", 4 * width, width)
    out.linear("norm_out.linear", width, 2 * width)
    out.linear("proj_out", width, 2 * 2 * 16)
    return out

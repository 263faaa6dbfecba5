"""The LDM UNet of SD 1, SD 2 and SDXL."""

from __future__ import annotations

from dataclasses import dataclass

from .layout import Layout, Shape


@dataclass(frozen=True)
class Unet:
    """Sizes of the LDM UNet (ldm.modules.diffusionmodules.openaimodel)."""

    channels: int = 320
    mult: Shape = (1, 2, 4, 4)
    res_blocks: int = 2
    depth: Shape = (1, 1, 1, 0)  # transformer blocks per level; 0: a level without attention
    mid_depth: int = 1
    context: int = 768
    labels: int = 0  # width of the vector condition (SDXL); 0: none
    linear_proj: bool = False  # proj_in/proj_out as linear layers (SD 2, SDXL) instead of 1x1 convolutions
    inputs: int = 4  # 9: with a mask and what is outside of it (inpainting); 8: with a picture (Instruct-Pix2Pix)


def unet(size: Unet) -> Layout:
    """Return the UNet's tensors, without prefix."""
    out = Layout()
    embed = size.channels * 4
    out.linear("time_embed.0", size.channels, embed)
    out.linear("time_embed.2", embed, embed)
    if size.labels:
        out.linear("label_emb.0.0", size.labels, embed)
        out.linear("label_emb.0.2", embed, embed)

    def residual(name: str, inputs: int, outputs: int) -> None:
        out.norm(f"{name}.in_layers.0", inputs)
        out.conv(f"{name}.in_layers.2", inputs, outputs)
        out.linear(f"{name}.emb_layers.1", embed, outputs)
        out.norm(f"{name}.out_layers.0", outputs)
        out.conv(f"{name}.out_layers.3", outputs, outputs)
        if inputs != outputs:
            out.conv(f"{name}.skip_connection", inputs, outputs, 1)

    def projection(name: str, width: int) -> None:
        if size.linear_proj:
            out.linear(name, width, width)
        else:
            out.conv(name, width, width, 1)

    def transformer(name: str, width: int, depth: int) -> None:
        out.norm(f"{name}.norm", width)
        projection(f"{name}.proj_in", width)
        for index in range(depth):
            block = f"{name}.transformer_blocks.{index}"
            for attention, context in (("attn1", width), ("attn2", size.context)):
                out.linear(f"{block}.{attention}.to_q", width, width, bias=False)
                out.linear(f"{block}.{attention}.to_k", context, width, bias=False)
                out.linear(f"{block}.{attention}.to_v", context, width, bias=False)
                out.linear(f"{block}.{attention}.to_out.0", width, width)
            out.linear(f"{block}.ff.net.0.proj", width, width * 8)
            out.linear(f"{block}.ff.net.2", width * 4, width)
            for norm in ("norm1", "norm2", "norm3"):
                out.norm(f"{block}.{norm}", width)
        projection(f"{name}.proj_out", width)

    out.conv("input_blocks.0.0", size.inputs, size.channels)
    skips = [size.channels]
    width, index = size.channels, 0
    for level, (mult, depth) in enumerate(zip(size.mult, size.depth, strict=True)):
        for _ in range(size.res_blocks):
            index += 1
            residual(f"input_blocks.{index}.0", width, mult * size.channels)
            width = mult * size.channels
            if depth:
                transformer(f"input_blocks.{index}.1", width, depth)
            skips.append(width)
        if level + 1 < len(size.mult):
            index += 1
            out.conv(f"input_blocks.{index}.0.op", width, width)
            skips.append(width)

    residual("middle_block.0", width, width)
    transformer("middle_block.1", width, size.mid_depth)
    residual("middle_block.2", width, width)

    index = 0
    for level, (mult, depth) in reversed(list(enumerate(zip(size.mult, size.depth, strict=True)))):
        for block in range(size.res_blocks + 1):
            residual(f"output_blocks.{index}.0", width + skips.pop(), mult * size.channels)
            width = mult * size.channels
            if depth:
                transformer(f"output_blocks.{index}.1", width, depth)
            if level and block == size.res_blocks:
                out.conv(f"output_blocks.{index}.{2 if depth else 1}.conv", width, width)
            index += 1
    out.norm("out.0", width)
    out.conv("out.2", size.channels, 4)
    return out

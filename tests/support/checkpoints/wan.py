"""Wan: transformers that draw videos, and the families of checkpoints that they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .autoencoders import WanVae, wan_vae
from .layout import Layout
from .text_encoders import T5, ClipVision, clip_vision, t5


@dataclass(frozen=True)
class Wan:
    """Sizes of Wan's transformer; its heads are 128 wide, as its rope axes (44, 42, 42) ask. The defaults: 1.3B."""

    width: int = 1536
    layers: int = 30
    feed: int = 8960
    inputs: int = 16
    outputs: int = 16
    context: int = 4096
    seen: int = 0  # width of what CLIP sees; 0: it reads none of it
    first_and_last: bool = False  # it is told which frame CLIP sees
    control_layers: int = 0  # VACE's


def wan_transformer(size: Wan) -> Layout:
    """Return Wan's transformer in the names of the original release, without prefix."""
    out = Layout()
    width = size.width
    out.put("patch_embedding.weight", width, size.inputs, 1, 2, 2)
    out.put("patch_embedding.bias", width)
    for name, inputs in (("text_embedding", size.context), ("time_embedding", 256)):
        out.linear(f"{name}.0", inputs, width)
        out.linear(f"{name}.2", width, width)
    out.linear("time_projection.1", width, 6 * width)

    def block(name: str) -> None:
        out.put(f"{name}.modulation", 1, 6, width)
        for attention in ("self_attn", "cross_attn"):
            for part in ("q", "k", "v", "o"):
                out.linear(f"{name}.{attention}.{part}", width, width)
            out.norm(f"{name}.{attention}.norm_q", width, bias=False)
            out.norm(f"{name}.{attention}.norm_k", width, bias=False)
        if size.seen:
            out.linear(f"{name}.cross_attn.k_img", width, width)
            out.linear(f"{name}.cross_attn.v_img", width, width)
            out.norm(f"{name}.cross_attn.norm_k_img", width, bias=False)
        out.norm(f"{name}.norm3", width)
        out.linear(f"{name}.ffn.0", width, size.feed)
        out.linear(f"{name}.ffn.2", size.feed, width)

    for index in range(size.layers):
        block(f"blocks.{index}")
    out.put("head.modulation", 1, 2, width)
    out.linear("head.head", width, 4 * size.outputs)
    if size.seen:
        out.norm("img_emb.proj.0", size.seen)
        out.linear("img_emb.proj.1", size.seen, size.seen)
        out.linear("img_emb.proj.3", size.seen, width)
        out.norm("img_emb.proj.4", width)
        if size.first_and_last:
            out.put("img_emb.emb_pos", 1, 2 * 257, size.seen)
    if size.control_layers:
        out.put("vace_patch_embedding.weight", width, 96, 1, 2, 2)
        out.put("vace_patch_embedding.bias", width)
        for index in range(size.control_layers):
            block(f"vace_blocks.{index}")
            if index == 0:
                out.linear(f"vace_blocks.{index}.before_proj", width, width)
            out.linear(f"vace_blocks.{index}.after_proj", width, width)
    return out


UMT5 = T5(vocabulary=256384, shared_bias=False)
BILLIONS_14 = Wan(width=5120, layers=40, feed=13824)

# Tiny: two layers and two heads each. The vocabulary is the largest part, 33 MB of F16.
TINY_UMT5 = replace(UMT5, width=64, layers=2, feed=96)
TINY_VISION = ClipVision(width=160, layers=3, feed=192, projection=48)
TINY_VAE = WanVae(channels=8)
TINY_WAN = Wan(width=256, layers=2, feed=320, context=TINY_UMT5.width)


def _family(tiny: bool, size: Wan, published: WanVae | None = None, pair: bool = False) -> Layout:
    """Return a checkpoint with everything that a transformer needs.

    Args:
        tiny: as narrow as the layout allows.
        size: of the published transformer.
        published: sizes of its autoencoder.
        pair: whether there are two transformers, the second one for the steps with much noise.
    """
    out = Layout()
    if tiny:
        size = replace(
            size, width=TINY_WAN.width, layers=2, feed=TINY_WAN.feed, context=TINY_WAN.context,
            seen=TINY_VISION.width if size.seen else 0, control_layers=1 if size.control_layers else 0,
        )  # fmt: skip
    coder = published or WanVae()
    coder = replace(coder, channels=8, decoder_channels=8 if coder.decoder_channels else 0) if tiny else coder
    out.nest("model.diffusion_model.", wan_transformer(size))
    if pair:
        out.nest("model.high_noise_diffusion_model.", wan_transformer(size))
    out.nest("first_stage_model.", wan_vae(coder))
    out.nest("text_encoders.t5xxl.transformer.", t5(TINY_UMT5 if tiny else UMT5))
    if size.seen:
        out.nest("cond_stage_model.transformer.", clip_vision(TINY_VISION if tiny else ClipVision()))
    return out


def wan_t2v(tiny: bool) -> Layout:
    """Wan 2.1 T2V 1.3B: from a text."""
    return _family(tiny, Wan())


def wan_i2v(tiny: bool) -> Layout:
    """Wan 2.1 I2V 14B: from a first frame, that CLIP looks at too."""
    return _family(tiny, replace(BILLIONS_14, inputs=36, seen=1280))


def wan_flf2v(tiny: bool) -> Layout:
    """Wan 2.1 FLF2V 14B: from a first and a last frame."""
    return _family(tiny, replace(BILLIONS_14, inputs=36, seen=1280, first_and_last=True))


def wan_vace(tiny: bool) -> Layout:
    """Wan 2.1 VACE 1.3B: from a text, frames to follow and a reference picture."""
    return _family(tiny, Wan(control_layers=15))


def wan_ti2v(tiny: bool) -> Layout:
    """Wan 2.2 TI2V 5B: from a text, or a first frame; with an autoencoder of its own."""
    size = Wan(width=3072, layers=30, feed=14336, inputs=48, outputs=48)
    return _family(tiny, size, WanVae(channels=160, latent=48, patches=True, decoder_channels=256))


def wan_t2v_pair(tiny: bool) -> Layout:
    """Wan 2.2 T2V A14B: from a text, by two transformers."""
    return _family(tiny, BILLIONS_14, pair=True)


def wan_i2v_pair(tiny: bool) -> Layout:
    """Wan 2.2 I2V A14B: from a first frame, by two transformers."""
    return _family(tiny, replace(BILLIONS_14, inputs=36), pair=True)


VIDEO_FAMILIES: dict[str, Callable[[bool], Layout]] = {
    "wan_t2v": wan_t2v,
    "wan_i2v": wan_i2v,
    "wan_flf2v": wan_flf2v,
    "wan_vace": wan_vace,
    "wan_ti2v": wan_ti2v,
    "wan_t2v_pair": wan_t2v_pair,
    "wan_i2v_pair": wan_i2v_pair,
}
"""The families that draw videos."""

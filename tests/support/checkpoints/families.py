"""The families: which components, in which sizes, make one checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .autoencoders import Vae, WanVae, vae, wan_vae
from .layout import Layout, Shape
from .text_encoders import T5, Clip, Llm, clip, llm, open_clip, t5
from .transformers import (
    Flux,
    Flux2,
    Mmdit,
    QwenImage,
    ZImage,
    flux2_transformer,
    flux_transformer,
    mmdit,
    qwen_image_transformer,
    zimage_transformer,
)
from .unet import Unet, unet
from .wan import VIDEO_FAMILIES

CLIP_L = Clip()
CLIP_G = Clip(width=1280, layers=32, projection=1280)
OPEN_CLIP_H = Clip(width=1024, layers=24, projection=1024)

# Tiny: two layers each, and widths that differ wherever the engine could mistake one for the other. What
# keeps them from being smaller: group normalisations of 32 groups, heads of 64 in CLIP and T5, heads of 128
# for rope, and whole vocabularies.
TINY_VAE = Vae(channels=32)
TINY_CLIP_L = Clip(width=64, layers=2)
TINY_CLIP_G = Clip(width=128, layers=2, projection=128)
TINY_T5 = T5(width=256, layers=2, feed=320)
TINY_LLM = Llm(width=192, layers=2, heads=2, kv_heads=1, feed=320)


def sd1(tiny: bool, inputs: int = 4) -> Layout:
    """SD 1.5, in CompVis names; with more channels that go in the models for inpainting and Instruct-Pix2Pix."""
    out = Layout()
    size = Unet(channels=32, context=TINY_CLIP_L.width) if tiny else Unet()
    out.nest("model.diffusion_model.", unet(replace(size, inputs=inputs)))
    out.nest("first_stage_model.", vae(TINY_VAE if tiny else Vae()))
    out.nest("cond_stage_model.transformer.", clip(TINY_CLIP_L if tiny else CLIP_L))
    return out


def sd2(tiny: bool) -> Layout:
    """SD 2.1: open_clip names, heads of 64, linear projections around the transformers."""
    out = Layout()
    text = TINY_CLIP_G if tiny else OPEN_CLIP_H
    size = Unet(channels=64 if tiny else 320, context=text.width, linear_proj=True)
    out.nest("model.diffusion_model.", unet(size))
    out.nest("first_stage_model.", vae(TINY_VAE if tiny else Vae()))
    out.nest("cond_stage_model.model.", open_clip(text))
    return out


def sdxl(tiny: bool) -> Layout:
    """SDXL base: two text encoders side by side, pooled text and picture sizes as the vector condition."""
    out = Layout()
    first, second = (TINY_CLIP_L, TINY_CLIP_G) if tiny else (CLIP_L, CLIP_G)
    size = Unet(
        channels=64 if tiny else 320,
        mult=(1, 2, 4),
        depth=(0, 1, 2) if tiny else (0, 2, 10),
        mid_depth=2 if tiny else 10,
        context=first.width + second.width,
        labels=second.projection + 6 * 256,
        linear_proj=True,
    )
    out.nest("model.diffusion_model.", unet(size))
    out.nest("first_stage_model.", vae(TINY_VAE if tiny else Vae()))
    out.nest("conditioner.embedders.0.transformer.", clip(first))
    out.nest("conditioner.embedders.1.model.", open_clip(second))
    return out


def sd3(tiny: bool) -> Layout:
    """SD 3 medium with its three text encoders."""
    out = Layout()
    first, second, third = (TINY_CLIP_L, TINY_CLIP_G, TINY_T5) if tiny else (CLIP_L, CLIP_G, T5())
    size = Mmdit(depth=2 if tiny else 24, context=third.width, pooled=first.width + second.projection)
    out.nest("model.diffusion_model.", mmdit(size))
    out.nest("first_stage_model.", vae(replace(TINY_VAE if tiny else Vae(), latent=16, quant=False)))
    out.nest("text_encoders.clip_l.transformer.", clip(first))
    out.nest("text_encoders.clip_g.transformer.", clip(second))
    out.nest("text_encoders.t5xxl.transformer.", t5(third))
    return out


def flux(tiny: bool, inputs: int = 64) -> Layout:
    """FLUX.1 dev with its two text encoders; with more channels that go in FLUX.1 Fill."""
    out = Layout()
    first, second = (TINY_CLIP_L, TINY_T5) if tiny else (CLIP_L, T5())
    size = Flux(width=256, double=2, single=2) if tiny else Flux()
    size = replace(size, context=second.width, pooled=first.width, inputs=inputs)
    out.nest("model.diffusion_model.", flux_transformer(size))
    out.nest("first_stage_model.", vae(replace(TINY_VAE if tiny else Vae(), latent=16, quant=False)))
    out.nest("text_encoders.clip_l.transformer.", clip(first))
    out.nest("text_encoders.t5xxl.transformer.", t5(second))
    return out


def flux2(tiny: bool) -> Layout:
    """FLUX.2 klein 4B with Qwen3 4B, of which it reads three layers' outputs, and an autoencoder of its own."""
    out = Layout()
    text = replace(TINY_LLM, layers=4) if tiny else Llm()
    size = replace(Flux2(width=256, double=2, single=2) if tiny else Flux2(), context=3 * text.width)
    out.nest("model.diffusion_model.", flux2_transformer(size))
    out.nest("first_stage_model.", vae(replace(TINY_VAE if tiny else Vae(), latent=32)))
    out.nest("text_encoders.llm.", llm(text))
    return out


def zimage(tiny: bool) -> Layout:
    """Z-Image with Qwen3 4B as its text encoder and FLUX.1's autoencoder."""
    out = Layout()
    text = TINY_LLM if tiny else Llm()
    size = replace(ZImage(width=256, layers=2) if tiny else ZImage(), context=text.width)
    out.nest("model.diffusion_model.", zimage_transformer(size))
    out.nest("first_stage_model.", vae(replace(TINY_VAE if tiny else Vae(), latent=16, quant=False)))
    out.nest("text_encoders.llm.", llm(text))
    return out


def qwen_image(tiny: bool) -> Layout:
    """Qwen-Image with Qwen2.5-VL 7B (tiny: without vision tower) as text encoder and Wan's autoencoder."""
    out = Layout()
    text = TINY_LLM if tiny else Llm(width=3584, layers=28, heads=28, kv_heads=4, feed=18944, vision=True)
    text = replace(text, vocabulary=152064, qkv_bias=True, qk_norm=False)
    size = replace(QwenImage(width=256, layers=2) if tiny else QwenImage(), context=text.width)
    out.nest("model.diffusion_model.", qwen_image_transformer(size))
    out.nest("first_stage_model.", wan_vae(WanVae(channels=16) if tiny else WanVae()))
    out.nest("text_encoders.llm.", llm(text))
    return out


FAMILIES: dict[str, Callable[[bool], Layout]] = {
    "sd1": sd1,
    "sd2": sd2,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "zimage": zimage,
    "qwen_image": qwen_image,
}
"""The families that draw pictures."""

VARIANTS: dict[str, Callable[[bool], Layout]] = {
    "sd1_inpaint": lambda tiny: sd1(tiny, inputs=9),
    "sd1_pix2pix": lambda tiny: sd1(tiny, inputs=8),
    "flux_fill": lambda tiny: flux(tiny, inputs=384),
    "flux_control": lambda tiny: flux(tiny, inputs=128),
    "flux2": flux2,
}
"""Models that the tests of families leave out: each differs from one of those where pictures go in, or by its sizes."""


def checkpoint_shapes(family: str, tiny: bool = False) -> dict[str, Shape]:
    """Return the tensors of a family's checkpoint.

    Args:
        family: one of ``FAMILIES``, ``VARIANTS`` or ``VIDEO_FAMILIES``.
        tiny: as narrow as the layout allows, instead of the published sizes.

    Returns:
        Tensor name -> shape, row-major as in the file, in file order.

    Raises:
        ValueError: the family is unknown; the message lists the known ones.
    """
    known = {**FAMILIES, **VARIANTS, **VIDEO_FAMILIES}
    if family not in known:
        raise ValueError(f"unknown family {family!r}: choose from {', '.join(known)}")
    return dict(known[family](tiny))

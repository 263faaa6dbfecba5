"""check_parity.py's comparisons of modes that pictures go into: img2img, inpaint, ControlNet, and the encoder alone.

Both sides begin with the same picture, mask and noise. The ControlNet has the UNet's weights, as a new one does, but
what leaves it is scaled by random numbers instead of zeros. Where engine and diffusers define things differently:

- A picture's latents are the mean of what the encoder gives; diffusers' pipelines sample. Here they take the mean, too.
- diffusers' inpainting gives the decoded picture whole; what lies outside the mask is put back here, as by the engine.
- With strength 1 diffusers begins to inpaint from noise alone and puts the noisy picture outside of the mask after the
  first step; the engine has it there from the beginning.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 128
STRENGTHS = (0.3, 0.6, 1.0)
GUIDANCE = (1.0, 5.0)
HINT_WIDTHS = (16, 16, 32, 32, 96, 96, 256)
"""Channels of a ControlNet's layers between its picture and its first block."""


@dataclass(frozen=True)
class Case:
    """One picture: its mode, how much is drawn anew or the ControlNet's strength, and the guidance."""

    mode: str
    strength: float
    cfg_scale: float

    def __str__(self) -> str:
        """Return the case as a row names it."""
        return f"{self.mode}, strength {self.strength:g}, cfg {self.cfg_scale:g}"


def cases() -> list[Case]:
    """Every combination."""
    modes = ("img2img", "inpaint", "control")
    return [Case(mode, strength, cfg) for mode in modes for strength in STRENGTHS for cfg in GUIDANCE]


def begin() -> np.ndarray:
    """Return the picture that both sides begin with: a blue square on a yellow ground, a little blurred."""
    across = np.clip(np.abs(np.arange(SIDE) - 60) - 30, 0, 4) / 4
    ground = np.maximum(across[:, None], across)[..., None]
    return np.rint(ground * (240, 220, 40) + (1 - ground) * (40, 60, 220)).astype(np.uint8)


def mask() -> np.ndarray:
    """Return the mask: a rectangle whose edges are those of latents."""
    white = np.zeros((SIDE, SIDE), np.uint8)
    white[40:96, 24:80] = 255
    return white


def run_engine(sd: Any, prompt: str, steps: int, seed: int, tapped: Callable[..., Any]) -> dict[str, np.ndarray]:
    """Return the engine's pictures by case, and what its encoder gives.

    Args:
        sd: the loaded model.
        prompt: what to draw.
        steps: sampling steps.
        seed: of the noise.
        tapped: a context manager that yields what graphs give, by phase.
    """
    made: dict[str, np.ndarray] = {}
    for case in cases():
        few = {"cfg_scale": case.cfg_scale, "steps": steps, "seed": seed, "sampler": "euler"}
        with tapped() as seen:
            if case.mode == "control":
                size = {"width": SIDE, "height": SIDE}
                images = sd.txt2img(prompt, control_image=begin(), control_strength=case.strength, **few, **size)
            elif case.mode == "inpaint":
                images = sd.inpaint(prompt, begin(), mask(), strength=case.strength, **few)
            else:
                images = sd.img2img(prompt, begin(), strength=case.strength, **few)
                made["encoder"] = seen["encoding"][0]
        made[f"picture {case}"] = np.asarray(images[0])
    return made


def make_control(model: Path, path: Path) -> None:
    """Write a ControlNet for a checkpoint: its UNet's first half, and random layers before and behind it."""
    import torch
    from safetensors.torch import save_file

    from sd1_to_diffusers import part, read_tensors

    unet = part(read_tensors(model), "unet")
    ours = ("time_embed.", "input_blocks.", "middle_block.")
    made = {name: value for name, value in unet.items() if name.startswith(ours)}
    chance = torch.Generator().manual_seed(7)

    def conv(name: str, inputs: int, outputs: int, side: int, size: float) -> None:
        made[f"{name}.weight"] = (
            torch.randn((outputs, inputs, side, side), generator=chance) * size / inputs**0.5 / side
        )
        made[f"{name}.bias"] = torch.randn(outputs, generator=chance) * 0.01

    channels = unet["input_blocks.0.0.weight"].shape[0]
    widths = [channels]
    while (index := len(widths)) and any(name.startswith(f"input_blocks.{index}.") for name in unet):
        wide = unet.get(f"input_blocks.{index}.0.out_layers.3.weight", unet.get(f"input_blocks.{index}.0.op.weight"))
        assert wide is not None
        widths.append(wide.shape[0])
    for index, wide in enumerate(widths):
        conv(f"zero_convs.{index}.0", wide, wide, 1, 0.3)
    conv("middle_block_out.0", widths[-1], widths[-1], 1, 0.3)
    for index, (inputs, outputs) in enumerate(itertools.pairwise((3, *HINT_WIDTHS, channels))):
        conv(f"input_hint_block.{2 * index}", inputs, outputs, 3, 1.4)
    save_file({f"control_model.{name}": value.half().contiguous() for name, value in made.items()}, path)


def read_control(path: Path, unet: Any) -> Any:
    """Return the ControlNet of a file as diffusers' module, beside a UNet."""
    from diffusers import ControlNetModel

    from sd1_to_diffusers import UNET_PARTS, read_tensors, renamed, unet_blocks

    tensors = {name.removeprefix("control_model."): value for name, value in read_tensors(path).items()}
    places, channels, attention = unet_blocks(tensors)
    places |= {f"zero_convs.{index}.0.": f"controlnet_down_blocks.{index}." for index in range(len(tensors))}
    places |= {
        f"input_hint_block.{2 * index}.": f"controlnet_cond_embedding.blocks.{index - 1}." for index in range(1, 7)
    }
    places |= {
        "middle_block_out.0.": "controlnet_mid_block.",
        "input_hint_block.0.": "controlnet_cond_embedding.conv_in.",
        "input_hint_block.14.": "controlnet_cond_embedding.conv_out.",
    }
    control = ControlNetModel(
        in_channels=unet.config.in_channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attention),
        block_out_channels=tuple(channels),
        layers_per_block=unet.config.layers_per_block,
        cross_attention_dim=unet.config.cross_attention_dim,
        attention_head_dim=8,
        norm_eps=1e-6,
        conditioning_embedding_out_channels=HINT_WIDTHS[::2],
    )

    def place(name: str) -> str:
        source = next((each for each in places if name.startswith(each)), "")
        return renamed(places.get(source, "") + name.removeprefix(source), UNET_PARTS)

    control.load_state_dict({place(name): value for name, value in tensors.items()})
    return control.eval()


def run_diffusers(
    modules: Any, control: Path, scheduler: Callable[[], Any], noise: Any, context: tuple[Any, Any], steps: int
) -> dict[str, np.ndarray]:
    """Return diffusers' pictures by case, values from 0 to 255, and what its encoder gives.

    Args:
        modules: the checkpoint's.
        control: the ControlNet's file.
        scheduler: makes the scheduler.
        noise: what both sides begin with, of shape (1, channels, height / 8, width / 8).
        context: the encoded prompt and the empty one.
        steps: sampling steps.
    """
    import torch
    from diffusers import (
        StableDiffusionControlNetPipeline,
        StableDiffusionImg2ImgPipeline,
        StableDiffusionInpaintPipeline,
    )
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as img2img
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as inpaint
    from PIL import Image

    for module in (img2img, inpaint):
        module.retrieve_latents = lambda encoded, **_: encoded.latent_dist.mode()
        module.randn_tensor = lambda *_, **__: noise
    picture = torch.from_numpy(begin()).permute(2, 0, 1)[None] / 127.5 - 1.0
    made = {"encoder": modules.vae._encode(picture).numpy()}
    parts = {
        "vae": modules.vae, "text_encoder": modules.clip, "tokenizer": None, "unet": modules.unet,
        "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False,
    }  # fmt: skip
    modules.unet.register_to_config(sample_size=64)  # asked for by pipelines, and not used
    shown = read_control(control, modules.unet)
    size = {"height": SIDE, "width": SIDE}
    for case in cases():
        more: dict[str, Any] = {"strength": case.strength}
        if case.mode == "control":
            pipeline: Any = StableDiffusionControlNetPipeline(scheduler=scheduler(), controlnet=shown, **parts)
            more = {"controlnet_conditioning_scale": case.strength, "latents": noise, **size}
        elif case.mode == "inpaint":
            pipeline = StableDiffusionInpaintPipeline(scheduler=scheduler(), **parts)
            more |= {"mask_image": Image.fromarray(mask()), **size}
        else:
            pipeline = StableDiffusionImg2ImgPipeline(scheduler=scheduler(), **parts)
        pipeline.set_progress_bar_config(disable=True)
        drawn = pipeline(
            prompt_embeds=context[0], negative_prompt_embeds=context[1], guidance_scale=case.cfg_scale,
            image=Image.fromarray(begin()), num_inference_steps=steps, output_type="np", **more,
        ).images[0]  # fmt: skip
        drawn = np.round(drawn * 255.0)
        if case.mode == "inpaint":
            drawn = np.where(mask()[..., None] > 0, drawn, begin())
        made[f"picture {case}"] = drawn
    return made

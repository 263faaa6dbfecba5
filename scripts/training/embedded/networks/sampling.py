"""Drawing with the networks as the engine does."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .unet import UNet


def noise_levels() -> Tensor:
    """The share of signal (alpha bar) at SD 1.x's 1000 timesteps: betas linear in their square roots."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, dim=0).float()


@torch.no_grad()
def cfg_sample(unet: UNet, noise: Tensor, context: Tensor, empty: Tensor, steps: int, cfg: float) -> Tensor:
    """Euler steps from noise to scaled latents with classifier-free guidance.

    Args:
        unet: predicts the noise.
        noise: standard normal, [batch, 4, h, w].
        context: the prompts' contexts, [batch, 77, width].
        empty: the empty prompt's, likewise.
        steps: number of Euler steps, evenly spread over the timesteps.
        cfg: guidance; 1 is none.
    """
    levels = noise_levels().to(noise.device)
    times = torch.linspace(999, 0, steps, device=noise.device).round().long()
    sigmas = F.pad(((1 - levels[times]) / levels[times]).sqrt(), (0, 1))
    x = noise * sigmas[0]
    for i, t in enumerate(times):
        scaled = x / (sigmas[i] ** 2 + 1).sqrt()
        both = unet(torch.cat((scaled, scaled)), t.expand(2 * len(x)), torch.cat((context, empty)))
        wanted, plain = both.chunk(2)
        x = x + (plain + cfg * (wanted - plain)) * (sigmas[i + 1] - sigmas[i])
    return x

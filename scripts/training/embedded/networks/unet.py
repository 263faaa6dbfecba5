"""The UNet."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .layers import HIDDEN, Up, attention, norm


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Timesteps [batch] -> [batch, width]: cosines, then sines."""
    half = width // 2
    rates = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * rates
    return torch.cat((angles.cos(), angles.sin()), dim=1)


class ResBlock(nn.Module):
    """The UNet's residual block with its timestep."""

    def __init__(self, channels: int, embed: int, out: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(norm(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embed, out))
        self.out_layers = nn.Sequential(norm(out), nn.SiLU(), nn.Identity(), nn.Conv2d(out, out, 3, padding=1))
        nn.init.zeros_(self.out_layers[3].weight)
        nn.init.zeros_(self.out_layers[3].bias)
        self.skip_connection = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[batch, channels, h, w], [batch, embed] -> [batch, out, h, w]."""
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class CrossAttention(nn.Module):
    """Attention to a context; to itself when there is none."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """[batch, tokens, width] -> the same."""
        context = x if context is None else context
        return self.to_out(attention(self.to_q(x), self.to_k(context), self.to_v(context), heads=8))


class Geglu(nn.Module):
    """A gated linear layer."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., out]."""
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate, approximate="tanh")


class TransformerBlock(nn.Module):
    """Self-attention, attention to the prompt, feed-forward."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1, self.attn2 = CrossAttention(width, width), CrossAttention(width, context)
        self.ff = nn.ModuleDict(
            {"net": nn.Sequential(Geglu(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))}
        )

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """[batch, tokens, width] -> the same."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff["net"](self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer over a feature map's pixels."""

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.proj_in, self.proj_out = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, context)])
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """[batch, channels, h, w] -> the same."""
        batch, channels, height, width = x.shape
        h = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        for block in self.transformer_blocks:
            h = block(h, context)
        h = h.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return x + self.proj_out(h)


class Down(nn.Module):
    """Halves a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, h, w] -> [batch, channels, h / 2, w / 2]."""
        return self.op(x)


class UNet(nn.Module):
    """SD 1.x's UNet with one residual block per level and attention at every level."""

    def __init__(self, channels: int = 64, mults: tuple[int, ...] = (1, 1, 2), context: int = HIDDEN) -> None:
        super().__init__()
        self.channels = channels
        embed = 4 * channels
        self.time_embed = nn.Sequential(nn.Linear(channels, embed), nn.SiLU(), nn.Linear(embed, embed))
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(4, channels, 3, padding=1)])])
        widths, ch = [channels], channels
        for level, mult in enumerate(mults):
            out = mult * channels
            self.input_blocks.append(nn.ModuleList([ResBlock(ch, embed, out), SpatialTransformer(out, context)]))
            ch = out
            widths.append(ch)
            if level < len(mults) - 1:
                self.input_blocks.append(nn.ModuleList([Down(ch)]))
                widths.append(ch)
        self.middle_block = nn.ModuleList(
            [ResBlock(ch, embed, ch), SpatialTransformer(ch, context), ResBlock(ch, embed, ch)]
        )
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(mults))):
            for j in range(2):
                out = mults[level] * channels
                block = nn.ModuleList([ResBlock(ch + widths.pop(), embed, out), SpatialTransformer(out, context)])
                ch = out
                if level and j == 1:
                    block.append(Up(ch))
                self.output_blocks.append(block)
        self.out = nn.Sequential(norm(ch), nn.SiLU(), nn.Conv2d(ch, 4, 3, padding=1))
        nn.init.zeros_(self.out[2].weight)
        nn.init.zeros_(self.out[2].bias)

    @staticmethod
    def _run(block: nn.ModuleList, h: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        for layer in block:
            if isinstance(layer, ResBlock):
                h = layer(h, emb)
            elif isinstance(layer, SpatialTransformer):
                h = layer(h, context)
            else:
                h = layer(h)
        return h

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Noisy scaled latents [batch, 4, h, w], timesteps [batch], context [batch, 77, width] -> the noise."""
        emb = self.time_embed(timestep_embedding(t, self.channels))
        h, skips = x, []
        for block in self.input_blocks:
            h = self._run(block, h, emb, context)
            skips.append(h)
        h = self._run(self.middle_block, h, emb, context)
        for block in self.output_blocks:
            h = self._run(block, torch.cat((h, skips.pop()), dim=1), emb, context)
        return self.out(h)

"""The autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .layers import Up, attention, norm

SCALE_FACTOR = 0.18215


class VaeBlock(nn.Module):
    """The autoencoder's residual block."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        if channels != out:
            self.nin_shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, h, w] -> [batch, out, h, w]."""
        h = self.conv1(F.silu(self.norm1(x)))
        if hasattr(self, "nin_shortcut"):
            x = self.nin_shortcut(x)
        return x + self.conv2(F.silu(self.norm2(h)))


class VaeAttention(nn.Module):
    """Attention over a feature map's pixels with one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.v, self.proj_out = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, h, w] -> the same."""
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return x + self.proj_out(attention(q, k, v, heads=1).transpose(1, 2).reshape(x.shape))


class VaeDown(nn.Module):
    """Halves a feature map, padded on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, h, w] -> [batch, channels, h / 2, w / 2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def _middle(channels: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "block_1": VaeBlock(channels, channels),
            "attn_1": VaeAttention(channels),
            "block_2": VaeBlock(channels, channels),
        }
    )


class Encoder(nn.Module):
    """Pictures in [-1, 1] to moments, 8 times smaller."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        channels = widths[0]
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            parts: dict[str, nn.Module] = {"block": nn.ModuleList([VaeBlock(channels, width)])}
            if level < len(widths) - 1:
                parts["downsample"] = VaeDown(width)
            self.down.append(nn.ModuleDict(parts))
            channels = width
        self.mid = _middle(channels)
        self.norm_out, self.conv_out = norm(channels), nn.Conv2d(channels, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, h, w] -> [batch, 8, h / 8, w / 8]."""
        h = self.conv_in(x)
        for level in self.down:
            h = level["block"][0](h)
            if "downsample" in level:
                h = level["downsample"](h)
        h = self.mid["block_2"](self.mid["attn_1"](self.mid["block_1"](h)))
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Latents to pictures, 8 times larger."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, widths[-1], 3, padding=1)
        self.mid = _middle(widths[-1])
        self.up = nn.ModuleList()
        for level, width in enumerate(widths):
            channels = widths[min(level + 1, len(widths) - 1)]  # from the level below
            parts: dict[str, nn.Module] = {"block": nn.ModuleList([VaeBlock(channels, width), VaeBlock(width, width)])}
            if level > 0:
                parts["upsample"] = Up(width)
            self.up.append(nn.ModuleDict(parts))
        self.norm_out, self.conv_out = norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """[batch, 4, h, w] -> [batch, 3, 8 h, 8 w]."""
        h = self.conv_in(z)
        h = self.mid["block_2"](self.mid["attn_1"](self.mid["block_1"](h)))
        for level in reversed(self.up):
            for block in level["block"]:
                h = block(h)
            if "upsample" in level:
                h = level["upsample"](h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Vae(nn.Module):
    """SD 1.x's autoencoder with one residual block per level (two in the decoder)."""

    def __init__(self, widths: Sequence[int] = (32, 32, 64, 64)) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(widths), Decoder(widths)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures in [-1, 1] -> mean and log variance of the unscaled latents, [batch, 4, h / 8, w / 8] each."""
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, z: Tensor) -> Tensor:
        """Unscaled latents -> pictures in [-1, 1]."""
        return self.decoder(self.post_quant_conv(z))

    @torch.no_grad()
    def rescale(self, mean: Tensor, deviation: Tensor) -> None:
        """Folds the latents' statistics (per channel) and SD's factor in, so that scaled latents are about normal."""
        unit = SCALE_FACTOR * deviation
        weight, bias = self.quant_conv.weight, self.quant_conv.bias
        weight[:4] /= unit[:, None, None, None]
        bias[:4] = (bias[:4] - mean) / unit
        bias[4:] -= 2 * unit.log()
        self.post_quant_conv.bias += self.post_quant_conv.weight[:, :, 0, 0] @ mean
        self.post_quant_conv.weight *= unit[None, :, None, None]

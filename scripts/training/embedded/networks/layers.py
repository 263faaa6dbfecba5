"""What the networks share."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

HIDDEN = 64  # CLIP's width and the UNet's context


def norm(channels: int) -> nn.GroupNorm:
    """The one group normalisation of an SD checkpoint."""
    return nn.GroupNorm(32, channels, eps=1e-6)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
    """[batch, tokens, channels] each; channels are split among the heads."""
    batch, length, width = q.shape
    q, k, v = (x.view(batch, x.shape[1], heads, width // heads).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return out.transpose(1, 2).reshape(batch, length, width)


class Up(nn.Module):
    """Doubles a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, h, w] -> [batch, channels, 2 h, 2 w]."""
        batch, channels, height, width = x.shape
        # The same as nearest interpolation, whose gradient is not deterministic on a GPU.
        x = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2)
        return self.conv(x.reshape(batch, channels, 2 * height, 2 * width))

"""CLIP's text encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import HIDDEN, attention


class ClipAttention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 77, width] -> the same."""
        heads = x.shape[-1] // 64
        return self.out_proj(attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), heads, causal=True))


class ClipLayer(nn.Module):
    """Attention and an MLP with quick GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = ClipAttention(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 77, width] -> the same."""
        x = x + self.self_attn(self.layer_norm1(x))
        h = self.mlp["fc1"](self.layer_norm2(x))
        return x + self.mlp["fc2"](h * torch.sigmoid(1.702 * h))


class ClipText(nn.Module):
    """CLIP's text model. Only the grammar's rows of the token embedding are trained; all others are zero."""

    def __init__(self, known: list[int], width: int = HIDDEN, layers: int = 2) -> None:
        super().__init__()
        self.rows = nn.Parameter(0.5 * torch.randn(len(known), width))
        index = torch.full((49408,), len(known), dtype=torch.long)
        index[torch.tensor(known)] = torch.arange(len(known))
        self.register_buffer("index", index, persistent=False)
        self.position = nn.Parameter(0.1 * torch.randn(77, width))
        self.layers = nn.ModuleList(ClipLayer(width) for _ in range(layers))
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [batch, 77] -> context [batch, 77, width]."""
        # As a product with one-hot rows: the gradient of an indexed lookup is not deterministic on a GPU.
        chosen = self.index[tokens][..., None] == torch.arange(len(self.rows), device=tokens.device)
        x = chosen.to(self.rows.dtype) @ self.rows + self.position
        for layer in self.layers:
            x = layer(x)
        return self.final_layer_norm(x)

    def checkpoint(self) -> dict[str, Tensor]:
        """The tensors under their names in an SD 1.x checkpoint."""
        table = torch.zeros(49408, self.rows.shape[1])
        known = (self.index < len(self.rows)).nonzero()[:, 0].cpu()
        table[known] = self.rows.detach().float().cpu()
        out = {
            "embeddings.token_embedding.weight": table,
            "embeddings.position_embedding.weight": self.position.detach(),
        }
        for name, value in self.state_dict().items():
            if name.startswith("layers."):
                out["encoder." + name] = value
            elif name.startswith("final_layer_norm."):
                out[name] = value
        return out

"""The embedded model's networks in PyTorch, with the tensor names of an SD 1.x checkpoint.

Everything follows the engine: group normalisation with 32 groups and eps 1e-6, tanh GELU, 8 heads in the UNet, one
head per 64 channels in CLIP, and CLIP's last layer after its final normalisation as the UNet's context.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

SCALE_FACTOR = 0.18215
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


# CLIP ---------------------------------------------------------------------------------------------------------------


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


# UNet ---------------------------------------------------------------------------------------------------------------


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


# Autoencoder --------------------------------------------------------------------------------------------------------


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


# Sampling and LoRA ----------------------------------------------------------------------------------------------------


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


class Lora(nn.Module):
    """Low-rank additions to the linear layers of a UNet's transformers."""

    def __init__(self, unet: UNet, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.targets = [
            name for name, module in unet.named_modules() if isinstance(module, nn.Linear) and ".transformer_" in name
        ]
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for name in self.targets:
            layer = unet.get_submodule(name)
            self.down.append(nn.Parameter(torch.randn(rank, layer.in_features) / math.sqrt(layer.in_features)))
            self.up.append(nn.Parameter(torch.zeros(layer.out_features, rank)))

    @contextlib.contextmanager
    def applied(self, unet: UNet) -> Iterator[None]:
        """Add this to the UNet's layers inside a with block."""

        def hook(down: Tensor, up: Tensor) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
            return lambda _module, inputs, out: out + F.linear(F.linear(inputs[0], down), up)

        handles = [
            unet.get_submodule(name).register_forward_hook(hook(down, up))
            for name, down, up in zip(self.targets, self.down, self.up, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def checkpoint(self) -> dict[str, Tensor]:
        """The tensors in f16 under sd-scripts' names."""
        out = {}
        for name, down, up in zip(self.targets, self.down, self.up, strict=True):
            key = "lora_unet_" + name.replace(".", "_")
            out[f"{key}.lora_down.weight"] = down.detach().half().cpu().contiguous()
            out[f"{key}.lora_up.weight"] = up.detach().half().cpu().contiguous()
            out[f"{key}.alpha"] = torch.tensor(float(self.rank), dtype=torch.float16)
        return out

"""Autoencoders: the LDM one and Wan's."""

from __future__ import annotations

from dataclasses import dataclass

from .layout import Layout, Shape


@dataclass(frozen=True)
class Vae:
    """Sizes of the LDM autoencoder (ldm.modules.diffusionmodules.model)."""

    channels: int = 128
    mult: Shape = (1, 2, 4, 4)
    res_blocks: int = 2
    latent: int = 4
    quant: bool = True  # the 1x1 convolutions around the latent (SD 1, SD 2, SDXL)


def vae(size: Vae) -> Layout:
    """Return the autoencoder's tensors (encoder and decoder), without prefix."""
    out = Layout()

    def residual(name: str, inputs: int, outputs: int) -> None:
        out.norm(f"{name}.norm1", inputs)
        out.conv(f"{name}.conv1", inputs, outputs)
        out.norm(f"{name}.norm2", outputs)
        out.conv(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            out.conv(f"{name}.nin_shortcut", inputs, outputs, 1)

    def middle(name: str, width: int) -> None:
        residual(f"{name}.mid.block_1", width, width)
        out.norm(f"{name}.mid.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            out.conv(f"{name}.mid.attn_1.{part}", width, width, 1)
        residual(f"{name}.mid.block_2", width, width)

    width = size.channels
    out.conv("encoder.conv_in", 3, width)
    for level, mult in enumerate(size.mult):
        for block in range(size.res_blocks):
            residual(f"encoder.down.{level}.block.{block}", width, mult * size.channels)
            width = mult * size.channels
        if level + 1 < len(size.mult):
            out.conv(f"encoder.down.{level}.downsample.conv", width, width)
    middle("encoder", width)
    out.norm("encoder.norm_out", width)
    out.conv("encoder.conv_out", width, 2 * size.latent)
    if size.quant:
        out.conv("quant_conv", 2 * size.latent, 2 * size.latent, 1)
        out.conv("post_quant_conv", size.latent, size.latent, 1)

    out.conv("decoder.conv_in", size.latent, width)
    middle("decoder", width)
    for level, mult in reversed(list(enumerate(size.mult))):
        for block in range(size.res_blocks + 1):
            residual(f"decoder.up.{level}.block.{block}", width, mult * size.channels)
            width = mult * size.channels
        if level:
            out.conv(f"decoder.up.{level}.upsample.conv", width, width)
    out.norm("decoder.norm_out", width)
    out.conv("decoder.conv_out", width, 3)
    return out


@dataclass(frozen=True)
class WanVae:
    """Sizes of the Wan 2.1 video autoencoder, which Qwen-Image uses for still pictures, and of Wan 2.2's.

    Wan 2.2's takes patches of 2x2 pixels, and has shortcuts without weights around its levels; its decoder is wider.
    """

    channels: int = 96
    mult: Shape = (1, 2, 4, 4)
    res_blocks: int = 2
    latent: int = 16
    patches: bool = False
    decoder_channels: int = 0  # as the encoder's


def wan_vae(size: WanVae) -> Layout:
    """Return the video autoencoder's tensors (encoder and decoder), without prefix."""
    out = _WanLayout()
    widths = [mult * size.channels for mult in size.mult]
    picture = 3 * 4 if size.patches else 3
    last = len(widths) - 1

    width = size.channels
    out.conv3("encoder.conv1", picture, width)
    for level, outputs in enumerate(widths):
        *blocks, resampling = _names("encoder.downsamples", size, level, size.res_blocks + 1)
        for name in blocks:
            out.residual(name, width, outputs)
            width = outputs
        if level < last:
            out.conv(f"{resampling}.resample.1", width, width)
            if level > 0:  # halves time too
                out.conv3(f"{resampling}.time_conv", width, width, 3, 1, 1)
    out.middle("encoder", width)
    out.put("encoder.head.0.gamma", width, 1, 1, 1)
    out.conv3("encoder.head.2", width, 2 * size.latent)
    out.conv3("conv1", 2 * size.latent, 2 * size.latent, 1, 1, 1)
    out.conv3("conv2", size.latent, size.latent, 1, 1, 1)

    widths = [mult * (size.decoder_channels or size.channels) for mult in reversed(size.mult)]
    width = widths[0]
    out.conv3("decoder.conv1", size.latent, width)
    out.middle("decoder", width)
    for level, outputs in enumerate(widths):
        *blocks, resampling = _names("decoder.upsamples", size, level, size.res_blocks + 2)
        for name in blocks:
            out.residual(name, width, outputs)
            width = outputs
        if level < last:
            half = width if size.patches else width // 2
            out.conv(f"{resampling}.resample.1", width, half)
            if level < 2:  # doubles time too
                out.conv3(f"{resampling}.time_conv", width, 2 * width, 3, 1, 1)
            width = half
    out.put("decoder.head.0.gamma", width, 1, 1, 1)
    out.conv3("decoder.head.2", width, picture)
    return out


def _names(stack: str, size: WanVae, level: int, count: int) -> list[str]:
    """Return the names of a level's layers: numbered through all levels, in Wan 2.2 within each."""
    if size.patches:
        return [f"{stack}.{level}.{stack.partition('.')[2]}.{each}" for each in range(count)]
    return [f"{stack}.{level * count + each}" for each in range(count)]


class _WanLayout(Layout):
    """The layers that Wan's autoencoders are made of."""

    def conv3(self, name: str, inputs: int, outputs: int, *kernel: int) -> None:
        """Add a convolution over time, height and width."""
        self.put(f"{name}.weight", outputs, inputs, *(kernel or (3, 3, 3)))
        self.put(f"{name}.bias", outputs)

    def residual(self, name: str, inputs: int, outputs: int) -> None:
        """Add a residual block."""
        self.put(f"{name}.residual.0.gamma", inputs, 1, 1, 1)
        self.conv3(f"{name}.residual.2", inputs, outputs)
        self.put(f"{name}.residual.3.gamma", outputs, 1, 1, 1)
        self.conv3(f"{name}.residual.6", outputs, outputs)
        if inputs != outputs:
            self.conv3(f"{name}.shortcut", inputs, outputs, 1, 1, 1)

    def middle(self, name: str, width: int) -> None:
        """Add what is between encoder and latent, or latent and decoder."""
        self.residual(f"{name}.middle.0", width, width)
        self.put(f"{name}.middle.1.norm.gamma", width, 1, 1)
        self.conv(f"{name}.middle.1.to_qkv", width, 3 * width, 1)
        self.conv(f"{name}.middle.1.proj", width, width, 1)
        self.residual(f"{name}.middle.2", width, width)

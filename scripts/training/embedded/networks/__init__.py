"""The embedded model's networks in PyTorch, with the tensor names of an SD 1.x checkpoint.

Everything follows the engine: group normalisation with 32 groups and eps 1e-6, tanh GELU, 8 heads in the UNet, one
head per 64 channels in CLIP, and CLIP's last layer after its final normalisation as the UNet's context.
"""

from .autoencoder import SCALE_FACTOR, Vae
from .lora import Lora
from .sampling import cfg_sample, noise_levels
from .text import ClipText
from .unet import UNet

__all__ = ["SCALE_FACTOR", "ClipText", "Lora", "UNet", "Vae", "cfg_sample", "noise_levels"]

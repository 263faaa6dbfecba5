"""A LoRA for the UNet."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .unet import UNet


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

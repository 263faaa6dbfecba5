"""What scripts/bench/cpu.py compares with: the same networks in PyTorch, with random weights. A process each.

Runs with a Python of its own that has PyTorch, diffusers and transformers, and needs nothing of this package.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch  # type: ignore[import-not-found, unused-ignore]
from diffusers import (  # type: ignore[import-not-found, unused-ignore]
    AutoencoderKL,
    FluxTransformer2DModel,
    UNet2DConditionModel,
)
from transformers import (  # type: ignore[import-not-found, unused-ignore]
    CLIPTextConfig,
    CLIPTextModel,
    T5Config,
    T5EncoderModel,
)

TOKENS = 77
T5_TOKENS = 256


def clocked(function: Callable[[], Any]) -> dict[str, float]:
    """Return the wall and CPU seconds that a function takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def clip(width: int, layers: int) -> Any:
    """Return a CLIP text encoder, whose heads are 64 wide."""
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=width, intermediate_size=4 * width, num_attention_heads=width // 64,
            num_hidden_layers=layers, projection_dim=width,
        )
    )  # fmt: skip


def autoencoder() -> Any:
    """Return SD's autoencoder."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


class Networks:
    """The networks of a model, and what is computed with them.

    Args:
        sizes: the model's, as ``MODELS`` of cpu.py has them.
        dtype: of the weights and of what is computed.
    """

    def __init__(self, sizes: dict[str, Any], dtype: Any) -> None:
        self.dtype = dtype
        self.encoders = [(self.ready(clip(*size)), TOKENS) for size in sizes["clips"]]
        if sizes["t5_layers"]:
            config = T5Config(d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=sizes["t5_layers"],
                              feed_forward_proj="gated-gelu", vocab_size=32128)  # fmt: skip
            self.encoders.append((self.ready(T5EncoderModel(config)), T5_TOKENS))
        self.flux = "flux_layers" in sizes
        if self.flux:
            layers = sizes["flux_layers"]
            self.denoiser = self.ready(FluxTransformer2DModel(num_layers=layers, num_single_layers=layers,
                                                              guidance_embeds=True))  # fmt: skip
        else:
            levels = len(sizes["blocks"])
            cross = [depth > 0 for depth in sizes["blocks"]]
            self.denoiser = self.ready(
                UNet2DConditionModel(
                    block_out_channels=[320 * times for times in sizes["widths"]],
                    down_block_types=["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in cross],
                    up_block_types=["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(cross)],
                    transformer_layers_per_block=[max(depth, 1) for depth in sizes["blocks"]],
                    attention_head_dim=sizes["heads"], cross_attention_dim=sizes["context"],
                    use_linear_projection=levels == 3,
                    **({} if levels == 4 else {"addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                                               "projection_class_embeddings_input_dim": 2816}),
                )
            )  # fmt: skip
        self.context = sizes["context"]
        self.autoencoder = self.ready(autoencoder()) if "decoding" in sizes["parts"] else None

    def ready(self, network: Any) -> Any:
        """Return a network as it is fastest."""
        return network.eval().to(self.dtype).to(memory_format=torch.channels_last)

    def random(self, *shape: int) -> Any:
        """Return random input."""
        return torch.randn(*shape, dtype=self.dtype)

    def text(self) -> None:
        """Encode a prompt."""
        for encoder, tokens in self.encoders:
            encoder(torch.zeros((1, tokens), dtype=torch.long))

    def step(self, side: int) -> None:
        """Compute a pass of the denoiser for a latent of so many rows."""
        if self.flux:
            tokens = (side // 2) ** 2
            self.denoiser(self.random(1, tokens, 64), encoder_hidden_states=self.random(1, T5_TOKENS, self.context),
                          pooled_projections=self.random(1, 768), timestep=self.random(1), guidance=self.random(1),
                          img_ids=torch.zeros(tokens, 3), txt_ids=torch.zeros(T5_TOKENS, 3))  # fmt: skip
            return
        more = {"text_embeds": self.random(1, 1280), "time_ids": self.random(1, 6)}
        latent = self.random(1, 4, side, side).to(memory_format=torch.channels_last)
        self.denoiser(latent, 500, self.random(1, TOKENS, self.context), added_cond_kwargs=more)

    def decode(self, side: int) -> None:
        """Decode a latent of so many rows."""
        assert self.autoencoder is not None
        self.autoencoder.decode(self.random(1, 4, side, side).to(memory_format=torch.channels_last))


def run_networks(task: dict[str, Any]) -> dict[str, Any]:
    """Measure the parts of a model; what is prepared once is not counted."""
    import resource

    torch.set_num_threads(task["threads"])
    networks = Networks(task["sizes"], {"f32": torch.float32, "bf16": torch.bfloat16}[task["type"]])
    side = task["size"] // 8
    networks.text()
    networks.step(8)
    times = {"text": clocked(networks.text), "pass": clocked(lambda: networks.step(side))}
    if networks.autoencoder is not None:
        times["decoding"] = clocked(lambda: networks.decode(side))
        times["picture"] = {
            kind: times["text"][kind] + task["steps"] * times["pass"][kind] + times["decoding"][kind]
            for kind in ("wall", "cpu")
        }
    return {"parts": times, "profile": [], "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def run_peak() -> dict[str, float]:
    """Measure the most that one core multiplies and adds a second, in floating-point operations."""
    torch.set_num_threads(1)

    def rate(dtype: Any) -> float:
        a, b = (torch.randn(1536, 1536).to(dtype) for _ in range(2))
        return max(2 * 1536**3 / clocked(lambda: a @ b)["cpu"] for _ in range(8))

    return {"f32": rate(torch.float32), "bf16": rate(torch.bfloat16)}


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    given = json.loads(sys.argv[1])
    print(json.dumps(run_peak() if given["what"] == "peak" else run_networks(given)))

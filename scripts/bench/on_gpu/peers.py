"""What else could be installed, doing the same: stable-diffusion-cpp-python and diffusers."""

from __future__ import annotations

import functools
import hashlib
import resource
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .jobs import PROMPT, Row, Shot
from .memory import DeviceMemory, cuda_memory

if TYPE_CHECKING:
    from .worker import Worker


def draw_peer(worker: Worker) -> None:
    """Do the same with stable-diffusion-cpp-python."""
    import stable_diffusion_cpp

    start = time.perf_counter()
    model = stable_diffusion_cpp.StableDiffusion(
        model_path=str(worker.folder / f"{worker.job.family}.safetensors"),
        offload_params_to_cpu=True,
        max_vram=worker.job.budget or 0,
        diffusion_flash_attn=True,
        vae_decode_only=True,
        verbose=False,
    )
    loaded = {"load_seconds": time.perf_counter() - start}
    memory = DeviceMemory(cuda_memory())
    for shot in worker.job.shots:
        row = worker.row(shot, **loaded)
        pictures = []

        def run(steps: int = shot.steps, shot: Shot = shot, pictures: list[bytes] = pictures) -> Row:
            worker.ticks.clear()
            start = time.perf_counter()
            images = model.generate_image(
                prompt=PROMPT,
                width=shot.size,
                height=shot.size,
                cfg_scale=shot.cfg_scale,
                sample_method="euler",
                sample_steps=steps,
                seed=42,
                vae_tiling=shot.tiled,
                progress_callback=worker.tick,
            )
            pictures.append(images[0].convert("RGB").tobytes())
            return {"total": time.perf_counter() - start, **worker.step(shot)}

        with memory.watch(row):
            row["warm_up_seconds"] = run(1)["total"]
            pictures.clear()
            row["runs"] = worker.repeat(shot, run)
        row["pixels"] = sorted({hashlib.sha256(picture).hexdigest()[:16] for picture in pictures})
        row["host_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        worker.emit(row)


def diffuse(worker: Worker) -> None:
    """Compute diffusers' denoiser of the same shapes."""
    import torch

    device = torch.device("cpu" if worker.dry else "cuda")
    start = time.perf_counter()
    offload = worker.job.mode.removeprefix("diffusers-")
    network, inputs = (
        _decoder(worker, device) if offload == "decode" else DENOISERS[worker.job.family](device, worker.dry)
    )
    network = network.eval().requires_grad_(False)
    if offload in ("leaf", "block") and not worker.dry:
        network = network.to("cpu")
        torch.cuda.empty_cache()
        options: Row = {"leaf": {"offload_type": "leaf_level"}}.get(
            offload, {"offload_type": "block_level", "num_blocks_per_group": 1}
        )
        network.enable_group_offload(device, torch.device("cpu"), use_stream=True, record_stream=True, **options)
    loaded = {"load_seconds": time.perf_counter() - start}
    passes = "decoding" if offload == "decode" else "sampling"
    for shot in worker.job.shots:
        row = worker.row(shot, **loaded)
        once = functools.partial(network, **inputs(shot, device))
        with torch.no_grad():
            if not worker.dry:
                torch.cuda.reset_peak_memory_stats()
            if offload == "graph" and not worker.dry:
                once = _as_graph(once)
            steps = 1 if offload == "decode" else shot.steps

            def run(steps: int = steps, once: Callable[[], Any] = once) -> Row:
                start = time.perf_counter()
                for _ in range(steps):
                    once()
                if not worker.dry:
                    torch.cuda.synchronize()
                return {passes: time.perf_counter() - start}

            row["warm_up_seconds"] = run(2)[passes]
            row["runs"] = worker.repeat(shot, run)
        # Torch counts what it uses; what its cache holds beyond that is not the method's.
        row["device_peak_bytes"] = None if worker.dry else torch.cuda.max_memory_allocated()
        row["host_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        worker.emit(row)


def _as_graph(once: Callable[[], Any]) -> Callable[[], Any]:
    """Return what computes the same as one CUDA graph."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    return graph.replay  # type: ignore[no-any-return]


def _decoder(worker: Worker, device: Any) -> tuple[Any, Callable[..., Row]]:
    """Return diffusers' autoencoder as a family has it, as what decodes, and its inputs for a shot."""
    import torch
    from diffusers import AutoencoderKL

    widths = (32, 64) if worker.dry else (128, 256, 512, 512)
    dtype = torch.float32 if worker.dry else torch.float16
    channels = 16 if worker.job.family == "zimage" else 4

    def make() -> Any:
        return AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            layers_per_block=2,
            latent_channels=channels,
        )

    def inputs(shot: Shot, device: Any) -> Row:
        return {"sample": torch.randn(1, channels, shot.size // 8, shot.size // 8, device=device, dtype=dtype)}

    return _random(make, device, dtype).decoder, inputs


def _sd1(device: Any, small: bool) -> tuple[Any, Callable[..., Row]]:
    """Return diffusers' SD 1.5 UNet with random weights, and its inputs for a shot."""
    import torch
    from diffusers import UNet2DConditionModel

    dtype = torch.float32 if small else torch.float16
    options: Row = {"block_out_channels": (32, 64, 64, 64)} if small else {}

    def inputs(shot: Shot, device: Any) -> Row:
        kind, batch = {"device": device, "dtype": dtype}, shot.passes // shot.steps
        return {
            "sample": torch.randn(batch, 4, shot.size // 8, shot.size // 8, **kind),
            "timestep": torch.tensor(500, device=device),
            "encoder_hidden_states": torch.randn(batch, 77, 768, **kind),
            "return_dict": False,
        }

    return _random(lambda: UNet2DConditionModel(cross_attention_dim=768, **options), device, dtype), inputs


def _zimage(device: Any, small: bool) -> tuple[Any, Callable[..., Row]]:
    """Return diffusers' Z-Image with random weights, and its inputs for a shot."""
    import torch
    from diffusers import ZImageTransformer2DModel

    options = {"dim": 256, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 192} if small else {}
    network = _random(lambda: ZImageTransformer2DModel(**options), device, torch.bfloat16)

    def inputs(shot: Shot, device: Any) -> Row:
        kind = {"device": device, "dtype": torch.bfloat16}
        return {
            "x": [torch.randn(16, 1, shot.size // 8, shot.size // 8, **kind)],
            "t": torch.tensor([0.5], **kind),
            "cap_feats": [torch.randn(64, options.get("cap_feat_dim", 2560), **kind)],
            "return_dict": False,
        }

    return network, inputs


def _sdxl(device: Any, small: bool) -> tuple[Any, Callable[..., Row]]:
    """Return diffusers' SDXL UNet with random weights, and its inputs for a shot."""
    import torch
    from diffusers import UNet2DConditionModel

    widths, depths, heads = ((32, 64, 64), 1, (2, 4, 4)) if small else ((320, 640, 1280), (1, 2, 10), (5, 10, 20))
    dtype = torch.float32 if small else torch.float16

    def make() -> Any:
        return UNet2DConditionModel(
            block_out_channels=widths,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=depths,
            attention_head_dim=heads,
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            use_linear_projection=True,
        )

    def inputs(shot: Shot, device: Any) -> Row:
        kind, batch = {"device": device, "dtype": dtype}, shot.passes // shot.steps
        return {
            "sample": torch.randn(batch, 4, shot.size // 8, shot.size // 8, **kind),
            "timestep": torch.tensor(500, device=device),
            "encoder_hidden_states": torch.randn(batch, 77, 2048, **kind),
            "added_cond_kwargs": {
                "text_embeds": torch.randn(batch, 1280, **kind),
                "time_ids": torch.ones(batch, 6, **kind),
            },
            "return_dict": False,
        }

    return _random(make, device, dtype), inputs


def _random(make: Callable[[], Any], device: Any, dtype: Any) -> Any:
    """Return a network as its constructor initialises it, made on the device, where that takes no time."""
    import torch

    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        network = make()
    torch.set_default_dtype(torch.float32)
    return network


DENOISERS = {"sd1": _sd1, "zimage": _zimage, "sdxl": _sdxl}

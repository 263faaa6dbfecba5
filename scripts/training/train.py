#!/usr/bin/env python3
"""Train the model that ships inside the package, from nothing but pictures drawn here.

    scripts/training/train.py [--device cuda] [--scale 1.0] [--out DIR] [--stages NAME ...]

Draws the pictures and their captions, then goes through the stages, each seeded: ``autoencoder`` trains it on the
pictures, ``model`` the text encoder and the UNet on its latents, ``outline`` a LoRA on the same scenes drawn in
outline, ``export`` writes the result. A stage leaves NAME.safetensors and is not run again while that file is there:
an interrupted training goes on where it was, and its stages may run on different machines.

Needs torch, numpy, pillow, scipy, safetensors and gguf. ``--device cpu`` gives the same weights each time with the same
torch and thread count; on a GPU torch's deterministic kernels are asked for. ``--scale`` multiplies the steps and
pictures: 1 is the shipped model's recipe.

Writes embedded.gguf (f16, the token embedding q8_0), embedded-outline.safetensors (the LoRA) and
training.json (settings, losses, seconds).
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from embedded.drawing import draw
from embedded.grammar import caption, known_ids, random_scene, tokens
from embedded.networks import SCALE_FACTOR, ClipText, Lora, UNet, Vae, cfg_sample, noise_levels
from embedded.reading import read

CAPTIONS = 4  # different captions of one picture
CHUNK = 250  # pictures drawn by one job, with one seed
DROPPED = 0.12  # share of captions that training leaves empty, for classifier-free guidance


@dataclass(frozen=True)
class Bucket:
    """Pictures of one size."""

    width: int
    height: int
    pictures: int
    share: float  # of the UNet's training steps


BUCKETS = (
    Bucket(128, 128, 50_000, 0.70),
    Bucket(192, 128, 5_000, 0.08),
    Bucket(128, 192, 5_000, 0.08),
    Bucket(192, 192, 4_000, 0.08),
    Bucket(256, 256, 4_000, 0.06),
)
OUTLINES = Bucket(128, 128, 12_000, 1.0)


@dataclass(frozen=True)
class Stage:
    """How long a stage trains, on how many pictures of the first bucket's size at a time, at which highest rate."""

    steps: int
    batch: int
    rate: float


STAGES = {
    "autoencoder": Stage(4500, 64, 1e-3),
    "model": Stage(6000, 512, 1e-3),
    "outline": Stage(700, 256, 2e-3),
}
KL_WEIGHT, EMA, LORA_RANK = 3e-4, 0.999, 8


# --- data -----------------------------------------------------------------------------------------------------------


def draw_chunk(job: tuple[int, int, int, int, bool]) -> tuple[np.ndarray, np.ndarray]:
    """Draw one job's pictures: uint8 [n, height, width, 3] and token ids [n, CAPTIONS, 77]."""
    seed, count, width, height, line = job
    rng = random.Random(seed)
    pictures = np.empty((count, height, width, 3), np.uint8)
    ids = np.empty((count, CAPTIONS, 77), np.int32)
    for i in range(count):
        scene = random_scene(rng)
        pictures[i] = np.asarray(draw(scene, width, height, rng, line))
        for j in range(CAPTIONS):
            ids[i, j] = tokens(caption(scene, rng), rng)
    return pictures, ids


def draw_bucket(bucket: Bucket, seed: int, line: bool = False) -> tuple[Tensor, Tensor]:
    """Draw a bucket's pictures with every core; the same for any number of cores."""
    jobs = [
        (seed * 1_000_003 + start, min(CHUNK, bucket.pictures - start), bucket.width, bucket.height, line)
        for start in range(0, bucket.pictures, CHUNK)
    ]
    with multiprocessing.Pool() as pool:
        chunks = pool.map(draw_chunk, jobs, chunksize=1)
    pictures = torch.from_numpy(np.concatenate([chunk[0] for chunk in chunks]))
    return pictures, torch.from_numpy(np.concatenate([chunk[1] for chunk in chunks]))


def to_device(pictures: Tensor, device: torch.device) -> Tensor:
    """uint8 [n, h, w, 3] -> float [n, 3, h, w] in [-1, 1]."""
    return pictures.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0


# --- training -------------------------------------------------------------------------------------------------------


class Trainer:
    """AdamW with warm-up and cosine decay, a moving average of the weights, and a log of the loss.

    On a GPU a whole step is captured for each shape of its inputs and replayed: the networks are so small that starting
    their kernels one by one would take most of the time.
    """

    def __init__(
        self, name: str, stage: Stage, loss: Callable[..., Tensor], module: nn.Module, log: dict[str, Any]
    ) -> None:
        self.name, self.loss, self.highest, self.steps = name, loss, stage.rate, stage.steps
        self.parameters = list(module.parameters())
        self.device = self.parameters[0].device
        self.rate = torch.tensor(stage.rate, device=self.device)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.rate, betas=(0.9, 0.99), weight_decay=0.01, capturable=self.device.type == "cuda"
        )
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self.kept = max(0.0, min(EMA, 1 - 10 / stage.steps))
        self.graphs: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}
        self.seen: Counter[Any] = Counter()
        self.losses: list[Tensor] = []
        self.done, self.start = 0, time.perf_counter()
        self.log = log.setdefault(name, {"steps": stage.steps, "batch": stage.batch, "rate": stage.rate, "loss": []})

    def _update(self, inputs: Sequence[Tensor]) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(*inputs)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.lerp_(parameter.detach(), 1.0 - self.kept)
        return loss.detach()

    def _replay(self, inputs: Sequence[Tensor]) -> Tensor:
        """The same as _update; the first steps of a shape run as they are, as a capture needs them."""
        shapes = tuple(tensor.shape for tensor in inputs)
        self.seen[shapes] += 1
        if self.seen[shapes] <= 3:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                loss = self._update(inputs)
            torch.cuda.current_stream().wait_stream(side)
            return loss
        if shapes not in self.graphs:
            kept = [tensor.clone() for tensor in inputs]
            graph = torch.cuda.CUDAGraph()
            self.optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(graph):
                loss = self._update(kept)
            self.graphs[shapes] = graph, kept, loss
        graph, kept, loss = self.graphs[shapes]
        for own, given in zip(kept, inputs, strict=True):
            own.copy_(given)
        graph.replay()
        return loss.clone()

    def step(self, *inputs: Tensor) -> None:
        """Take one step down the loss of a batch."""
        warm = max(1, min(200, self.steps // 10))
        decay = 0.02 + 0.98 * (1 + math.cos(math.pi * self.done / self.steps)) / 2
        self.rate.fill_(self.highest * min(1.0, (self.done + 1) / warm) * decay)
        inputs = tuple(tensor.to(self.device) for tensor in inputs)
        self.losses.append(self._replay(inputs) if self.device.type == "cuda" else self._update(inputs))
        self.done += 1
        if self.done % max(1, self.steps // 20) == 0 or self.done == self.steps:
            mean = torch.stack(self.losses).mean().item()
            self.losses.clear()
            seconds = round(time.perf_counter() - self.start, 1)
            self.log["loss"].append({"step": self.done, "loss": round(mean, 5), "seconds": seconds})
            print(f"{self.name} {self.done}/{self.steps} loss {mean:.5f} {seconds} s", flush=True)

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the moving average in the module."""
        self.graphs.clear()
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            parameter.copy_(average)


def half(device: torch.device) -> Any:
    """Half precision where it is fast."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def picture_batches(data: list[Tensor], stage: Stage, rng: torch.Generator) -> Iterator[Tensor]:
    """A stage's batches: pictures of the first bucket, every fourth time of another one, as much area each time."""
    for step in range(stage.steps):
        pictures = data[0 if step % 4 else (step // 4) % len(data)]
        size = max(1, stage.batch * data[0][0].numel() // pictures[0].numel())
        yield pictures[torch.randint(len(pictures), (size,), generator=rng)]


def picture_loss(drawn: Tensor, wanted: Tensor) -> Tensor:
    """The mean absolute error and twice the mean squared one."""
    error = drawn.float() - wanted
    return error.abs().mean() + 2.0 * error.square().mean()


def train_vae(vae: Vae, data: list[Tensor], stage: Stage, rng: torch.Generator, device: torch.device, log: Any) -> None:
    """Train the autoencoder; it ends with latents of about unit variance."""

    def loss(pictures: Tensor) -> Tensor:
        x = to_device(pictures, device)
        with half(device):
            mean, logvar = vae.encode(x)
            y = vae.decode(mean + torch.exp(0.5 * logvar) * torch.randn_like(mean))
        mean, logvar = mean.float(), logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        return picture_loss(y, x) + KL_WEIGHT * kl

    trainer = Trainer("autoencoder", stage, loss, vae, log)
    for pictures in picture_batches(data, stage, rng):
        trainer.step(pictures)
    trainer.finish()
    mean, deviation = encode(vae, data[0][:4096], device)
    per_channel = mean.transpose(0, 1).flatten(1)
    log["latents"] = {
        "posterior": round(deviation.mean().item(), 4),
        "spread": [round(x, 3) for x in per_channel.std(dim=1).tolist()],
    }
    vae.rescale(per_channel.mean(dim=1), per_channel.std(dim=1))


@torch.no_grad()
def encode(vae: Vae, pictures: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pictures -> mean and standard deviation of their unscaled latents."""
    means, deviations = [], []
    for part in pictures.split(max(1, (1 << 20) // pictures[0, ..., 0].numel())):
        with half(device):
            mean, logvar = vae.encode(to_device(part, device))
        means.append(mean.float())
        deviations.append((0.5 * logvar.float()).exp())
    return torch.cat(means), torch.cat(deviations)


def loss_weight(level: Tensor) -> Tensor:
    """A timestep's weight from its share of signal (alpha bar).

    Low noise counts less, as in min-SNR weighting with gamma 5 (Hang et al. 2023, arXiv:2303.09556); high noise counts
    up to ten times more, because there an error in the noise is a large error in the picture's colours.
    """
    snr = level / (1.0 - level)
    return (1.0 + 1.0 / snr).clamp(max=10.0) * (5.0 / snr).clamp(max=1.0)


def denoising_loss(clip: nn.Module, unet: nn.Module, device: torch.device) -> Callable[..., Tensor]:
    """The mean weighted error of the predicted noise, as a function of scaled latents, token ids and timesteps."""
    levels = noise_levels().to(device)

    def loss(latents: Tensor, ids: Tensor, t: Tensor) -> Tensor:
        level = levels[t]
        noise = torch.randn_like(latents)
        signal = level[:, None, None, None]
        with half(device):
            out = unet(signal.sqrt() * latents + (1.0 - signal).sqrt() * noise, t, clip(ids))
        error = (out.float() - noise).square().mean(dim=(1, 2, 3))
        return (loss_weight(level) * error).mean()

    return loss


class Latents:
    """Buckets of encoded pictures with their captions, and batches of them."""

    def __init__(self, vae: Vae, data: list[tuple[Tensor, Tensor]], device: torch.device) -> None:
        self.device = device
        self.parts = [(*encode(vae, pictures, device), ids.to(device)) for pictures, ids in data]
        self.empty = torch.tensor(tokens(""), dtype=torch.int32, device=device)

    def batch(self, which: int, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled latents, token ids and timesteps of bucket `which`: as much area as `size` of the first has."""
        mean, deviation, ids = self.parts[which]
        size = max(1, size * self.parts[0][0][0].numel() // mean[0].numel())
        draws = torch.randint(1 << 30, (3, size), generator=rng).to(self.device)
        dropped = (torch.rand(size, generator=rng) < DROPPED).to(self.device)
        rows = draws[0] % len(mean)
        latents = SCALE_FACTOR * (mean[rows] + deviation[rows] * torch.randn_like(mean[rows]))
        return latents, torch.where(dropped[:, None], self.empty, ids[rows, draws[1] % CAPTIONS]), draws[2] % 1000


def train_unet(clip: ClipText, unet: UNet, latents: Latents, stage: Stage, rng: torch.Generator, log: Any) -> None:
    """Train text encoder and UNet; both end with the moving average of their weights."""
    trainer = Trainer("model", stage, denoising_loss(clip, unet, latents.device), nn.ModuleList((clip, unet)), log)
    shares = torch.tensor([bucket.share for bucket in BUCKETS])
    for _ in range(stage.steps):
        trainer.step(*latents.batch(int(torch.multinomial(shares, 1, generator=rng)), stage.batch, rng))
    trainer.finish()


def train_lora(
    clip: ClipText, unet: UNet, lora: Lora, latents: Latents, stage: Stage, rng: torch.Generator, log: Any
) -> None:
    """Train low-rank additions to the UNet's linear layers on outlines; the model itself stays as it is."""
    clip.requires_grad_(False)
    unet.requires_grad_(False)
    trainer = Trainer("outline", stage, denoising_loss(clip, unet, latents.device), lora, log)
    with lora.applied(unet):
        for _ in range(stage.steps):
            trainer.step(*latents.batch(0, stage.batch, rng))
    trainer.finish()


# --- result ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def read_back(clip: ClipText, unet: UNet, vae: Vae, device: torch.device, cfg: float) -> dict[str, float]:
    """Draw held-out and other scenes at 128x128 and read them back: the share that is right."""
    rng, count = random.Random(1), 128
    scenes = [random_scene(rng, training=False) for _ in range(count)]
    ids = torch.tensor([tokens(caption(scene)) for scene in scenes], device=device)
    noise = torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(1)).to(device)
    empty = torch.tensor([tokens("")], device=device)
    latents = cfg_sample(unet, noise, clip(ids), clip(empty).expand(count, -1, -1), steps=20, cfg=cfg)
    pictures = vae.decode(latents / SCALE_FACTOR).clamp(-1, 1)
    pixels = ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    found = [read(each) for each in pixels]
    pairs = list(zip(scenes, found, strict=True))
    return {
        "colour": sum(a.colour == b.colour for a, b in pairs) / count,
        "background": sum(a.background == b.background for a, b in pairs) / count,
        "shape": sum(a.shape == b.shape for a, b in pairs) / count,
        "count": sum(a.count == b.count for a, b in pairs) / count,
    }


def checkpoint(clip: ClipText, unet: UNet, vae: Vae) -> dict[str, np.ndarray]:
    """Every tensor under its name in an SD 1.x checkpoint: matrices and kernels in f16, vectors in f32.

    The token embedding, nearly all zeros, is in q8_0: it would be a third of the file.
    """
    tensors: dict[str, Tensor] = {}
    for prefix, state in (
        ("cond_stage_model.transformer.text_model.", clip.checkpoint()),
        ("model.diffusion_model.", unet.state_dict()),
        ("first_stage_model.", vae.state_dict()),
    ):
        tensors.update({prefix + name: value for name, value in state.items()})
    return {
        name: value.detach().float().cpu().numpy().astype(np.float16 if value.dim() > 1 else np.float32)
        for name, value in tensors.items()
    }


def write_gguf(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write a checkpoint; the file appears only when it is whole."""
    beside = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(beside, arch="sd1", use_temp_file=False)
    writer.add_name("sdcpp-py embedded model")
    writer.add_license("MIT")
    for name, value in tensors.items():
        if name.endswith("token_embedding.weight"):
            packed = gguf.quants.quantize(value.astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    beside.replace(path)


@torch.no_grad()
def export(out: Path, clip: ClipText, unet: UNet, vae: Vae, lora: Lora, pictures: Tensor) -> None:
    """Check the trained networks and write the checkpoint, the LoRA and the log of all stages."""
    device = unet.out[2].weight.device
    x = to_device(pictures, device)
    error = (vae.decode(vae.encode(x)[0]).clamp(-1, 1) - x).square().mean().item()
    checks: dict[str, Any] = {"reconstruction_psnr_db": round(10 * math.log10(4 / error), 2)}
    for cfg in (3.0, 5.0):
        checks[f"drawn at 20 steps, cfg {cfg:g}"] = read_back(clip, unet, vae, device, cfg)
    print(checks, flush=True)
    write_gguf(out / "embedded.gguf", checkpoint(clip, unet, vae))
    save_file(lora.checkpoint(), out / "embedded-outline.safetensors", {"format": "pt", "ss_sd_model_name": "embedded"})
    stages = {name: json.loads(path.read_text()) for name in STAGES if (path := out / f"{name}.json").exists()}
    (out / "training.json").write_text(json.dumps({"stages": stages, "checks": checks}, indent=1) + "\n")


def main() -> int:
    """Run the stages."""
    names = [*STAGES, "export"]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/embedded"), help="folder (default: out/embedded)")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the recipe's steps and pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=names, default=names, help="run only these (default: all)")
    options = parser.parse_args()
    device, scale, out = torch.device(options.device), options.scale, options.out
    out.mkdir(parents=True, exist_ok=True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False

    def scaled(number: int) -> int:
        return max(4, round(number * scale))

    def runs(name: str) -> bool:
        return name in options.stages and not (out / f"{name}.safetensors").exists()

    start = time.perf_counter()
    buckets = [replace(bucket, pictures=scaled(bucket.pictures)) for bucket in BUCKETS]
    data = [draw_bucket(bucket, options.seed + 1 + i) for i, bucket in enumerate(buckets)]
    outlines = draw_bucket(replace(OUTLINES, pictures=scaled(OUTLINES.pictures)), options.seed + 100, line=True)
    pictures = [x for x, _ in [*data, outlines]]
    print(f"drew {sum(map(len, pictures))} pictures in {time.perf_counter() - start:.1f} s", flush=True)

    torch.manual_seed(options.seed)
    vae, clip, unet = Vae().to(device), ClipText(known_ids()).to(device), UNet().to(device)
    both = nn.ModuleDict({"clip": clip, "unet": unet})

    def run(name: str, module: nn.Module, train: Callable[[Stage, torch.Generator, dict[str, Any]], object]) -> None:
        """Train a stage, or load what an earlier run of it left."""
        path = out / f"{name}.safetensors"
        if runs(name):
            seed = options.seed + 1000 * (1 + names.index(name))
            torch.manual_seed(seed)
            log: dict[str, Any] = {
                "torch": torch.__version__,
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
                "scale": scale,
                "seed": seed,
            }
            stage = replace(STAGES[name], steps=scaled(STAGES[name].steps))
            train(stage, torch.Generator().manual_seed(seed), log)
            (out / f"{name}.json").write_text(json.dumps(log, indent=1) + "\n")
            beside = path.with_name(path.name + ".part")
            save_file({key: value.contiguous().cpu() for key, value in module.state_dict().items()}, beside)
            beside.replace(path)
        elif path.exists():
            module.load_state_dict({key: value.float() for key, value in load_file(path).items()})

    run("autoencoder", vae, lambda stage, rng, log: train_vae(vae, pictures, stage, rng, device, log))
    run(
        "model",
        both,
        lambda stage, rng, log: train_unet(clip, unet, Latents(vae, data, device), stage, rng, log),
    )
    lora = Lora(unet, LORA_RANK).to(device)
    run(
        "outline",
        lora,
        lambda stage, rng, log: train_lora(clip, unet, lora, Latents(vae, [outlines], device), stage, rng, log),
    )
    if "export" in options.stages:
        export(out, clip, unet, vae, lora, data[0][0][:256])
    print(f"done in {time.perf_counter() - start:.1f} s; the files are in {out}")
    return 0


if __name__ == "__main__":
    # Of torch's attention kernels on a GPU these two come nearest to the same gradient each time.
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        sys.exit(main())

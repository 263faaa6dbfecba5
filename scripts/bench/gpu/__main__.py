#!/usr/bin/env python3
"""Measure on a GPU what pinned memory, streaming and overlapping gain, against what else could be installed.

    scripts/bench_gpu.py --json out.json --plot out.png        # everything, in the order of importance
    scripts/bench_gpu.py --check                               # minutes less: is it right, and does it stream?
    scripts/bench_gpu.py --rows 'sdxl/*' --time-limit 300      # some jobs, and no longer than that
    scripts/bench_gpu.py --show a.json b.json --markdown       # tables of earlier runs
    scripts/bench_gpu.py --dry-run                             # tiny models on the loopback accelerator

Nothing is downloaded. Checkpoints with seeded random weights are written first, by all processors, into memory
(``/dev/shm``) where there is room. Then each job, which is one model kept in one way within one budget of device
memory, loads in a process of its own and draws each of its pictures several times. What a job found is printed and
written at once, so that a run that is stopped leaves what it has. With ``--time-limit`` slow rows are repeated less
often ("runs" says how often) and the jobs at the end of the list, the least important ones, are left out.

The package must be installed with its CUDA module; ``--cuda-module`` puts a prebuilt one into the installed package,
and ``--build ARCHIVE`` builds the package from source for this GPU first. Ways of keeping the weights:

pageable-serial     on the CPU in plain memory; what fits stays on the device, the rest is copied and computed in turn
                    (``max_vram``)
pinned-serial       the same, page-locked
pinned-overlapped   page-locked; the rest is copied while the device computes (``stream_layers``)
pageable-overlapped that in plain memory, where copies hold up the host
resident            on the device
profile             the same; which kernels a picture's time goes into, as PyTorch's profiler sees them
peer                stable-diffusion-cpp-python 0.4.7 itself (``offload_params_to_cpu``, ``max_vram``), where it is
                    installed or built with ``--peer ARCHIVE``
diffusers-leaf      diffusers' group offloading with streams, leaf by leaf; the denoiser alone, on random weights
diffusers-block     likewise, block by block
diffusers-resident  diffusers with everything on the device
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes.util
import fnmatch
import hashlib
import importlib.util
import json
import lzma
import math
import multiprocessing
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import make_checkpoint

ROOT = Path(__file__).resolve().parent.parent
GIB = 1 << 30
PROMPT = "a lovely cat sitting on a wooden chair in a garden, oil on canvas"
LORA_SCALE = 0.8
LORA_ENDS = ("attention.qkv", "attention.out", "to_q", "to_k", "to_v", "to_out.0")
DENOISER = "model.diffusion_model."
DRY_SHARE = 64  # budgets of the tiny models, as part of those of the full ones,
DRY_LEAST = {"zimage": 0.11}  # but GiB that the text encoder needs, whose vocabulary is not tiny
SLOW = 25.0  # seconds after which a row is repeated no more, once it has two runs

Row = dict[str, Any]


# --- what is measured ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shot:
    """One picture, drawn several times.

    Attributes:
        size: width and height in pixels.
        steps: sampling steps.
        cfg_scale: guidance; more than 1 computes the denoiser twice a step.
        lora: whether a LoRA is merged.
        tiled: whether the latents are decoded in tiles, which small budgets need for large pictures.
        repeats: how often.
    """

    size: int
    steps: int = 8
    cfg_scale: float = 1.0
    lora: bool = False
    tiled: bool = False
    repeats: int = 5

    @property
    def name(self) -> str:
        """Return what tells it from a model's other pictures."""
        guided = f" cfg {self.cfg_scale:g}" if self.cfg_scale != 1 else ""
        return f"{self.size}x{self.size}{guided}{' LoRA' if self.lora else ''}"

    @property
    def passes(self) -> int:
        """How often the denoiser is computed."""
        return self.steps * (2 if self.cfg_scale != 1 else 1)


@dataclass(frozen=True)
class Job:
    """A model, a way of keeping its weights, and what is drawn with it.

    Attributes:
        family: of make_checkpoint.
        mode: see the module's docstring.
        budget: device memory in GiB; None: all that is free.
        shots: its pictures; with none only loading is measured.
        mmap: whether the file is read through a memory map.
    """

    family: str
    mode: str
    budget: float | None
    shots: tuple[Shot, ...]
    mmap: bool = False

    @property
    def name(self) -> str:
        """Return FAMILY/MODE/BUDGET, which --rows selects by."""
        budget = "all" if self.budget is None else f"{self.budget:g}"
        return f"{self.family}/{self.mode}/{budget}{'/mmap' if self.mmap else ''}"


MODES: dict[str, dict[str, Any]] = {
    "pageable-serial": {"params_backend": "cpu", "pin_params": "never"},
    "pinned-serial": {"params_backend": "cpu", "pin_params": "require"},
    "pinned-overlapped": {"params_backend": "cpu", "pin_params": "require", "stream_layers": True},
    "pageable-overlapped": {"params_backend": "cpu", "pin_params": "never", "stream_layers": True},
    "resident": {},
}
DTYPES = {"sd1": "f16", "sdxl": "f16", "zimage": "bf16"}
SMALL = Shot(512, tiled=True)
LARGE = Shot(1024, tiled=True)
LORA = replace(SMALL, lora=True)
GUIDED = Shot(1024, cfg_scale=7.0, tiled=True)


def check_jobs() -> list[Job]:
    """Return a small model in every way, for --check."""
    ways = (("resident", None), ("pinned-overlapped", 1), ("pinned-serial", 1), ("pageable-serial", 1))
    return [Job("sd1", mode, budget, (SMALL,)) for mode, budget in ways] + mmap_jobs("sd1")


def mmap_jobs(family: str) -> list[Job]:
    """Return what measures loading through a memory map; every other job measures loading without."""
    return [Job(family, mode, 4, (), mmap=True) for mode in ("pageable-serial", "pinned-serial")]


def all_jobs() -> list[Job]:
    """Return every job, the most important first.

    Pictures with a LoRA come last in each: taking it out of the weights again leaves their rounding.
    """
    jobs = [
        Job("zimage", "pinned-overlapped", 8, (SMALL, LARGE, LORA)),
        Job("zimage", "pinned-serial", 8, (SMALL, LARGE, LORA)),
        Job("zimage", "pageable-serial", 8, (SMALL, LORA)),
        Job("zimage", "resident", None, (SMALL, LARGE, LORA)),
        Job("zimage", "diffusers-leaf", None, (SMALL, LARGE)),
        Job("sdxl", "pinned-overlapped", 4, (LARGE, GUIDED, replace(LARGE, lora=True))),
        Job("sdxl", "pinned-serial", 4, (LARGE, replace(LARGE, lora=True))),
        Job("sdxl", "pageable-serial", 4, (LARGE, replace(LARGE, lora=True))),
        Job("sdxl", "resident", None, (LARGE, GUIDED, replace(LARGE, lora=True))),
        Job("sdxl", "diffusers-leaf", None, (LARGE, GUIDED)),
        Job("zimage", "profile", None, (SMALL, LARGE)),
        Job("zimage", "pinned-overlapped", 4, (SMALL, LARGE)),
        Job("zimage", "pinned-overlapped", 2, (SMALL,)),
        Job("zimage", "pinned-overlapped", None, (SMALL,)),
        Job("zimage", "pinned-serial", 4, (SMALL,)),
        Job("zimage", "peer", 8, (SMALL,)),
        Job("sdxl", "peer", 4, (LARGE,)),
        Job("sdxl", "pinned-overlapped", 2, (LARGE,)),
        Job("sdxl", "pinned-serial", 2, (LARGE,)),
        Job("zimage", "pinned-serial", 2, (SMALL,)),
        *mmap_jobs("sdxl"),
        Job("zimage", "diffusers-block", None, (SMALL,)),
        Job("zimage", "diffusers-resident", None, (SMALL, LARGE)),
        Job("zimage", "pageable-serial", None, (SMALL,)),
        Job("zimage", "pinned-serial", None, (SMALL,)),
        Job("sdxl", "pageable-serial", 2, (LARGE,)),
        Job("zimage", "pageable-serial", 2, (replace(SMALL, repeats=1),)),
        Job("zimage", "pageable-serial", 4, (replace(SMALL, repeats=1),)),
        Job("zimage", "pageable-overlapped", 8, (SMALL,)),
        Job("sdxl", "pinned-overlapped", 8, (LARGE,)),
        Job("sdxl", "pinned-serial", 8, (LARGE,)),
        Job("sdxl", "pageable-serial", 8, (LARGE,)),
    ]
    return jobs + [job for job in check_jobs() if job.shots]


def tiny(job: Job) -> Job:
    """Return the same job for the tiny model of its family: small pictures, two steps, once."""
    shots = tuple(replace(shot, size=shot.size // 8, steps=2, repeats=1) for shot in job.shots)
    budget = job.budget and max(job.budget / DRY_SHARE, DRY_LEAST.get(job.family, 0.0))
    return replace(job, budget=budget, shots=shots)


# --- files --------------------------------------------------------------------------------------------------


def lora_shapes(family: str, small: bool = False, rank: int = 16) -> dict[str, make_checkpoint.Shape]:
    """Return a LoRA for the attention layers of a family's denoiser, in the names that peft gives them."""
    found = {}
    for name, shape in make_checkpoint.checkpoint_shapes(family, small).items():
        layer = name.removesuffix(".weight")
        if name.startswith(DENOISER) and len(shape) == 2 and layer.endswith(LORA_ENDS):
            layer = layer.removeprefix("model.")
            found[f"{layer}.lora_A.weight"] = (rank, shape[1])
            found[f"{layer}.lora_B.weight"] = (shape[0], rank)
    return found


def _write_part(part: tuple[Path, int, str, make_checkpoint.Shape, str]) -> None:
    """Write one tensor at its place in a file."""
    path, offset, name, shape, dtype = part
    with open(path, "r+b", buffering=0) as file:
        file.seek(offset)
        for piece in make_checkpoint._tensor_pieces(name, shape, dtype, 0):
            file.write(piece)


def write_weights(path: Path, shapes: dict[str, make_checkpoint.Shape], dtype: str, processes: int) -> None:
    """Write what make_checkpoint.write_safetensors writes, with several processes."""
    header = make_checkpoint.safetensors_header(shapes, dtype, {"format": "pt"})
    offset, parts = len(header), []
    for name, shape in shapes.items():
        parts.append((path, offset, name, shape, dtype))
        offset += math.prod(shape) * make_checkpoint.DTYPES[dtype][1]
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(offset)
    parts.sort(key=lambda part: -math.prod(part[3]))
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for _ in pool.imap_unordered(_write_part, parts):
            pass


def make_files(families: Sequence[str], folder: Path, small: bool) -> None:
    """Write the checkpoints and LoRAs that are not there yet."""
    for family in families:
        paths = {
            folder / f"{family}.safetensors": make_checkpoint.checkpoint_shapes(family, small),
            folder / f"{family}-lora.safetensors": lora_shapes(family, small),
        }
        for path, shapes in paths.items():
            if path.is_file():
                continue
            start = time.perf_counter()
            beside = path.with_suffix(".part")
            write_weights(beside, shapes, DTYPES[family], os.cpu_count() or 1)
            beside.replace(path)
            seconds = time.perf_counter() - start
            say(f"wrote {path.name}, {path.stat().st_size / 1e9:.2f} GB in {seconds:.1f} s")


# --- in a process of its own --------------------------------------------------------------------------------


def memory_available() -> int:
    """Return the host memory that is available, in bytes; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        if found := re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text()):
            return int(found[1]) << 10
    return 0


class DeviceMemory:
    """Watches how much memory of the device is in use, by all processes: what no report of ours can leave out."""

    def __init__(self, used: Callable[[], int] | None) -> None:
        self.used = used
        self.baseline = used() if used else 0

    @contextlib.contextmanager
    def watch(self, row: Row, every: float = 0.005) -> Iterator[None]:
        """Put the most that was in use above the baseline into the row."""
        if self.used is None:
            row["device_peak_bytes"] = None
            yield
            return
        used, peak, done = self.used, 0, threading.Event()

        def look() -> None:
            nonlocal peak
            while not done.wait(every):
                peak = max(peak, used())

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            row["device_peak_bytes"] = max(peak, used()) - self.baseline


def cuda_memory() -> Callable[[], int] | None:
    """Return what reads the bytes in use on the first GPU, or None without NVIDIA's library."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        return lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    except Exception as error:
        say(f"the GPU's own count of its memory is not to be had: {error}")
        return None


class Worker:
    """One job: answers with rows, one line of JSON each."""

    def __init__(self, given: Row) -> None:
        shots = tuple(Shot(**shot) for shot in given["job"].pop("shots"))
        self.job = Job(**given["job"], shots=shots)
        self.folder, self.dry = Path(given["folder"]), bool(given["dry"])
        self.until = time.perf_counter() + given["seconds"]
        self.ticks: list[tuple[int, int, float]] = []
        # The engine and its libraries may print; only rows go to the parent.
        self.answer = os.dup(1)
        os.dup2(2, 1)

    def row(self, shot: Shot | None, **values: Any) -> Row:
        """Return the fields that say what a row is."""
        job, name = self.job, shot.name if shot else "load"
        asked = {"shot": name, "steps": shot.steps, "passes": shot.passes} if shot else {"shot": name}
        return {"family": job.family, "mode": job.mode, "budget": job.budget, "mmap": job.mmap, **asked, **values}

    def emit(self, row: Row) -> None:
        """Hand one row to the parent."""
        os.write(self.answer, json.dumps(row).encode() + b"\n")

    def repeat(self, shot: Shot, run: Callable[[], Row]) -> list[Row]:
        """Run several times: fewer where it is slow or time runs out, but once at least."""
        runs: list[Row] = []
        start = time.perf_counter()
        while len(runs) < shot.repeats:
            before = time.perf_counter()
            runs.append(run())
            now = time.perf_counter()
            if (len(runs) > 1 and now - start > SLOW) or now + 1.2 * (now - before) > self.until:
                break
        return runs

    def tick(self, step: int, steps: int, _: float) -> None:
        """Note when a step ended."""
        self.ticks.append((step, steps, time.perf_counter()))

    def step(self, shot: Shot) -> Row:
        """Return the seconds of a sampling step of the run that was ticked, without the first one, which also loads."""
        ends: dict[int, float] = {}
        for step, steps, when in self.ticks:
            if steps == shot.steps:
                ends.setdefault(step, when)  # what comes later counts the decoder's tiles
        lengths = [ends[step] - ends[step - 1] for step in ends if step > 1 and step - 1 in ends]
        return {"step": statistics.median(lengths)} if lengths else {}

    # --- ours

    def device(self) -> tuple[str, Callable[[], int] | None]:
        """Return the device's name and what reads its memory in use."""
        if not self.dry:
            return "cuda0", cuda_memory()
        sys.path.insert(0, str(ROOT / "tests"))
        from child import Loopback

        loopback = Loopback(memory_total=1 << 34)
        return "loopback0", lambda: loopback.books()["device_bytes"]

    def draw(self) -> None:
        """Load with sdcpp-py, then draw each shot."""
        import sdcpp_py

        device, used = self.device()
        with sdcpp_py.StableDiffusion(runtime_backend=device, progress=False) as model:  # wakes the device
            model.txt2img("a red circle on a white background", steps=1, seed=1)
        memory = DeviceMemory(used)
        job, available = self.job, memory_available()
        options = {**MODES[job.mode], "mmap": job.mmap, "diffusion_flash_attention": True, "progress": self.tick}
        if job.mode != "resident":
            options["max_vram"] = job.budget
        start = time.perf_counter()
        path = self.folder / f"{job.family}.safetensors"
        with sdcpp_py.StableDiffusion(path, runtime_backend=device, **options) as model:
            loaded = {"load_seconds": time.perf_counter() - start, "memory": model.memory_report().to_dict()}
            loaded["host_taken_bytes"] = available - memory_available()
            if not job.shots:
                self.emit(self.row(None, **loaded))
            for shot in job.shots:
                self.emit(self.draw_shot(model, shot, memory, loaded))

    def asked(self, shot: Shot) -> Row:
        """Return what txt2img is asked for besides the prompt and the steps."""
        import sdcpp_py

        lora = self.folder / f"{self.job.family}-lora.safetensors"
        return {
            "width": shot.size,
            "height": shot.size,
            "cfg_scale": shot.cfg_scale,
            "seed": 42,
            "sampler": "euler",
            "vae_tiling": shot.tiled,
            "loras": [sdcpp_py.Lora(lora, LORA_SCALE)] if shot.lora else (),
        }

    def draw_shot(self, model: Any, shot: Shot, memory: DeviceMemory, loaded: Row) -> Row:
        """Return the row of one shot, or one that says why it failed."""
        import numpy as np

        import sdcpp_py

        row, asked = self.row(shot, **loaded), self.asked(shot)
        pictures = []

        def run() -> Row:
            self.ticks.clear()
            images = model.txt2img(PROMPT, steps=shot.steps, **asked)
            pictures.append(np.asarray(images[0]))
            return {**images.timings.to_dict(), **self.step(shot)}

        try:
            with memory.watch(row):
                start = time.perf_counter()
                model.txt2img(PROMPT, steps=1, **asked)  # merges the LoRA
                row["warm_up_seconds"] = time.perf_counter() - start
                before = model.transfer_report().total
                row["runs"] = self.repeat(shot, run)
            report = model.transfer_report()
            seconds = report.total.seconds - before.seconds
            row["copied_bytes"] = (report.total.bytes - before.bytes) // len(row["runs"])
            row["copy_seconds"] = seconds / len(row["runs"])
            row["streams"] = report.to_dict()["streams"]
            row["transfer_report"] = str(report)
            row["pixels"] = sorted({hashlib.sha256(picture.tobytes()).hexdigest()[:16] for picture in pictures})
            row["contrast"] = float(pictures[0].std())  # 0: a picture of one colour, as not-a-number gives
            row["host_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        except sdcpp_py.SdcppError as error:
            row["error"] = f"{type(error).__name__}: {error}"
        return row

    def profile(self) -> None:
        """Draw each shot once under PyTorch's profiler, which sees all kernels of the process."""
        if self.dry:  # without a GPU there are none
            return
        import torch

        torch.zeros(1, device="cuda")  # loads the libraries that the engine needs too
        import sdcpp_py

        options = {"diffusion_flash_attention": True, "progress": False}
        path = self.folder / f"{self.job.family}.safetensors"
        with sdcpp_py.StableDiffusion(path, runtime_backend="cuda0", **options) as model:
            for shot in self.job.shots:
                asked = self.asked(shot)
                model.txt2img(PROMPT, steps=1, **asked)
                with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
                    images = model.txt2img(PROMPT, steps=shot.steps, **asked)
                trace = self.folder / "trace.json"
                profiler.export_chrome_trace(str(trace))
                found = kernels(json.loads(trace.read_text())["traceEvents"])
                trace.unlink()
                self.emit(self.row(shot, kernels=found, total=images.timings.total))

    def compare_devices(self) -> None:
        """Draw with the embedded model on the CPU and on the device."""
        import numpy as np

        import sdcpp_py

        device, _ = self.device()
        pictures = []
        for name in ("cpu", device):
            with sdcpp_py.StableDiffusion(runtime_backend=name, progress=False) as model:
                images = model.txt2img("a red circle on a white background", seed=1)
                pictures.append(np.asarray(images[0]).astype(int))
        difference = np.abs(pictures[0] - pictures[1])
        found = {"mean_difference": float(difference.mean()), "largest_difference": int(difference.max())}
        devices = [f"{device.name}: {device.description}" for device in sdcpp_py.devices()]
        self.emit({"embedded": {**found, "contrast": float(pictures[1].std()), "devices": devices}})

    # --- peers

    def draw_peer(self) -> None:
        """Do the same with stable-diffusion-cpp-python."""
        import stable_diffusion_cpp

        start = time.perf_counter()
        model = stable_diffusion_cpp.StableDiffusion(
            model_path=str(self.folder / f"{self.job.family}.safetensors"),
            offload_params_to_cpu=True,
            max_vram=self.job.budget or 0,
            diffusion_flash_attn=True,
            vae_decode_only=True,
            verbose=False,
        )
        loaded = {"load_seconds": time.perf_counter() - start}
        memory = DeviceMemory(cuda_memory())
        for shot in self.job.shots:
            row = self.row(shot, **loaded)
            pictures = []

            def run(steps: int = shot.steps, shot: Shot = shot, pictures: list[bytes] = pictures) -> Row:
                self.ticks.clear()
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
                    progress_callback=self.tick,
                )
                pictures.append(images[0].convert("RGB").tobytes())
                return {"total": time.perf_counter() - start, **self.step(shot)}

            with memory.watch(row):
                row["warm_up_seconds"] = run(1)["total"]
                pictures.clear()
                row["runs"] = self.repeat(shot, run)
            row["pixels"] = sorted({hashlib.sha256(picture).hexdigest()[:16] for picture in pictures})
            row["host_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
            self.emit(row)

    def diffuse(self) -> None:
        """Compute diffusers' denoiser of the same shapes."""
        import torch

        device = torch.device("cpu" if self.dry else "cuda")
        start = time.perf_counter()
        network, inputs = DENOISERS[self.job.family](device, self.dry)
        network = network.eval().requires_grad_(False)
        offload = self.job.mode.removeprefix("diffusers-")
        if offload != "resident" and not self.dry:
            network = network.to("cpu")
            torch.cuda.empty_cache()
            options: Row = {"leaf": {"offload_type": "leaf_level"}}.get(
                offload, {"offload_type": "block_level", "num_blocks_per_group": 1}
            )
            network.enable_group_offload(device, torch.device("cpu"), use_stream=True, record_stream=True, **options)
        loaded = {"load_seconds": time.perf_counter() - start}
        for shot in self.job.shots:
            row = self.row(shot, **loaded)
            given = inputs(shot, device)

            def run(steps: int = shot.steps, given: Row = given) -> Row:
                start = time.perf_counter()
                for _ in range(steps):
                    network(**given)
                if not self.dry:
                    torch.cuda.synchronize()
                return {"sampling": time.perf_counter() - start}

            with torch.no_grad():
                if not self.dry:
                    torch.cuda.reset_peak_memory_stats()
                row["warm_up_seconds"] = run(2)["sampling"]
                row["runs"] = self.repeat(shot, run)
            # Torch counts what it uses; what its cache holds beyond that is not the method's.
            row["device_peak_bytes"] = None if self.dry else torch.cuda.max_memory_allocated()
            row["host_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
            self.emit(row)

    def copy(self) -> None:
        """Measure copies to the device as they are, without anything of ours."""
        self.emit({"copies": copy_host() if self.dry else copy_cuda(), "gpu": None if self.dry else gpu()})

    def run(self) -> None:
        """Do the job."""
        mode = self.job.mode
        special = {
            "copies": self.copy, "embedded": self.compare_devices, "peer": self.draw_peer, "profile": self.profile
        }  # fmt: skip
        if mode.startswith("diffusers"):
            self.diffuse()
        else:
            special.get(mode, self.draw)()


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


DENOISERS = {"zimage": _zimage, "sdxl": _sdxl}


def kernels(events: Sequence[Row]) -> list[Row]:
    """Return the kernels of a trace by name: seconds and number of each, the longest first."""
    found: dict[str, Row] = {}
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            name = re.sub(r"^void |[<(].*", "", event["name"])
            row = found.setdefault(name, {"name": name, "seconds": 0.0, "count": 0})
            row["seconds"] += event["dur"] / 1e6
            row["count"] += 1
    return sorted(found.values(), key=lambda row: -row["seconds"])


def copy_cuda() -> list[Row]:
    """Return the bandwidth of copies to the GPU, by kind of memory and size of copy."""
    import torch

    torch.cuda.init()
    found = []
    target = torch.empty(GIB, dtype=torch.uint8, device="cuda")
    for pinned in (False, True):
        torch.cuda.synchronize()
        start = time.perf_counter()
        source = torch.empty(GIB, dtype=torch.uint8, pin_memory=pinned)
        source.fill_(1)
        made = time.perf_counter() - start
        for size in (GIB, 64 << 20, 1 << 20, 64 << 10):
            pairs = list(zip(target.split(size), source.split(size), strict=True))[: max(1, (256 << 20) // size)]
            seconds = []
            for _ in range(6):
                torch.cuda.synchronize()
                start = time.perf_counter()
                for to, origin in pairs:
                    to.copy_(origin, non_blocking=True)
                torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
            rates = [len(pairs) * size / each for each in seconds[1:]]
            found.append({"pinned": pinned, "size": size, "bytes_per_s": rates, "allocation_seconds_per_gib": made})
    return found


def copy_host() -> list[Row]:
    """Return the bandwidth of copies within host memory, in place of a GPU's for a dry run."""
    import numpy as np

    source, target = np.ones(1 << 26, np.uint8), np.empty(1 << 26, np.uint8)
    found = []
    for pinned in (False, True):
        for size in (1 << 26, 1 << 16):
            rates = []
            for _ in range(3):
                start = time.perf_counter()
                for index in range(0, len(source), size):
                    target[index : index + size] = source[index : index + size]
                rates.append(len(source) / (time.perf_counter() - start))
            found.append({"pinned": pinned, "size": size, "bytes_per_s": rates, "allocation_seconds_per_gib": 0.0})
    return found


def gpu() -> Row:
    """Return the GPU's name, driver, memory and link, as the driver tells them just after copies."""
    link = ("pcie.link.gen.current", "pcie.link.gen.max", "pcie.link.width.current")
    names = ("name", "driver_version", "memory.total", *link)
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True)
    return dict(zip(names, (part.strip() for part in done.stdout.split(",")), strict=False))


# --- the parent ---------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print at once, on standard error, which a worker may use too."""
    print(text, file=sys.stderr, flush=True)


def cuda_home() -> Path:
    """Return the folder of this machine's CUDA toolkit, if it has one."""
    compiler = shutil.which("nvcc")
    return Path(os.environ.get("CUDA_HOME") or (Path(compiler).resolve().parents[1] if compiler else "/usr/local/cuda"))


def cuda_folders() -> list[str]:
    """Return folders with the CUDA runtime and cuBLAS: a toolkit's, or those that came with PyTorch."""
    toolkit = cuda_home()
    folders = [toolkit / "lib64", toolkit / "targets" / "x86_64-linux" / "lib"]
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        folders += sorted(Path(place).glob("*/lib"))
    return [
        str(folder) for folder in folders if any(folder.glob("libcudart.so.*")) or any(folder.glob("libcublas.so.*"))
    ]


def place_module(module: Path) -> None:
    """Put a prebuilt CUDA module, as it is or packed with xz, beside the libraries of the installed package."""
    spec = importlib.util.find_spec("sdcpp_py")
    if spec is None or spec.origin is None:
        raise SystemExit("bench_gpu: sdcpp_py is not installed for this Python")
    target, libraries = Path(spec.origin).with_name("libggml-cuda.so"), os.environ.get("LD_LIBRARY_PATH", "")
    content = module.read_bytes()
    target.write_bytes(lzma.decompress(content) if module.suffix == ".xz" else content)
    if shutil.which("ldd"):  # the engine passes over a module that cannot be loaded
        environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join([*cuda_folders(), libraries])}
        needs = subprocess.run(["ldd", target], capture_output=True, text=True, env=environment).stdout
        for line in needs.splitlines():
            if "not found" in line:
                say(f"{target.name} will not load: {line.strip()}")


def build(folder: Path, what: Path | str, **variables: str) -> None:
    """Build a package from source for this GPU, without network, and let this process and its children import it."""
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--target"]
    usual = {"CUDACXX": str(cuda_home() / "bin" / "nvcc")}  # else NVIDIA's packages would be fetched
    start = time.perf_counter()
    subprocess.run([*command, folder, what], check=True, env={**usual, **os.environ, **variables}, stdout=sys.stderr)
    say(f"built {what} in {time.perf_counter() - start:.0f} s")
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


class Bench:
    """The run: jobs, the time that is left for them, and what they found."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.until = time.perf_counter() + options.time_limit - (time.time() - options.started)
        machine = {"platform": platform.platform(), "processors": os.cpu_count(), "dry": options.dry_run}
        self.found: Row = {"machine": machine, "gpu": None, "copies": [], "embedded": None, "rows": [], "left_out": []}
        given = [os.environ.get("LD_LIBRARY_PATH", "")]
        self.libraries = os.pathsep.join(filter(None, cuda_folders() + given))

    def run(self, jobs: Sequence[Job]) -> None:
        """Do all jobs, while there is time."""
        for index, job in enumerate(jobs):
            left = self.until - time.perf_counter()
            if left < self.least(job):
                self.found["left_out"] += [each.name for each in jobs[index:] if each.name != job.name] + [job.name]
                say(f"no time is left for {job.name} and what follows")
                self.save()
                return
            self.do(job, left)
            self.save()

    def least(self, job: Job) -> float:
        """Return seconds below which a job is not begun: its start, and reading and copying its weights."""
        if not job.shots or self.options.dry_run:
            return 5.0
        return 5.0 + 2 * (self.folder / f"{job.family}.safetensors").stat().st_size / 2e9

    def do(self, job: Job, left: float) -> None:
        """Do one job in a process of its own and keep its rows."""
        start = time.perf_counter()
        given = {"job": asdict(job), "folder": str(self.folder), "dry": self.options.dry_run, "seconds": left - 3}
        command = [sys.executable, "-X", "faulthandler", __file__, "--worker", json.dumps(given)]
        # PyTorch brings its own libraries and must find those.
        torch = job.mode in ("copies", "profile") or job.mode.startswith("diffusers")
        environment = {**os.environ} if torch else {**os.environ, "LD_LIBRARY_PATH": self.libraries}
        if job.mode == "peer":
            # Where its compiler had no shared libstdc++, its library shows a copy that gets mixed up with the real one.
            loaded = (os.environ.get("LD_PRELOAD"), ctypes.util.find_library("stdc++"))
            environment["LD_PRELOAD"] = os.pathsep.join(filter(None, loaded))
        count = len(self.found["rows"])
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True)
            timer = threading.Timer(left, process.kill)
            timer.start()
            assert process.stdout is not None
            for line in process.stdout:
                self.keep(json.loads(line))
                self.save()
            status = process.wait()
            timer.cancel()
            errors.seek(0)
            tail = errors.read().decode(errors="replace").strip().splitlines()[-12:]
        if status != 0:
            reason = "the time limit" if time.perf_counter() - start >= left else f"status {status}"
            say(f"{job.name}: stopped by {reason}\n  " + "\n  ".join(tail))
            if not job.shots:
                self.found["left_out"].append(f"{job.name} ({reason})")
            made = {row["shot"] for row in self.found["rows"][count:]}
            for shot in job.shots:
                if shot.name not in made:
                    what = {"family": job.family, "mode": job.mode, "budget": job.budget, "mmap": job.mmap}
                    self.found["rows"].append({**what, "shot": shot.name, "error": reason, "log": tail})
        say(f"{job.name}: {time.perf_counter() - start:.1f} s, {self.until - time.perf_counter():.0f} s left")

    def keep(self, answer: Row) -> None:
        """Keep what a worker answered, and say it."""
        if "family" not in answer:
            self.found |= answer
            say(json.dumps(answer))
            return
        self.found["rows"].append(answer)
        line = " ".join(f"{name} {middle(answer, name):.3f}" for name in ("total", "sampling") if middle(answer, name))
        if "kernels" in answer:
            line = f"{len(answer['kernels'])} kernels"
        say(f"  {answer['shot']}: {answer.get('error') or line or format(answer['load_seconds'], '.2f')}")

    def save(self) -> None:
        """Write what was found so far."""
        if self.options.json:
            self.options.json.write_text(json.dumps(self.found, indent=1) + "\n")


# --- what it means ------------------------------------------------------------------------------------------


def middle(row: Row, name: str) -> float | None:
    """Return the median of one of a row's times, or None when it has none."""
    values = [run[name] for run in row.get("runs", ()) if name in run]
    return statistics.median(values) if values else None


def merged(reports: Sequence[Row]) -> Row:
    """Return several runs on like machines as one: what was measured again replaces a row, and all copies are kept."""
    first: Row = {"gpu": None, "machine": {}, "embedded": None, "copies": []}
    rows = {}
    for report in reports:
        for name in ("gpu", "machine", "embedded"):
            first[name] = first[name] or report.get(name)
        first["copies"] += report["copies"]
        for row in report["rows"]:
            rows[row["family"], row["mode"], row["budget"], row["mmap"], row["shot"]] = row
    first["rows"] = list(rows.values())
    done = {Job(row["family"], row["mode"], row["budget"], (), row["mmap"]).name for row in first["rows"]}
    left = {name: None for report in reports for name in report["left_out"] if name not in done}
    return {**first, "left_out": list(left)}


def bandwidth(copies: Sequence[Row], pinned: bool) -> float | None:
    """Return the bytes a second of the largest copies from pinned or pageable memory."""
    mine = [row for row in copies if row["pinned"] == pinned]
    largest = max((row["size"] for row in mine), default=0)
    rates = [rate for row in mine if row["size"] == largest for rate in row["bytes_per_s"]]
    return statistics.median(rates) if rates else None


def over(one: Row, other: Row, name: str) -> float:
    """Return how many times the other row's time goes into the one's; 0 where either is missing."""
    return (middle(one, name) or 0.0) / (middle(other, name) or math.inf)


def denoiser_stream(row: Row) -> Row | None:
    """Return how the denoiser was streamed, or None when it was not."""
    return next((stream for stream in row.get("streams", ()) if stream["module"] == "diffusion"), None)


def pass_seconds(row: Row) -> float | None:
    """Return what one pass of the denoiser takes in a step: of steps after the first, or the mean where none is known.

    It has in it what the host does between two passes, when the device waits.
    """
    step, sampling = middle(row, "step"), middle(row, "sampling")
    if step is not None:
        return step * row["steps"] / row["passes"]
    # diffusers computes both halves of a guided step at once
    return sampling and sampling / row["steps" if row["mode"].startswith("diffusers") else "passes"]


def bound(row: Row, report: Row) -> float | None:
    """Return what a pass takes at least: computing and copying, one after the other or the longer of the two.

    Computing is the resident row's pass; copying is the bytes over the bandwidth of large copies in the same run.
    Without a budget a network is moved to the device once a picture, in the first step.
    """
    resident = next((r for r in report["rows"] if r["mode"] == "resident" and same(r, row) and r.get("runs")), None)
    rate = bandwidth(report["copies"], row["mode"].startswith("pinned"))
    compute = resident and pass_seconds(resident)
    if row["mode"] not in MODES or row["mode"] == "resident" or not compute or not rate:
        return None
    stream = denoiser_stream(row)
    copying = stream["streamed_bytes"] / rate if stream else 0.0
    return compute + copying if row["mode"].endswith("serial") else max(compute, copying)


def same(one: Row, other: Row) -> bool:
    """Tell whether two rows draw the same picture."""
    return bool(one["family"] == other["family"] and one["shot"] == other["shot"])


@dataclass(frozen=True)
class Verdict:
    """One thing that the run must show.

    Attributes:
        what: what was compared.
        asked: the number it must reach, as text.
        got: what it is, as text.
        good: whether it does.
        timed: whether it depends on seconds, which say nothing in a dry run.
    """

    what: str
    asked: str
    got: str
    good: bool
    timed: bool = False


def verdicts(report: Row) -> list[Verdict]:
    """Return what the rows show."""
    rows = [row for row in report["rows"] if row.get("runs")]
    out: list[Verdict] = []

    def find(row: Row, mode: str) -> Row | None:
        return next((r for r in rows if r["mode"] == mode and same(r, row) and r["budget"] == row["budget"]), None)

    for row in rows:
        where = f"{row['family']} {row['shot']} at {show_budget(row)}"
        other = find(row, "pageable-serial")
        all_stays = (denoiser_stream(row) or {}).get("streamed_bytes") == 0
        if row["mode"] == "pinned-serial" and other and row["budget"] and not all_stays:
            for part in ("total", "sampling"):
                ratio, what = over(other, row, part), f"pinned over pageable, {part}, {where}"
                out.append(Verdict(what, ">= 1.57", f"{ratio:.2f}", ratio >= 1.57, True))
        if row["mode"] in ("pinned-overlapped", "pageable-overlapped"):
            out += overlap_verdicts(row, find(row, row["mode"].replace("overlapped", "serial")), report, where)
    out += peer_verdicts(rows)
    for family, shot in dict.fromkeys((row["family"], row["shot"]) for row in rows):
        ours = [r for r in rows if (r["family"], r["shot"]) == (family, shot) and r["mode"] in MODES]
        pixels = {each for row in ours for each in row["pixels"]}
        if len(ours) > 1:
            count = sum(len(row["runs"]) for row in ours)
            text = f"{len(pixels)} picture(s) in {count} runs of {len(ours)} rows"
            out.append(Verdict(f"pixels identical, {family} {shot}", "1", text, len(pixels) == 1))
    flat = [row for row in rows if row.get("contrast", 1.0) == 0.0]
    if flat:
        out.append(Verdict("pictures with more than one colour", "all", f"{len(flat)} rows without", False))
    failed = [Job(r["family"], r["mode"], r["budget"], ()).name for r in report["rows"] if "error" in r]
    if failed:
        out.append(Verdict("rows without an error", "all", f"failed: {', '.join(failed)}", False))
    if report.get("embedded"):
        difference = report["embedded"]["mean_difference"]
        out.append(Verdict("embedded model, device against CPU", "<= 4 of 255", f"{difference:.3f}", difference <= 4))
    return [each for each in out if not (each.timed and report["machine"].get("dry"))]


def overlap_verdicts(row: Row, serial: Row | None, report: Row, where: str) -> list[Verdict]:
    """Return what an overlapped row shows: against its bound, the same in turn, and the budget."""
    out, stream = [], denoiser_stream(row)
    least, step = bound(row, report), pass_seconds(row)
    if stream is None:
        return [Verdict(f"streamed, {where}", "overlapped", "not at all", False)]
    if row["mode"] == "pinned-overlapped":
        good = stream["mode"] in ("overlapped", "resident")
        out.append(Verdict(f"mode, {where}", "overlapped", f"{stream['mode']} {stream['reason']}".strip(), good))
    if least and step:
        ratio = step / least
        out.append(Verdict(f"pass over bound, {where}", "<= 1.10", f"{ratio:.2f}", ratio <= 1.10, True))
    rate = bandwidth(report["copies"], True)
    # Copies from pageable memory hold up the host.
    if row["mode"] == "pinned-overlapped" and serial and rate and step and stream["streamed_bytes"]:
        resident = next((r for r in report["rows"] if r["mode"] == "resident" and same(r, row) and r.get("runs")), None)
        compute = resident and pass_seconds(resident)
        balance = stream["streamed_bytes"] / rate / compute if compute else math.inf
        ratio = over(serial, row, "sampling")
        balanced = 0.5 <= balance <= 2.0
        asked = ">= 1.40" if balanced else f"> 1 (copy:compute is {balance:.1f})"
        good = ratio >= 1.4 if balanced else ratio > 1.0
        out.append(Verdict(f"overlapped over in turn, sampling, {where}", asked, f"{ratio:.2f}", good, True))
    if row["budget"]:
        budget = row["budget"] * GIB
        peaks = {"counted by the engine": max(each["peak_bytes"] for each in row["streams"])}
        if row.get("device_peak_bytes") is not None:
            peaks["counted by the device"] = row["device_peak_bytes"]
        for who, peak in peaks.items():
            text = f"{peak / GIB:.2f} of {row['budget']:g} GiB"
            out.append(Verdict(f"peak within budget, {who}, {where}", "<= budget", text, peak <= budget))
    return out


def peer_verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Return each of our rows with weights on the CPU against each peer's, for the same picture."""
    out = []
    for peer in rows:
        if peer["mode"] != "peer" and not peer["mode"].startswith("diffusers"):
            continue
        at_home = ("resident",) if peer["mode"].endswith("resident") else ("pinned-overlapped",)
        part = "total" if peer["mode"] == "peer" else "sampling"
        ours = [r for r in rows if r["mode"] in at_home and same(r, peer) and peer["budget"] in (None, r["budget"])]
        for row in ours:
            ratio, what = over(row, peer, part), f"{row['family']} {row['shot']} at {show_budget(row)}"
            out.append(Verdict(f"{what}, {part}, over {peer['mode']}", "<= 1.00", f"{ratio:.2f}", ratio <= 1.0, True))
    return out


# --- showing it ---------------------------------------------------------------------------------------------


def show_budget(row: Row) -> str:
    """Return a row's budget as text."""
    return "-" if row["budget"] is None else f"{row['budget']:.3g} GiB"


def show_times(row: Row, name: str) -> str:
    """Return the median of a time, with the spread of all runs."""
    values = [run[name] for run in row.get("runs", ()) if name in run]
    if not values:
        return "-"
    spread = f" ({min(values):.3g}..{max(values):.3g})" if len(values) > 1 else ""
    return f"{statistics.median(values):.3f}{spread}"


def show_seconds(seconds: float | None, digits: int = 3) -> str:
    """Return seconds as text."""
    return "-" if seconds is None else f"{seconds:.{digits}f}"


def show_gib(size: int | None) -> str:
    """Return bytes in GiB as text."""
    return "-" if size is None else f"{size / GIB:.2f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> str:
    """Return a table in Markdown; *numbers* are aligned to the right."""
    rule = ["--:" if name in numbers else "---" for name in header]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rows))


def tables(report: Row) -> list[tuple[str, Sequence[str], list[Sequence[str]]]]:
    """Return (title, header, cells) of each table."""
    out: list[tuple[str, Sequence[str], list[Sequence[str]]]] = []
    copies = [
        (
            "pinned" if row["pinned"] else "pageable",
            f"{row['size'] >> 20} MiB" if row["size"] >= 1 << 20 else f"{row['size'] >> 10} KiB",
            f"{statistics.median(row['bytes_per_s']) / 1e9:.2f}",
            f"{min(row['bytes_per_s']) / 1e9:.2f}..{max(row['bytes_per_s']) / 1e9:.2f}",
        )
        for row in report["copies"]
    ]
    if copies:
        out.append(("Copies to the device", ("memory", "size of a copy", "GB/s", "spread"), copies))

    loads: dict[tuple[str, str, bool], list[Row]] = {}
    for row in report["rows"]:
        if "load_seconds" in row and row["mode"] in (*MODES, "peer"):
            kept = row["mode"].replace("-serial", "").replace("-overlapped", "")
            loads.setdefault((row["family"], kept, row["mmap"]), []).append(row)
    cells = []
    for (family, kept, mmap), found in loads.items():
        seconds = sorted({row["load_seconds"] for row in found})
        taken = max(row.get("host_taken_bytes") or 0 for row in found)
        spread = f"{seconds[0]:.2f}..{seconds[-1]:.2f}"
        middle_one = f"{statistics.median(seconds):.2f}"
        cells.append((family, kept, "yes" if mmap else "no", middle_one, spread, str(len(seconds)), show_gib(taken)))
    if cells:
        out.append(("Loading", ("model", "weights", "mmap", "seconds", "spread", "loads", "host GiB"), cells))

    pictures = [row for row in report["rows"] if row["shot"] != "load" and row["mode"] != "profile"]
    for family, shot in sorted(dict.fromkeys((row["family"], row["shot"]) for row in pictures)):
        cells = []
        for row in pictures:
            if (row["family"], row["shot"]) != (family, shot):
                continue
            if "error" in row:
                cells.append((row["mode"], show_budget(row), row["error"][:60], *["-"] * 9))
                continue
            stream, step, least = denoiser_stream(row), pass_seconds(row), bound(row, report)
            rate = row["copied_bytes"] / row["copy_seconds"] / 1e9 if row.get("copy_seconds") else None
            cells.append(
                (
                    row["mode"],
                    show_budget(row),
                    show_times(row, "total"),
                    show_times(row, "sampling"),
                    show_seconds(step, 4),
                    show_seconds(least, 4),
                    f"{step / least:.2f}" if step and least else "-",
                    show_gib(stream["streamed_bytes"] if stream else None),
                    show_seconds(rate, 1),
                    show_gib(max(each["peak_bytes"] for each in row["streams"]) if row.get("streams") else None),
                    show_gib(row.get("device_peak_bytes")),
                    str(len(row["runs"])),
                )
            )
        header = ("weights", "budget", "picture s", "sampling s", "pass s", "bound s", "pass/bound", "streamed GiB",
                  "tensor GB/s", "peak GiB", "device GiB", "runs")  # fmt: skip
        out.append((f"{family} {shot}", header, cells))
    for row in report["rows"]:
        if row.get("kernels"):
            whole = sum(each["seconds"] for each in row["kernels"])
            most = [
                (each["name"][:80], f"{each['seconds']:.3f}", f"{each['seconds'] / whole:.0%}", str(each["count"]))
                for each in row["kernels"][:14]
            ]
            title = f"Kernels, {row['family']} {row['shot']}, {row['steps']} steps: {whole:.2f} of {row['total']:.2f} s"
            out.append((title, ("kernel", "seconds", "part", "times"), most))
    found = verdicts(report)
    if found:
        rows = [("ok" if each.good else "SHORT", each.what, each.asked, each.got) for each in found]
        out.append(("What it shows", ("", "what", "asked", "measured"), rows))
    return out


def show(report: Row, options: argparse.Namespace) -> None:
    """Print the tables, write the plot."""
    from sdcpp_py.reports import table

    gpu_text = ", ".join(f"{name} {value}" for name, value in (report["gpu"] or {"no GPU": "dry run"}).items())
    print(f"{gpu_text}; {report['machine'].get('platform')}, {report['machine'].get('processors')} processors\n")
    texts = ("weights", "budget", "memory", "model", "mmap", "", "what", "asked", "measured", "size of a copy",
             "kernel")  # fmt: skip
    for title, header, rows in tables(report):
        numbers = [name for name in header if name not in texts]
        body = (markdown if options.markdown else table)(header, rows, numbers)
        print(f"{'**' if options.markdown else ''}{title}{'**' if options.markdown else ''}\n\n{body}\n")
    if report["left_out"]:
        print(f"left out: {', '.join(report['left_out'])}")
    if options.plot:
        try:
            plot(report, options.plot)
        except ImportError:
            print("no plot: matplotlib is not installed")


def plot(report: Row, path: Path) -> None:
    """Draw the seconds of a pass for each picture: a bar for each row, a line where its bound is."""
    from matplotlib.figure import Figure

    rows = [row for row in report["rows"] if row.get("runs") and pass_seconds(row)]
    groups = sorted(dict.fromkeys((row["family"], row["shot"]) for row in rows))
    figure = Figure(figsize=(8, 1 + 0.28 * (len(rows) + 2 * len(groups))), layout="constrained")
    ratios = [1 + sum(same(row, {"family": family, "shot": shot}) for row in rows) for family, shot in groups]
    all_axes = figure.subplots(len(groups), 1, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    colors = {"resident": "tab:gray", "pinned-overlapped": "tab:green", "pinned-serial": "tab:blue"}
    for axes, (family, shot) in zip(all_axes, groups, strict=True):
        mine = [row for row in rows if same(row, {"family": family, "shot": shot})][::-1]
        for index, row in enumerate(mine):
            axes.barh(index, pass_seconds(row), color=colors.get(row["mode"], "tab:orange"), height=0.7)
            least = bound(row, report)
            if least:
                axes.plot([least, least], [index - 0.4, index + 0.4], color="black", linewidth=1.5)
        axes.set_yticks(range(len(mine)), [f"{row['mode']}  {show_budget(row)}" for row in mine], fontsize="small")
        axes.set_title(f"{family} {shot}", fontsize="medium", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[-1].set_xlabel("seconds a pass of the denoiser; black: the bound")
    figure.savefig(path, dpi=110)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="a small model and the embedded one only")
    parser.add_argument("--quick", action="store_true", help="two runs of each row at most")
    parser.add_argument("--rows", nargs="+", metavar="GLOB", help="only these jobs: FAMILY/MODE/BUDGET; see --list")
    parser.add_argument("--list", action="store_true", help="print the jobs, the most important first")
    parser.add_argument("--time-limit", type=float, default=570.0, metavar="SECONDS", help="end in time (default: 570)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, after every row")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it there")
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    parser.add_argument("--show", type=Path, nargs="+", metavar="FILE.json", help="show earlier runs, measure nothing")
    parser.add_argument("--cuda-module", type=Path, metavar="FILE", help="a prebuilt libggml-cuda.so, or .so.xz")
    parser.add_argument(
        "--build", type=Path, metavar="ARCHIVE", help="build the package from the engine's source archive"
    )
    parser.add_argument("--peer", type=Path, metavar="ARCHIVE", help="build stable-diffusion-cpp-python from it too")
    parser.add_argument("--work", type=Path, help="folder for the checkpoints (default: in memory if it has room)")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the loopback accelerator")
    return parser.parse_args(arguments)


def chosen_jobs(options: argparse.Namespace) -> list[Job]:
    """Return the jobs that the options ask for."""
    jobs = check_jobs() if options.check else all_jobs()
    if options.rows:
        jobs = [job for job in jobs if any(fnmatch.fnmatch(job.name, pattern) for pattern in options.rows)]
    if not options.peer and importlib.util.find_spec("stable_diffusion_cpp") is None:
        jobs = [job for job in jobs if job.mode != "peer"]
    if options.quick:
        shots = {job: tuple(replace(shot, repeats=min(2, shot.repeats)) for shot in job.shots) for job in jobs}
        jobs = [replace(job, shots=shots[job]) for job in jobs]
    diffusers = importlib.util.find_spec("diffusers") is not None
    if not diffusers and any(job.mode.startswith("diffusers") for job in jobs):
        say("diffusers is not installed: its rows are left out")
        jobs = [job for job in jobs if not job.mode.startswith("diffusers")]
    first = [Job("", mode, None, ()) for mode in (("copies", "embedded") if options.check else ("copies",))]
    return first + ([tiny(job) for job in jobs] if options.dry_run else jobs)


def default_work(small: bool) -> Path:
    """Return a folder in memory where there is room for the checkpoints, else in the temporary files."""
    shared = Path("/dev/shm")
    room = shutil.disk_usage(shared).free if shared.is_dir() else 0
    return Path(tempfile.mkdtemp(prefix="bench-gpu-", dir=shared if room > (1 if small else 34) * GIB else None))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 1 when something falls short or was left out."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--worker"]:
        Worker(json.loads(given[1])).run()
        return 0
    options = parse(given)
    options.started = time.time()
    if options.show:
        report = merged([json.loads(path.read_text()) for path in options.show])
        show(report, options)
        return 0
    if options.list:
        print("\n".join(f"{job.name}  {', '.join(shot.name for shot in job.shots)}" for job in all_jobs()))
        return 0
    folder = options.work or default_work(options.dry_run)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if options.build:
            cuda = "-DSDCPP_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=native"
            archive = str(options.build.resolve())
            build(folder / "ours", ROOT, CMAKE_ARGS=cuda, SDCPP_ENGINE_ARCHIVE=archive)
        if options.cuda_module:
            place_module(options.cuda_module)
        if options.peer:
            cuda = "-DSD_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=native"
            build(folder / "peer", options.peer.resolve(), CMAKE_ARGS=cuda)
        jobs = chosen_jobs(options)
        bench = Bench(options, folder)
        make_files(sorted({job.family for job in jobs if job.family}), folder, options.dry_run)
        bench.run(jobs)
    finally:
        if not options.work:
            shutil.rmtree(folder, ignore_errors=True)
    show(bench.found, options)
    return 0 if all(each.good for each in verdicts(bench.found)) and not bench.found["left_out"] else 1


if __name__ == "__main__":
    sys.exit(main())

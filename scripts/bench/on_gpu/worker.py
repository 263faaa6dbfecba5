"""One job, in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .copies import copy_cuda, copy_host, gpu
from .jobs import LORA_SCALE, MODES, PROMPT, SLOW, Job, Row, Shot
from .memory import DeviceMemory, cuda_memory, memory_available
from .peers import diffuse, draw_peer

if TYPE_CHECKING:
    from sdcpp_py import ProgressEvent


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

    def note(self, event: ProgressEvent) -> None:
        """Note when a step of sampling ended."""
        if event.phase == "sampling":
            self.tick(event.step, event.steps, event.seconds)

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
        from support.loopback import Loopback

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
        options = {**MODES[job.mode], "mmap": job.mmap, "diffusion_flash_attention": True, "progress": self.note}
        if not job.mode.startswith("resident"):
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
            "batch_count": shot.pictures,
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
            pictures.append(np.stack([np.asarray(image) for image in images]))
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
        options["kernels"] = "engine" if self.job.mode.endswith("engine") else "fast"
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

    def copy(self) -> None:
        """Measure copies to the device as they are, without anything of ours."""
        self.emit({"copies": copy_host() if self.dry else copy_cuda(), "gpu": None if self.dry else gpu()})

    def run(self) -> None:
        """Do the job."""
        mode = self.job.mode
        special: dict[str, Callable[[], None]] = {
            "copies": self.copy,
            "embedded": self.compare_devices,
            "peer": lambda: draw_peer(self),
            "profile": self.profile,
            "profile-engine": self.profile,
        }
        if mode.startswith("diffusers"):
            diffuse(self)
        else:
            special.get(mode, self.draw)()


def kernels(events: Sequence[Row]) -> list[Row]:
    """Return the kernels of a trace by name: seconds and number of each, the longest first."""
    found: dict[str, Row] = {}
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            name = re.sub(r"^void |[<(].*", "", event["name"].replace("(anonymous namespace)::", ""))
            row = found.setdefault(name, {"name": name, "seconds": 0.0, "count": 0})
            row["seconds"] += event["dur"] / 1e6
            row["count"] += 1
    return sorted(found.values(), key=lambda row: -row["seconds"])

#!/usr/bin/env python3
"""Compare what the CPU computes: our kernels, the engine's own, and PyTorch with diffusers.

Models with random weights: SD 1.5, and of SDXL and Flux some of the blocks, which all are alike. Text encoding, a pass
of the denoiser, and of SD 1.5 decoding and the whole picture, each model and size in a fresh process, in rounds whose
order turns. Wall and CPU seconds are medians; the ratios are those of CPU seconds, which tell a slow kernel from a busy
machine, and of wall seconds. A profile by operation and the machine's peak come with each model.

    scripts/bench/cpu.py [--models sd1 sdxl flux] [--sizes 256 512] [--types f16 bf16 q8_0] [--threads 1 2]
                         [--rounds 3] [--json FILE]
    scripts/bench/cpu.py --beside            # and the same picture beside busy loops and beside itself

Run it with the Python that has sdcpp-py installed. PyTorch, diffusers and transformers go into an environment of their
own; --peer names one that is there.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(__file__).resolve().with_name("cpu_peer.py")
PEER_PACKAGES = ("torch==2.13.0", "diffusers", "transformers")
STEPS = 2
PROMPT = "a cat"
# Beside what a picture is drawn: the name, and how many busy loops and other pictures run meanwhile.
COMPANY = {"alone": (0, 0), "one busy loop": (1, 0), "two busy loops": (2, 0), "another picture": (0, 1)}


@dataclass(frozen=True)
class Model:
    """A model that is measured: what of it, and the sizes of its networks for PyTorch."""

    about: str
    parts: tuple[str, ...]
    clips: tuple[tuple[int, int], ...]  # width and layers of each text encoder
    t5_layers: int = 0
    denoiser: dict[str, Any] = field(default_factory=dict)


MODELS = {
    "sd1": Model(
        "SD 1.5",
        ("text", "pass", "decoding", "picture"),
        clips=((768, 12),),
        denoiser={"widths": (1, 2, 4, 4), "blocks": (1, 1, 1, 0), "heads": 8, "context": 768},
    ),
    "sdxl": Model(
        "SDXL, 2 of 10 blocks a level, 4 of 12 and of 32 layers of its text encoders",
        ("text", "pass"),
        clips=((768, 4), (1280, 4)),
        denoiser={"widths": (1, 2, 4), "blocks": (0, 1, 2), "heads": (5, 10, 20), "context": 2048},
    ),
    "flux": Model(
        "Flux, 1 of 19 double and of 38 single blocks, 2 of 24 layers of T5",
        ("text", "pass"),
        clips=((768, 4),),
        t5_layers=2,
        denoiser={"flux_layers": 1, "context": 4096},
    ),
}


def write_model(name: str, path: Path) -> None:
    """Write a model's checkpoint with random weights."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support import checkpoints as made

    model, tiny = MODELS[name], made.Vae(channels=32)
    if name == "sd1":
        made.write_checkpoint(name, path)
        return
    out = made.Layout()
    first, *more = [made.Clip(width=width, layers=layers, projection=width) for width, layers in model.clips]
    if name == "sdxl":
        sizes = model.denoiser
        unet = made.Unet(mult=sizes["widths"], depth=sizes["blocks"], mid_depth=sizes["blocks"][-1],
                         context=sizes["context"], labels=2816, linear_proj=True)  # fmt: skip
        out.nest("model.diffusion_model.", made.unet(unet))
        out.nest("first_stage_model.", made.vae(tiny))
        out.nest("conditioner.embedders.0.transformer.", made.clip(first))
        out.nest("conditioner.embedders.1.model.", made.open_clip(more[0]))
    else:
        layers = model.denoiser["flux_layers"]
        out.nest("model.diffusion_model.", made.flux_transformer(made.Flux(double=layers, single=layers)))
        out.nest("first_stage_model.", made.vae(made.Vae(channels=32, latent=16, quant=False)))
        out.nest("text_encoders.clip_l.transformer.", made.clip(first))
        out.nest("text_encoders.t5xxl.transformer.", made.t5(made.T5(layers=model.t5_layers)))
    made.write_safetensors(path, dict(out), dtype="f16", seed=0, metadata={"family": name})


def clocked(function: Callable[[], Any]) -> dict[str, float]:
    """Return the wall and CPU seconds that a function takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


# --- workers: one process each, which prints one line of JSON ---------------------------------------------------------


def base_library() -> ctypes.CDLL:
    """Return ggml-base, as this process has loaded it."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return ctypes.CDLL(next(line.split()[-1] for line in lines if "libggml-base" in line))


def profile_rows(library: ctypes.CDLL) -> list[dict[str, Any]]:
    """Return what the engine's CPU backend spent its time on, the longest first."""
    name, nodes, seconds, flops = ctypes.c_char_p(), ctypes.c_int(), ctypes.c_double(), ctypes.c_double()
    rows = []
    places = [ctypes.byref(each) for each in (name, nodes, seconds, flops)]
    while library.sdcpp_profile_row(len(rows), *places):
        shown = (name.value or b"").decode()
        rows.append({"name": shown, "nodes": nodes.value, "seconds": seconds.value, "flops": flops.value})
    return sorted(rows, key=lambda row: -row["seconds"])


def run_ours(task: dict[str, Any]) -> dict[str, Any]:
    """Draw with the engine, under a kernel policy."""
    import sdcpp_py

    weights = task["type"]
    with sdcpp_py.StableDiffusion(
        task["model"], kernels=task["what"], threads=task["threads"], weight_type=weights, progress=False
    ) as sd:
        options: dict[str, Any] = {"width": task["size"], "height": task["size"], "seed": 1, "cfg_scale": 1.0}
        options |= {"sampler": "euler", "steps": STEPS}
        if task.get("warm"):
            sd.txt2img(PROMPT, **{**options, "width": 64, "height": 64, "steps": 1})
        library = base_library()
        library.sdcpp_profile(task["profile"])
        made: list[Any] = []
        picture = clocked(lambda: made.append(sd.txt2img(PROMPT, **options)))
        timings = made[0].timings
        # What the phases have of the CPU seconds is in proportion to their time: all threads work in all of them.
        share = picture["cpu"] / picture["wall"]
        walls = {"text": timings.text, "pass": timings.sampling / STEPS, "decoding": timings.decoding}
        parts = {name: {"wall": wall, "cpu": wall * share} for name, wall in walls.items() if name in task["parts"]}
        rows = profile_rows(library) if task["profile"] else []
        return {"parts": {**parts, "picture": picture}, "profile": rows, "peak_kib": peak_memory()}


def peak_memory() -> int:
    """Return the most memory that this process had, in KiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- the comparison ---------------------------------------------------------------------------------------------------


def peer_python(options: argparse.Namespace) -> Path:
    """Return the Python of the environment with PyTorch, made the first time."""
    if options.peer:
        return Path(options.peer)
    folder = options.work / "cpu-peer"
    python = Path(folder, "bin", "python")
    if subprocess.run([python, "-c", "import torch, diffusers, transformers"], capture_output=True).returncode != 0:
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)
    return python


def start(task: dict[str, Any], python: Path | None = None) -> subprocess.Popen[str]:
    """Start a worker: PyTorch's with its Python, or one of ours."""
    environment = {**os.environ, "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")}
    worker = [str(python), str(PEER)] if python else [sys.executable, str(Path(__file__).resolve()), "--worker"]
    return subprocess.Popen([*worker, json.dumps(task)], stdout=subprocess.PIPE, text=True, env=environment)


def finish(worker: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what a worker found."""
    said, _ = worker.communicate()
    if worker.returncode != 0:
        raise SystemExit(f"a worker ended with status {worker.returncode}; its last lines are above")
    return dict(json.loads(said.strip().splitlines()[-1]))


def median(found: list[dict[str, Any]], part: str, kind: str) -> float:
    """Return the median seconds of a part."""
    return statistics.median(each["parts"][part][kind] for each in found)


def compare(options: argparse.Namespace, name: str, checkpoint: Path, python: Path) -> list[dict[str, Any]]:
    """Measure every row of a model; return them."""
    rows = []
    model = MODELS[name]
    sizes = {"parts": model.parts, "clips": model.clips, "t5_layers": model.t5_layers, **model.denoiser}
    for threads in options.threads:
        for size in options.sizes:
            for weights in options.types:
                task = {"size": size, "threads": threads, "model": str(checkpoint), "profile": False, "type": weights}
                task |= {"parts": model.parts, "warm": True}  # as the peer is
                peer = "bf16" if weights == "bf16" else "f32"
                jobs: dict[str, tuple[Any, ...]] = {
                    "fast": ({**task, "what": "fast"},),
                    "engine": ({**task, "what": "engine"},),
                    "torch": ({**task, "what": "torch", "type": peer, "sizes": sizes, "steps": STEPS}, python),
                }
                jobs = {each: job for each, job in jobs.items() if each not in options.without}
                found: dict[str, list[dict[str, Any]]] = {each: [] for each in jobs}
                for turn in range(options.rounds):
                    names = list(jobs)
                    for each in names[turn % len(names) :] + names[: turn % len(names)]:
                        found[each].append(finish(start(*jobs[each])))
                row = {"model": name, "size": size, "type": weights, "threads": threads, "peer": peer, "found": found}
                rows.append(row)
                show(row)
    return rows


def show(row: dict[str, Any]) -> None:
    """Print one row of the comparison."""
    found = row["found"]
    what = f"{row['size']}x{row['size']}, {row['type']} weights, {row['threads']} threads"
    print(f"\n{MODELS[row['model']].about}\n{what} (PyTorch: {row['peer']})")
    print(
        f"{'':10}"
        + "".join(f"{name + ' wall':>13}{'cpu':>8}" for name in found)
        + "   fast/engine  fast/torch (cpu, wall)"
    )
    for part in MODELS[row["model"]].parts:
        cells = "".join(
            f"{median(each, part, 'wall'):13.2f}{median(each, part, 'cpu'):8.2f}" for each in found.values()
        )
        ratios = [
            f"{median(found['fast'], part, kind) / median(found[other], part, kind):6.2f}"
            if other in found
            else "     -"
            for other in ("engine", "torch")
            for kind in ("cpu", "wall")
        ]
        print(f"{part:10}{cells}   {' '.join(ratios)}")
    print(
        "peak MiB  "
        + "  ".join(f"{name} {max(each['peak_kib'] for each in runs) // 1024}" for name, runs in found.items())
    )


def show_profile(found: dict[str, Any], peak: float, threads: int) -> None:
    """Print what a picture's time went to."""
    print(f"\noperations of a picture, {threads} threads; peak of a core {peak / 1e9:.0f} GFLOP/s (f32)")
    for row in found["profile"][:16]:
        rate = row["flops"] / row["seconds"]
        share = f"{rate / 1e9:8.1f} GFLOP/s {100 * rate / (peak * threads):4.0f} %" if row["flops"] else " " * 23
        print(f"{1000 * row['seconds']:9.1f} ms {row['nodes']:5} {share}  {row['name']}")


def beside(options: argparse.Namespace, model: Path) -> None:
    """Print how long a picture takes in company, over the time that it takes alone."""
    task = {
        "size": 128,
        "threads": 2,
        "model": str(model),
        "profile": False,
        "what": "fast",
        "type": "f16",
        "warm": True,
        "parts": ("picture",),
    }
    found: dict[str, list[float]] = {name: [] for name in COMPANY}
    for _ in range(options.rounds):
        for name, (loops, pictures) in COMPANY.items():
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
            try:
                workers = [start(task) for _ in range(1 + pictures)]
                found[name].append(max(finish(worker)["parts"]["picture"]["wall"] for worker in workers))
            finally:
                for process in busy:
                    process.kill()
                    process.wait()
    alone = statistics.median(found["alone"])
    print("\na picture of 128x128 in company: seconds, and over alone")
    for name, seconds in found.items():
        print(f"{name:16} {statistics.median(seconds):6.2f} {statistics.median(seconds) / alone:6.2f}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Compare our CPU kernels with the engine's and with PyTorch.")
    parser.add_argument("--models", nargs="+", default=["sd1"], choices=list(MODELS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[256], help="pixels of a side")
    parser.add_argument("--types", nargs="+", default=["f16"], help="types of the weights: f32, f16, bf16, q8_0, q4_0")
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without", nargs="*", default=[], choices=["engine", "torch"], help="what to leave out")
    parser.add_argument("--beside", action="store_true", help="measure beside busy loops and another picture, too")
    parser.add_argument("--peer", metavar="PYTHON", help="one with PyTorch, diffusers and transformers")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="where environment and model go")
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(run_ours(json.loads(options.worker))))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    python = peer_python(options)
    print(f"load of the machine: {os.getloadavg()}; the ratios of CPU seconds are those to trust on a busy one")
    peak = finish(start({"what": "peak"}, python))
    print(f"peak of a core: {peak['f32'] / 1e9:.0f} GFLOP/s in f32, {peak['bf16'] / 1e9:.0f} in bf16")
    rows, profiles = [], {}
    for name in options.models:
        checkpoint = options.work / f"{name}.safetensors"
        if not checkpoint.exists():
            write_model(name, checkpoint)
        rows += compare(options, name, checkpoint, python)
        task = {"size": options.sizes[0], "threads": options.threads[-1], "model": str(checkpoint), "profile": True}
        task |= {"parts": MODELS[name].parts, "what": "fast", "type": options.types[0], "warm": True}
        profiles[name] = finish(start(task))
        show_profile(profiles[name], peak["f32"], task["threads"])
    if options.beside:
        checkpoint = options.work / "sd1.safetensors"
        if not checkpoint.exists():
            write_model("sd1", checkpoint)
        beside(options, checkpoint)
    if options.json:
        options.json.write_text(json.dumps({"peak": peak, "rows": rows, "profiles": profiles}, indent=2) + "\n")


if __name__ == "__main__":
    main()

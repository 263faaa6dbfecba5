#!/usr/bin/env python3
"""Compare what the CPU computes: our kernels, the engine's own, and PyTorch with diffusers.

SD 1.5 with random weights: text encoding, a pass of the denoiser, decoding and the whole picture, each in a fresh
process, in rounds whose order turns. Wall and CPU seconds are medians; the ratios are those of CPU seconds, which tell
a slow kernel from a busy machine, and of wall seconds. A profile by operation and the machine's peak come with it.

    scripts/bench/cpu.py [--sizes 256 512] [--types f16 bf16 q8_0] [--threads 1 2] [--rounds 3] [--json FILE]
    scripts/bench/cpu.py --beside            # and the same picture beside busy loops and beside itself

Run it with the Python that has sdcpp-py installed. PyTorch, diffusers and transformers go into an environment of their
own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PEER_PACKAGES = ("torch==2.13.0", "diffusers", "transformers")
PARTS = ("text", "pass", "decoding", "picture")
STEPS = 2
PROMPT = "a cat"
# Beside what a picture is drawn: the name, and how many busy loops and other pictures run meanwhile.
COMPANY = {"alone": (0, 0), "one busy loop": (1, 0), "two busy loops": (2, 0), "another picture": (0, 1)}


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
        parts = {name: {"wall": wall, "cpu": wall * share} for name, wall in walls.items()}
        rows = profile_rows(library) if task["profile"] else []
        return {"parts": {**parts, "picture": picture}, "profile": rows, "peak_kib": peak_memory()}


def peak_memory() -> int:
    """Return the most memory that this process had, in KiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_torch(task: dict[str, Any]) -> dict[str, Any]:
    """Compute the same networks with PyTorch."""
    import torch  # type: ignore[import-not-found, unused-ignore]
    from diffusers import AutoencoderKL, UNet2DConditionModel  # type: ignore[import-not-found, unused-ignore]
    from transformers import CLIPTextConfig, CLIPTextModel  # type: ignore[import-not-found, unused-ignore]

    torch.set_grad_enabled(False)
    torch.set_num_threads(task["threads"])
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[task["type"]]
    sides = task["size"] // 8
    text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12,
                                        num_hidden_layers=12, projection_dim=768)).eval().to(dtype)  # fmt: skip
    unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64).eval().to(dtype)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval().to(dtype)  # fmt: skip
    unet, vae = unet.to(memory_format=torch.channels_last), vae.to(memory_format=torch.channels_last)
    tokens = torch.zeros((1, 77), dtype=torch.long)
    latent = torch.randn(1, 4, sides, sides, dtype=dtype).to(memory_format=torch.channels_last)
    words = text(tokens).last_hidden_state
    unet(latent[:, :, :8, :8], 500, words)  # what is prepared once is not counted
    times = {
        "text": clocked(lambda: text(tokens)),
        "pass": clocked(lambda: unet(latent, 500, words)),
        "decoding": clocked(lambda: vae.decode(latent)),
    }
    times["picture"] = {
        kind: times["text"][kind] + STEPS * times["pass"][kind] + times["decoding"][kind] for kind in ("wall", "cpu")
    }
    return {"parts": times, "profile": [], "peak_kib": peak_memory()}


def run_peak(task: dict[str, Any]) -> dict[str, Any]:
    """Measure the most that one core multiplies and adds a second, in floating-point operations."""
    import torch

    torch.set_grad_enabled(False)
    torch.set_num_threads(1)

    def rate(dtype: Any) -> float:
        a, b = (torch.randn(1536, 1536).to(dtype) for _ in range(2))
        return max(2 * 1536**3 / clocked(lambda: a @ b)["cpu"] for _ in range(8))

    return {"f32": rate(torch.float32), "bf16": rate(torch.bfloat16)}


# --- the comparison ---------------------------------------------------------------------------------------------------


def peer_python(work: Path) -> Path:
    """Return the Python of the environment with PyTorch, made the first time."""
    folder = work / "cpu-peer"
    python = folder / "bin" / "python"
    if subprocess.run([python, "-c", "import torch, diffusers, transformers"], capture_output=True).returncode != 0:
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)
    return python


def start(python: Path | str, task: dict[str, Any]) -> subprocess.Popen[str]:
    """Start a worker."""
    environment = {**os.environ, "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")}
    command = [str(python), str(Path(__file__).resolve()), "--worker", json.dumps(task)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def finish(worker: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what a worker found."""
    said, _ = worker.communicate()
    if worker.returncode != 0:
        raise SystemExit(f"a worker ended with status {worker.returncode}; its last lines are above")
    return dict(json.loads(said.strip().splitlines()[-1]))


def median(found: list[dict[str, Any]], part: str, kind: str) -> float:
    """Return the median seconds of a part."""
    return statistics.median(each["parts"][part][kind] for each in found)


def compare(options: argparse.Namespace, model: Path, python: Path) -> list[dict[str, Any]]:
    """Measure every row; return them."""
    rows = []
    for threads in options.threads:
        for size in options.sizes:
            for weights in options.types:
                task = {"size": size, "threads": threads, "model": str(model), "profile": False}
                peer = "bf16" if weights == "bf16" else "f32"
                jobs: dict[str, tuple[Any, dict[str, Any]]] = {
                    "fast": (sys.executable, {**task, "what": "fast", "type": weights}),
                    "engine": (sys.executable, {**task, "what": "engine", "type": weights}),
                    "torch": (python, {**task, "what": "torch", "type": peer}),
                }
                jobs = {name: job for name, job in jobs.items() if name not in options.without}
                found: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
                for turn in range(options.rounds):
                    names = list(jobs)
                    for name in names[turn % len(names) :] + names[: turn % len(names)]:
                        found[name].append(finish(start(*jobs[name])))
                rows.append({"size": size, "type": weights, "threads": threads, "peer": peer, "found": found})
                show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    """Print one row of the comparison."""
    found = row["found"]
    print(f"\n{row['size']}x{row['size']}, {row['type']} weights, {row['threads']} threads (PyTorch: {row['peer']})")
    print(
        f"{'':10}"
        + "".join(f"{name + ' wall':>13}{'cpu':>8}" for name in found)
        + "   fast/engine  fast/torch (cpu, wall)"
    )
    for part in PARTS:
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
    }
    found: dict[str, list[float]] = {name: [] for name in COMPANY}
    for _ in range(options.rounds):
        for name, (loops, pictures) in COMPANY.items():
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
            try:
                workers = [start(sys.executable, task) for _ in range(1 + pictures)]
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
    parser.add_argument("--sizes", type=int, nargs="+", default=[256], help="pixels of a side")
    parser.add_argument("--types", nargs="+", default=["f16"], help="types of the weights: f32, f16, bf16, q8_0, q4_0")
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without", nargs="*", default=[], choices=["engine", "torch"], help="what to leave out")
    parser.add_argument("--beside", action="store_true", help="measure beside busy loops and another picture, too")
    parser.add_argument("--model", type=Path, help="an SD 1.5 checkpoint; one with random weights is made")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench", help="where environment and model go")
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        task = json.loads(options.worker)
        run = {"torch": run_torch, "peak": run_peak}.get(task["what"], run_ours)
        print(json.dumps(run(task)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    python = peer_python(options.work)
    model = options.model or options.work / "sd15.safetensors"
    if not model.exists():
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            made = Path(folder, model.name)
            subprocess.run([sys.executable, ROOT / "scripts" / "make_checkpoint.py", made], check=True)
            made.rename(model)
    print(f"load of the machine: {os.getloadavg()}; the ratios of CPU seconds are those to trust on a busy one")
    peak = finish(start(python, {"what": "peak"}))
    rows = compare(options, model, python)
    task = {"size": options.sizes[0], "threads": options.threads[-1], "model": str(model), "profile": True}
    profiled = finish(start(sys.executable, {**task, "what": "fast", "type": options.types[0]}))
    show_profile(profiled, peak["f32"], task["threads"])
    if options.beside:
        beside(options, model)
    if options.json:
        options.json.write_text(json.dumps({"peak": peak, "rows": rows, "profile": profiled}, indent=2) + "\n")


if __name__ == "__main__":
    main()

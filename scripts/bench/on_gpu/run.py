"""The run: jobs in processes of their own, and what must be built and placed before."""

from __future__ import annotations

import argparse
import ctypes.util
import importlib.util
import json
import lzma
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .jobs import Job, Row
from .meaning import middle
from .saying import say


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
        self.script = str(Path(__file__).resolve().parents[1] / "gpu.py")
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
        command = [sys.executable, "-X", "faulthandler", self.script, "--worker", json.dumps(given)]
        # PyTorch brings its own libraries and must find those.
        torch = job.mode == "copies" or job.mode.startswith(("profile", "diffusers"))
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

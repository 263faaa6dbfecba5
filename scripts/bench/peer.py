#!/usr/bin/env python3
"""Compare sdcpp-py with stable-diffusion-cpp-python: same pixels, and import, load and generate time.

The peer is the package whose source archive carries our engine, so vendor/engine.toml names its version. It
is built from that archive, natively and in Release as ours is, into an environment of its own, once. Then
both render the same checkpoint with the same settings: fresh processes, in pairs, the order of a pair
alternating. The table comes last. Exit status: 0 when the pixels are identical and no median ratio is
above 1 + tolerance, else 1; 2 when the comparison could not be made.

    scripts/bench/peer.py [--model FILE] [--pairs 5] [--json FILE] [--work DIR]

Run it with the Python that has sdcpp-py installed, on an idle machine. Where that cannot be had,
OMP_WAIT_POLICY=passive in the environment keeps the threads of both from spinning while they wait for a core, and
the CPU seconds tell a slow package from a busy machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "build"))
MODULES = {"ours": "sdcpp_py", "peer": "stable_diffusion_cpp"}
BUILD_TOOLS = ("scikit-build-core", "cmake", "ninja")
ENGINE_OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DSD_WEBP=OFF", "-DSD_WEBM=OFF")
IMPORTS_PER_PAIR = 4  # an import takes milliseconds: more of them, for a median that means something
PARTS = ("import", "load", "generate")  # wall-clock seconds: what is judged
CPU_PARTS = ("load cpu", "generate cpu")  # seconds of all threads: tells a slow package from a busy machine


class BenchError(Exception):
    """The comparison could not be made; the message is one line that says what to do."""


@dataclass(frozen=True)
class Settings:
    """What both packages are told, word for word; nothing is left to a default that may differ.

    Attributes:
        model: the checkpoint.
        prompt: what to draw.
        width: pixels.
        height: pixels.
        steps: sampling steps.
        seed: of the initial noise.
        sampler: the engine's name of it; both packages use the same.
        scheduler: likewise.
        cfg_scale: classifier-free guidance.
        threads: CPU threads of the engine.
    """

    model: str
    prompt: str
    width: int
    height: int
    steps: int
    seed: int
    sampler: str
    scheduler: str
    cfg_scale: float
    threads: int


class Clock:
    """Wall-clock and CPU seconds at one moment."""

    def __init__(self) -> None:
        self.wall = time.perf_counter()
        self.cpu = time.process_time()


# --- one render, in a fresh process ------------------------------------------------------------------------


def render_ours(settings: Settings) -> tuple[list[Clock], Any]:
    """Return the clocks before loading, before and after generating, and the Pillow image, of sdcpp-py."""
    import sdcpp_py

    clocks = [Clock()]
    model = sdcpp_py.StableDiffusion(
        settings.model,
        threads=settings.threads,
        kernels="engine",  # the peer's, whose pixels they are
        rng="cuda",
        sampler_rng="cuda",
        vae_decode_only=True,
        mmap=False,
        flash_attention=False,
        progress=False,
    )
    clocks.append(Clock())
    images = model.txt2img(
        settings.prompt,
        width=settings.width,
        height=settings.height,
        steps=settings.steps,
        seed=settings.seed,
        sampler=settings.sampler,
        scheduler=settings.scheduler,
        cfg_scale=settings.cfg_scale,
        eta=0.0,
    )
    clocks.append(Clock())
    image = images[0]
    model.close()
    return clocks, image


def render_peer(settings: Settings) -> tuple[list[Clock], Any]:
    """Return the same of stable-diffusion-cpp-python."""
    import stable_diffusion_cpp

    clocks = [Clock()]
    model = stable_diffusion_cpp.StableDiffusion(
        model_path=settings.model,
        n_threads=settings.threads,
        rng_type="cuda",
        sampler_rng_type="cuda",
        vae_decode_only=True,
        enable_mmap=False,
        flash_attn=False,
        verbose=False,
    )
    clocks.append(Clock())
    images = model.generate_image(
        prompt=settings.prompt,
        width=settings.width,
        height=settings.height,
        sample_steps=settings.steps,
        seed=settings.seed,
        sample_method=settings.sampler,
        scheduler=settings.scheduler,
        cfg_scale=settings.cfg_scale,
        eta=0.0,
    )
    clocks.append(Clock())
    return clocks, images[0]


def worker(who: str, settings: Settings, pixels: Path) -> None:
    """Render once, write the RGB bytes to a file and one line of JSON to stdout.

    The engine prints progress to stdout as it likes, so stdout is put aside until the end, for both packages.
    """
    answer = os.dup(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    render = render_ours if who == "ours" else render_peer
    clocks, image = render(settings)
    pixels.write_bytes(image.convert("RGB").tobytes())
    seconds: dict[str, float] = {}
    for part, before, after in zip(("load", "generate"), clocks, clocks[1:], strict=False):
        seconds |= {part: after.wall - before.wall, f"{part} cpu": after.cpu - before.cpu}
    os.write(answer, json.dumps({"seconds": seconds, "size": image.size}).encode() + b"\n")


# --- the peer's environment --------------------------------------------------------------------------------


def default_work() -> Path:
    """Return the folder for the peer's environment and the checkpoint, in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "sdcpp-py", "bench-peer")


def environment_python(folder: Path) -> Path:
    """Return the interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def run_logged(command: Sequence[str | Path], log: Path, env: dict[str, str]) -> None:
    """Run a command, output into a log file; raise BenchError with the log's last lines when it fails."""
    with open(log, "ab") as file:
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=env).returncode
    if status != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise BenchError(f"building the peer failed with status {status}; {log} ends with:\n{tail}")


def source_archive(source: dict[str, str], work: Path) -> Path:
    """Return the peer's source archive, verified: SDCPP_ENGINE_ARCHIVE if set, else fetched with pip."""
    import vendor

    given = os.environ.get("SDCPP_ENGINE_ARCHIVE")
    try:
        archive = Path(given) if given else vendor.download(source, work)
    except vendor.VendorError as error:
        raise BenchError(str(error)) from error
    if not archive.is_file():
        raise BenchError(f"{archive} is not a file: point SDCPP_ENGINE_ARCHIVE to the source archive")
    if vendor.file_sha256(archive) != source["sha256"]:
        raise BenchError(f"{archive.name} is not the archive that vendor/engine.toml locks: fetch it again")
    return archive


def build_peer(work: Path) -> Path:
    """Return the interpreter of the peer's environment; build it (minutes) unless an equal one is there."""
    import vendor

    source = vendor.read_lock()["source"]
    options = [*ENGINE_OPTIONS]
    if ccache := shutil.which("ccache"):
        options += [f"-DCMAKE_{language}_COMPILER_LAUNCHER={ccache}" for language in ("C", "CXX")]
    pillow = f"pillow=={metadata.version('pillow')}"  # the same Pillow as ours: its conversions are timed too
    recipe = {"source": source, "options": options, "pillow": pillow, "python": sys.version}
    folder, stamp = work / "peer", work / "peer.json"
    python = environment_python(folder)
    if stamp.is_file() and json.loads(stamp.read_text()) == recipe and python.is_file():
        return python

    work.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    log = work / "peer-build.log"
    log.unlink(missing_ok=True)
    print(f"building {source['package']} {source['version']} in {folder} (minutes; log: {log})", flush=True)
    venv.create(folder, clear=True, with_pip=True)
    env = {**os.environ, "CMAKE_GENERATOR": "Ninja", "CMAKE_ARGS": " ".join(options)}
    env["PATH"] = str(python.parent) + os.pathsep + env.get("PATH", "")
    env.pop("PYTHONPATH", None)
    pip: list[str | Path] = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    run_logged([*pip, *BUILD_TOOLS, pillow, "typing-extensions"], log, env)
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        archive = source_archive(source, Path(scratch))
        run_logged([*pip, "--verbose", "--no-deps", "--no-build-isolation", archive], log, env)
    stamp.write_text(json.dumps(recipe, indent=1) + "\n")
    return python


# --- measuring ---------------------------------------------------------------------------------------------


def clean_environment() -> dict[str, str]:
    """Return the environment for measured processes: ours, without what changes where Python looks."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def time_command(python: Path, code: str) -> float:
    """Return the seconds that ``python -c code`` takes, process start and end included."""
    start = time.perf_counter()
    done = subprocess.run([python, "-c", code], env=clean_environment(), capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BenchError(f"{python} cannot run {code!r} ({reason})")
    return seconds


def time_import(who: str, python: Path) -> float:
    """Return the seconds that importing a package adds to a bare interpreter, from one run of each."""
    bare = time_command(python, "pass")
    return time_command(python, f"import {MODULES[who]}") - bare


def render(who: str, python: Path, settings: Settings, scratch: Path) -> tuple[dict[str, float], bytes]:
    """Render once in a fresh process; return its times in seconds and the RGB bytes."""
    pixels = scratch / "pixels"
    pixels.unlink(missing_ok=True)
    script = str(Path(__file__).resolve())
    command = [str(python), script, "--worker", who, json.dumps(asdict(settings)), str(pixels)]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-10:])
        raise BenchError(f"rendering with {MODULES[who]} failed with status {done.returncode}:\n{tail}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if tuple(answer["size"]) != (settings.width, settings.height):
        size = "x".join(map(str, answer["size"]))
        raise BenchError(f"the engine rounded the size to {size}: pass --width and --height that it keeps")
    return answer["seconds"], pixels.read_bytes()


def measure(
    pythons: dict[str, Path], settings: Settings, pairs: int
) -> tuple[dict[str, dict[str, list[float]]], dict[str, list[bytes]]]:
    """Run the pairs.

    Returns:
        (seconds as who -> part -> one value a run, who -> RGB bytes of each run).
    """
    seconds: dict[str, dict[str, list[float]]] = {who: {part: [] for part in PARTS + CPU_PARTS} for who in MODULES}
    pictures: dict[str, list[bytes]] = {who: [] for who in MODULES}
    for who, python in pythons.items():  # compiles bytecode and fills the page cache
        time_import(who, python)
    with open(settings.model, "rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(pairs):
            order = list(MODULES) if index % 2 == 0 else list(MODULES)[::-1]
            for _ in range(IMPORTS_PER_PAIR):
                for who in order:
                    seconds[who]["import"].append(time_import(who, pythons[who]))
            for who in order:
                times, picture = render(who, pythons[who], settings, Path(scratch))
                pictures[who].append(picture)
                for part, value in times.items():
                    seconds[who][part].append(value)
            last = ", ".join(f"{who} {seconds[who]['generate'][-1]:.3f} s" for who in MODULES)
            print(f"pair {index + 1} of {pairs}: generate {last}", flush=True)
    return seconds, pictures


def largest_difference(pictures: dict[str, list[bytes]]) -> int:
    """Return the largest difference of two pixels' values, 0 to 255, between any render and the first."""
    every = [picture for runs in pictures.values() for picture in runs]
    first = every[0]
    return max(
        0 if picture == first else max(abs(one - two) for one, two in zip(first, picture, strict=True))
        for picture in every
    )


# --- the verdict -------------------------------------------------------------------------------------------


def summarise(seconds: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Return part -> medians, extremes and ratio: the median of the pairs' ratios, since a machine's speed drifts."""
    summary = {}
    for part in PARTS + CPU_PARTS:
        row: dict[str, float] = {}
        for who in MODULES:
            values = seconds[who][part]
            row |= {f"{who}_median": statistics.median(values)}
            row |= {f"{who}_min": min(values), f"{who}_max": max(values)}
        pairs = zip(seconds["ours"][part], seconds["peer"][part], strict=True)
        row["ratio"] = statistics.median(ours / peer for ours, peer in pairs)
        summary[part] = row
    return summary


def table(summary: dict[str, dict[str, float]], tolerance: float) -> str:
    """Return the summary as text: seconds as median (min..max)."""
    lines = [f"{'seconds':<12} {'ours':>26} {'peer':>26} {'ratio':>7}"]
    for part, row in summary.items():
        triples = [[row[f"{who}_{kind}"] for kind in ("median", "min", "max")] for who in MODULES]
        cells = [f"{middle:.4f} ({low:.4f}..{high:.4f})" for middle, low, high in triples]
        verdict = "ok" if row["ratio"] <= 1.0 + tolerance else "SLOWER"
        if part not in PARTS:
            verdict = "(not judged)"
        lines.append(f"{part:<12} {cells[0]:>26} {cells[1]:>26} {row['ratio']:>7.3f}  {verdict}")
    return "\n".join(lines)


def find_model(given: Path | None, work: Path) -> Path:
    """Return the checkpoint: the caller's, or a full-size SD 1.5 layout with random weights, written once."""
    if given is not None:
        if not given.is_file():
            raise BenchError(f"{given} is not a file: pass a checkpoint, or leave --model out to have one made")
        return given.resolve()
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from support.checkpoints import write_checkpoint

    path = work / "sd1.safetensors"
    if not path.is_file():
        print(f"writing {path} (2.1 GB of random weights)", flush=True)
        write_checkpoint("sd1", path)
    return path


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description="Compare sdcpp-py with stable-diffusion-cpp-python: pixels and times.")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--model", type=Path, help="checkpoint (default: a full-size SD 1.5 layout is made)")
    parser.add_argument("--pairs", type=int, default=5, help="renders with each package (default: 5)")
    parser.add_argument("--work", type=Path, default=default_work(), help="folder for the peer and the model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings and every measurement")
    parser.add_argument("--tolerance", type=float, default=0.0, help="how far a ratio may be above 1 (default: 0.0)")
    parser.add_argument("--prompt", default="a lovely cat")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--scheduler", default="discrete")
    parser.add_argument("--cfg-scale", type=float, default=7.0)
    parser.add_argument("--threads", type=int, default=cpus, help=f"of the engine (default: {cpus})")
    options = parser.parse_args(arguments)
    if options.pairs < 1:
        parser.error("--pairs must be at least 1")
    return options


def compare(options: argparse.Namespace) -> int:
    """Build, measure, print and return the exit status."""
    versions = {"ours": metadata.version("sdcpp-py")}
    work = options.work.resolve()
    pythons = {"ours": Path(sys.executable), "peer": build_peer(work)}
    settings = Settings(
        model=str(find_model(options.model, work)),
        prompt=options.prompt,
        width=options.width,
        height=options.height,
        steps=options.steps,
        seed=options.seed,
        sampler=options.sampler,
        scheduler=options.scheduler,
        cfg_scale=options.cfg_scale,
        threads=options.threads,
    )
    seconds, pictures = measure(pythons, settings, options.pairs)
    summary = summarise(seconds)
    difference = largest_difference(pictures)
    peer_version = "from importlib.metadata import version; print(version('stable-diffusion-cpp-python'))"
    done = subprocess.run([pythons["peer"], "-c", peer_version], capture_output=True, text=True)
    versions["peer"] = done.stdout.strip()
    slower = [part for part in PARTS if summary[part]["ratio"] > 1.0 + options.tolerance]
    if options.json is not None:
        report = {
            "settings": asdict(settings),
            "versions": versions,
            "machine": {"platform": platform.platform(), "python": platform.python_version()},
            "tolerance": options.tolerance,
            "seconds": seconds,
            "summary": summary,
            "max_abs_diff": difference,
            "pixels_sha256": {
                who: sorted({hashlib.sha256(picture).hexdigest() for picture in runs}) for who, runs in pictures.items()
            },
            "passed": difference == 0 and not slower,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(
        f"\nsdcpp-py {versions['ours']} (ours) and stable-diffusion-cpp-python {versions['peer']} (peer), "
        f"{settings.width}x{settings.height}, {settings.steps} steps, "
        f"{settings.sampler}/{settings.scheduler}, {settings.threads} threads, {options.pairs} pairs: "
        "median (min..max)\n"
    )
    print(table(summary, options.tolerance))
    same = "identical" if difference == 0 else "DIFFERENT"
    print(f"pixels       {same}: largest difference {difference} over {2 * options.pairs} renders")
    return 1 if difference or slower else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--worker"]:
        worker(given[1], Settings(**json.loads(given[2])), Path(given[3]))
        return 0
    try:
        return compare(parse(given))
    except metadata.PackageNotFoundError as error:
        print(f"peer.py: {error.name} is not installed for {sys.executable}: install sdcpp-py", file=sys.stderr)
    except (BenchError, OSError) as error:
        print(f"peer.py: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Measure on a GPU what pinned memory, streaming and overlapping gain, against what else could be installed.

    scripts/bench/gpu.py --json out.json --plot out.png        # everything, in the order of importance
    scripts/bench/gpu.py --check                               # minutes less: is it right, and does it stream?
    scripts/bench/gpu.py --rows 'sdxl/*' --time-limit 300      # some jobs, and no longer than that
    scripts/bench/gpu.py --kernels                             # our kernels, ggml's alone and PyTorch's, all resident
    scripts/bench/gpu.py --show a.json b.json --markdown       # tables of earlier runs
    scripts/bench/gpu.py --dry-run                             # tiny models on the loopback accelerator

Nothing is downloaded. Checkpoints with seeded random weights are written first, by all processors, into memory
(``/dev/shm``) where there is room. Then each job, which is one model kept in one way within one budget of device
memory, loads in a process of its own and draws each of its pictures several times. What a job found is printed and
written at once, so that a run that is stopped leaves what it has. With ``--time-limit`` slow rows are repeated less
often ("runs" says how often) and the jobs at the end of the list, the least important ones, are left out.

The package must be installed with its CUDA module; ``--cuda-module`` puts a prebuilt one into the installed package,
and ``--build ARCHIVE`` builds the package from source for this GPU first. Ways of keeping the weights:

pageable-in-turn    on the CPU in plain memory; what fits stays on the device, the rest is copied and computed in turn
                    (``max_vram``)
pinned-in-turn      the same, page-locked
pinned-overlapped   page-locked; the rest is copied while the device computes (``stream_layers``)
pageable-overlapped that in plain memory, where copies hold up the host
disk                in the model's file, with none of it in host memory
resident            on the device
resident-engine     the same, with ggml's kernels alone (``kernels="engine"``)
profile             on the device; which kernels a picture's time goes into, as PyTorch's profiler sees them
profile-engine      the same with ggml's kernels alone
peer                stable-diffusion-cpp-python 0.4.7 itself (``offload_params_to_cpu``, ``max_vram``), where it is
                    installed or built with ``--peer ARCHIVE``
diffusers-leaf      diffusers' group offloading with streams, leaf by leaf; the denoiser alone, on random weights
diffusers-block     likewise, block by block
diffusers-resident  diffusers with everything on the device
diffusers-graph     the same, each pass as one CUDA graph
diffusers-decode    diffusers' autoencoder, decoding with f16 weights
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from on_gpu.files import make_files
from on_gpu.jobs import GIB, Job, all_jobs, check_jobs, kernel_jobs, tiny
from on_gpu.meaning import merged, verdicts
from on_gpu.run import Bench, build, place_module
from on_gpu.saying import say
from on_gpu.showing import show
from on_gpu.worker import Worker

ROOT = Path(__file__).resolve().parents[2]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="a small model and the embedded one only")
    parser.add_argument("--quick", action="store_true", help="two runs of each row at most")
    parser.add_argument("--rows", nargs="+", metavar="GLOB", help="only these jobs: FAMILY/MODE/BUDGET; see --list")
    parser.add_argument("--kernels", action="store_true", help="what compares kernels, everything on the device")
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
    jobs = check_jobs() if options.check else kernel_jobs() if options.kernels else all_jobs()
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
        print(
            "\n".join(f"{job.name}  {', '.join(shot.name for shot in job.shots)}" for job in all_jobs() + kernel_jobs())
        )
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
        show(bench.found, options)  # with the package that was built
    finally:
        if not options.work:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if all(each.good for each in verdicts(bench.found)) and not bench.found["left_out"] else 1


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Measure how long loading and closing a model takes, with its weights in plain and in page-locked host memory.

    scripts/bench/loading.py [--model FILE] [--repeats N] [--json FILE] [--threads N]

The loopback accelerator is the device, and really locks pages, with ``mlock()``; for a GPU there is the table "Loading"
of ``gpu.py``. Each load is one of a process of its own, which loads twice:

pageable        plain memory
pinned          memory of ours, which several threads fault in and lock while the file is read
pinned, theirs  the backend's own host buffer, which one call of one thread takes and locks before that

The file cache is cold (the file's pages were dropped) or warm, and files are read or mapped (``mmap``). Printed
are the medians: seconds, GB/s of the file (10^9 bytes a second), times what pageable took, seconds of the second load,
and of closing. Without ``--model`` a checkpoint of 2.1 GB with random weights is written first. Needs a build with
SDCPP_TEST_BACKEND=ON (scripts/test makes one), and RLIMIT_MEMLOCK lifted or CAP_IPC_LOCK.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdcpp_py.reports import table

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

WAYS = ("pageable", "pinned", "pinned, theirs")


def load(given: dict[str, Any]) -> dict[str, Any]:
    """Load a model twice in this process, and return the seconds of loading and closing it."""
    import sdcpp_py
    from support.loopback import Loopback

    Loopback(lock_pages=1, host_lock=given["way"] != "pinned, theirs", memory_total=64e9)
    path = Path(given["model"])
    with path.open("rb") as file:
        if given["cold"]:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while file.read(1 << 24):
                pass
    found: dict[str, Any] = {"loading": [], "closing": []}
    for _ in range(2):
        start = time.perf_counter()
        sd = sdcpp_py.StableDiffusion(
            path,
            runtime_backend="loopback0",
            params_backend="cpu",
            pin_params="never" if given["way"] == "pageable" else "require",
            mmap=given["mmap"],
            threads=given["threads"],
            progress=False,
        )
        found["loading"].append(time.perf_counter() - start)
        start = time.perf_counter()
        sd.close()
        found["closing"].append(time.perf_counter() - start)
    return found


def measure(model: Path, repeats: int, threads: int | None) -> list[dict[str, Any]]:
    """Return a row for each way, cache and way of reading; the ways take turns, so that what else runs hits all."""
    rows = [
        {"way": way, "cold": cold, "mmap": mmap, "runs": []}
        for cold in (True, False)
        for mmap in (False, True)
        for way in WAYS
    ]
    for _ in range(repeats):
        for row in rows:
            asked = {name: row[name] for name in ("way", "cold", "mmap")}
            given = json.dumps({**asked, "model": str(model), "threads": threads})
            done = subprocess.run([sys.executable, __file__, "--worker", given], check=True, stdout=subprocess.PIPE)
            row["runs"].append(json.loads(done.stdout))
    for row in rows:
        row["first"], row["second"] = (statistics.median(run["loading"][i] for run in row["runs"]) for i in (0, 1))
        row["closing"] = statistics.median(seconds for run in row["runs"] for seconds in run["closing"])
    return rows


def show(rows: Sequence[dict[str, Any]], size: int) -> str:
    """Return the table."""
    plain = {(row["cold"], row["mmap"]): row for row in rows if row["way"] == "pageable"}
    cells = []
    for row in rows:
        base = plain[row["cold"], row["mmap"]]
        cells.append(
            (
                row["way"],
                "cold" if row["cold"] else "warm",
                "mapped" if row["mmap"] else "read",
                f"{row['first']:.2f}",
                f"{size / row['first'] / 1e9:.2f}",
                f"{row['first'] / base['first']:.2f}",
                f"{row['second']:.2f}",
                f"{row['second'] / base['second']:.2f}",
                f"{row['closing']:.2f}",
            )
        )
    header = ("weights", "cache", "file is", "seconds", "GB/s", "ratio", "again", "ratio again", "closing")
    return table(header, cells, header[3:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--worker"]:
        print(json.dumps(load(json.loads(given[1]))))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a checkpoint (default: one of 2.1 GB is written)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of each load (default: 3)")
    parser.add_argument("--threads", type=int, metavar="N", help="that read (default: one for each core)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    options = parser.parse_args(given)
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model is None:
            from support.checkpoints import write_checkpoint

            model = Path(folder) / "model.safetensors"
            write_checkpoint("sd1", model, tiny=False)
        rows = measure(model, options.repeats, options.threads)
        size = model.stat().st_size
    print(show(rows, size))
    if options.json:
        options.json.write_text(json.dumps({"bytes": size, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

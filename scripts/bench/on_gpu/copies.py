"""Copies to the device as they are, without anything of ours."""

from __future__ import annotations

import subprocess
import time

from .jobs import GIB, Row


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

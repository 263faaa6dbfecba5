"""How much memory of host and device is in use."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from .jobs import Row
from .saying import say


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

"""How fast the disk is that a model's files lie on: measured on the files themselves, once for each file system."""

from __future__ import annotations

import mmap
import os
import random
import threading
import time
from collections.abc import Iterable

BLOCK = 4 << 20
"""Bytes that are read at once, as weights on disk are: native/sdcpp/disk/read_ahead.h."""
READERS = 8
SECONDS = 0.2
"""After which no block is begun any more."""
MOST = 256 << 20
"""Bytes that are read at most."""

_known: dict[int, float] = {}  # file system -> bytes a second
_lock = threading.Lock()


def disk_rate(paths: Iterable[str | os.PathLike[str] | bytes]) -> float | None:
    """Return the bytes a second that the slowest disk of some files gives; None where none can be read.

    Blocks at random places of the largest file are read past the system's cache where that is possible: what is cached
    makes room for weights in host memory.

    Args:
        paths: files, indexes of shards, or folders.
    """
    largest: dict[int, tuple[int, bytes]] = {}
    for path in paths:
        for file in _files(os.fsencode(path)):
            try:
                found = os.stat(file)
            except OSError:
                continue
            largest[found.st_dev] = max(largest.get(found.st_dev, (0, b"")), (found.st_size, file))
    rates = []
    with _lock:
        for system, (size, file) in largest.items():
            if system not in _known and (measured := _measure(file, size)) is not None:
                _known[system] = measured
            if system in _known:
                rates.append(_known[system])
    return min(rates, default=None)


def _files(path: bytes) -> list[bytes]:
    """Return the files that a path means; of an index of shards those beside it."""
    folder = os.path.dirname(path) if path.endswith(b".json") else path
    if not os.path.isdir(folder):
        return [path]
    return [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names]


def _measure(path: bytes, size: int) -> float | None:
    """Return the bytes a second with which a file is read, or None where it cannot be."""
    if size == 0 or not hasattr(os, "preadv"):
        return None
    try:
        file = _opened(path)
    except OSError:
        return None
    # Each at its own place, so that none is read twice.
    places = list(range(0, size, BLOCK))
    random.Random(0).shuffle(places)
    places = places[: MOST // BLOCK]
    done: list[int] = []
    begin = time.perf_counter()

    def work() -> None:
        with mmap.mmap(-1, BLOCK) as block:  # of whole pages, as reading past the cache needs it
            while places and time.perf_counter() - begin < SECONDS:
                try:
                    done.append(os.preadv(file, [block], places.pop()))
                except (OSError, IndexError):  # a file that ends in the middle of a page, or another thread was faster
                    return

    threads = [threading.Thread(target=work) for _ in range(READERS)]
    try:
        for thread in threads:
            thread.start()
    finally:
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        os.close(file)
    seconds = time.perf_counter() - begin
    return sum(done) / seconds if sum(done) > 0 else None


def _opened(path: bytes) -> int:
    """Open a file for reading, past the system's cache where its file system can."""
    direct = getattr(os, "O_DIRECT", 0)
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        file = os.open(path, flags | direct)
    except OSError:
        return os.open(path, flags)
    if not direct:
        return file
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            os.preadv(file, [page], 0)
    except OSError:  # it opens such files, but reads none
        os.close(file)
        return os.open(path, flags)
    return file

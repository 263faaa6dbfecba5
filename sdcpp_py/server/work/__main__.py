"""``python -m sdcpp_py.server.work``: a worker, which speaks frames on its standard input and output."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

from ..frames import pack, read
from .worker import Worker


def work(source: IO[bytes], sink: IO[bytes]) -> None:
    """Work on the frames of one file, and answer into another; the front's end is the worker's."""
    lock = threading.Lock()

    def say(message: dict[str, Any], blobs: Sequence[bytes]) -> None:
        data = pack(message, blobs)
        with lock:
            sink.write(data)
            sink.flush()

    worker = Worker(say)

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError, ValueError):
            while True:
                worker.take(read(source))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    worker.run()


def main() -> None:
    """Work on what standard input says; whatever else is written to standard output goes to standard error."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the front's business: terminals and systemd send them to all at once
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    logging.basicConfig(level=logging.WARNING, format="worker: %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("sdcpp_py.engine").propagate = False  # errors carry its lines already
    work(source, sink)


if __name__ == "__main__":
    main()

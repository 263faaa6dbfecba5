"""A worker: a program that speaks frames on its standard input and output."""

from __future__ import annotations

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
            try:
                sink.write(data)
                sink.flush()
            except OSError:  # nobody is there
                os._exit(0)

    worker = Worker(say)

    def listen() -> None:
        try:
            while True:
                worker.take(read(source))
        except (EOFError, OSError):
            os._exit(0)
        except BaseException:  # no frame, or more than there is memory for: what follows cannot be heard any more
            logging.getLogger("sdcpp_py.server").exception("the front cannot be heard")
            os._exit(1)

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

"""``python -m sdcpp_py.server.work``: a worker, which speaks frames on its standard input and output."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

from ..frames import pack, read

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def work(source: IO[bytes], sink: IO[bytes]) -> None:
    """Work on the frames of one file, and answer into another; the front's end is the worker's."""
    from .worker import Worker

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


def _end_with_the_front() -> None:
    """Have the system end this process with the one that started it: one that is stopped then would not hear of it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def main() -> None:
    """Work on what standard input says; whatever else is written to standard output goes to standard error."""
    _end_with_the_front()  # before all that is imported
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

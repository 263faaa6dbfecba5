"""A server in a process of its own, as people start it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

DRAWN = {"width": 64, "height": 64, "steps": 2}
"""Options with which the embedded model is done soon."""


class Server:
    """A running server.

    Attributes:
        process: of the front.
        url: where it listens.
        http: asks it.
    """

    def __init__(self, process: subprocess.Popen[str], url: str, token: str) -> None:
        self.process = process
        self.url = url
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self.http = httpx.Client(base_url=url, timeout=60, headers=headers)

    def submit(self, mode: str = "txt2img", *, headers: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
        """Ask for a job, and return it."""
        fields = {name: options.pop(name) for name in ("model", "priority", "seconds", "output") if name in options}
        asked = {"prompt": "a red circle", **DRAWN, **options} if mode != "upscale" else options
        answer = self.http.post("/api/jobs", json={"mode": mode, "options": asked, **fields}, headers=headers)
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def job(self, job: str) -> dict[str, Any]:
        """Return a job as it is now."""
        return dict(self.http.get(f"/api/jobs/{job}").raise_for_status().json())

    def wait(self, job: str, *states: str, seconds: float = 30.0) -> dict[str, Any]:
        """Return a job when it is in one of some states, by default when it has ended."""
        if not states:
            found: dict[str, Any] = self.http.get(f"/api/jobs/{job}?wait={seconds}").json()
            assert found["state"] in ("done", "failed", "cancelled"), found
            return found
        end = time.monotonic() + seconds
        while (found := self.job(job))["state"] not in states:
            assert time.monotonic() < end, found
            time.sleep(0.02)
        return found

    def events(self, job: str, last: str = "") -> list[tuple[int, str, dict[str, Any]]]:
        """Return number, kind and data of each event of a job, from after the one of a number to its end."""
        found, event = [], dict[str, str]()
        headers = {"last-event-id": last} if last else {}
        with self.http.stream("GET", f"/api/jobs/{job}/events", headers=headers) as answer:
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if not line and "data" in event:
                    found.append((int(event["id"]), event["event"], json.loads(event["data"])))
                    event = {}
                event[name] = value
        return found

    def worker_pids(self) -> list[int]:
        """Return the ids of the worker processes."""
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True)
        return [int(each) for each in found.stdout.split()]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(30)


@contextlib.contextmanager
def serving(store: Path, *arguments: str, token: str = "") -> Iterator[Server]:
    """Yield a server that is taken down afterwards."""
    command = [sys.executable, "-m", "sdcpp_py", "serve", "--port", "0", "--store", str(store), *arguments]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "SDCPP_TOKEN": token}
    with (store.parent / f"{store.name}.log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        server = None
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("serving on "), (store.parent / f"{store.name}.log").read_text()
            server = Server(process, line.split()[-1], token)
            yield server
        finally:
            if server is not None:
                server.http.close()
            if process.poll() is None:
                process.terminate()
            process.wait(30)
            if process.stdout is not None:
                process.stdout.close()

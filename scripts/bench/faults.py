"""A server in which faults are made at random moments, and whether it lost, swapped or tore anything for them.

``python scripts/bench/faults.py [--faults 500] [--clients 8] [--workers 2] [--seed 0]`` starts a server of the embedded
model, and has clients ask for pictures until so many faults were made, each kind as often as the others:

- ``worker``, ``front``: SIGKILL;
- ``hang``: SIGSTOP of a worker;
- ``pause``: SIGSTOP of the front for a while;
- ``disk``: the front can write nothing for a while, as on a full disk;
- ``memory``: a worker gets no memory for a while;
- ``cut``: a client goes away in the middle of its request or of the answer;
- ``slow``: a client that reads what it asked for a few bytes at a time;
- ``body``: a multipart body that ends in its middle, or never.

Every job that was taken must end: done, with the pixels of its seed; or failed, for a reason that the faults made so
far can give, and no more of them than there were faults. At the end the server is started once more, and all that it
knows is looked at again: each job has ended, none is there twice, each picture that is listed is whole, its folder
holds nothing else, its data base is sound, no file stays open, and no process is left. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import io
import json
import os
import random
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent))

from serve import NO_ANSWER, Front, Http, open_files, resident

SEEDS = 12
"""Different pictures that are asked for; each is drawn beforehand, to compare with."""
ENDED = ("done", "failed", "cancelled")
BUSY = (429, 503, 507)
"""What a client is answered that may ask again."""
REASONS = {
    "WorkerLostError": {"worker", "hang", "memory"},
    "StoreError": {"disk"},
    "MemoryError": {"memory"},
    "DeviceMemoryError": {"memory"},
    "GenerationError": {"memory"},
    "ModelError": {"memory"},
    "BackendError": {"memory"},
}
"""Of each error that a job may end with, the faults that give it."""
NO_MEMORY = ("MemoryError", "ImportError", "Cannot allocate memory", "can't start new thread")
"""Of the last lines of tracebacks, those that refused memory gives: in a worker that begins, too."""
_NOTHING = 1  # byte that a file may grow to where nothing can be written


def asked(seed: int) -> dict[str, Any]:
    """Return the request of a seed: some are longer, and some have a picture that goes in."""
    options: dict[str, Any] = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 2 + seed, "seed": seed}
    if seed % 3:
        return {"mode": "txt2img", "options": options}
    side = 64 if seed % 2 else 384  # the larger one does not fit into a pipe
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    photo = base64.b64encode(buffer.getvalue()).decode()
    return {"mode": "img2img", "options": {**options, "image": photo, "resize_mode": "resize"}}


def wanted() -> dict[int, str]:
    """Return the digest of each seed's file, as a program draws it that has no server."""
    code = f"""
import base64, hashlib, io, json, sys, sdcpp_py
sys.path.insert(0, {str(Path(__file__).resolve().parent)!r})
from faults import SEEDS, asked
found = {{}}
with sdcpp_py.StableDiffusion(progress=False) as sd:
    for seed in range(SEEDS):
        request = asked(seed)
        options = dict(request["options"])
        if "image" in options:
            options["image"] = base64.b64decode(options["image"])
        buffer = io.BytesIO()
        getattr(sd, request["mode"])(**options)[0].save(buffer, format="PNG")
        found[seed] = hashlib.sha256(buffer.getvalue()).hexdigest()
print(json.dumps(found))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {int(seed): digest for seed, digest in json.loads(told.stdout).items()}


class Run:
    """What clients, faults and the look at the end have in common.

    Attributes:
        made: how often each fault was made.
        done: jobs that came as wanted: their ids, with their seeds.
        failed: jobs that ended with an error, by its type.
        wrong: what must not be, a line each.
        retried: how many of the jobs were begun with more than once.
        pids: of every worker that was seen.
    """

    def __init__(self, front: Front, http: Http, digests: dict[int, str], chance: random.Random) -> None:
        self.front = front
        self.http = http
        self.digests = digests
        self.chance = chance
        self.made: Counter[str] = Counter()
        self.done: dict[str, int] = {}
        self.failed: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.retried = 0
        self.pids: set[int] = set()
        self.over = asyncio.Event()

    # --- clients ------------------------------------------------------------------------------------------------------

    async def answer(self, method: str, path: str, body: Any = None, headers: Any = None) -> tuple[int, bytes]:
        """Return what is answered, asking again while the server is not there, or busy."""
        while True:
            try:
                status, content = await self.http.request(method, path, body, headers)
            except NO_ANSWER:
                await asyncio.sleep(0.1)
                continue
            if status not in BUSY:
                return status, content
            await asyncio.sleep(0.2)

    async def client(self, number: int) -> None:
        """Ask for one job after the other until all faults were made, and look at each."""
        order = random.Random(number)
        index = 0
        while not self.over.is_set():
            seed = order.randrange(SEEDS)
            await self.job(seed, {"x-sdcpp-client": f"client {number}", "idempotency-key": f"{number} {index}"})
            index += 1

    async def job(self, seed: int, headers: dict[str, str]) -> None:
        """Ask for a job, and look at how it ends."""
        status, content = await self.answer("POST", "/api/jobs?wait=30", asked(seed), headers)
        while status in (200, 202) and (job := json.loads(content))["state"] not in ENDED:
            status, content = await self.answer("GET", f"/api/jobs/{job['id']}?wait=30")
        if status not in (200, 202):
            self.wrong.append(f"seed {seed}: answered with {status}: {content[:200]!r}")
            return
        self.retried += job["attempts"] > 1
        if job["state"] == "done":
            self.done[job["id"]] = seed
            await self.picture(job, seed)
        else:
            self.failure(job)

    async def picture(self, job: dict[str, Any], seed: int) -> None:
        """Look at a job's picture."""
        if len(job["pictures"]) != 1:
            self.wrong.append(f"job {job['id']}: done, with {len(job['pictures'])} pictures")
            return
        status, content = await self.answer("GET", job["pictures"][0])
        if status != 200 or hashlib.sha256(content).hexdigest() != self.digests[seed]:
            self.wrong.append(f"job {job['id']}: {status}, {len(content)} bytes, not the picture of seed {seed}")

    def failure(self, job: dict[str, Any]) -> None:
        """Look at why a job failed."""
        error = job["error"] or {}
        kind, message = error.get("type"), error.get("message")
        self.failed[str(kind)] += 1
        if job["state"] != "failed" or not message or not any(self.made[each] for each in REASONS.get(str(kind), ())):
            self.wrong.append(f"job {job['id']}: {job['state']} without a reason: {kind}: {message}")
        elif kind == "WorkerLostError" and job["attempts"] < 2:
            self.wrong.append(f"job {job['id']}: given up after {job['attempts']} attempt: {message}")

    # --- faults -------------------------------------------------------------------------------------------------------

    async def disturb(self, faults: int) -> None:
        """Make faults at random moments, each kind as often as the others."""
        kinds = list(self.kinds)
        order = [kinds[index % len(kinds)] for index in range(faults)]
        self.chance.shuffle(order)
        beside: set[asyncio.Task[None]] = set()
        for kind in order:
            await asyncio.sleep(self.chance.uniform(0.1, 1.5))
            self.pids |= set(self.front.worker_pids())
            fault = asyncio.create_task(self.kinds[kind](self))
            self.made[kind] += 1
            beside.add(fault)
            fault.add_done_callback(beside.discard)
            if kind == "front":
                await fault
            if sum(self.made.values()) % 50 == 0:
                said = f"{sum(self.made.values())} faults, {len(self.done)} done, {sum(self.failed.values())} failed"
                print(f"{said}, {len(self.wrong)} wrong", file=sys.stderr)
        await asyncio.gather(*beside)
        self.over.set()

    def _signal_worker(self, number: int) -> None:
        if pids := self.front.worker_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.chance.choice(pids), number)

    async def _worker(self) -> None:
        self._signal_worker(signal.SIGKILL)

    async def _hang(self) -> None:
        self._signal_worker(signal.SIGSTOP)

    async def _front(self) -> None:
        await asyncio.to_thread(self.front.again)
        await self.front.ready(self.http)

    async def _pause(self) -> None:
        pid = self.front.process.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(self.chance.uniform(0.1, 3.0))
            os.kill(pid, signal.SIGCONT)

    async def _limited(self, pid: int, what: int, value: int, seconds: float) -> None:
        """Have a process have no more of something than a value, for a while."""
        with contextlib.suppress(ProcessLookupError):
            hard = resource.prlimit(pid, what)[1]
            resource.prlimit(pid, what, (value, hard))
            await asyncio.sleep(seconds)
            resource.prlimit(pid, what, (hard, hard))

    async def _disk(self) -> None:
        # What is started meanwhile has it, too: a worker writes no file.
        await self._limited(self.front.process.pid, resource.RLIMIT_FSIZE, _NOTHING, self.chance.uniform(0.1, 4.0))

    async def _memory(self) -> None:
        if pids := self.front.worker_pids():
            pid = self.chance.choice(pids)
            with contextlib.suppress(OSError, IndexError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
                size = pages * os.sysconf("SC_PAGE_SIZE") + self.chance.choice((0, 1 << 20, 1 << 24))
                await self._limited(pid, resource.RLIMIT_AS, size, self.chance.uniform(0.1, 4.0))

    async def _sent(self, data: bytes, read: Callable[[asyncio.StreamReader], Coroutine[Any, Any, None]]) -> None:
        """Send bytes over a connection of their own, do something with the answer, and close it."""
        where = urlsplit(self.front.url)
        with contextlib.suppress(*NO_ANSWER):
            with socket.socket() as small:
                small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                small.setblocking(False)
                await asyncio.get_running_loop().sock_connect(small, (where.hostname, where.port))
                reader, writer = await asyncio.open_connection(sock=small.dup(), limit=2048)
            try:
                writer.write(data)
                await asyncio.wait_for(writer.drain(), 10)
                await asyncio.wait_for(read(reader), 10)
            finally:
                writer.transport.abort() if self.chance.random() < 0.5 else writer.close()

    async def _cut(self) -> None:
        body = json.dumps(asked(self.chance.randrange(SEEDS))).encode()
        lines = ["POST /api/jobs?wait=30 HTTP/1.1", "Host: localhost", "Content-Type: application/json",
                 f"Content-Length: {len(body)}", "X-Sdcpp-Client: cut"]  # fmt: skip
        if self.chance.random() < 0.5:
            lines.append("X-Sdcpp-Cancel-On-Disconnect: 1")
        whole = "\r\n".join([*lines, "", ""]).encode() + body
        size = self.chance.choice((len(whole), self.chance.randrange(len(whole))))

        async def wait(reader: asyncio.StreamReader) -> None:
            await asyncio.sleep(self.chance.uniform(0.0, 0.5))

        await self._sent(whole[:size], wait)

    async def _slow(self) -> None:
        path = self.chance.choice(("/api/openapi.json", "/api/jobs?limit=500", "/api/events"))
        end = time.monotonic() + self.chance.uniform(1.0, 8.0)

        async def read(reader: asyncio.StreamReader) -> None:
            while time.monotonic() < end and await reader.read(16):
                await asyncio.sleep(0.05)

        await self._sent(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), read)

    async def _body(self) -> None:
        path = self.chance.choice(("/v1/images/edits", "/v1/images/variations", "/api/parameters"))
        part = '--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\nContent-Type: image/png\r\n\r\n'
        data = part.encode() + base64.b64decode(asked(0)["options"]["image"])
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        length = self.chance.choice((len(data) + 5000, len(data)))  # or whole, but without an end of the form
        sent = data[: self.chance.randrange(len(data))] if length > len(data) else data
        end = self.chance.uniform(0.0, 8.0)

        async def wait(reader: asyncio.StreamReader) -> None:
            with contextlib.suppress(asyncio.TimeoutError):
                line = await asyncio.wait_for(reader.readline(), end)
                if line and not line.startswith(b"HTTP/1.1 4") and not line.startswith(b"HTTP/1.1 503"):
                    self.wrong.append(f"half a form to {path} was answered with {line!r}")

        await self._sent(f"{head}Content-Length: {length}\r\n\r\n".encode() + sent, wait)

    kinds: ClassVar[Mapping[str, Callable[[Run], Coroutine[Any, Any, None]]]] = {
        "worker": _worker, "front": _front, "hang": _hang, "pause": _pause, "disk": _disk, "memory": _memory,
        "cut": _cut, "slow": _slow, "body": _body,
    }  # fmt: skip

    # --- the end ------------------------------------------------------------------------------------------------------

    async def look(self, store: Path) -> int:
        """Look at all that the server knows, started anew; return how many jobs that is."""
        jobs: dict[str, dict[str, Any]] = {}
        before = ""
        while found := json.loads((await self.answer("GET", f"/api/jobs?limit=500{before}"))[1])["jobs"]:
            jobs |= {job["id"]: job for job in found}
            before = f"&before={found[-1]['created']!r}"
        for job in jobs.values():
            if job["state"] not in ENDED:
                job = json.loads((await self.answer("GET", f"/api/jobs/{job['id']}?wait=60"))[1])
            seed = job["options"]["seed"]
            if job["state"] == "done":
                await self.picture(job, seed)
            elif job["state"] == "failed":
                error = job["error"] or {}
                if not error.get("message") or error.get("type") not in REASONS:
                    self.wrong.append(f"job {job['id']}: failed without a reason: {error}")
            elif job["client"] != "cut":
                self.wrong.append(f"job {job['id']}: {job['state']} at the end")
        self.wrong += [f"job {job}: was done, and is lost" for job in self.done.keys() - jobs.keys()]
        if sum(self.failed.values()) > sum(self.made.values()):
            self.wrong.append(f"{sum(self.failed.values())} jobs failed, of {sum(self.made.values())} faults")
        return len(jobs)

    def look_at_rest(self, store: Path, log: Path) -> None:
        """Look at what is left when the server has ended: its folder, its data base, its processes, its log."""
        with contextlib.closing(sqlite3.connect(store / "jobs.sqlite")) as base:
            (sound,) = base.execute("PRAGMA integrity_check").fetchone()
            rows = base.execute("SELECT id, state, files, inputs FROM jobs").fetchall()
            keys = base.execute("SELECT count(*), count(DISTINCT client || key) FROM jobs WHERE key != ''").fetchone()
        if sound != "ok" or keys[0] != keys[1]:
            self.wrong.append(f"the data base is not sound: {sound}, {keys}")
        known = {name for _, _, files, _ in rows for name in json.loads(files)}
        there = {file.name for file in (store / "pictures").iterdir()}
        inputs = {job for job, _, _, count in rows if count}
        left = {folder.name for folder in (store / "inputs").iterdir()}
        self.wrong += [f"{name} is no picture of a job" for name in there - known]
        self.wrong += [f"{name} is gone" for name in known - there]
        self.wrong += [f"inputs/{name} is of no job" for name in left - inputs]
        self.wrong += [f"process {pid} is left" for pid in self.pids if is_worker(pid)]
        self.wrong += [
            f"log: {line}" for line in raised(log.read_text()) if not any(each in line for each in NO_MEMORY)
        ]


def raised(log: str) -> list[str]:
    """Return what the tracebacks of a log end with."""
    found: list[str] = []
    within = False
    for line in log.splitlines():
        if line.startswith("Traceback"):
            within = True
        elif within and line.strip() and not line.startswith(" "):
            found.append(line)
            within = False
    return found


def is_worker(pid: int) -> bool:
    """Tell whether a process is there, and one of ours."""
    try:
        return b"sdcpp_py.server.work" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


async def measure(front: Front, folder: Path, arguments: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    """Run the clients and the faults, start the server once more, and return what came of it."""
    with contextlib.closing(Http(front.url)) as http:
        run = Run(front, http, wanted(), random.Random(arguments.seed))
        await front.ready(http)
        begin = time.monotonic()
        await asyncio.gather(run.disturb(arguments.faults), *(run.client(each) for each in range(arguments.clients)))
        memory = resident(front.process.pid)
        await asyncio.sleep(1.0)
        if (files := open_files(front.process.pid)) > 60 + arguments.clients:
            run.wrong.append(f"{files} files are open in the front")
        front.process.terminate()
        await asyncio.to_thread(front.process.wait, 120)
        front.again()
        await front.ready(http)
        known = await run.look(folder / "store")
    return run, {
        "faults": dict(run.made),
        "jobs asked for and awaited": len(run.done) + sum(run.failed.values()),
        "done": len(run.done),
        "failed with a reason": dict(run.failed),
        "begun more than once": run.retried,
        "jobs that the server knows": known,
        "starts of the front": front.starts,
        "memory of the front in MiB": memory,
        "files open in the front": files,
        "seconds": round(time.monotonic() - begin, 1),
    }


def main() -> int:
    """Make the faults, print what came of them, and return 0 where nothing was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the order and the moments of the faults")
    parser.add_argument("--keep", help="folder in which the store and the log stay")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(arguments.keep or made)
        folder.mkdir(parents=True, exist_ok=True)
        front = Front(folder, arguments.workers)
        try:
            run, report = asyncio.run(measure(front, folder, arguments))
        finally:
            front.process.terminate()
            front.process.wait(120)
        time.sleep(1.0)
        run.look_at_rest(folder / "store", folder / "server.log")
    print(json.dumps({**report, "wrong": run.wrong}, indent=2))
    return 1 if run.wrong or sum(run.made.values()) != arguments.faults else 0


if __name__ == "__main__":
    sys.exit(main())

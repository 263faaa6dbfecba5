"""A server under load: many clients at once.

``python scripts/bench/serve.py [--clients 50] [--jobs 2000] [--workers 1]`` starts a server of the embedded model, has
every client ask for its share of the jobs, and says how many pictures came, whether each is that of its seed, how
evenly the clients were served, how long the status routes took meanwhile, what memory and files the front and the
workers have, and how that compares with drawing the same pictures in one process without a server. With faults:
``faults.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

OPTIONS: dict[str, Any] = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 2}
SEEDS = 16
"""Different pictures that are asked for; each is drawn beforehand, to compare with."""


def cpu_seconds(pid: int) -> float:
    """Return the seconds of a CPU that a process has had; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """Return the memory that a process has, in MiB; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def open_files(pid: int) -> int:
    """Return how many files a process has open; 0 where the system does not tell."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


class Front:
    """The server, started again when it is killed."""

    def __init__(self, folder: Path, workers: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.starts = 0
        self._folder = folder
        self._workers = workers
        self._log = (folder / "server.log").open("a")
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        command = [
            sys.executable, "-m", "sdcpp_py", "serve", "--port", str(self.port), "--store", str(self._folder / "store"),
            "--workers", str(self._workers), "--queue-size", "100000", "--hang-seconds", "60",
        ]  # fmt: skip
        return subprocess.Popen(command, stdout=self._log, stderr=self._log)

    def again(self) -> None:
        """Kill the front, and start it anew."""
        self.process.kill()
        self.process.wait()
        self.process = self._start()

    def worker_pids(self) -> list[int]:
        """Return the ids of the worker processes."""
        told = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True)
        return [int(each) for each in told.stdout.split()]

    def seconds(self) -> dict[str, float]:
        """Return the seconds of a CPU that the front and its workers have had."""
        workers = sum(map(cpu_seconds, self.worker_pids()))
        return {"front": cpu_seconds(self.process.pid), "workers": workers, "clients": time.process_time()}

    async def ready(self, http: Http) -> None:
        """Wait until it takes jobs."""
        while True:
            with contextlib.suppress(*NO_ANSWER):
                if (await http.request("GET", "/api/ready"))[0] == 200:
                    return
            await asyncio.sleep(0.05)


class Http:
    """Asks a server over connections that are kept: a client that costs little, for what it takes is not the server's.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        self._where = urlsplit(url)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, seconds: float = 60.0
    ) -> tuple[int, bytes]:
        """Return status and content of an answer.

        Raises:
            OSError, EOFError, asyncio.TimeoutError: there is none.
        """
        host, port = self._where.hostname, self._where.port
        connection = self._idle.pop() if self._idle else await asyncio.open_connection(host, port)
        try:
            content = b"" if body is None else json.dumps(body).encode()
            lines = [f"{method} {path} HTTP/1.1", f"host: {host}", f"content-length: {len(content)}"]
            lines += [
                "content-type: application/json",
                *(f"{name}: {value}" for name, value in (headers or {}).items()),
            ]
            connection[1].write("\r\n".join([*lines, "", ""]).encode() + content)
            answer = await asyncio.wait_for(self._answer(connection[0]), seconds)
        except BaseException:
            connection[1].close()
            raise
        self._idle.append(connection)
        return answer

    @staticmethod
    async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"\ncontent-length:")[2].partition(b"\r")[0]
        return int(head.split(b" ", 2)[1]), await reader.readexactly(int(length or 0))

    def close(self) -> None:
        """Close the connections."""
        for _, writer in self._idle:
            writer.close()


NO_ANSWER = (OSError, EOFError, asyncio.TimeoutError)


async def asked(http: Http, method: str, path: str, body: Any = None, headers: Any = None) -> bytes:
    """Return what is answered, asking again while the server is not there."""
    while True:
        try:
            status, content = await http.request(method, path, body, headers)
        except NO_ANSWER:
            await asyncio.sleep(0.1)
            continue
        if status not in (429, 503):
            return content
        await asyncio.sleep(0.2)


async def client(
    http: Http, number: int, jobs: int, done: list[tuple[int, float]], failed: list[str], bad: list[str]
) -> None:
    """Ask for jobs one after the other, two ahead, and look at each picture."""
    headers = {"x-sdcpp-client": f"client {number}"}
    order = random.Random(number)

    async def one(index: int) -> None:
        seed = order.randrange(SEEDS)
        body = {"mode": "txt2img", "options": {**OPTIONS, "seed": seed}}
        key = {**headers, "idempotency-key": f"{number} {index}"}
        job = json.loads(await asked(http, "POST", "/api/jobs?wait=30", body, key))
        while job.get("state") not in ("done", "failed", "cancelled"):
            job = json.loads(await asked(http, "GET", f"/api/jobs/{job['id']}?wait=30"))
        if job["state"] != "done":
            failed.append(f"{job['error']['type']}: {job['error']['message']}")
            return
        picture = await asked(http, "GET", job["pictures"][0])
        done.append((number, time.monotonic()))
        if hashlib.sha256(picture).hexdigest() != WANTED[seed]:
            bad.append(f"job {job['id']}: not the picture of seed {seed}")

    ahead = asyncio.Semaphore(2)

    async def limited(index: int) -> None:
        async with ahead:
            await one(index)

    await asyncio.gather(*(limited(index) for index in range(jobs)))


WANTED: dict[int, str] = {}


async def watch(http: Http, took: list[float]) -> None:
    """Ask the status routes all the time, and note how long each took."""
    while True:
        for path in ("/api/health", "/api/ready", "/sdapi/v1/progress", "/api/jobs?limit=10"):
            begin = time.perf_counter()
            with contextlib.suppress(*NO_ANSWER):
                await http.request("GET", path)
                took.append(time.perf_counter() - begin)
        await asyncio.sleep(0.25)


def drawn_alone(count: int) -> tuple[float, float]:
    """Return the seconds that so many of the pictures take without a server, by the clock and of CPUs.

    What each seed's picture is goes into WANTED.
    """
    code = f"""
import hashlib, io, json, time, sdcpp_py
def file_of(image):
    buffer = io.BytesIO(); image.save(buffer, format="PNG"); return buffer.getvalue()
options = {OPTIONS!r}
with sdcpp_py.StableDiffusion(progress=False) as sd:
    files = {{seed: file_of(sd.txt2img(**options, seed=seed)[0]) for seed in range({SEEDS})}}
    wanted = {{seed: hashlib.sha256(file).hexdigest() for seed, file in files.items()}}
    begin, before = time.perf_counter(), time.process_time()
    for index in range({count}):
        file_of(sd.txt2img(**options, seed=index % {SEEDS})[0])
    print(json.dumps([time.perf_counter() - begin, time.process_time() - before, wanted]))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, processor, wanted = json.loads(told.stdout)
    WANTED.update({int(seed): digest for seed, digest in wanted.items()})
    return float(seconds), float(processor)


def held(front: Front) -> dict[str, Any]:
    """Return the memory that the front and the workers have, and how many files the front has open."""
    workers = front.worker_pids()
    return {
        "MiB": {"front": resident(front.process.pid), "workers": [resident(pid) for pid in workers]},
        "files": open_files(front.process.pid),
    }


async def measure(front: Front, arguments: argparse.Namespace, alone: tuple[float, float]) -> int:
    """Run the clients, and say what came of it; return the number of jobs that did not go well."""
    with contextlib.closing(Http(front.url)) as http:
        await front.ready(http)
        await asked(http, "POST", "/api/jobs?wait=60", {"mode": "txt2img", "options": OPTIONS})
        before, used = held(front), front.seconds()
        done: list[tuple[int, float]] = []
        failed: list[str] = []
        bad: list[str] = []
        took: list[float] = []
        each = arguments.jobs // arguments.clients
        watching = asyncio.create_task(watch(http, took))
        begin = time.monotonic()
        await asyncio.gather(*(client(http, number, each, done, failed, bad) for number in range(arguments.clients)))
        seconds = time.monotonic() - begin
        spent = {name: value - used[name] for name, value in front.seconds().items()}
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        half = [number for number, when in done if when - begin < seconds / 2]
        counts = [half.count(number) for number in range(arguments.clients)]
        report = {
            "jobs": each * arguments.clients,
            "pictures that came": len(done),
            "failed with a reason": failed,
            "not as wanted": bad,
            "seconds": round(seconds, 2),
            "throughput over drawing alone": round(alone[0] / seconds * len(done) / arguments.jobs, 3),
            "CPU ms a picture, alone": round(1000 * alone[1] / arguments.jobs, 2),
            "CPU ms a picture": {name: round(1000 * each / max(1, len(done)), 2) for name, each in spent.items()},
            "jobs of a client after half the time, least, mean, most": [
                min(counts),
                statistics.mean(counts),
                max(counts),
            ],
            "status routes, p50 and p99 in ms": [
                round(1000 * float(value), 1)
                for value in (statistics.median(took), statistics.quantiles(took, n=100)[98])
            ],
            "memory in MiB, before and after": [before["MiB"], held(front)["MiB"]],
            "files open in the front, before and after": [before["files"], held(front)["files"]],
        }
        print(json.dumps(report, indent=2))
        return len(bad) + each * arguments.clients - len(done)


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--size", type=int, default=OPTIONS["width"], help="width and height in pixels")
    parser.add_argument("--steps", type=int, default=OPTIONS["steps"])
    arguments = parser.parse_args()
    OPTIONS.update(width=arguments.size, height=arguments.size, steps=arguments.steps)
    alone = drawn_alone(arguments.jobs)
    with tempfile.TemporaryDirectory() as folder:
        front = Front(Path(folder), arguments.workers)
        try:
            return 1 if asyncio.run(measure(front, arguments, alone)) else 0
        finally:
            front.process.terminate()
            front.process.wait(120)


if __name__ == "__main__":
    sys.exit(main())

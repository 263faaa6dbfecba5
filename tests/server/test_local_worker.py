"""Worker processes: what they draw, and what becomes of them."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdcpp_py.errors import SdcppError
from sdcpp_py.server import worker as framed
from sdcpp_py.server.frames import Frame, pack
from sdcpp_py.server.local_worker import LocalWorker
from sdcpp_py.server.model_list import ServedModel
from sdcpp_py.server.work.drawing import encoded
from sdcpp_py.server.work.worker import _error as worker_error
from sdcpp_py.server.worker import FramedWorker, Outcome, WorkerLostError
from support.checkpoints import write_checkpoint
from support.server import DRAWN

SERVED = [
    ServedModel("first"),
    ServedModel("second", loading={"kernels": "engine"}),
    ServedModel("gone", loading={"model": "/nowhere"}),
]


def request(model: str = "first", **options: Any) -> dict[str, Any]:
    return {"mode": "txt2img", "model": model, "options": {"prompt": "x", **DRAWN, **options}, "output": {}}


def with_worker(work: Callable[[LocalWorker], Coroutine[Any, Any, None]], **more: Any) -> None:
    async def whole() -> None:
        worker = LocalWorker("worker", **{"models": SERVED, **more})
        await worker.start()
        try:
            await work(worker)
        finally:
            await worker.stop()

    asyncio.run(asyncio.wait_for(whole(), 60))


async def whole(outcome: Outcome) -> Outcome:
    """Return an outcome with its files."""
    return outcome if outcome.later is None else await outcome.later


async def draw(worker: LocalWorker, *asked: Any, **options: Any) -> Outcome:
    return await whole(await worker.run("job", request(*asked, **options), [], lambda event, preview: None))


async def begun(worker: LocalWorker, **options: Any) -> asyncio.Task[Outcome]:
    """Return a job that is being sampled."""
    sampling = asyncio.Event()

    def told(event: dict[str, Any], preview: bytes | None) -> None:
        if event["phase"] == "sampling" and event["step"] > 1:
            sampling.set()

    task = asyncio.create_task(worker.run("job", request(steps=9000, **options), [], told))
    await asyncio.wait_for(sampling.wait(), 30)
    return task


def test_a_worker_holds_as_many_models_as_it_may() -> None:
    async def work(worker: LocalWorker) -> None:
        held = []
        for name in ("first", "second", "first"):
            outcome = await draw(worker, name)
            assert outcome.error is None
            held.append(set(worker.loaded))
        assert held == [{"first"}, {"second"}, {"first"}]
        assert worker.resident > 1 << 20
        outcome = await draw(worker, "gone")
        assert outcome.error is not None
        assert outcome.error["type"] == "ModelError"
        while worker.loaded:  # it is not used for so long
            await asyncio.sleep(0.05)

    with_worker(work, budget=20e6, idle_unload=0.5)


def test_a_job_is_cancelled_soon_and_the_worker_draws_on() -> None:
    async def work(worker: LocalWorker) -> None:
        task = await begun(worker)
        begin = time.monotonic()
        await worker.cancel("job")
        outcome = await task
        assert time.monotonic() - begin < 0.5
        assert outcome.error is not None
        assert outcome.error["type"] == "CancelledError"
        assert (await draw(worker)).error is None
        phases = []

        def at_once(event: dict[str, Any], preview: bytes | None) -> None:
            phases.append(event["phase"])
            if len(phases) == 1:
                cancels.append(asyncio.ensure_future(worker.cancel("job")))

        cancels: list[asyncio.Future[None]] = []
        outcome = await worker.run("job", request("second", steps=9000), [], at_once)
        assert outcome.error is not None
        assert outcome.error["type"] == "CancelledError"
        assert phases[0] == "loading"

    with_worker(work)


def test_videos_come_as_files(tmp_path: Path) -> None:
    write_checkpoint("wan_t2v", tmp_path / "wan.safetensors", tiny=True)
    film = {"prompt": "x", "width": 32, "height": 32, "steps": 1, "frames": 5}

    async def work(worker: LocalWorker) -> None:
        for kind, start in ((None, b"RIFF"), ("mp4", b"\0\0\0"), ("gif", b"GIF")):
            asked = {"mode": "txt2vid", "model": "wan", "options": film, "output": {"format": kind}}
            outcome = await whole(await worker.run("job", asked, [], lambda event, preview: None))
            assert outcome.error is None
            assert outcome.files[0].startswith(start)
            assert outcome.result is not None
            assert (outcome.result["frames"], outcome.result["size"]) == (5, [32, 32])

    with_worker(work, models=[ServedModel("wan", loading={"model": str(tmp_path / "wan.safetensors")})])


def test_a_worker_that_dies_or_hangs_is_lost_and_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framed, "BEAT_SECONDS", 2.5)

    async def work(worker: LocalWorker) -> None:
        for number, said in ((signal.SIGKILL, "signal 9"), (signal.SIGSTOP, "did not answer")):
            task = await begun(worker)
            assert worker.pid is not None
            os.kill(worker.pid, number)
            with pytest.raises(WorkerLostError, match=said):
                await task
            await worker.stop()
            await worker.start()
            assert (await draw(worker)).error is None

    with_worker(work)


def test_a_worker_that_takes_or_gives_nothing_is_lost_and_none_for_a_front_that_stood_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(framed, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(framed, "BEAT_SECONDS", 0.5)

    class Told(FramedWorker):
        """It beats, unless it is too full to take a picture; and it draws, but makes no files."""

        async def _posted(self) -> None:
            if self.device == "full":
                await asyncio.Event().wait()

        def _post(self, message: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
            if self.device != "full" and message["type"] == "job":
                beating.append(asyncio.create_task(self.beat()))

        async def beat(self) -> None:
            while True:
                await asyncio.sleep(0.2)  # later than the next look at it
                self._take(Frame({"type": "beat", "loaded": {}, "modes": {}, "resident": 0}))
                self._take(Frame({"type": "event", "event": {}}))

        def draw(self) -> None:
            self._take(Frame({"type": "drawn", "id": "job", "result": {}}))

        def _end(self) -> None:
            self._lost("ended")

    beating: list[asyncio.Task[None]] = []

    async def work() -> None:
        worker = Told("worker", SERVED, hang_seconds=0.8)
        drawing = asyncio.create_task(worker.run("job", request(), [], lambda *_: None))
        await asyncio.sleep(0.1)
        time.sleep(0.9)  # as a front that is stopped, or waits for a disk
        await asyncio.sleep(0.2)
        worker.draw()
        outcome = await drawing
        assert outcome.later is not None
        with pytest.raises(WorkerLostError, match="worker made no files for 1 s"):
            await outcome.later
        with pytest.raises(WorkerLostError, match="full did not answer for 0 s") as caught:
            await Told("full", SERVED, device="full").run("job", request(), [b""], lambda *_: None)
        assert not caught.value.begun
        for task in beating:
            task.cancel()
        # Also while it has no job, which is not to find it out.
        lost: list[str] = []
        worker.on_lost = lambda: lost.append(worker._reason)
        worker._reason = ""
        while not lost:
            await asyncio.sleep(framed.LOOK_SECONDS)
            worker.look()
        assert lost[0].startswith("did not answer")

    asyncio.run(asyncio.wait_for(work(), 5))


def test_a_process_that_could_not_be_killed_ends_late() -> None:
    """What has its place by then is not lost for it."""

    class Late:
        def __init__(self) -> None:
            self.stdout = asyncio.StreamReader()
            self.stdout.feed_data(pack({"type": "beat", "loaded": {"old": 1}, "modes": {}, "resident": 0}))
            self.stdout.feed_eof()

        async def wait(self) -> int:
            return -9

    async def work() -> None:
        worker = LocalWorker("worker", SERVED)
        worker._process = Late()  # type: ignore[assignment]
        worker._outcome = asyncio.get_running_loop().create_future()
        await worker._listen(Late())  # type: ignore[arg-type]
        assert not worker._outcome.done()
        assert not worker.loaded
        await worker._listen(worker._process)  # type: ignore[arg-type]
        with pytest.raises(WorkerLostError, match="signal 9"):
            worker._outcome.result()

    asyncio.run(work())


def test_a_worker_without_memory_is_replaced() -> None:
    """Else it would take job after job, and fail each of them at once."""

    async def work(worker: LocalWorker) -> None:
        assert (await draw(worker)).error is None
        assert worker.pid is not None
        before = resource.prlimit(worker.pid, resource.RLIMIT_AS)
        with open(f"/proc/{worker.pid}/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.prlimit(worker.pid, resource.RLIMIT_AS, (size, before[1]))
        with pytest.raises(WorkerLostError) as caught:
            await draw(worker, width=1024, height=1024)
        if caught.value.said is not None:  # else it ended by itself
            assert caught.value.said["type"] in ("MemoryError", "DeviceMemoryError")
        await worker.stop()
        await worker.start()
        assert (await draw(worker)).error is None

    if sys.platform == "linux":
        with_worker(work)


def test_what_a_worker_needs_is_there_before_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what fails in it unforeseen says nothing of this machine."""
    code = "import sys; from sdcpp_py.server.work import worker; from PIL import Image; " \
           "assert 'numpy.linalg' in sys.modules; assert 'WEBP' in Image.SAVE"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)
    for error, kind in ((ImportError("/a/path"), "InternalError"), (OSError(errno.ENOMEM, "x"), "MemoryError")):
        said = worker_error(error)
        assert said["type"] == kind
        assert "/a/path" not in said["message"]

    def starved(*_: Any, **__: Any) -> None:
        raise OSError("codec configuration error when writing image file")  # of zlib without memory

    monkeypatch.setattr(Image.Image, "save", starved)
    with pytest.raises(MemoryError):
        encoded(Image.new("RGB", (8, 8)), "png")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing ends a process with another")
def test_a_worker_that_is_stopped_while_it_begins_ends_with_its_front(tmp_path: Path) -> None:
    """Nothing of it has run by then that could hear of that."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\nif os.environ['FRONT'] == str(os.getppid()):\n    os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    code = """
import asyncio, os
from sdcpp_py.server.local_worker import LocalWorker
os.environ["FRONT"] = str(os.getpid())
asyncio.run(LocalWorker("worker", []).start())
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "FRONT": ""}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as front:
        children = Path(f"/proc/{front.pid}/task/{front.pid}/children")
        try:
            while not (pids := children.read_text().split()) or not is_stopped(pids[0]):
                assert front.poll() is None
                time.sleep(0.02)
        finally:
            front.kill()
    end = time.monotonic() + 10
    while (left := Path(f"/proc/{pids[0]}/exe").exists()) and time.monotonic() < end:
        time.sleep(0.02)
    if left:
        os.kill(int(pids[0]), signal.SIGKILL)
    assert not left


def is_stopped(pid: str) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_worker_imports_nothing_of_the_current_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """People start servers where their models lie, beside files of any name."""
    (tmp_path / "queue.py").write_text("raise RuntimeError('not the standard one')")
    monkeypatch.chdir(tmp_path)

    async def work(worker: LocalWorker) -> None:
        assert (await draw(worker)).error is None

    with_worker(work)


def test_a_worker_without_its_device_or_an_engine_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    broken = tmp_path / "sitecustomize.py"
    broken.write_text(
        "import sys\nclass Without:\n    def find_spec(self, name, *_):\n"
        "        if name == 'sdcpp_py._engine': raise ImportError('no engine')\nsys.meta_path.insert(0, Without())\n"
    )

    async def work() -> None:
        for more in ({"device": "none"}, {"device": "cpu", "devices": ["cpu", "none"]}):  # its own, or another's
            with pytest.raises(SdcppError, match="workers: device 'none' is unknown; devices: CPU"):
                await LocalWorker("worker", SERVED, **more).start()
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(SdcppError, match="_engine|no engine"):
            await LocalWorker("worker", SERVED).start()

    asyncio.run(asyncio.wait_for(work(), 30))

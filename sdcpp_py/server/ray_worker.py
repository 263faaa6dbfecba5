"""Workers on a Ray cluster: each is an actor that holds a GPU or a share of a node's CPUs.

Where actors run, and whether nodes are started for them, is Ray's business; a worker whose node goes away is lost as
one whose process dies. Messages go as Ray sends them: whoever reaches the cluster may run anything there anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .. import hub
from ..errors import ArgumentError, BackendError
from ..reports import GIB
from .frames import Frame
from .model_list import ServedModel
from .worker import FramedWorker, WorkerLostError
from .workers import count_and_devices

log = logging.getLogger("sdcpp_py.server")

START_SECONDS = 900.0
"""For a node that is started for it."""
_LISTEN_SECONDS = 5.0
_CALLS = 4  # of an actor that may be under way at a time: one listens, others bring frames


def _ray() -> Any:
    """Return Ray, or raise BackendError."""
    try:
        import ray
    except ImportError:
        raise BackendError('ray is missing: pip install "sdcpp-py[ray]", here and on every node') from None
    return ray


class Drawer:
    """The actor: a worker, the frames that it is brought and those that it has said."""

    def __init__(self) -> None:
        from .work.worker import Worker

        logging.getLogger("sdcpp_py.engine").propagate = False  # errors carry its lines already
        self._said: queue.SimpleQueue[tuple[dict[str, Any], list[bytes]]] = queue.SimpleQueue()
        self._worker = Worker(lambda message, blobs: self._said.put((message, list(blobs))))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        """Work; whatever ends that ends the process, and so the actor."""
        try:
            self._worker.run()
        finally:
            os._exit(1)

    def take(self, message: dict[str, Any], blobs: Sequence[bytes]) -> None:
        """Take a frame."""
        self._worker.take(Frame(message, tuple(blobs)))

    def said(self) -> list[tuple[dict[str, Any], list[bytes]]]:
        """Return what was said since the last call; wait a while for something."""
        found = []
        with contextlib.suppress(queue.Empty):
            found.append(self._said.get(timeout=_LISTEN_SECONDS))
            while True:
                found.append(self._said.get_nowait())
        return found


@dataclass
class RayWorker(FramedWorker):
    """An actor on a Ray cluster.

    Attributes:
        resources: that it holds: ``num_cpus``, ``num_gpus``.
    """

    resources: Mapping[str, float] = field(default_factory=dict)
    _actor: Any = None

    async def start(self) -> dict[str, Any]:
        """Start the actor when there is room for it, and return what it tells of its engine.

        Raises:
            WorkerLostError: it ended at once, or there was no room.
            BackendError: the engine cannot be loaded there.
        """
        options = {**self.resources, "max_restarts": 0, "max_concurrency": _CALLS}
        self._reason = ""
        self._ready = asyncio.get_running_loop().create_future()
        self._actor = _ray().remote(Drawer).options(**options).remote()
        self._heard = time.monotonic()
        self._reader = asyncio.create_task(self._listen(self._actor))
        return await self._started(START_SECONDS)

    def _post(self, message: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
        """Have a frame sent; raise WorkerLostError where nobody takes it."""
        if self._actor is None:
            raise WorkerLostError(f"{self.name} is not running")
        try:
            self._actor.take.remote(message, list(blobs))  # what becomes of it is heard by who listens
        except _ray().exceptions.RayError:
            raise WorkerLostError(f"{self.name} ended") from None

    async def _listen(self, actor: Any) -> None:
        """Take what the actor says until it ends; then say so to whoever waits for it."""
        how = "ended"
        try:
            while True:
                for message, blobs in await actor.said.remote():
                    self._take(Frame(message, tuple(blobs)))
        except asyncio.CancelledError:
            pass
        except _ray().exceptions.RayError as error:
            how = f"was lost by Ray ({' '.join(str(error).split())[:300]})"
        except Exception as error:
            how = f"failed ({type(error).__name__}: {error})"
        self._lost(how)

    def _end(self) -> None:
        """Kill the actor; nobody waits until the cluster has noticed."""
        if self._actor is not None:
            with contextlib.suppress(Exception):  # it, or the cluster, may be gone
                _ray().kill(self._actor)
            self._actor = None
        if self._reader is not None:
            self._reader.cancel()


def connect(address: str) -> None:
    """Connect to a cluster, unless this process is connected already.

    Raises:
        BackendError: Ray is missing, or there is no cluster at the address.
    """
    ray = _ray()
    if ray.is_initialized():
        return
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdecimal() and "//" not in host:  # for Ray itself waits for a minute, and says much
            socket.create_connection((host, int(port)), 5.0).close()
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except Exception as error:  # Ray raises many kinds
        said = " ".join(str(error).split())[:300]
        raise BackendError(f"there is no Ray cluster at {address} ({said}); ray start --head starts one") from None


def shares(nodes: Sequence[Mapping[str, float]], count: int | None) -> tuple[int, dict[str, float]]:
    """Return how many workers a cluster is asked for, and what each holds.

    Args:
        nodes: the resources of each node, by Ray's names.
        count: how many are wanted; None for as many as there are GPUs, or else nodes with CPUs.

    Raises:
        ArgumentError: the nodes have neither.
    """
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus:
        return count or gpus, {"num_gpus": 1, "num_cpus": 1}
    cpus = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus:
        raise ArgumentError("the Ray cluster has neither GPUs nor CPUs; start nodes with --num-cpus or --num-gpus")
    # Without a number all of the smallest node: a picture is drawn by all cores better than several beside each other.
    each = min(cpus) if count is None else max(1, min(max(cpus), sum(cpus) // count))
    return count or sum(node // each for node in cpus), {"num_cpus": each}


def ray_workers(address: str, values: Mapping[str, Any], models: Mapping[str, ServedModel]) -> list[RayWorker]:
    """Return workers on a cluster, not started yet.

    Args:
        address: of the cluster, as ``ray.init`` takes it.
        values: a value for each option of :class:`sdcpp_py.options.serving.Working`.
        models: those that they may load; their files must have the same paths on every node.

    Raises:
        BackendError: Ray is missing, or there is no cluster at the address.
        ArgumentError: devices are named twice, or the cluster has nothing to draw with.
    """
    number, devices = count_and_devices(values)
    connect(address)
    nodes = [node["Resources"] for node in _ray().nodes() if node["Alive"]]
    count, resources = shares(nodes, number or len(devices) or None)
    there = [replace(each, loading={**each.loading, **_absolute(each.files)}) for each in models.values()]
    return [
        RayWorker(
            name=f"worker {index + 1}",
            models=there,
            device=devices[index % len(devices)] if devices else "",
            threads=None if "num_gpus" in resources else int(resources["num_cpus"]),
            budget=None if values["model_memory"] is None else values["model_memory"] * GIB,
            idle_unload=values.get("idle_unload", 0.0),
            hang_seconds=values["hang_seconds"],
            resources=resources,
        )
        for index in range(count)
    ]


def _absolute(files: Mapping[str, str]) -> dict[str, str]:
    """Return files by their whole paths: a node's working directory is another one."""
    there = {name: file for name, file in files.items() if not hub.is_name(file)}
    return {name: os.path.abspath(os.path.expanduser(file)) for name, file in there.items()}

"""The workers that options ask for: how many, on which devices, with which share of the machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..errors import ArgumentError
from ..host_memory import host_memory
from ..reports import GIB
from .local_worker import LocalWorker
from .model_list import ServedModel


def count_and_devices(values: Mapping[str, Any]) -> tuple[int | None, list[str]]:
    """Return how many workers are asked for, None for no number, and their devices in turn.

    Raises:
        ArgumentError: devices are named twice.
    """
    count, names = values["workers"], values["worker_devices"]
    if isinstance(count, str):
        if names:
            raise ArgumentError("workers and worker_devices both name devices; give workers a number, or leave one out")
        count, names = None, count
    return count, [each.strip() for each in names.split(",") if each.strip()]


def make_workers(values: Mapping[str, Any], models: Mapping[str, ServedModel]) -> list[LocalWorker]:
    """Return workers of this machine, not started yet; they share its CPU and its memory.

    Args:
        values: a value for each option of :class:`sdcpp_py.options.serving.Working`.
        models: those that they may load.

    Raises:
        ArgumentError: devices are named twice.
    """
    number, devices = count_and_devices(values)
    count = number or len(devices) or 1
    budget = (host_memory() or 0) / 2 / count
    if values["model_memory"] is not None:
        budget = values["model_memory"] * GIB
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [
        LocalWorker(
            name=f"worker {index + 1}",
            models=list(models.values()),
            device=devices[index % len(devices)] if devices else "",
            threads=max(1, cores // count) if count > 1 else None,
            budget=budget,
            idle_unload=values.get("idle_unload", 0.0),
            hang_seconds=values["hang_seconds"],
            devices=devices,
        )
        for index in range(count)
    ]

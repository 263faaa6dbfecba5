"""Devices, weights and budgets that the tests of placement share."""

from __future__ import annotations

from collections.abc import Mapping

from sdcpp_py import placement
from sdcpp_py.devices import Device
from sdcpp_py.placement import BudgetPart, ModulePlan, PinBudget, Plan
from sdcpp_py.reports import GIB

MIB = 1 << 20


def device(name: str, kind: str, host: str | None = None, backend: str = "", memory: int = 64 * GIB) -> Device:
    return Device(name, name, kind, memory, memory, host, backend or name.rstrip("0123456789"), None, {}, GIB)


CPU = device("CPU", "cpu")
CUDA0, CUDA1 = (device(name, "gpu", "CUDA_Host") for name in ("CUDA0", "CUDA1"))
BARE = device("Bare0", "gpu")
VULKAN = device("Vulkan0", "igpu", "Vulkan_Host")
BLAS = device("BLAS", "accel")
DEVICES = [BLAS, CPU, VULKAN, CUDA0, CUDA1, BARE]
SIZES = {"diffusion": 8 * GIB, "te": 4 * GIB, "vae": GIB // 4}
OFFLOAD = {"runtime_backend": "cuda0", "params_backend": "cpu"}


def budget(size: int) -> PinBudget:
    return PinBudget((BudgetPart("pin_budget", size, "given by the caller"),))


def plan(size: int = 64 * GIB, weights: Mapping[str, int] = SIZES, **specs: object) -> Plan:
    return placement.plan(weights, DEVICES, budget(size), **specs)  # type: ignore[arg-type]


def row(made: Plan, module: str) -> ModulePlan:
    return next(row for row in made.modules if row.module == module)


def pinned(made: Plan) -> list[str]:
    return [row.module for row in made.modules if row.pinned]

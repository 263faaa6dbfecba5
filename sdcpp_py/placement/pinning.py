"""How much host memory may be pinned: read from the system, never tried out.

A refused pin can make later ones fail on some systems.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..host_memory import NO_LIMIT, cgroup_directories, read_number, read_text
from ..options import check_float
from ..reports import GIB, show_bytes, table

if TYPE_CHECKING:
    from ..devices import Device

# Backends whose host buffer type locks its pages with mlock(), which RLIMIT_MEMLOCK limits. None of ggml 0.9.8 does:
# CUDA, ROCm, MUSA, Vulkan, SYCL and CANN ask their drivers, which pin in the kernel and do not count there.
MLOCK_BACKENDS: frozenset[str] = frozenset()

_CAP_IPC_LOCK = 14  # capabilities(7): locks memory without a limit


@dataclass(frozen=True)
class BudgetPart:
    """One limit of what may be pinned.

    Attributes:
        name: ``MemAvailable`` (``free memory`` where there is no ``/proc``), ``cgroup``, ``RLIMIT_DATA``,
            ``RLIMIT_MEMLOCK`` or ``pin_budget``.
        bytes: what it leaves to pin, or None where it does not limit.
        detail: how that number comes about, or why there is none.
    """

    name: str
    bytes: int | None
    detail: str


@dataclass(frozen=True)
class PinBudget:
    """How many bytes of weights may be pinned: the least that its parts leave.

    Attributes:
        parts: every limit that was looked at; at least one has bytes.
    """

    parts: tuple[BudgetPart, ...]

    @property
    def binding(self) -> BudgetPart:
        """The part that leaves least."""
        return min((part for part in self.parts if part.bytes is not None), key=lambda part: part.bytes or 0)

    @property
    def bytes(self) -> int:
        """The budget in bytes."""
        return self.binding.bytes or 0

    @property
    def room(self) -> int:
        """Bytes that the machine has room for, whatever may be pinned of them: the system's cache counts there, too."""
        asked = ("RLIMIT_DATA", "RLIMIT_MEMLOCK", "pin_budget")
        return min((part.bytes for part in self.parts if part.bytes is not None and part.name not in asked), default=0)

    def __str__(self) -> str:
        """Return the budget and a line for each part."""
        rows = [(part.name, "-" if part.bytes is None else show_bytes(part.bytes), part.detail) for part in self.parts]
        return f"pin budget {show_bytes(self.bytes)}, set by {self.binding.name}\n" + table(
            ("limit", "leaves", "because"), rows, ("leaves",)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {
            "bytes": self.bytes,
            "binding": self.binding.name,
            "parts": [asdict(part) for part in self.parts],
        }


def measure_pin_budget(
    devices: Sequence[Device], *, pin_budget: float | None = None, root: Path = Path("/")
) -> PinBudget:
    """Return how much may be pinned now: the least of free memory, cgroup, resource limits and the caller's cap.

    Args:
        devices: the devices there are; the CPU's memory stands in where there is no ``/proc/meminfo``.
        pin_budget: the caller's cap in GiB, not negative; None for none.
        root: the directory that holds ``proc`` and the cgroup file systems.

    Raises:
        ArgumentError: *pin_budget* is no finite number, or negative.
    """
    cap = None if pin_budget is None else int(check_float("pin_budget", pin_budget, 0.0, NO_LIMIT / GIB) * GIB)
    return PinBudget(
        (
            _memory_part(devices, root),
            _cgroup_part(root),
            _data_part(root),
            _memlock_part(devices, root),
            BudgetPart("pin_budget", cap, "not given" if cap is None else "given by the caller"),
        )
    )


def _fields(text: str) -> dict[str, int]:
    """Return the numbers of lines such as ``name: 5 kB`` or ``name 5``, in the file's own unit."""
    return {name: int(value) for name, value in re.findall(r"^(\w+):?[ \t]+(\d+)", text, re.MULTILINE | re.ASCII)}


def _memory_part(devices: Sequence[Device], root: Path) -> BudgetPart:
    """Return what free memory leaves.

    The reserve is for what the engine itself and everybody else will need while the weights stay where they are: a
    tenth of the memory, and 1 GiB at least.
    """
    memory = {name: value * 1024 for name, value in _fields(read_text(root / "proc/meminfo")).items()}
    if "MemAvailable" in memory:
        available = memory["MemAvailable"]
        reserve = max(GIB, memory.get("MemTotal", 0) // 10)
        detail = f"{show_bytes(available)} available - {show_bytes(reserve)} reserve"
        return BudgetPart("MemAvailable", max(0, available - reserve), detail)
    # Windows tells what is free; elsewhere "free" is all of it, so half is left alone.
    for device in devices:
        if device.kind == "cpu" and device.memory_total:
            total, free = device.memory_total, device.memory_free
            detail = f"the free memory ({show_bytes(free)}), and half of {show_bytes(total)} at most"
            return BudgetPart("free memory", min(free, total // 2), detail)
    return BudgetPart("free memory", 0, "it cannot be told here, so nothing is pinned")


def _cgroup_part(root: Path) -> BudgetPart:
    """Return what the tightest of this process's cgroups and their ancestors leaves, less a reserve.

    Above its limit a process is killed. The reserve is for what it needs besides: a tenth of the limit, and a quarter
    of it up to 1 GiB. Use is what cannot be reclaimed: all that is charged less the inactive file cache, as Kubernetes
    computes its working set (kubernetes.io, node-pressure eviction). ``memory.high`` counts as a limit, since the
    kernel throttles a process above it.
    """
    tightest = BudgetPart("cgroup", None, "no memory limit")
    for version, directory in cgroup_directories(root):
        names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
        numbers = [read_number(read_text(root / directory / name)) for name in names]
        limit = min((number for number in numbers if number is not None), default=NO_LIMIT)
        if limit >= NO_LIMIT:
            continue
        charged = read_number(
            read_text(root / directory / ("memory.current" if version == 2 else "memory.usage_in_bytes"))
        )
        statistics = _fields(read_text(root / directory / "memory.stat"))
        inactive = statistics.get("inactive_file", 0)
        if version == 1:
            inactive = statistics.get("total_inactive_file", inactive)
        used = limit if charged is None else max(0, charged - inactive)
        reserve = max(limit // 10, min(GIB, limit // 4))
        left = max(0, limit - used - reserve)
        if tightest.bytes is None or left < tightest.bytes:
            shown = "unknown use" if charged is None else f"{show_bytes(used)} in use"
            detail = f"{show_bytes(limit)} limit - {shown} - {show_bytes(reserve)} reserve (v{version}, /{directory})"
            tightest = BudgetPart("cgroup", left, detail)
    return tightest


def _data_part(root: Path) -> BudgetPart:
    """Return what RLIMIT_DATA leaves to this process; it counts memory that is never touched, too."""
    found = re.search(r"^Max data size +(\w+)", read_text(root / "proc/self/limits"), re.MULTILINE)
    limit = None if found is None else read_number(found[1])
    if limit is None:
        return BudgetPart("RLIMIT_DATA", None, "unlimited" if found else "there is none here")
    used = _fields(read_text(root / "proc/self/status")).get("VmData", 0) * 1024
    detail = f"{show_bytes(limit)} limit - {show_bytes(used)} in use - {show_bytes(GIB)} reserve"
    return BudgetPart("RLIMIT_DATA", max(0, limit - used - GIB), detail)


def _memlock_part(devices: Sequence[Device], root: Path) -> BudgetPart:
    """Return what RLIMIT_MEMLOCK leaves to backends that lock with mlock(), unless the process may lock everything."""
    found = re.search(r"^Max locked memory +(\w+)", read_text(root / "proc/self/limits"), re.MULTILINE)
    limit = None if found is None else read_number(found[1])
    if limit is None:
        return BudgetPart("RLIMIT_MEMLOCK", None, "unlimited" if found else "there is none here")
    users = [device.name for device in devices if device.backend in MLOCK_BACKENDS and device.host_buffer_type]
    if not users:
        detail = f"{show_bytes(limit)}, but drivers that pin memory do not count against it"
        return BudgetPart("RLIMIT_MEMLOCK", None, detail)
    status = read_text(root / "proc/self/status")
    capabilities = re.search(r"^CapEff:\s*([0-9a-fA-F]+)", status, re.MULTILINE)
    if capabilities is not None and int(capabilities[1], 16) >> _CAP_IPC_LOCK & 1:
        return BudgetPart("RLIMIT_MEMLOCK", None, f"{show_bytes(limit)}, but CAP_IPC_LOCK lifts it")
    locked = _fields(status).get("VmLck", 0) * 1024
    detail = f"{show_bytes(limit)} limit - {show_bytes(locked)} locked; {', '.join(users)} locks with mlock()"
    return BudgetPart("RLIMIT_MEMLOCK", max(0, limit - locked), detail)

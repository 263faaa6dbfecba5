"""The pin budget, over fake /proc and cgroup trees."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcpp_py import placement
from sdcpp_py.devices import Device
from sdcpp_py.errors import ArgumentError
from sdcpp_py.host_memory import host_memory
from sdcpp_py.placement import BudgetPart, PinBudget
from sdcpp_py.reports import GIB
from support.placement_cases import CPU, CUDA0, DEVICES, MIB, VULKAN, device


@contextmanager
def tree(files: Mapping[str, object]) -> Iterator[Path]:
    """A directory that holds the files, with proc and the cgroup file systems."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for path, text in files.items():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")
        yield root


def measure(files: Mapping[str, object], cap: float | None = None, devices: list[Device] = DEVICES) -> PinBudget:
    with tree(files) as root:
        return placement.measure_pin_budget(devices, pin_budget=cap, root=root)


def part(made: PinBudget, name: str) -> BudgetPart:
    return next(part for part in made.parts if part.name == name)


def meminfo(available: int, total: int = 64 * GIB) -> dict[str, object]:
    return {"proc/meminfo": f"MemTotal:  {total // 1024} kB\nMemFree:  5 kB\nMemAvailable:   {available // 1024} kB"}


ROOMY = meminfo(1000 * GIB, 0)


def leaves(limit: int, used: int = GIB) -> int:
    """Return what a cgroup's limit leaves."""
    return max(0, limit - used - max(limit // 10, min(GIB, limit // 4)))


V1_MOUNT = "35 32 0:32 {root} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory"
V2_MOUNT = "38 31 0:38 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"


def v2(path: str, levels: Mapping[str, Mapping[str, object]], base: str = "/") -> dict[str, object]:
    files: dict[str, object] = {
        "proc/self/cgroup": f"0::{path}",
        "proc/self/mountinfo": "22 1 0:21 / /proc rw - proc proc rw\n" + V2_MOUNT.format(root=base),
    }
    for level, values in levels.items():
        for name, value in values.items():
            files["/".join(part for part in ("sys/fs/cgroup", level, name) if part)] = value
    return {**ROOMY, **files}


def v1(path: str, levels: Mapping[str, Mapping[str, object]], base: str = "/") -> dict[str, object]:
    files: dict[str, object] = {
        "proc/self/cgroup": f"9:name=systemd:/x\n4:cpu,memory:{path}\n0::/",
        "proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" + V1_MOUNT.format(root=base),
    }
    for level, values in levels.items():
        for name, value in values.items():
            files["/".join(part for part in ("sys/fs/cgroup/memory", level, name) if part)] = value
    return {**ROOMY, **files}


def limited(limit: object, use: object, inactive: int = 0) -> dict[str, object]:
    return {
        "memory.max": limit,
        "memory.current": use,
        "memory.stat": f"anon 5\nfile 9\ninactive_file {inactive}\nactive_file 3",
    }


def limited_v1(limit: object, use: object, inactive: int = 0) -> dict[str, object]:
    return {
        "memory.limit_in_bytes": limit,
        "memory.usage_in_bytes": use,
        "memory.stat": f"inactive_file 1\ntotal_inactive_file {inactive}",
    }


@given(st.integers(0, 2**40), st.integers(0, 2**44))
def test_available_memory_keeps_its_reserve(available: int, total: int) -> None:
    made = measure(meminfo(available, total))
    reserve = max(GIB, total // 1024 * 1024 // 10)
    assert made.bytes == max(0, available // 1024 * 1024 - reserve)
    assert made.binding.name == "MemAvailable"


def test_memory_without_proc() -> None:
    posix = device("CPU", "cpu", memory=32 * GIB)
    made = measure({}, devices=[CUDA0, posix])
    assert (made.binding.name, made.bytes) == ("free memory", 16 * GIB)
    windows = Device("CPU", "CPU", "cpu", 32 * GIB, 3 * GIB, None, "CPU", None, {}, GIB)
    assert measure({}, devices=[windows]).bytes == 3 * GIB
    unknown = measure({}, devices=[device("CPU", "cpu", memory=0)])
    assert (unknown.bytes, unknown.binding.detail) == (0, "it cannot be told here, so nothing is pinned")


@given(
    st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**40)), min_size=1, max_size=4),
    st.sampled_from([1, 2]),
)
def test_tightest_cgroup_binds(levels: list[tuple[int, int, int]], version: int) -> None:
    make, files = (v1, limited_v1) if version == 1 else (v2, limited)
    paths = ["/".join("abc"[:depth]) for depth in range(len(levels))]
    made = measure(make(f"/{paths[-1]}", {path: files(*level) for path, level in zip(paths, levels, strict=True)}))
    expected = min(leaves(limit, max(0, use - inactive)) for limit, use, inactive in levels)
    assert part(made, "cgroup").bytes == expected
    assert made.bytes == min(expected, 999 * GIB)


def test_memory_of_a_container_is_its_hard_limit() -> None:
    hard, soft = {"memory.max": 2 * MIB}, {"memory.max": "max", "memory.high": MIB}
    for files in (v2("/a/b", {"a": hard, "a/b": soft}), v1("/a", {"": {"memory.limit_in_bytes": 2 * MIB}})):
        with tree(files) as root:
            assert host_memory(root) == 2 * MIB
    with tree(v2("/a", {"a": soft})) as root:
        assert (host_memory(root) or 0) > 64 * MIB, "the machine's"


def test_cgroup_without_limit() -> None:
    for files in (
        ROOMY,
        v2("/a", {"a": {"memory.max": "max", "memory.high": "max", "memory.current": 5}}),
        v1("/a", {"a": limited_v1(9223372036854771712, 5), "": limited_v1(9223372036854771712, 5)}),
        {**ROOMY, "proc/self/cgroup": "nonsense", "proc/self/mountinfo": "x - y\n\n1 2 3 / /c rw - cgroup2 c rw"},
    ):
        found = part(measure(files), "cgroup")
        assert (found.bytes, found.detail) == (None, "no memory limit")


def test_memory_high_is_a_limit() -> None:
    found = part(measure(v2("/a", {"a": {**limited(8 * GIB, GIB), "memory.high": 5 * GIB}})), "cgroup")
    assert found == BudgetPart(
        "cgroup", 3 * GIB, "5.00 GiB limit - 1.00 GiB in use - 1.00 GiB reserve (v2, /sys/fs/cgroup/a)"
    )


def test_unreadable_use_leaves_nothing() -> None:
    found = part(measure(v2("/a", {"a": {"memory.max": GIB}})), "cgroup")
    assert found == BudgetPart("cgroup", 0, "1.00 GiB limit - unknown use - 256.0 MiB reserve (v2, /sys/fs/cgroup/a)")


def test_cgroup_of_a_container() -> None:
    """A container sees its own cgroup at the mount point, whatever the path in /proc/self/cgroup."""
    own = {"": limited(4 * GIB, GIB)}
    assert part(measure(v2("/docker/abc", own, "/docker/abc")), "cgroup").bytes == leaves(4 * GIB)
    assert part(measure(v2("/docker/abc", own, "/docker/ab")), "cgroup").bytes == leaves(4 * GIB)
    assert part(measure(v2("/../../other", own)), "cgroup").bytes == leaves(4 * GIB)
    assert part(measure(v2("/docker/abc", own)), "cgroup").bytes == leaves(4 * GIB)
    nested = {"": limited(4 * GIB, GIB), "sub": limited(2 * GIB, GIB)}
    assert part(measure(v2("/docker/abc/sub", nested, "/docker/abc")), "cgroup").bytes == leaves(2 * GIB)


def test_both_cgroup_versions_at_once() -> None:
    first, second = v1("/a", {"a": limited_v1(9 * GIB, GIB)}), v2("/b", {"b": limited(7 * GIB, GIB)})
    files = {**first, **second}
    for name in ("proc/self/cgroup", "proc/self/mountinfo"):
        files[name] = f"{first[name]}\n{second[name]}".replace("\n0::/\n", "\n")
    assert part(measure(files), "cgroup").bytes == leaves(7 * GIB)


def test_mount_point_with_a_blank() -> None:
    files = {
        **ROOMY,
        "proc/self/cgroup": "0::/",
        "proc/self/mountinfo": r"38 31 0:38 / /my\040groups rw - cgroup2 none rw",
        "my groups/memory.max": 2 * GIB,
        "my groups/memory.current": GIB,
    }
    assert part(measure(files), "cgroup").bytes == leaves(2 * GIB)


def test_the_process_has_a_limit_of_its_own() -> None:
    limits = f"Limit   Soft Limit   Hard Limit   Units\nMax data size   {2 * GIB}   unlimited   bytes"
    made = measure({**ROOMY, "proc/self/limits": limits, "proc/self/status": "VmData:\t  524288 kB\n"})
    assert (made.bytes, made.binding.name) == (GIB // 2, "RLIMIT_DATA")
    assert made.binding.detail == "2.00 GiB limit - 512.0 MiB in use - 1.00 GiB reserve"


def memlock(limit: object, locked_kib: int = 0, capabilities: str = "0000000000000000") -> dict[str, object]:
    return {
        **ROOMY,
        "proc/self/limits": f"Limit   Soft Limit   Hard Limit   Units\nMax locked memory   {limit}   {limit}   bytes",
        "proc/self/status": f"Name:\tpython\nVmLck:\t    {locked_kib} kB\nCapEff:\t{capabilities}",
    }


def test_memlock_does_not_limit_drivers() -> None:
    found = part(measure(memlock(8 * MIB)), "RLIMIT_MEMLOCK")
    assert found == BudgetPart("RLIMIT_MEMLOCK", None, "8.0 MiB, but drivers that pin memory do not count against it")
    assert part(measure(ROOMY), "RLIMIT_MEMLOCK").detail == "there is none here"


def test_memlock_limits_backends_that_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement.pinning, "MLOCK_BACKENDS", frozenset({"CUDA"}))
    made = measure(memlock(8 * MIB, 1024))
    assert (made.bytes, made.binding.name) == (7 * MIB, "RLIMIT_MEMLOCK")
    assert measure(memlock(8 * MIB, 9000)).bytes == 0
    assert part(measure(memlock("unlimited")), "RLIMIT_MEMLOCK").detail == "unlimited"
    lifted = part(measure(memlock(8 * MIB, 0, "0000000000004000")), "RLIMIT_MEMLOCK")
    assert (lifted.bytes, lifted.detail) == (None, "8.0 MiB, but CAP_IPC_LOCK lifts it")
    assert part(measure(memlock(8 * MIB), devices=[CPU, VULKAN]), "RLIMIT_MEMLOCK").bytes is None


@given(st.floats(0, 4096))
def test_the_callers_cap_binds(cap: float) -> None:
    made = measure(ROOMY, cap)
    assert made.bytes == min(int(cap * GIB), 999 * GIB)


@pytest.mark.parametrize("cap", [-1, float("nan"), float("inf"), "lots"])
def test_the_callers_cap_is_checked(cap: float) -> None:
    with pytest.raises(ArgumentError, match="pin_budget must be a"):
        measure(ROOMY, cap)


def test_budget_explains_itself() -> None:
    made = measure({**v2("/a", {"a": limited(8 * GIB, GIB)}), **meminfo(12 * GIB)}, 7.5)
    assert str(made) == (
        "pin budget 5.60 GiB, set by MemAvailable\n"
        "limit             leaves  because\n"
        "MemAvailable    5.60 GiB  12.00 GiB available - 6.40 GiB reserve\n"
        "cgroup          6.00 GiB  8.00 GiB limit - 1.00 GiB in use - 1.00 GiB reserve (v2, /sys/fs/cgroup/a)\n"
        "RLIMIT_DATA            -  there is none here\n"
        "RLIMIT_MEMLOCK         -  there is none here\n"
        "pin_budget      7.50 GiB  given by the caller"
    )
    content = json.loads(json.dumps(made.to_dict()))
    assert content["binding"] == "MemAvailable"
    assert content["bytes"] == made.bytes
    names = ["MemAvailable", "cgroup", "RLIMIT_DATA", "RLIMIT_MEMLOCK", "pin_budget"]
    assert [part["name"] for part in content["parts"]] == names


def test_this_machine_has_a_budget() -> None:
    made = placement.measure_pin_budget([CPU])
    assert 0 <= made.bytes <= 1 << 50
    assert len(made.parts) == 5

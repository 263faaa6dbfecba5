"""How many threads compute: the affinity mask, physical cores, and the CPU quota of fake cgroup trees."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from sdcpp_py.host_threads import THREADS_PER_CPU, default_threads, threads_for

pytestmark = pytest.mark.usefixtures("all_cores")

V1 = "35 32 0:32 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct"
V2 = "38 31 0:38 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"


def tree(root: Path, files: dict[str, str], cpus: int = 64, per_core: int = 2) -> Path:
    """Write a machine: its CPUs, which are threads of half as many cores, and files of a cgroup file system."""
    topology = {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings": f"{1 << cpu // per_core:x}" for cpu in range(cpus)
    }
    for name, text in {**topology, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v1(quota: str) -> dict[str, str]:
    base = "sys/fs/cgroup/cpu/a"
    return {
        "proc/self/cgroup": "9:memory:/m\n4:cpu,cpuacct:/a\n0::/",
        "proc/self/mountinfo": V1,
        f"{base}/cpu.cfs_quota_us": quota,
        f"{base}/cpu.cfs_period_us": "100000",
    }


def v2(quotas: dict[str, str]) -> dict[str, str]:
    files = {f"sys/fs/cgroup/{level}cpu.max": quota for level, quota in quotas.items()}
    return {"proc/self/cgroup": "0::/a/b", "proc/self/mountinfo": V2, **files}


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({}, 32),
        (v2({"": "max 100000", "a/": "150000 100000", "a/b/": "800000 100000"}), 2),
        (v2({"a/b/": "10000 100000"}), 1),
        (v2({"a/": "nonsense", "a/b/": "6400000 100000"}), 32),
        (v1("150000"), 2),
        (v1("-1"), 32),
    ],
)
def test_default_is_what_cores_and_quota_leave(tmp_path: Path, files: dict[str, str], threads: int) -> None:
    assert default_threads(tree(tmp_path, files)) == threads


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="there are no affinity masks here")
def test_default_heeds_the_affinity_mask() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert threads_for(None) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_threads_that_would_only_wait_are_not_started(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sdcpp_py"):
        most = threads_for(4096)
        assert most % THREADS_PER_CPU == 0
        assert threads_for(1) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"threads=4096 is more than this machine has work for; {most} compute"
    ]

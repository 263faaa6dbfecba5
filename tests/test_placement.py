"""Specs, the pin budget over fake /proc and cgroup trees, and the planner."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcpp_py import placement
from sdcpp_py.devices import Device
from sdcpp_py.errors import ArgumentError, PlacementError
from sdcpp_py.placement import (
    MODULES,
    BudgetPart,
    DeviceBudget,
    ModulePlan,
    PinBudget,
    Plan,
    find_device,
    parse_spec,
)
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


# --- specs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, {}),
        ("", {}),
        ("cuda0", {"*": "cuda0"}),
        ("te=cpu,diffusion=cuda0", {"te": "cpu", "diffusion": "cuda0"}),
        (" TE = CPU , all = cuda0 ,", {"te": "CPU", "*": "cuda0"}),
        ("cuda0,vae=cpu", {"*": "cuda0", "vae": "cpu"}),
        ("default=cpu", {"*": "cpu"}),
        ("*=cpu", {"*": "cpu"}),
        ("unet=a,clip=b,tae=c", {"diffusion": "a", "te": "b", "vae": "c"}),
        ("dit=a,t5xxl=b,clip-vision=c,control_net=d",
         {"diffusion": "a", "te": "b", "clip_vision": "c", "controlnet": "d"}),
        ("diff=a,text_enc=b,clip_v=c,photo=d,up=e",
         {"diffusion": "a", "te": "b", "clip_vision": "c", "photomaker": "d", "upscaler": "e"}),
        ({"te": "cpu", "All": "gpu"}, {"te": "cpu", "*": "gpu"}),
        ({}, {}),
    ],
    ids=str,
)  # fmt: skip
def test_parse_spec(spec: placement.Spec | None, expected: dict[str, str]) -> None:
    assert parse_spec("params_backend", spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tee=cpu", r"params_backend: module 'tee' is unknown; valid: diffusion, controlnet, te, vae, clip_vision"),
        ("=cpu", "module '' is unknown"),
        ("c=cpu", r"module 'c' is ambiguous \(clip_vision, controlnet, te\); valid: diffusion"),
        ("t=cpu", r"module 't' is ambiguous \(te, vae\)"),
        ("te=cpu,clip=cpu", "module 'te' is assigned twice"),
        ("all=cpu,cuda0", "the default is assigned twice"),
        ("te=", "nothing is assigned to 'te'"),
        (7, "must be a string or a mapping"),
        ({"te": 0}, "must map module to name, not 'te' to 0"),
        ({0: "cpu"}, "must map module to name"),
    ],
    ids=str,
)
def test_parse_spec_refuses(spec: placement.Spec, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        parse_spec("params_backend", spec)


@given(st.text(max_size=20))
def test_parse_spec_answers_or_raises_argument_error(text: str) -> None:
    with suppress(ArgumentError):
        assert parse_spec("params_backend", text).keys() <= {*MODULES, "*"}


@given(st.dictionaries(st.sampled_from([*MODULES]), st.sampled_from(["cpu", "cuda0", "auto"])))
def test_text_and_mapping_mean_the_same(spec: dict[str, str]) -> None:
    text = ",".join(f"{module}={name}" for module, name in spec.items())
    assert parse_spec("params_backend", text) == parse_spec("params_backend", spec) == spec


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("CPU", "CPU"), ("cpu", "CPU"), ("cp", "CPU"), ("cuda0", "CUDA0"), ("Cuda1", "CUDA1"), ("vulk", "Vulkan0"),
        ("gpu", "CUDA0"), ("GPU", "CUDA0"), ("auto", "CUDA0"),
    ],
)  # fmt: skip
def test_find_device(word: str, expected: str) -> None:
    assert find_device("runtime_backend", word, DEVICES).name == expected


def test_find_device_takes_an_integrated_gpu_where_there_is_no_other() -> None:
    assert find_device("x", "gpu", [CPU, VULKAN]).name == "Vulkan0"
    assert find_device("x", "auto", [CPU, VULKAN]).name == "Vulkan0"
    assert find_device("x", "auto", [CPU]).name == "CPU"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("cuda", r"device 'cuda' is ambiguous \(CUDA0, CUDA1\); devices: CPU, Vulkan0, CUDA0, CUDA1, Bare0"),
        ("metal", "device 'metal' is unknown; devices: CPU, Vulkan0"),
        ("blas", "device 'blas' is unknown"),
        ("disk", "device 'disk' is unknown"),
    ],
)
def test_find_device_lists_the_devices(word: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        find_device("runtime_backend", word, DEVICES)


def test_gpu_where_there_is_none() -> None:
    with pytest.raises(ArgumentError, match="runtime_backend: there is no GPU device; devices: CPU"):
        placement.plan(SIZES, [CPU], budget(0), runtime_backend="gpu")
    with pytest.raises(ArgumentError, match="there is no AUTO device; devices: none"):
        placement.plan(SIZES, [], budget(0))


# --- the pin budget ---------------------------------------------------------------------------------------------------


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
    expected = min(max(0, limit - max(0, use - inactive)) for limit, use, inactive in levels)
    assert part(made, "cgroup").bytes == expected
    assert made.bytes == min(expected, 999 * GIB)


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
    assert found == BudgetPart("cgroup", 4 * GIB, "5.00 GiB limit - 1.00 GiB in use (v2, /sys/fs/cgroup/a)")


def test_unreadable_use_leaves_nothing() -> None:
    found = part(measure(v2("/a", {"a": {"memory.max": GIB}})), "cgroup")
    assert found == BudgetPart("cgroup", 0, "1.00 GiB limit - unknown use (v2, /sys/fs/cgroup/a)")


def test_cgroup_of_a_container() -> None:
    """A container sees its own cgroup at the mount point, whatever the path in /proc/self/cgroup."""
    own = {"": limited(4 * GIB, GIB)}
    assert part(measure(v2("/docker/abc", own, "/docker/abc")), "cgroup").bytes == 3 * GIB
    assert part(measure(v2("/docker/abc", own, "/docker/ab")), "cgroup").bytes == 3 * GIB
    assert part(measure(v2("/../../other", own)), "cgroup").bytes == 3 * GIB
    assert part(measure(v2("/docker/abc", own)), "cgroup").bytes == 3 * GIB
    nested = {"": limited(4 * GIB, GIB), "sub": limited(2 * GIB, GIB)}
    assert part(measure(v2("/docker/abc/sub", nested, "/docker/abc")), "cgroup").bytes == GIB


def test_both_cgroup_versions_at_once() -> None:
    first, second = v1("/a", {"a": limited_v1(9 * GIB, GIB)}), v2("/b", {"b": limited(7 * GIB, GIB)})
    files = {**first, **second}
    for name in ("proc/self/cgroup", "proc/self/mountinfo"):
        files[name] = f"{first[name]}\n{second[name]}".replace("\n0::/\n", "\n")
    assert part(measure(files), "cgroup").bytes == 6 * GIB


def test_mount_point_with_a_blank() -> None:
    files = {
        **ROOMY,
        "proc/self/cgroup": "0::/",
        "proc/self/mountinfo": r"38 31 0:38 / /my\040groups rw - cgroup2 none rw",
        "my groups/memory.max": 2 * GIB,
        "my groups/memory.current": GIB,
    }
    assert part(measure(files), "cgroup").bytes == GIB


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
    monkeypatch.setattr(placement, "MLOCK_BACKENDS", frozenset({"CUDA"}))
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
        "cgroup          7.00 GiB  8.00 GiB limit - 1.00 GiB in use (v2, /sys/fs/cgroup/a)\n"
        "RLIMIT_MEMLOCK         -  there is none here\n"
        "pin_budget      7.50 GiB  given by the caller"
    )
    content = json.loads(json.dumps(made.to_dict()))
    assert content["binding"] == "MemAvailable"
    assert content["bytes"] == made.bytes
    assert [part["name"] for part in content["parts"]] == ["MemAvailable", "cgroup", "RLIMIT_MEMLOCK", "pin_budget"]


def test_this_machine_has_a_budget() -> None:
    made = placement.measure_pin_budget([CPU])
    assert 0 <= made.bytes <= 1 << 50
    assert len(made.parts) == 4


# --- the planner ------------------------------------------------------------------------------------------------------


def test_nothing_asked() -> None:
    made = plan()
    assert [row.module for row in made.modules] == [*MODULES]
    for each in made.modules:
        assert (each.runtime_device, each.params_device, each.buffer_type) == ("CUDA0", "CUDA0", "CUDA0")
        assert (each.pinned, each.pin) == (False, "auto")
    assert row(made, "te").reason == "nothing to pin: its weights live on CUDA0, which computes it"
    assert row(made, "upscaler").reason == "nothing to pin: it has no weights in these files"
    assert made.unaffordable == ()


def test_offloaded_weights_are_pinned() -> None:
    made = plan(**OFFLOAD)
    assert pinned(made) == ["diffusion", "te", "vae"]
    te = row(made, "te")
    assert (te.runtime_device, te.params_device, te.buffer_type) == ("CUDA0", "CPU", "CUDA_Host")
    assert te.reason == "page-locked for CUDA0"
    assert made.pinned_bytes == sum(SIZES.values())
    assert made.placements()[0] == {
        "module": "diffusion",
        "runtime_device": "CUDA0",
        "params_device": "CPU",
        "pin": True,
        "stream": False,
        "overlap": False,
    }
    assert len(made.placements()) == len(MODULES)


def test_mixed_specs() -> None:
    made = plan(runtime_backend="te=cpu,unet=cuda1,vae=cpu,all=vulkan0", params_backend="all=cpu,vae=cuda1")
    assert [(row.runtime_device, row.params_device) for row in made.modules] == [
        ("CUDA1", "CPU"), ("Vulkan0", "CPU"), ("CPU", "CPU"), ("CPU", "CUDA1"),
        ("Vulkan0", "CPU"), ("Vulkan0", "CPU"), ("Vulkan0", "CPU"),
    ]  # fmt: skip
    assert pinned(made) == ["diffusion"]
    assert row(made, "vae").reason == "nothing to pin: its weights live in the memory of CUDA1"


def test_params_backend_follows_the_runtime_backend() -> None:
    made = plan(runtime_backend="te=cpu,diffusion=cuda1", params_backend="diffusion=cpu")
    assert [(row(made, name).runtime_device, row(made, name).params_device) for name in SIZES] == [
        ("CUDA1", "CPU"), ("CPU", "CPU"), ("CUDA0", "CUDA0"),
    ]  # fmt: skip


def test_a_device_without_a_host_buffer_type() -> None:
    made = plan(runtime_backend="bare0", params_backend="cpu")
    assert pinned(made) == []
    assert row(made, "te").buffer_type == "CPU"
    assert row(made, "te").reason == "nothing to pin: Bare0 has no host buffer type"
    assert made.unaffordable == ()
    for require in ("require", {"te": "require"}):
        with pytest.raises(PlacementError, match=r"must be pinned, but Bare0 has no host buffer type; use pin_params"):
            plan(runtime_backend="bare0", params_backend="cpu", pin_params=require)


def test_auto_pins_what_is_affordable_in_order() -> None:
    made = plan(9 * GIB, **OFFLOAD)
    assert pinned(made) == ["diffusion", "vae"]
    assert made.unaffordable == ("te",)
    assert row(made, "te").reason == "pageable: only 1.00 GiB of the pin budget left"
    assert row(made, "te").buffer_type == "CPU"
    assert pinned(plan(7 * GIB, **OFFLOAD)) == ["te", "vae"]
    assert pinned(plan(0, **OFFLOAD)) == []


def test_never_asks_for_nothing() -> None:
    made = plan(pin_params="never", **OFFLOAD)
    assert pinned(made) == []
    assert made.unaffordable == ()
    assert row(made, "te").reason == "pageable: pin_params is never"


def test_policies_by_module() -> None:
    made = plan(6 * GIB, pin_params="te=require,vae=never", **OFFLOAD)
    assert pinned(made) == ["te"]
    assert made.unaffordable == ("diffusion",)
    assert row(made, "diffusion").reason == "pageable: only 2.00 GiB of the pin budget left"
    assert [row(made, name).pin for name in SIZES] == ["auto", "require", "never"]
    assert pinned(plan(pin_params={"all": "NEVER", "te": "auto"}, **OFFLOAD)) == ["te"]


def test_require_names_the_numbers() -> None:
    with pytest.raises(PlacementError) as caught:
        plan(9 * GIB, pin_params="require", **OFFLOAD)
    assert str(caught.value) == (
        "12.25 GiB (13153337344 bytes) must be pinned for diffusion, te, vae, but the pin budget is 9.00 GiB "
        "(9663676416 bytes), set by pin_budget: given by the caller; use pin_params='auto' to pin what fits"
    )
    assert pinned(plan(sum(SIZES.values()), pin_params="require", **OFFLOAD)) == ["diffusion", "te", "vae"]


def test_require_with_nothing_to_pin() -> None:
    for specs in ({}, {"runtime_backend": "cpu"}, {"runtime_backend": "cpu", "params_backend": "cpu"}):
        with pytest.raises(ArgumentError, match="pin_params is 'require', but there is nothing to pin: no module"):
            plan(pin_params="require", **specs)
    for module in ("diffusion", "controlnet"):
        with pytest.raises(ArgumentError, match=f"'require' for {module}, but there is nothing to pin: it"):
            plan(pin_params={module: "require"})


def test_require_for_all_passes_over_what_cannot_be_pinned() -> None:
    made = plan(runtime_backend="cuda0,te=cpu", params_backend="cpu", pin_params="require")
    assert pinned(made) == ["diffusion", "vae"]
    assert row(made, "te").reason == "nothing to pin: its weights live on CPU, which computes it"


@pytest.mark.parametrize("word", ["always", "req", "1"])
def test_unknown_policy(word: str) -> None:
    with pytest.raises(ArgumentError, match=f"pin_params '{word}' is unknown; valid: auto, require, never"):
        plan(pin_params=f"te={word}")


def test_a_typo_is_an_error_wherever_it_stands() -> None:
    every = ",".join(f"{module}=cpu" for module in MODULES)
    with pytest.raises(ArgumentError, match="params_backend: device 'cuba0' is unknown"):
        plan(params_backend=f"{every},all=cuba0")


def test_plan_is_a_table_and_plain_values() -> None:
    made = plan(9 * GIB, **OFFLOAD)
    lines = str(made).splitlines()
    assert lines[:5] == [
        "module     runs on  weights on  buffer type  pinned  streamed       size  reason",
        "diffusion  CUDA0    CPU         CUDA_Host    yes     no         8.00 GiB  page-locked for CUDA0",
        "te         CUDA0    CPU         CPU          no      no         4.00 GiB  " + row(made, "te").reason,
        "vae        CUDA0    CPU         CUDA_Host    yes     no        256.0 MiB  page-locked for CUDA0",
        "not in these files: controlnet, clip_vision, photomaker, upscaler",
    ]
    assert "pin budget 9.00 GiB, set by pin_budget" in lines
    content = json.loads(json.dumps(made.to_dict()))
    assert content["modules"][0]["buffer_type"] == "CUDA_Host"
    assert content["unaffordable"] == ["te"]
    assert content["budget"]["bytes"] == 9 * GIB
    assert content["device_budgets"] == []


# --- streaming --------------------------------------------------------------------------------------------------------


def streamed(made: Plan) -> list[str]:
    return [row.module for row in made.modules if row.streamed and row.bytes]


def test_host_params_are_streamed_within_max_vram() -> None:
    made = plan(max_vram=5.5, stream_layers=True, **OFFLOAD)
    assert streamed(made) == pinned(made) == ["diffusion", "te", "vae"]
    for what in ("stream", "overlap"):
        assert [place[what] for place in made.placements()] == [True] * len(MODULES), "what is loaded later too"
    assert made.device_budgets == (DeviceBudget("CUDA0", 11 * GIB // 2, "given as max_vram"),)
    lines = str(made).splitlines()
    assert lines[1].endswith("  CUDA_Host    yes     overlapped   8.00 GiB  page-locked for CUDA0")
    assert lines[-2:] == ["device    budget  because", "CUDA0   5.50 GiB  given as max_vram"]
    assert json.loads(json.dumps(made.to_dict()))["device_budgets"] == [
        {"device": "CUDA0", "bytes": 11 * GIB // 2, "detail": "given as max_vram"}
    ]


def test_only_host_params_are_streamed() -> None:
    made = plan(
        runtime_backend="te=cpu,unet=cuda1,vae=cuda0", params_backend="te=cpu,unet=cpu", max_vram=4, stream_layers=True
    )
    assert streamed(made) == ["diffusion"]
    assert row(made, "te").reason == "nothing to pin or stream: its weights live on CPU, which computes it"
    assert row(made, "vae").reason == "nothing to pin or stream: its weights live on CUDA0, which computes it"
    assert [budget.device for budget in made.device_budgets] == ["CUDA1"]
    made = plan(runtime_backend="bare0,te=cuda0", params_backend="cpu", max_vram=4, stream_layers=True)
    assert streamed(made) == ["diffusion", "te", "vae"]
    assert row(made, "vae").reason == "nothing to pin: Bare0 has no host buffer type"
    assert [budget.device for budget in made.device_budgets] == ["Bare0", "CUDA0"]


def test_the_pin_budget_serves_streamed_modules_first() -> None:
    made = plan(9 * GIB, runtime_backend="cuda0", params_backend="cpu,te=cuda0", max_vram=4, stream_layers=True)
    assert pinned(made) == streamed(made) == ["diffusion", "vae"]


@pytest.mark.parametrize("asked", [{"stream_layers": True}, {"stream_layers": True, "max_vram": 8}, {"max_vram": 8}])
@pytest.mark.parametrize(
    "specs", [{}, {"runtime_backend": "cpu", "params_backend": "cpu"}, {"params_backend": "cuda1"}]
)
def test_what_would_do_nothing_is_an_error(asked: dict[str, object], specs: dict[str, str]) -> None:
    what = "stream_layers has nothing to stream" if "stream_layers" in asked else "max_vram has nothing to limit"
    with pytest.raises(ArgumentError, match=rf"{what}: no module .* params_backend='cpu' with a GPU") as caught:
        plan(**asked, **specs)
    assert "\n" not in str(caught.value)
    with pytest.raises(ArgumentError, match=what):
        plan(weights={}, **asked, **OFFLOAD)


def test_max_vram_alone_says_that_nothing_overlaps() -> None:
    made = plan(max_vram=6, **OFFLOAD)
    assert streamed(made) == ["diffusion", "te", "vae"]
    assert not any(place["overlap"] for place in made.placements())
    assert "in turn" in str(made).splitlines()[1]
    assert made.device_budgets[0].detail == (
        "given as max_vram; copies and computations take turns: stream_layers lets them overlap"
    )
    assert plan(max_vram=-6, **OFFLOAD).device_budgets[0].detail.endswith("stream_layers lets them overlap")


def sized(total: float, free: float, reserve: float = 1.0) -> Device:
    memory = int(total * GIB), int(free * GIB)
    return Device("CUDA0", "a GPU", "gpu", *memory, "CUDA_Host", "CUDA", None, {}, int(reserve * GIB))


@pytest.mark.parametrize(
    ("max_vram", "total", "free", "size", "detail"),
    [
        (8.0, 24, 20, 8, "given as max_vram"),
        (22.0, 24, 20, 22, "given as max_vram, more than the 20.00 GiB that are free now"),
        (100.0, 24, 20, 100, "given as max_vram, more than the 24.00 GiB that it has"),
        (8.0, 0, 0, 8, "given as max_vram"),
        (-2.5, 24, 20, 17.5, "20.00 GiB free now - 2.50 GiB given as max_vram"),
        (None, 24, 20, 19, "20.00 GiB free now - 1.00 GiB reserve"),
    ],
)
def test_device_budget(max_vram: float | None, total: float, free: float, size: float, detail: str) -> None:
    made = placement.device_budget(sized(total, free), max_vram, True)
    assert made == DeviceBudget("CUDA0", int(size * GIB), detail)


def test_the_reserve_is_the_devices_own() -> None:
    made = placement.device_budget(sized(5, 2, reserve=0.5), None, True)
    assert made == DeviceBudget("CUDA0", int(1.5 * GIB), "2.00 GiB free now - 512.0 MiB reserve")


@pytest.mark.parametrize(("max_vram", "total", "free"), [(-20, 24, 20), (-30, 24, 20), (None, 24, 0.5), (None, 0, 0)])
def test_nothing_left_of_a_device(max_vram: float | None, total: float, free: float) -> None:
    with pytest.raises(
        ArgumentError, match=r"nothing of CUDA0 may be used \(.*free now - .*\); set max_vram to a budget"
    ):
        placement.device_budget(sized(total, free), max_vram, True)


@pytest.mark.parametrize(
    ("max_vram", "message"),
    [
        (0, "max_vram 0 leaves nothing: give a budget in GiB"),
        (-0.0, "leaves nothing"),
        (1e-30, "max_vram 1e-30 leaves nothing"),
        (float("nan"), "max_vram must be a finite number"),
        (float("inf"), "max_vram must be a finite number"),
        (1e30, "max_vram must be a finite number from"),
        (-1e30, "max_vram must be a finite number from"),
        ("much", "max_vram must be a number, not 'much'"),
    ],
)
def test_max_vram_is_checked(max_vram: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        placement.check_max_vram(max_vram)  # type: ignore[arg-type]


def test_max_vram_is_a_number_or_none() -> None:
    assert placement.check_max_vram(-1) == -1.0
    assert placement.check_max_vram("8") == 8.0  # type: ignore[arg-type]
    assert placement.check_max_vram(None) is None


weights_of = st.dictionaries(st.sampled_from([*MODULES]), st.integers(0, 100))
budgets = st.integers(0, 400)
policies = st.dictionaries(st.sampled_from([*MODULES]), st.sampled_from(["auto", "require", "never"]))
places = st.dictionaries(
    st.sampled_from([*MODULES, "*"]), st.sampled_from(["cpu", "cuda0", "cuda1", "vulkan0", "bare0"])
)


@given(weights_of, budgets, policies, places, places)
def test_plan_keeps_the_rules(
    weights: dict[str, int], size: int, pins: dict[str, str], runtime: dict[str, str], home: dict[str, str]
) -> None:
    specs = {"pin_params": pins, "runtime_backend": runtime, "params_backend": home}
    try:
        made = plan(size, weights, **specs)
    except (ArgumentError, PlacementError) as error:
        assert "require" in pins.values(), error
        return
    assert made == plan(size, dict(reversed(weights.items())), **specs), "deterministic"
    assert made.pinned_bytes <= size, "never exceeds the budget"
    kinds = {device.name: device for device in DEVICES}
    for each in made.modules:
        runs, keeps = kinds[each.runtime_device], kinds[each.params_device]
        pinnable = keeps.kind == "cpu" and runs is not keeps and runs.host_buffer_type is not None and each.bytes > 0
        assert each.buffer_type == (runs.host_buffer_type if each.pinned else keeps.name)
        assert each.reason
        if each.pinned:
            assert pinnable
            assert each.pin != "never"
        if each.pin == "require":
            assert each.pinned, "what is required is pinned, or it is an error"
        assert (each.module in made.unaffordable) == (pinnable and each.pin == "auto" and not each.pinned)


@given(weights_of, budgets, budgets)
def test_auto_is_monotone_in_the_budget(weights: dict[str, int], one: int, other: int) -> None:
    small, large = (plan(size, weights, **OFFLOAD) for size in sorted((one, other)))
    assert small.pinned_bytes <= large.pinned_bytes
    # Whoever comes first in the order is served first: the first difference is to the larger budget's advantage.
    assert [row.pinned for row in small.modules] <= [row.pinned for row in large.modules]
    assert small.pinned_bytes == sum(weights.values()) or small.unaffordable


@given(weights_of, budgets)
def test_require_pins_all_or_raises(weights: dict[str, int], size: int) -> None:
    needed = sum(weights.values())
    if not needed:
        with pytest.raises(ArgumentError, match="nothing to pin"):
            plan(size, weights, pin_params="require", **OFFLOAD)
    elif needed > size:
        with pytest.raises(PlacementError, match=rf"\({needed} bytes\) must be pinned .* \({size} bytes\)"):
            plan(size, weights, pin_params="require", **OFFLOAD)
    else:
        assert plan(size, weights, pin_params="require", **OFFLOAD).pinned_bytes == needed

"""From specs to a plan: where each module runs, where its weights lie, which are pinned or streamed, and why.

Pure arithmetic over what the engine, the system and the caller say; nothing is tried out, since a refused pin can
make later ones fail on some systems.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from .errors import ArgumentError, PlacementError
from .options import check_float
from .reports import GIB, MIB, show_bytes, table

if TYPE_CHECKING:
    from .devices import Device

Spec = Union[str, "Mapping[str, str]"]
"""``NAME``, ``module=NAME,...``, or a mapping of module to name."""

# Module -> its other names, as upstream has them; case, hyphens and underscores do not count. In the order of what
# pinning gains: the first two are read in every sampling step, the others once or twice an image.
MODULES: dict[str, tuple[str, ...]] = {
    "diffusion": ("model", "unet", "dit"),
    "controlnet": ("control",),
    "te": ("clip", "text", "textencoder", "textencoders", "conditioner", "cond", "llm", "t5", "t5xxl"),
    "vae": ("tae", "taesd", "autoencoder", "firststage"),
    "clip_vision": ("vision",),
    "photomaker": ("photo", "photomakerid", "pmid"),
    "upscaler": ("esrgan", "hires"),
}
PIN_POLICIES = ("auto", "require", "never")

# Backends whose host buffer type locks its pages with mlock(), which RLIMIT_MEMLOCK limits. None of ggml 0.9.8 does:
# CUDA, ROCm, MUSA, Vulkan, SYCL and CANN ask their drivers, which pin in the kernel and do not count there.
MLOCK_BACKENDS: frozenset[str] = frozenset()

_DEFAULT = "*"
_DEFAULTS = (_DEFAULT, "all", "default")
_NO_LIMIT = 1 << 60  # bytes; cgroup v1 writes a number near 2**63 for "no limit"
_CAP_IPC_LOCK = 14  # capabilities(7): locks memory without a limit


# --- specs ------------------------------------------------------------------------------------------------------------


def _squeeze(name: str) -> str:
    """Return a module's name as it is compared."""
    return name.lower().replace("-", "").replace("_", "")


_NAMES = {_squeeze(name): module for module, others in MODULES.items() for name in (module, *others)}


def _module(what: str, text: str) -> str:
    """Return the module that a name, an alias or a unique prefix of one stands for, or ``*`` for the default."""
    name = _squeeze(text.strip())
    if name in _DEFAULTS:
        return _DEFAULT
    if name in _NAMES:
        return _NAMES[name]
    found = {module for known, module in _NAMES.items() if name and known.startswith(name)}
    if len(found) == 1:
        return found.pop()
    problem = f"is ambiguous ({', '.join(sorted(found))})" if found else "is unknown"
    raise ArgumentError(f"{what}: module {text!r} {problem}; valid: {', '.join(MODULES)}, all")


def parse_spec(what: str, spec: Spec | None) -> dict[str, str]:
    """Return what a spec assigns: module -> name, with ``*`` for the modules that it does not name.

    Args:
        what: name of the argument, for messages.
        spec: ``NAME``, ``module=NAME,...`` with ``all=``, ``default=`` or ``*=`` for the others, or a mapping.

    Raises:
        ArgumentError: it is malformed, or a module is unknown, ambiguous or assigned twice.
    """
    if spec is None:
        return {}
    if isinstance(spec, str):
        parts = [part.rpartition("=") for part in spec.split(",") if part.strip()]
        pairs = [(module if equals else _DEFAULT, name) for module, equals, name in parts]
    elif isinstance(spec, Mapping):
        pairs = list(spec.items())
    else:
        raise ArgumentError(f"{what} must be a string or a mapping of module to name, not {spec!r}")
    assigned: dict[str, str] = {}
    for text, name in pairs:
        if not isinstance(text, str) or not isinstance(name, str):
            raise ArgumentError(f"{what} must map module to name, not {text!r} to {name!r}")
        module = _module(what, text)
        if module in assigned:
            whole = "the default" if module == _DEFAULT else f"module {module!r}"
            raise ArgumentError(f"{what}: {whole} is assigned twice; name each once of {', '.join(MODULES)}, all")
        if not name.strip():
            raise ArgumentError(f"{what}: nothing is assigned to {text!r}")
        assigned[module] = name.strip()
    return assigned


def find_device(what: str, text: str, devices: Sequence[Device]) -> Device:
    """Return the device that a name, a unique prefix of one, or ``cpu``, ``gpu`` or ``auto`` stands for.

    ``gpu`` is the first discrete GPU, or else the first integrated one; ``auto`` is that or else the CPU.

    Raises:
        ArgumentError: there is none, or more than one; the message lists what is valid.
    """
    word = text.lower()
    # An accelerator such as BLAS helps the CPU device; it neither computes a whole module nor keeps weights.
    usable = [device for device in devices if device.kind != "accel"]
    exact = [device for device in usable if device.name.lower() == word]
    if exact:
        return exact[0]
    kinds = {"cpu": ("cpu",), "gpu": ("gpu", "igpu"), "auto": ("gpu", "igpu", "cpu")}.get(word, ())
    for kind in kinds:
        for device in usable:
            if device.kind == kind:
                return device
    names = ", ".join(device.name for device in usable) or "none"
    if not any(device.kind in ("gpu", "igpu") for device in usable):
        names += " (sdcpp doctor says why there is no GPU)"
    if kinds:
        raise ArgumentError(f"{what}: there is no {word.upper()} device; devices: {names}")
    found = [device for device in usable if device.name.lower().startswith(word)]
    if len(found) == 1:
        return found[0]
    problem = f"is ambiguous ({', '.join(device.name for device in found)})" if found else "is unknown"
    raise ArgumentError(f"{what}: device {text!r} {problem}; devices: {names}, or one of auto, gpu, cpu")


def _policy(text: str) -> str:
    """Return a pin policy, checked."""
    word = text.lower()
    if word not in PIN_POLICIES:
        raise ArgumentError(f"pin_params {text!r} is unknown; valid: {', '.join(PIN_POLICIES)}")
    return word


# --- the pin budget ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BudgetPart:
    """One limit of what may be pinned.

    Attributes:
        name: ``MemAvailable`` (``free memory`` where there is no ``/proc``), ``cgroup``, ``RLIMIT_MEMLOCK`` or
            ``pin_budget``.
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
    """Return how much may be pinned now: the least of free memory, cgroup, RLIMIT_MEMLOCK and the caller's cap.

    Args:
        devices: the devices there are; the CPU's memory stands in where there is no ``/proc/meminfo``.
        pin_budget: the caller's cap in GiB, not negative; None for none.
        root: the directory that holds ``proc`` and the cgroup file systems.

    Raises:
        ArgumentError: *pin_budget* is no finite number, or negative.
    """
    cap = None if pin_budget is None else int(check_float("pin_budget", pin_budget, 0.0, _NO_LIMIT / GIB) * GIB)
    return PinBudget(
        (
            _memory_part(devices, root),
            _cgroup_part(root),
            _memlock_part(devices, root),
            BudgetPart("pin_budget", cap, "not given" if cap is None else "given by the caller"),
        )
    )


def _read(path: Path) -> str:
    """Return a file's text, or nothing where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    """Return a whole number, or None for anything else such as ``max``."""
    return int(text) if re.fullmatch(r"\d+", text.strip(), re.ASCII) else None


def _fields(text: str) -> dict[str, int]:
    """Return the numbers of lines such as ``name: 5 kB`` or ``name 5``, in the file's own unit."""
    return {name: int(value) for name, value in re.findall(r"^(\w+):?[ \t]+(\d+)", text, re.MULTILINE | re.ASCII)}


def _memory_part(devices: Sequence[Device], root: Path) -> BudgetPart:
    """Return what free memory leaves.

    The reserve is for what the engine itself and everybody else will need while the weights stay where they are: a
    tenth of the memory, and 1 GiB at least.
    """
    memory = {name: value * 1024 for name, value in _fields(_read(root / "proc/meminfo")).items()}
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


def _cgroup_mounts(root: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (cgroup version, mount point, root of the mount) of the file systems that limit memory."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        mount, kind = left.split(" "), right.split(" ")
        if len(mount) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2" or (kind[0] == "cgroup" and "memory" in kind[2].split(",")):
            # proc(5): blanks and backslashes are written in octal.
            base, point = (re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), text) for text in mount[3:5])
            yield 2 if kind[0] == "cgroup2" else 1, point, base


def _cgroup_directories(root: Path) -> Iterator[tuple[int, str]]:
    """Yield (cgroup version, directory below root) of this process's cgroups and all their ancestors."""
    own: dict[int, str] = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            own[2] = path
        elif "memory" in controllers.split(","):
            own[1] = path
    for version, point, base in _cgroup_mounts(root):
        if version not in own:
            continue
        path, base = own[version].rstrip("/"), base.rstrip("/")
        inside = path[len(base) :] if f"{path}/".startswith(f"{base}/") else ""
        parts = [part for part in inside.split("/") if part]
        if ".." in parts:  # outside of this cgroup namespace
            parts = []
        for depth in range(len(parts), -1, -1):
            yield version, "/".join(part for part in (point.strip("/"), *parts[:depth]) if part)


def _cgroup_part(root: Path) -> BudgetPart:
    """Return what the tightest of this process's cgroups and their ancestors leaves.

    Use is what cannot be reclaimed: all that is charged less the inactive file cache, as Kubernetes computes its
    working set (kubernetes.io, node-pressure eviction). ``memory.high`` counts as a limit, since the kernel throttles
    a process above it.
    """
    tightest = BudgetPart("cgroup", None, "no memory limit")
    for version, directory in _cgroup_directories(root):
        names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
        numbers = [_number(_read(root / directory / name)) for name in names]
        limit = min((number for number in numbers if number is not None), default=_NO_LIMIT)
        if limit >= _NO_LIMIT:
            continue
        charged = _number(_read(root / directory / ("memory.current" if version == 2 else "memory.usage_in_bytes")))
        statistics = _fields(_read(root / directory / "memory.stat"))
        inactive = statistics.get("inactive_file", 0)
        if version == 1:
            inactive = statistics.get("total_inactive_file", inactive)
        used = limit if charged is None else max(0, charged - inactive)
        left = max(0, limit - used)
        if tightest.bytes is None or left < tightest.bytes:
            shown = "unknown use" if charged is None else f"{show_bytes(used)} in use"
            tightest = BudgetPart("cgroup", left, f"{show_bytes(limit)} limit - {shown} (v{version}, /{directory})")
    return tightest


def _memlock_part(devices: Sequence[Device], root: Path) -> BudgetPart:
    """Return what RLIMIT_MEMLOCK leaves to backends that lock with mlock(), unless the process may lock everything."""
    found = re.search(r"^Max locked memory +(\w+)", _read(root / "proc/self/limits"), re.MULTILINE)
    limit = None if found is None else _number(found[1])
    if limit is None:
        return BudgetPart("RLIMIT_MEMLOCK", None, "unlimited" if found else "there is none here")
    users = [device.name for device in devices if device.backend in MLOCK_BACKENDS and device.host_buffer_type]
    if not users:
        detail = f"{show_bytes(limit)}, but drivers that pin memory do not count against it"
        return BudgetPart("RLIMIT_MEMLOCK", None, detail)
    status = _read(root / "proc/self/status")
    capabilities = re.search(r"^CapEff:\s*([0-9a-fA-F]+)", status, re.MULTILINE)
    if capabilities is not None and int(capabilities[1], 16) >> _CAP_IPC_LOCK & 1:
        return BudgetPart("RLIMIT_MEMLOCK", None, f"{show_bytes(limit)}, but CAP_IPC_LOCK lifts it")
    locked = _fields(status).get("VmLck", 0) * 1024
    detail = f"{show_bytes(limit)} limit - {show_bytes(locked)} locked; {', '.join(users)} locks with mlock()"
    return BudgetPart("RLIMIT_MEMLOCK", max(0, limit - locked), detail)


# --- the budget of device memory --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceBudget:
    """How much memory of one device the model may use.

    Attributes:
        device: name of the device.
        bytes: the budget; where it is measured, what it is now, since it is measured again for each picture.
        detail: how that number comes about.
    """

    device: str
    bytes: int
    detail: str


def check_max_vram(max_vram: float | None) -> float | None:
    """Return the budget of device memory in GiB, or raise ArgumentError unless it has a meaning.

    Args:
        max_vram: GiB; negative is what stays free of what is free now; None when none is given.
    """
    if max_vram is None:
        return None
    number = check_float("max_vram", max_vram, -_NO_LIMIT / GIB, _NO_LIMIT / GIB)
    if abs(number) * MIB < 1.0:  # less than 1 KiB: the engine takes 0 for "not given"
        raise ArgumentError(
            f"max_vram {number:g} leaves nothing: give a budget in GiB, a negative number for what is to stay free, or "
            "none at all"
        )
    return number


def device_budget(device: Device, max_vram: float | None, stream_layers: bool) -> DeviceBudget:
    """Return what the engine may use of a device, by the engine's own rule.

    Args:
        device: the device as it is now.
        max_vram: as check_max_vram returned it.
        stream_layers: whether copies and computations overlap.

    Raises:
        ArgumentError: it is nothing.
    """
    turns = "" if stream_layers else "; copies and computations take turns: stream_layers lets them overlap"
    total, free = device.memory_total, device.memory_free
    if max_vram is not None and max_vram > 0.0:
        size = int(max_vram * GIB)
        detail = "given as max_vram"
        if size > total > 0:
            detail += f", more than the {show_bytes(total)} that it has"
        elif size > free > 0:
            detail += f", more than the {show_bytes(free)} that are free now"
        return DeviceBudget(device.name, size, detail + turns)
    if max_vram is None:
        reserve = device.memory_reserve
        detail = f"{show_bytes(free)} free now - {show_bytes(reserve)} reserve"
    else:
        reserve = int(-max_vram * GIB)
        detail = f"{show_bytes(free)} free now - {show_bytes(reserve)} given as max_vram"
    if free <= reserve:
        raise ArgumentError(f"nothing of {device.name} may be used ({detail}); set max_vram to a budget in GiB")
    return DeviceBudget(device.name, free - reserve, detail + turns)


# --- the plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModulePlan:
    """Where one module runs and where its weights will lie.

    Attributes:
        module: one of ``MODULES``.
        runtime_device: name of the device that computes it.
        params_device: name of the device whose memory keeps its weights.
        buffer_type: the buffer type to ask for; a params device's own is called by the device's name.
        pin: what was asked: ``auto``, ``require`` or ``never``.
        pinned: whether the runtime device's host buffer type will be asked for.
        bytes: size of its weights by the headers of the files, without padding between tensors; 0 when they hold none.
        streamed: whether its weights stay on or are streamed to the runtime device, as the budget of device memory
            allows; else all of them are moved there while it runs.
        overlapped: whether what is streamed is copied while the device computes; else the two take turns.
        reason: why it is pinned or is not, and why it cannot be streamed.
    """

    module: str
    runtime_device: str
    params_device: str
    buffer_type: str
    pin: str
    pinned: bool
    bytes: int
    streamed: bool
    overlapped: bool
    reason: str


@dataclass(frozen=True)
class Plan:
    """Where every module runs, where its weights will lie, and why; made before anything is loaded.

    Attributes:
        modules: one entry for each module, in the order in which pinning gains most.
        budget: how much may be pinned.
        unaffordable: the modules that ``auto`` would have pinned if the budget were larger.
        device_budgets: how much memory of each device may be used; empty when neither ``stream_layers`` nor
            ``max_vram`` was asked for.
    """

    modules: tuple[ModulePlan, ...]
    budget: PinBudget
    unaffordable: tuple[str, ...] = ()
    device_budgets: tuple[DeviceBudget, ...] = ()

    @property
    def pinned_bytes(self) -> int:
        """What will be pinned, in bytes."""
        return sum(row.bytes for row in self.modules if row.pinned)

    def placements(self) -> list[dict[str, Any]]:
        """Return what the engine is told, a mapping for each module."""
        return [
            {
                "module": row.module,
                "runtime_device": row.runtime_device,
                "params_device": row.params_device,
                "pin": row.pinned,
                "stream": row.streamed,
                "overlap": row.overlapped,
            }
            for row in self.modules
        ]

    def __str__(self) -> str:
        """Return a table of the modules with weights, what is not in the files, and the budgets."""
        header = ("module", "runs on", "weights on", "buffer type", "pinned", "streamed", "size", "reason")
        rows = [
            (
                row.module,
                row.runtime_device,
                row.params_device,
                row.buffer_type,
                "yes" if row.pinned else "no",
                ("overlapped" if row.overlapped else "in turn") if row.streamed else "no",
                show_bytes(row.bytes),
                row.reason,
            )
            for row in self.modules
            if row.bytes
        ]
        absent = ", ".join(row.module for row in self.modules if not row.bytes)
        lines = [table(header, rows, ("size",))]
        if absent:
            lines.append(f"not in these files: {absent}")
        lines += ["", str(self.budget)]
        if self.device_budgets:
            budgets = [(budget.device, show_bytes(budget.bytes), budget.detail) for budget in self.device_budgets]
            lines += ["", table(("device", "budget", "because"), budgets, ("budget",))]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {
            "modules": [asdict(row) for row in self.modules],
            "pinned_bytes": self.pinned_bytes,
            "unaffordable": list(self.unaffordable),
            "budget": self.budget.to_dict(),
            "device_budgets": [asdict(budget) for budget in self.device_budgets],
        }


def _places(
    devices: Sequence[Device], runtime_backend: Spec | None, params_backend: Spec | None
) -> dict[str, tuple[Device, Device]]:
    """Return each module's (runtime device, params device)."""
    # All words are resolved, also those that every module overrides: a typo is an error wherever it stands.
    runtimes, homes = (
        {module: find_device(what, word, devices) for module, word in parse_spec(what, spec).items()}
        for what, spec in (("runtime_backend", runtime_backend), ("params_backend", params_backend))
    )
    if _DEFAULT not in runtimes:
        runtimes[_DEFAULT] = find_device("runtime_backend", "auto", devices)
    places = {}
    for module in MODULES:
        runtime = runtimes.get(module, runtimes[_DEFAULT])
        places[module] = runtime, homes.get(module, homes.get(_DEFAULT, runtime))
    return places


def _obstacle(runtime: Device, home: Device) -> str | None:
    """Return why weights can be neither pinned nor streamed, or None when they are host params."""
    if home.name == runtime.name:
        return f"its weights live on {runtime.name}, which computes it"
    if home.kind != "cpu":
        return f"its weights live in the memory of {home.name}"
    return None


def _device_budgets(
    runtimes: Sequence[Device], max_vram: float | None, stream_layers: bool
) -> tuple[DeviceBudget, ...]:
    """Return the budget of each device that computes host params, or none where nothing was asked.

    Raises:
        ArgumentError: a budget or streaming was asked for and would do nothing.
    """
    max_vram = check_max_vram(max_vram)
    if max_vram is None and not stream_layers:
        return ()
    if not runtimes:
        asked = "stream_layers has nothing to stream" if stream_layers else "max_vram has nothing to limit"
        raise ArgumentError(
            f"{asked}: no module has its weights on the CPU and runs on another device; params_backend='cpu' with a "
            "GPU as runtime_backend makes it so"
        )
    once = {device.name: device for device in runtimes}
    return tuple(device_budget(device, max_vram, stream_layers) for device in once.values())


def plan(
    weights: Mapping[str, int],
    devices: Sequence[Device],
    budget: PinBudget,
    *,
    runtime_backend: Spec | None = None,
    params_backend: Spec | None = None,
    pin_params: Spec = "auto",
    max_vram: float | None = None,
    stream_layers: bool = False,
) -> Plan:
    """Return where each module runs, where its weights will lie and which are pinned or streamed.

    A module is pinned whole or not at all. What is required comes first; then each module that fits in what is left
    of the budget is pinned, in the order of ``MODULES``.

    Args:
        weights: module -> bytes of its weights.
        devices: the devices there are.
        budget: how much may be pinned.
        runtime_backend: spec of the devices that compute; by default a GPU if there is one, else the CPU.
        params_backend: spec of the devices that keep the weights; by default the one that computes.
        pin_params: spec of ``auto`` (pin what the budget affords), ``require`` and ``never``.
        max_vram: budget of device memory in GiB for modules whose weights the CPU keeps for another device: what does
            not fit is streamed. Negative is what stays free of what is free.
        stream_layers: stream within a budget, which is measured when none is given, and let copies overlap.

    Raises:
        ArgumentError: a spec or a number is wrong, or asks to pin, stream or limit where there is nothing to.
        PlacementError: a module must be pinned and cannot be.
    """
    places = _places(devices, runtime_backend, params_backend)
    pins = {module: _policy(word) for module, word in parse_spec("pin_params", pin_params).items()}
    policies = {module: pins.get(module, pins.get(_DEFAULT, "auto")) for module in MODULES}
    obstacles = {module: _obstacle(*place) for module, place in places.items()}
    hosted = [module for module, obstacle in obstacles.items() if obstacle is None and weights.get(module, 0)]
    device_budgets = _device_budgets([places[module][0] for module in hosted], max_vram, stream_layers)
    streaming = bool(device_budgets)
    reasons: dict[str, str] = {}
    pinnable = []
    for module, (runtime, _) in places.items():
        obstacle = obstacles[module] if weights.get(module, 0) else "it has no weights in these files"
        if obstacle is not None and pins.get(module) == "require":
            raise ArgumentError(f"pin_params is 'require' for {module}, but there is nothing to pin: {obstacle}")
        if obstacle is None and runtime.host_buffer_type is None:
            obstacle = f"{runtime.name} has no host buffer type"
            if policies[module] == "require":
                raise PlacementError(f"{module} must be pinned, but {obstacle}; use pin_params='auto'")
        if obstacle is None:
            pinnable.append(module)
        else:
            both = " or stream" if streaming and obstacles[module] is not None else ""
            reasons[module] = f"nothing to pin{both}: {obstacle}"

    required = [module for module in pinnable if policies[module] == "require"]
    if pins.get(_DEFAULT) == "require" and all(module in pins for module in required):
        raise ArgumentError(
            "pin_params is 'require', but there is nothing to pin: no module has its weights on the CPU and runs on "
            "another device; params_backend='cpu' with a GPU as runtime_backend makes it so"
        )
    needed = sum(weights[module] for module in required)
    if needed > budget.bytes:
        raise PlacementError(
            f"{show_bytes(needed)} ({needed} bytes) must be pinned for {', '.join(required)}, but the pin budget is "
            f"{show_bytes(budget.bytes)} ({budget.bytes} bytes), set by {budget.binding.name}: "
            f"{budget.binding.detail}; use pin_params='auto' to pin what fits"
        )

    left = budget.bytes - needed
    pinned = set(required)
    unaffordable = []
    for module in pinnable:
        if policies[module] == "auto" and weights[module] <= left:
            pinned.add(module)
            left -= weights[module]
        elif policies[module] == "auto":
            unaffordable.append(module)
            reasons[module] = f"pageable: only {show_bytes(left)} of the pin budget left"
        elif policies[module] == "never":
            reasons[module] = "pageable: pin_params is never"
    rows = (
        ModulePlan(
            module=module,
            runtime_device=runtime.name,
            params_device=home.name,
            buffer_type=str(runtime.host_buffer_type) if module in pinned else home.name,
            pin=policies[module],
            pinned=module in pinned,
            bytes=weights.get(module, 0),
            streamed=streaming and obstacles[module] is None,
            overlapped=stream_layers and obstacles[module] is None,
            reason=reasons.get(module, f"page-locked for {runtime.name}"),
        )
        for module, (runtime, home) in places.items()
    )
    return Plan(tuple(rows), budget, tuple(unaffordable), device_budgets)

"""From specs and budgets to a plan: where modules run, where weights lie, which are pinned or streamed, and why.

Pure arithmetic over what the engine, the system and the caller say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, PlacementError
from ..reports import show_bytes, table
from .device_memory import DeviceBudget, check_max_vram, device_budget
from .on_disk import DISK, Stored, disk_obstacle, kept_of, needed_of, possible_of
from .pinning import PinBudget
from .specs import DEFAULT, MODULES, Spec, find_device, parse_spec, pin_policy

if TYPE_CHECKING:
    from ..devices import Device
    from .choice import Choice


@dataclass(frozen=True)
class ModulePlan:
    """Where one module runs and where its weights will lie.

    Attributes:
        module: one of ``MODULES``.
        runtime_device: name of the device that computes it.
        params_device: name of the device whose memory keeps its weights; ``disk``: they stay in the model's files.
        buffer_type: the buffer type to ask for; a params device's own is called by the device's name.
        pin: what was asked: ``auto``, ``require`` or ``never``.
        pinned: whether the runtime device's host buffer type will be asked for.
        bytes: size of its weights by the headers of the files, without padding between tensors; 0 when they hold none.
        streamed: whether its weights stay on or are streamed to the runtime device, as the budget of device memory
            allows; else all of them are moved there while it runs.
        overlapped: whether what is streamed is copied while the device computes; else the two take turns.
        reason: why it is pinned or is not, and why it cannot be streamed.
        kept_bytes: of weights on disk, what host memory keeps, so that it is read once; 0 for any other.
        past_cache: whether the rest of them is read past the system's cache, which has no room for it.
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
    kept_bytes: int = 0
    past_cache: bool = False


@dataclass(frozen=True)
class Plan:
    """Where every module runs, where its weights will lie, and why; made before anything is loaded.

    Attributes:
        modules: one entry for each module, in the order in which pinning gains most.
        budget: how much may be pinned.
        unaffordable: the modules that ``auto`` would have pinned if the budget were larger.
        device_budgets: how much memory of each device may be used; empty when neither ``stream_layers`` nor
            ``max_vram`` was asked for.
        encoder_bytes: what the VAE takes besides as soon as a picture goes in, when its encoder is loaded; 0 where the
            files hold none, or it is loaded at once.
        kernels: what computes on the CPU and on CUDA: ``fast`` (kernels of this package where it has them) or
            ``engine``.
        choice: what was chosen and what was rejected where nothing was asked for; None where something was, or there is
            no GPU to choose.
    """

    modules: tuple[ModulePlan, ...]
    budget: PinBudget
    unaffordable: tuple[str, ...] = ()
    device_budgets: tuple[DeviceBudget, ...] = ()
    encoder_bytes: int = 0
    kernels: str = "fast"
    choice: Choice | None = None

    @property
    def seconds(self) -> float | None:
        """Predicted seconds of a picture; None where nothing was to choose."""
        return None if self.choice is None else self.choice.seconds

    @property
    def pinned_bytes(self) -> int:
        """What will be pinned, in bytes."""
        return sum(row.kept_bytes if row.params_device == DISK else row.bytes for row in self.modules if row.pinned)

    def placements(self) -> list[dict[str, Any]]:
        """Return what the engine is told, a mapping for each module."""
        return [
            {
                "module": row.module,
                "runtime_device": row.runtime_device,
                "params_device": row.params_device,
                "keep_bytes": row.kept_bytes,
                "past_cache": row.past_cache,
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
        if self.encoder_bytes:
            lines.append(f"when a picture goes in: {show_bytes(self.encoder_bytes)} more for the encoder of vae")
        lines.append(f"kernels: {self.kernels}")
        lines += ["", str(self.budget)]
        if self.device_budgets:
            budgets = [(budget.device, show_bytes(budget.bytes), budget.detail) for budget in self.device_budgets]
            lines += ["", table(("device", "budget", "because"), budgets, ("budget",))]
        if self.choice is not None:
            lines += ["", str(self.choice)]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {
            "modules": [asdict(row) for row in self.modules],
            "pinned_bytes": self.pinned_bytes,
            "unaffordable": list(self.unaffordable),
            "budget": self.budget.to_dict(),
            "device_budgets": [asdict(budget) for budget in self.device_budgets],
            "encoder_bytes": self.encoder_bytes,
            "kernels": self.kernels,
            "choice": None if self.choice is None else self.choice.to_dict(),
        }


def _places(
    devices: Sequence[Device], runtime_backend: Spec | None, params_backend: Spec | None
) -> dict[str, tuple[Device, Device | str]]:
    """Return each module's (runtime device, params device or DISK)."""
    # All words are resolved, also those that every module overrides: a typo is an error wherever it stands.
    what = "runtime_backend"
    runtimes = {module: find_device(what, word, devices) for module, word in parse_spec(what, runtime_backend).items()}
    what = "params_backend"
    homes: dict[str, Device | str] = {
        module: DISK if word.lower() == DISK else find_device(what, word, devices, f"{DISK}, cpu")
        for module, word in parse_spec(what, params_backend).items()
    }
    if DEFAULT not in runtimes:
        runtimes[DEFAULT] = find_device("runtime_backend", "auto", devices)
    places = {}
    for module in MODULES:
        runtime = runtimes.get(module, runtimes[DEFAULT])
        home = homes.get(module, homes.get(DEFAULT, runtime))
        if home == DISK and (obstacle := disk_obstacle(runtime)):
            if module in homes or DEFAULT not in runtimes or runtime == runtimes[DEFAULT]:
                raise ArgumentError(f"params_backend is 'disk' for {module}: {obstacle}")
            home = runtime  # 'disk' was said of all, and this one was given to the CPU by name
        places[module] = runtime, home
    return places


def _obstacle(runtime: Device, home: Device | str) -> str | None:
    """Return why weights can be neither pinned nor streamed, or None when they are host params or on disk."""
    if isinstance(home, str):
        return None
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
    stored: Mapping[str, Stored] | None = None,
) -> Plan:
    """Return where each module runs, where its weights will lie and which are pinned or streamed.

    A module is pinned whole or not at all. What is required comes first; then each module that fits in what is left
    of the budget is pinned, in the order of ``MODULES``.

    Args:
        weights: module -> bytes of its weights.
        devices: the devices there are.
        budget: how much may be pinned.
        runtime_backend: spec of the devices that compute; by default a GPU if there is one, else the CPU.
        params_backend: spec of the devices that keep the weights, or ``disk``; by default the one that computes.
        pin_params: spec of ``auto`` (pin what the budget affords), ``require`` and ``never``.
        max_vram: budget of device memory in GiB for modules whose weights the CPU keeps for another device: what does
            not fit is streamed. Negative is what stays free of what is free.
        stream_layers: stream within a budget, which is measured when none is given, and let copies overlap.
        stored: module -> what of its weights could stay on disk; one that is not there could as a whole.

    Raises:
        ArgumentError: a spec or a number is wrong, or asks to pin, stream or limit where there is nothing to.
        PlacementError: a module must be pinned and cannot be.
    """
    places = _places(devices, runtime_backend, params_backend)
    pins = {module: pin_policy(word) for module, word in parse_spec("pin_params", pin_params).items()}
    policies = {module: pins.get(module, pins.get(DEFAULT, "auto")) for module in MODULES}
    obstacles = {module: _obstacle(*place) for module, place in places.items()}
    hosted = [module for module, obstacle in obstacles.items() if obstacle is None and weights.get(module, 0)]
    on_disk = [module for module, (_, home) in places.items() if home == DISK]
    asked = stream_layers or max_vram is not None
    device_budgets = _device_budgets(
        [places[module][0] for module in hosted if asked or module in on_disk],
        max_vram,
        stream_layers or any(module in hosted for module in on_disk),
    )
    streaming = asked and bool(device_budgets)
    reasons: dict[str, str] = {}
    pinnable = []
    for module, (runtime, _) in places.items():
        obstacle = obstacles[module] if weights.get(module, 0) else "it has no weights in these files"
        if module in on_disk and policies[module] == "require":
            raise ArgumentError(f"pin_params is 'require' for {module}, but there is nothing to pin: it stays on disk")
        if obstacle is not None and pins.get(module) == "require":
            raise ArgumentError(f"pin_params is 'require' for {module}, but there is nothing to pin: {obstacle}")
        if obstacle is None and runtime.host_buffer_type is None:
            obstacle = f"{runtime.name} has no host buffer type"
            if policies[module] == "require":
                raise PlacementError(f"{module} must be pinned, but {obstacle}; use pin_params='auto'")
        if obstacle is None and module in on_disk:
            continue
        if obstacle is None:
            pinnable.append(module)
        else:
            both = " or stream" if streaming and obstacles[module] is not None else ""
            reasons[module] = f"nothing to pin{both}: {obstacle}"

    required = [module for module in pinnable if policies[module] == "require"]
    if pins.get(DEFAULT) == "require" and all(module in pins for module in required):
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
    # Weights in host memory take of it whether they are pinned or not.
    in_memory = sum(
        weights.get(module, 0)
        for module, (_, home) in places.items()
        if not isinstance(home, str) and home.kind == "cpu"
    )
    streaming_from_disk = {places[module][0].name for module in on_disk if weights.get(module, 0)}
    needed = needed_of(on_disk, weights, stored or {}, len(streaming_from_disk))
    kept = kept_of(on_disk, weights, budget.bytes - in_memory - needed, stored or {})
    possible = sum(possible_of(module, weights, stored or {}) for module in on_disk)
    past_cache = possible > budget.room - in_memory - needed
    for module, size in kept.items():
        if weights.get(module, 0):
            reasons[module] = f"on disk; host memory keeps {show_bytes(size)} of it"
            if size and policies[module] == "auto" and places[module][0].host_buffer_type is not None:
                pinned.add(module)
    names = {module: home if isinstance(home, str) else home.name for module, (_, home) in places.items()}
    rows = (
        ModulePlan(
            module=module,
            runtime_device=runtime.name,
            params_device=names[module],
            buffer_type=names[module] if module in on_disk or module not in pinned else str(runtime.host_buffer_type),
            pin=policies[module],
            pinned=module in pinned,
            bytes=weights.get(module, 0),
            streamed=(streaming and obstacles[module] is None) or module in on_disk,
            overlapped=(stream_layers and obstacles[module] is None) or module in on_disk,
            reason=reasons.get(module, f"page-locked for {runtime.name}"),
            kept_bytes=kept.get(module, 0),
            past_cache=module in kept and past_cache,
        )
        for module, (runtime, _) in places.items()
    )
    return Plan(tuple(rows), budget, tuple(unaffordable), device_budgets)

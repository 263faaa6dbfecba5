"""Reading what a caller says about modules: which device, which pin policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Union

from ..errors import ArgumentError

if TYPE_CHECKING:
    from ..devices import Device

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

DEFAULT = "*"
"""Stands for the modules that a spec does not name."""
_DEFAULT_NAMES = (DEFAULT, "all", "default")


def _squeeze(name: str) -> str:
    """Return a module's name as it is compared."""
    return name.lower().replace("-", "").replace("_", "")


_NAMES = {_squeeze(name): module for module, others in MODULES.items() for name in (module, *others)}


def _module(what: str, text: str) -> str:
    """Return the module that a name, an alias or a unique prefix of one stands for, or ``*`` for the default."""
    name = _squeeze(text.strip())
    if name in _DEFAULT_NAMES:
        return DEFAULT
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
        pairs = [(module if equals else DEFAULT, name) for module, equals, name in parts]
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
            whole = "the default" if module == DEFAULT else f"module {module!r}"
            raise ArgumentError(f"{what}: {whole} is assigned twice; name each once of {', '.join(MODULES)}, all")
        if not name.strip():
            raise ArgumentError(f"{what}: nothing is assigned to {text!r}")
        assigned[module] = name.strip()
    return assigned


def find_device(what: str, text: str, devices: Sequence[Device], words: str = "cpu") -> Device:
    """Return the device that a name, a unique prefix of one, or ``cpu``, ``gpu`` or ``auto`` stands for.

    ``gpu`` is the first discrete GPU, or else the first integrated one; ``auto`` is that or else the CPU. A message
    names *words* besides.

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
    raise ArgumentError(f"{what}: device {text!r} {problem}; devices: {names}, or one of auto, gpu, {words}")


def pin_policy(text: str) -> str:
    """Return a pin policy, checked."""
    word = text.lower()
    if word not in PIN_POLICIES:
        raise ArgumentError(f"pin_params {text!r} is unknown; valid: {', '.join(PIN_POLICIES)}")
    return word

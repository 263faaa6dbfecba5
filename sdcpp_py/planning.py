"""The plan that nobody asked for: what a model's pictures take, and the fastest way to place it that fits."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from . import engine, models, placement
from .devices import Device, devices
from .engine.fields import IMAGE, VIDEO, defaults
from .errors import ArgumentError, ModelError
from .file_kinds import kind_of
from .handle import NOTHING_PLACED
from .load_failures import explained
from .loading import checked_loading
from .model_files import StrPath, list_file
from .modes import (
    ANY_VIDEO_MODEL,
    DRAWING,
    EDIT,
    FILMING,
    IMG2IMG,
    IMG2VID,
    INPAINT,
    LOADING,
    TXT2IMG,
    TXT2VID,
    Abilities,
    Mode,
    Request,
    make_request,
)
from .options import declared
from .placement import BudgetPart, PinBudget, Plan
from .placement.alternative import Alternative, Place
from .placement.assume import Assumed, parse_assume
from .placement.choice import Choice, choose
from .placement.demand import GROUPS, TILES, Demand, NetworkDemand, networks_of, scaled
from .placement.disk_rate import disk_rate
from .placement.evaluation import evaluate
from .placement.machine import DISK_RATE, Described, Machine, this_machine
from .placement.on_disk import Stored, system_obstacle

log = logging.getLogger("sdcpp_py")

FEW_STEPS = 2
"""Steps that are surveyed: the others take what these do."""
_SMALL = ("SD 1.x", "SD 2.x")
_LARGE_PART = 2  # tiles are looked at where the VAE takes more than this part of the smallest GPU
_ROOM_TO_MEASURE = 256 << 20
_LATENT = 8  # pixels of a side that one latent pixel is, of most families
_PROMPT = "a picture"


class Surveyor:
    """Says what a model's weights and pictures take, from the headers of its files.

    Args:
        given: the engine's fields that the model is loaded with.
        files: argument -> path of its files, for messages.
    """

    def __init__(self, given: Mapping[str, Any], files: Mapping[str, StrPath | None]) -> None:
        self.given, self.files = given, files
        self._known: dict[Any, tuple[NetworkDemand, ...]] = {}

    @functools.cached_property
    def _rows(self) -> list[dict[str, Any]]:
        with explained(self.files):
            return engine.stored_survey(self.given)

    @property
    def weights(self) -> Mapping[str, int]:
        """What the weights of each module take, in bytes.

        Raises:
            ModelError: the files are missing or damaged.
        """
        return {row["module"]: row["bytes"] for row in self._rows}

    @property
    def stored(self) -> Mapping[str, Stored]:
        """What of the weights of each module could stay in the files; errors as of :attr:`weights`."""
        return placement.stored_of(self._rows)

    @property
    def disk_obstacle(self) -> str:
        """Why no weights can stay in the files; empty where they can."""
        merges = self.given.get("lora_apply_mode") == "immediately"
        return system_obstacle() or ("lora_apply_mode is 'immediately', which changes weights" if merges else "")

    def disk_rate(self) -> float:
        """Return the bytes a second that the disk with the files gives, measured once, else the stated figure."""
        paths = [path for path in self.files.values() if path is not None]
        return disk_rate(paths) or DISK_RATE

    def demand(self, mode: Mode, request: Request, machine: Machine, *, device: str | None, encodes: bool) -> Demand:
        """Return what one call takes.

        Args:
            mode: the mode.
            request: what is drawn.
            machine: where; tiles for the VAE are looked at where it would take much of a GPU.
            device: that graphs are laid out for; None for the CPU.
            encodes: whether pictures go in.

        Raises:
            ModelError: the engine cannot draw this with the model.
        """
        given = {**self.given, "vae_decode_only": bool(self.given.get("vae_decode_only", True)) and not encodes}
        settings, steps, pictures = _surveyed(mode, request)
        few = dict(settings["sample_params"])
        if not request.values.get("sigmas"):
            few["sample_steps"] = min(few["sample_steps"], FEW_STEPS)
        try:
            networks = self._survey(given, mode, {**settings, "sample_params": few}, device)
        except ArgumentError:  # too few steps for a pair of models
            few = settings["sample_params"]
            networks = self._survey(given, mode, settings, device)
        passes = [row.graphs for row in networks if row.module == "diffusion"]
        whole = max((row.compute_bytes for row in networks if row.module == "vae"), default=0)
        least = min((gpu.bytes for gpu in machine.gpus), default=0)
        tiled = {}
        if least and whole * _LARGE_PART >= least and not request.values.get("vae_tiling"):
            for side in (side for side in TILES if side * _LATENT < max(request.largest)):
                tiling = {"enabled": True, "tile_size_x": side, "tile_size_y": side}
                asked = {**settings, "sample_params": few, "vae_tiling_params": tiling}
                rows = [row for row in self._survey(given, mode, asked, device) if row.module == "vae"]
                tiled[side] = scaled(rows, 1.0, pictures)
        return Demand(
            networks=scaled(networks, steps / few["sample_steps"], pictures),
            weights={**self.weights, **_encoder(self.weights, networks)},
            tiled=tiled,
            passes=max(1, round(max(passes, default=1) / few["sample_steps"])) * pictures,
            text=_text(mode, request, pictures),
            stored=self.stored,
            disk_obstacle=self.disk_obstacle,
        )

    def _survey(
        self, given: Mapping[str, Any], mode: Mode, settings: Mapping[str, Any], device: str | None
    ) -> tuple[NetworkDemand, ...]:
        """Return what each network takes, from memory where the same was asked before."""
        key = (bool(given["vae_decode_only"]), mode.struct, device, _outline(settings))
        if key not in self._known:
            with explained(self.files):
                self._known[key] = networks_of(engine.picture_survey(given, mode.struct, settings, device))
        return self._known[key]


def _encoder(weights: Mapping[str, int], networks: Sequence[NetworkDemand]) -> dict[str, int]:
    """Return what a module takes that is larger than the model was surveyed: the VAE with its encoder."""
    read = sum(row.weight_bytes for row in networks if row.module == "vae")
    return {"vae": read} if read > weights.get("vae", 0) else {}


def _surveyed(mode: Mode, request: Request) -> tuple[dict[str, Any], float, int]:
    """Return the settings of a survey of one picture, the steps that are drawn, and the number of pictures."""
    settings = {name: value for name, value in request.settings.items() if name not in ("loras", "batch_count")}
    sample = dict(settings.get("sample_params", {}))
    sample["sample_steps"] = sample.get("sample_steps") or defaults(mode.struct)["sample_params.sample_steps"]
    steps = float(sample["sample_steps"])
    if mode.struct == IMAGE:
        steps *= settings.get("strength", 1.0) if request.values.get("image") is not None else 1.0
        settings |= {"batch_count": 1, "strength": 1.0}
    settings["sample_params"] = sample
    return settings, steps, len(request.seeds) if mode.struct == IMAGE else 1


def _outline(value: Any, name: str = "") -> Any:
    """Return what of settings a survey depends on: sizes of pictures, not what they show; about how long texts are."""
    if isinstance(value, Mapping):
        return tuple((key, _outline(each, key)) for key, each in sorted(value.items()) if key != "seed")
    if hasattr(value, "shape"):
        return tuple(value.shape)
    if isinstance(value, (list, tuple)):
        return tuple(_outline(each) for each in value)
    if isinstance(value, (str, bytes)) and name in ("prompt", "negative_prompt"):
        return len(value) // 200
    return value


def _text(mode: Mode, request: Request, pictures: int) -> str:
    """Say what is drawn."""
    wide, high = request.largest
    frames = request.values.get("frames")
    several = f", {frames} frames" if frames else f", {pictures} pictures" if pictures > 1 else ""
    steps = request.values.get("steps") or defaults(mode.struct)["sample_params.sample_steps"]
    return f"{mode.name} {wide}x{high}, {steps} steps{several}"


def usual_size(model: StrPath | None) -> tuple[int, int]:
    """Return the width and height that pictures of a model are expected to have where nobody has said."""
    if model is None or model == models.EMBEDDED:
        return models.EMBEDDED_DEFAULTS["width"], models.EMBEDDED_DEFAULTS["height"]
    try:
        family = kind_of(list_file(model, "model")).family
    except ModelError:
        family = None
    side = 512 if family in _SMALL else 1024
    return side, side


def usual_calls(size: tuple[int, int]) -> list[tuple[Mode, dict[str, Any]]]:
    """Return calls, of which a model is able to do the first one that the engine does not refuse.

    Args:
        size: of pictures, in pixels.
    """
    grey, half = _stand_ins(size)
    given = {"prompt": _PROMPT, "width": size[0], "height": size[1]}
    return [
        (TXT2IMG, given),
        (INPAINT, {**given, "image": grey, "mask": half}),
        (IMG2IMG, {**given, "image": grey}),
        (EDIT, {**given, "images": [grey]}),
        (TXT2VID, {"prompt": _PROMPT}),
        (IMG2VID, {"prompt": _PROMPT, "image": grey}),
    ]


def _stand_ins(size: tuple[int, int]) -> tuple[Any, Any]:
    """Return a grey picture of a size and a mask, half of it white, for pictures that nobody has given."""
    from PIL import Image

    half = Image.new("L", size)
    half.paste(255, (0, 0, size[0] // 2, size[1]))
    return Image.new("RGB", size, (128, 128, 128)), half


class Planner:
    """Chooses where a model's modules go, when nothing was asked for, and again when memory is gone.

    Args:
        surveyor: knows the model.
        threads: that compute on the CPU.
        machine: that is described; None for this one.
    """

    def __init__(self, surveyor: Surveyor, threads: int | None, machine: Described | None = None) -> None:
        self.surveyor, self.threads, self.described = surveyor, threads, machine
        self.choice: Choice | None = None

    def machine(
        self, usable: Mapping[str, int] | None = None, held: int = 0
    ) -> tuple[Machine, list[Device], PinBudget]:
        """Return what there is now, with the devices and what may be pinned.

        Args:
            usable: device -> bytes that a loaded model may use, where that is not what is free.
            held: bytes of host memory that the loaded model holds.
        """
        found = devices()
        budget = placement.measure_pin_budget(found)
        if self.described is None:
            made = this_machine(found, budget, self.threads, usable)
            # Pinning is never tried out: it is asked for where it is a small part of what may be pinned.
            measured = made.gpus if budget.bytes > _ROOM_TO_MEASURE else ()
            rates = {gpu.name: engine.bus_rate(gpu.name) for gpu in measured if gpu.pins}
            gpus = tuple(replace(gpu, bus_rate=rates.get(gpu.name) or gpu.bus_rate) for gpu in made.gpus)
            made = replace(
                made, gpus=gpus, host_bytes=made.host_bytes + held, pin_bytes=made.pin_bytes + held, disk_rate=None
            )
            if gpus and not made.holds(sum(self.surveyor.weights.values())):
                made = replace(made, disk_rate=self.surveyor.disk_rate())
            return made, found, budget
        made = self.described.machine(budget, self.threads)
        part = BudgetPart("assume", made.pin_bytes, self.described.text)
        cpu = next((device for device in found if device.kind == "cpu"), None)
        assumed = [
            Device(
                name=gpu.name,
                description="assumed",
                kind="gpu",
                memory_total=gpu.bytes,
                memory_free=gpu.bytes,
                host_buffer_type=f"{gpu.name}_Host",
                backend="assumed",
                module_path=None,
                features={},
                memory_reserve=gpu.reserve,
            )
            for gpu in made.gpus
        ]
        return made, [*([cpu] if cpu is not None else []), *assumed], PinBudget((part,))

    def demand(self, mode: Mode, request: Request, machine: Machine, *, encodes: bool) -> Demand:
        """Return what a call takes; arguments and errors as of :meth:`Surveyor.demand`."""
        real = machine.gpus if self.described is None else ()
        device = real[0].name if real else None  # that graphs are laid out for
        return self.surveyor.demand(mode, request, machine, device=device, encodes=encodes)

    def usual_demand(self, machine: Machine, size: tuple[int, int], suits: Mapping[str, Any]) -> Demand | None:
        """Return what a usual picture of the model takes; None where the engine cannot tell.

        Raises:
            ModelError: the files are missing or damaged.
        """
        self.surveyor.weights  # noqa: B018 (files that are damaged are an error)
        for mode, given in usual_calls(size):
            able = Abilities(size=size, fills_masks=mode is INPAINT) if mode.struct == IMAGE else ANY_VIDEO_MODEL
            try:
                request = make_request(mode, given, suits if mode.struct == IMAGE else {}, able)
                return self.demand(mode, request, machine, encodes=_encodes(mode, request))
            except (ModelError, ArgumentError) as error:
                log.debug("%s cannot be surveyed: %s", mode.name, error)
        return None

    def choose(self, machine: Machine, demand: Demand, without: Sequence[Alternative] = ()) -> Choice | None:
        """Choose the fastest alternative that was not tried in vain; None where none is left."""
        tried = {each.key for each in without}
        made = choose(machine, demand, lambda each: each.key in tried)
        if made is not None:
            self.choice = made
        return made

    def plan(self, choice: Choice, found: Sequence[Device], budget: PinBudget) -> Plan:
        """Return the plan of a choice."""
        made = placement.plan(
            self.surveyor.weights, found, budget, **choice.chosen.specs(), stored=self.surveyor.stored
        )
        return replace(made, choice=choice, kernels=self.surveyor.given.get("kernels", made.kernels))


def is_default(choice: Choice, machine: Machine) -> bool:
    """Tell whether a choice is what the engine does by itself: everything on the first GPU."""
    return bool(machine.gpus) and all(
        place == Place(machine.gpus[0].name, "device") for place in choice.chosen.places.values()
    )


def plan(model: StrPath | None = None, *, mode: str = "txt2img", assume: Assumed | None = None, **options: Any) -> Plan:
    """Return the plan for a model's files without loading them, for this machine or one that is described.

    With nothing asked about placement it is the fastest one that fits, with predicted seconds of the call, and what was
    rejected and why; else what was asked, as :attr:`StableDiffusion.plan`.

    Args:
        model: as of :class:`StableDiffusion`.
        mode: what is drawn: ``txt2img``, ``img2img``, ..., ``img2vid``.
        assume: a machine, as ``gpu=12GiB,ram=16GiB,bus=12GB/s`` or a mapping of these keys; ``gpu=8GiB+8GiB`` are two,
            ``compute=40TFLOPS`` is a GPU's speed and ``disk=2GB/s`` a disk's. None for this one.
        **options: options of :class:`StableDiffusion` and of the mode; the prompt and pictures that go in may be left
            out.

    Raises:
        ArgumentError: an option is unknown or out of range, or nothing fits.
        ModelError: a file is missing, damaged or does not fit.
    """
    modes = {each.name: each for each in (*DRAWING, *FILMING)}
    if mode not in modes:
        raise ArgumentError(f"mode {mode!r} is unknown; valid: {', '.join(modes)}")
    which = modes[mode]
    described = None if assume is None else parse_assume(assume)
    for name in options:
        if name not in which.declared and name not in LOADING.declared:
            raise ArgumentError(f"option {name!r} is none of {mode}, or of loading a model")
    loading = {name: value for name, value in options.items() if name in LOADING.declared and name != "progress"}
    drawing = {name: value for name, value in options.items() if name in which.declared and name != "progress"}
    asked = checked_loading({"model": model, **loading})
    values = asked.values
    planner = Planner(Surveyor(asked.given, asked.files), values["threads"], described)
    machine, found, budget = planner.machine()
    placing = {name: values[name] for name in NOTHING_PLACED}
    if placing != NOTHING_PLACED:
        specs = {name: value for name, value in placing.items() if name != "pin_budget"}
        if placing["pin_budget"] is not None and described is None:
            budget = placement.measure_pin_budget(found, pin_budget=placing["pin_budget"])
        return placement.plan(planner.surveyor.weights, found, budget, **specs, stored=planner.surveyor.stored)
    size = usual_size(asked.model)
    request = _request(which, drawing, size, asked.suits, values)
    demand = planner.demand(which, request, machine, encodes=_encodes(which, request))
    choice = planner.choose(machine, demand)
    if choice is None:
        raise ArgumentError(f"nothing fits: {nothing_fits(machine, demand)}")
    return planner.plan(choice, found, budget)


def nothing_fits(machine: Machine, demand: Demand) -> str:
    """Say why no alternative fits, by the one that computes all on the CPU."""
    places = {group: Place(machine.cpu, "device") for group in GROUPS if demand.group_bytes(group)}
    return f"even on the CPU it {evaluate(machine, demand, places).reason}"


def _request(
    mode: Mode, given: Mapping[str, Any], size: tuple[int, int], suits: Mapping[str, Any], values: Mapping[str, Any]
) -> Request:
    """Return the request that a plan is made for; pictures that go in and the prompt may be left out."""
    grey, half = _stand_ins((given.get("width") or size[0], given.get("height") or size[1]))
    stand_ins: dict[str, Any] = {"prompt": _PROMPT, "image": grey, "mask": half, "images": [grey]}
    missing = {name: stand_ins[name] for name in declared(mode.subject) if name in stand_ins}
    able = Abilities(size=size, fills_masks=mode is INPAINT) if mode.struct != VIDEO else ANY_VIDEO_MODEL
    return make_request(mode, {**missing, **given}, suits, able, lora_folder=values["lora_model_dir"])


def _encodes(mode: Mode, request: Request) -> bool:
    """Tell whether pictures may go in; those of some models for videos do although none is given."""
    given = any(request.values.get(name) is not None for name in ("image", "images", "end_image"))
    return given or mode.struct == VIDEO

"""What is measured: models, ways of keeping their weights, and pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

GIB = 1 << 30
PROMPT = "a lovely cat sitting on a wooden chair in a garden, oil on canvas"
LORA_SCALE = 0.8
SLOW = 25.0  # seconds after which a row is repeated no more, once it has two runs
DRY_SHARE = 64  # budgets of the tiny models, as part of those of the full ones,
DRY_LEAST = {"zimage": 0.11}  # but GiB that the text encoder needs, whose vocabulary is not tiny
Row = dict[str, Any]


@dataclass(frozen=True)
class Shot:
    """One picture, drawn several times.

    Attributes:
        size: width and height in pixels.
        steps: sampling steps.
        cfg_scale: guidance; more than 1 computes the denoiser twice a step.
        lora: whether a LoRA is merged.
        tiled: whether the latents are decoded in tiles, which small budgets need for large pictures.
        whole: whether it is named as one that is decoded without tiles.
        repeats: how often.
        pictures: of a batch.
    """

    size: int
    steps: int = 8
    cfg_scale: float = 1.0
    lora: bool = False
    tiled: bool = False
    whole: bool = False
    repeats: int = 5
    pictures: int = 1

    @property
    def name(self) -> str:
        """Return what tells it from a model's other pictures."""
        guided = f" cfg {self.cfg_scale:g}" if self.cfg_scale != 1 else ""
        whole = " whole" if self.whole else ""
        batch = f" batch of {self.pictures}" if self.pictures > 1 else ""
        return f"{self.size}x{self.size}{guided}{' LoRA' if self.lora else ''}{whole}{batch}"

    @property
    def passes(self) -> int:
        """How often the denoiser is computed."""
        return self.steps * self.pictures * (2 if self.cfg_scale != 1 else 1)


@dataclass(frozen=True)
class Job:
    """A model, a way of keeping its weights, and what is drawn with it.

    Attributes:
        family: of make_checkpoint.
        mode: see the module's docstring.
        budget: device memory in GiB; None: all that is free.
        shots: its pictures; with none only loading is measured.
        mmap: whether the file is read through a memory map.
    """

    family: str
    mode: str
    budget: float | None
    shots: tuple[Shot, ...]
    mmap: bool = False

    @property
    def name(self) -> str:
        """Return FAMILY/MODE/BUDGET, which --rows selects by."""
        budget = "all" if self.budget is None else f"{self.budget:g}"
        return f"{self.family}/{self.mode}/{budget}{'/mmap' if self.mmap else ''}"


MODES: dict[str, dict[str, Any]] = {
    "pageable-in-turn": {"params_backend": "cpu", "pin_params": "never"},
    "pinned-in-turn": {"params_backend": "cpu", "pin_params": "require"},
    "pinned-overlapped": {"params_backend": "cpu", "pin_params": "require", "stream_layers": True},
    "pageable-overlapped": {"params_backend": "cpu", "pin_params": "never", "stream_layers": True},
    "disk": {"params_backend": "disk", "pin_budget": 0.0},
    "resident": {},
    "resident-engine": {"kernels": "engine"},
}
DTYPES = {"sd1": "f16", "sdxl": "f16", "zimage": "bf16", "flux": "bf16", "qwen_image": "bf16"}
SMALL = Shot(512, tiled=True)
LARGE = Shot(1024, tiled=True)
LORA = replace(SMALL, lora=True)
GUIDED = Shot(1024, cfg_scale=7.0, tiled=True)
LANES = (replace(SMALL, cfg_scale=7.0), replace(SMALL, pictures=4))


def check_jobs() -> list[Job]:
    """Return a small model in every way, for --check."""
    ways = (("resident", None), ("pinned-overlapped", 1), ("pinned-in-turn", 1), ("pageable-in-turn", 1))
    return [Job("sd1", mode, budget, (SMALL,)) for mode, budget in ways] + mmap_jobs("sd1")


def mmap_jobs(family: str) -> list[Job]:
    """Return what measures loading through a memory map; every other job measures loading without."""
    return [Job(family, mode, 4, (), mmap=True) for mode in ("pageable-in-turn", "pinned-in-turn")]


def kernel_jobs() -> list[Job]:
    """Return what compares kernels, everything on the device: ours, ggml's alone, and PyTorch's, for --kernels."""
    shots = {
        "sd1": Shot(512, cfg_scale=7.0, whole=True),
        "sdxl": Shot(1024, cfg_scale=7.0, whole=True),
        "zimage": Shot(1024, whole=True),
    }
    resident = ("resident", "resident-engine", "diffusers-resident", "diffusers-graph", "diffusers-decode")
    jobs = [Job(family, mode, None, (shot,)) for family, shot in shots.items() for mode in resident]
    return jobs + [
        Job(family, mode, None, (shot,)) for family, shot in shots.items() for mode in ("profile", "profile-engine")
    ]


def all_jobs() -> list[Job]:
    """Return every job, the most important first.

    Pictures with a LoRA come last in each: taking it out of the weights again leaves their rounding.
    """
    jobs = [
        Job("zimage", "pinned-overlapped", 8, (SMALL, LARGE, LORA)),
        Job("zimage", "pinned-in-turn", 8, (SMALL, LARGE, LORA)),
        Job("zimage", "pageable-in-turn", 8, (SMALL, LORA)),
        Job("zimage", "resident", None, (SMALL, *LANES, LARGE, LORA)),
        Job("zimage", "diffusers-leaf", None, (SMALL, LARGE)),
        Job("sdxl", "pinned-overlapped", 4, (LARGE, GUIDED, replace(LARGE, lora=True))),
        Job("sdxl", "pinned-in-turn", 4, (LARGE, replace(LARGE, lora=True))),
        Job("sdxl", "pageable-in-turn", 4, (LARGE, replace(LARGE, lora=True))),
        Job("sdxl", "resident", None, (LARGE, GUIDED, replace(LARGE, lora=True))),
        Job("sdxl", "diffusers-leaf", None, (LARGE, GUIDED)),
        Job("zimage", "profile", None, (SMALL, LARGE)),
        Job("zimage", "pinned-overlapped", 4, (SMALL, *LANES, LARGE)),
        Job("zimage", "pinned-overlapped", 2, (SMALL,)),
        Job("zimage", "pinned-overlapped", None, (SMALL,)),
        Job("zimage", "pinned-in-turn", 4, (SMALL,)),
        Job("zimage", "peer", 8, (SMALL,)),
        Job("sdxl", "peer", 4, (LARGE,)),
        Job("sdxl", "pinned-overlapped", 2, (LARGE,)),
        Job("sdxl", "pinned-in-turn", 2, (LARGE,)),
        Job("zimage", "pinned-in-turn", 2, (SMALL,)),
        *mmap_jobs("sdxl"),
        Job("zimage", "diffusers-block", None, (SMALL,)),
        Job("zimage", "diffusers-resident", None, (SMALL, LARGE)),
        Job("zimage", "pageable-in-turn", None, (SMALL,)),
        Job("zimage", "pinned-in-turn", None, (SMALL,)),
        Job("sdxl", "pageable-in-turn", 2, (LARGE,)),
        Job("zimage", "pageable-in-turn", 2, (replace(SMALL, repeats=1),)),
        Job("zimage", "pageable-in-turn", 4, (replace(SMALL, repeats=1),)),
        Job("zimage", "pageable-overlapped", 8, (SMALL,)),
        Job("zimage", "disk", 8, (SMALL,)),
        Job("sdxl", "pinned-overlapped", 8, (LARGE,)),
        Job("sdxl", "pinned-in-turn", 8, (LARGE,)),
        Job("sdxl", "pageable-in-turn", 8, (LARGE,)),
    ]
    return jobs + [job for job in check_jobs() if job.shots]


def tiny(job: Job) -> Job:
    """Return the same job for the tiny model of its family: small pictures, two steps, once."""
    shots = tuple(replace(shot, size=shot.size // 8, steps=2, repeats=1) for shot in job.shots)
    budget = job.budget and max(job.budget / DRY_SHARE, DRY_LEAST.get(job.family, 0.0))
    return replace(job, budget=budget, shots=shots)

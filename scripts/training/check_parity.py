#!/usr/bin/env python3
"""Compare the engine's pictures and modules with diffusers' on the same SD 1.x checkpoint.

The engine draws with ``rng="cpu"``, whose noise is torch's; diffusers draws the same with the same weights, read by
scripts/training/sd1_to_diffusers.py, in f32 on the CPU. Two samplers, two schedulers, guidance off and on, two sizes,
and what parity_pictures.py lists for modes that pictures go into:

    scripts/training/check_parity.py [--model FILE] [--prompt TEXT] [--json FILE] [--work DIR]

Run it with the Python that has sdcpp-py installed; torch and diffusers are installed into an environment of their own,
once. Exit status: 0 when every row reaches 40 dB, 1 when one does not, 2 when the comparison could not be made,
3 when the environment could not be made.

What a row says: for pictures the PSNR of the 8-bit pixels; for a module alone 20 log10(|reference| / |difference|)
of its output, both as Euclidean norms. A module alone gets the engine's own inputs: CLIP the token ids of
embedded/grammar.py (one row for every word of the grammar, so a wrong id shows), the UNet the latents of every step of
the engine's run, the decoder that run's last latents, and the encoder a picture.

Where engine and diffusers define things differently:

- Euler is diffusers' EulerDiscreteScheduler as it is, with ``timestep_spacing="linspace"``. Between two timesteps it
  interpolates sigma linearly, the engine its logarithm; no row shows it.
- DPM++ 2M is diffusers' DPMSolverMultistepScheduler with the engine's schedule put in (class EngineDpm). Diffusers' own
  leaves out timestep 0 and rounds timesteps to integers, which makes it another schedule, and it starts from plain
  noise where the engine starts from noise on top of an empty picture, sigma / sqrt(sigma^2 + 1) of it.
- The engine computes the feed-forward's GELU by its tanh approximation, diffusers by the error function; and it rounds
  what enters a matrix product or a convolution with f16 weights to f16. Diffusers is left as it is in both.
- The engine's group normalisations have eps 1e-6 throughout, so the UNet is made with ``norm_eps=1e-6``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import parity_pictures
from embedded.grammar import WORDS, tokens

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = (
    "torch==2.13.*",
    "diffusers>=0.42,<1",
    "transformers>=5.24,<6",
    "gguf>=0.17,<1",
    "safetensors>=0.4,<1",
    "numpy>=1.26,<3",
)
LEAST = 40.0  # dB
CONTROL = "control.safetensors"
SAMPLERS = ("euler", "dpm++2m")
SCHEDULERS = ("discrete", "karras")
GUIDANCE = (1.0, 5.0)
SIZES = ((128, 128), (192, 128))


class ParityError(Exception):
    """The comparison could not be made; the message is one line that says what to do."""


class SetupError(ParityError):
    """The environment with torch and diffusers could not be made."""


@dataclass(frozen=True)
class Case:
    """One picture.

    Attributes:
        sampler: the engine's name of it.
        scheduler: likewise.
        cfg_scale: classifier-free guidance; 1 is none.
        width: pixels.
        height: pixels.
    """

    sampler: str
    scheduler: str
    cfg_scale: float
    width: int
    height: int

    def __str__(self) -> str:
        """Return the case as a row names it."""
        return f"{self.sampler}, {self.scheduler}, cfg {self.cfg_scale:g}, {self.width}x{self.height}"


@dataclass(frozen=True)
class Settings:
    """What both sides are told.

    Attributes:
        model: the checkpoint.
        prompt: in the grammar's words.
        steps: sampling steps.
        seed: of the initial noise.
        threads: CPU threads of each side.
    """

    model: str
    prompt: str
    steps: int
    seed: int
    threads: int


@dataclass(frozen=True)
class Row:
    """One comparison: how close in dB, and the largest difference of two values."""

    part: str
    what: str
    decibel: float
    largest: float

    @property
    def passed(self) -> bool:
        """Whether it is close enough; NaN is not."""
        return self.decibel >= LEAST


def cases() -> list[Case]:
    """Every combination."""
    return [
        Case(sampler, scheduler, cfg_scale, *size)
        for sampler in SAMPLERS
        for scheduler in SCHEDULERS
        for cfg_scale in GUIDANCE
        for size in SIZES
    ]


def module_cases() -> list[Case]:
    """The runs whose steps feed the modules alone: x + eps * (next sigma - sigma) is the next step's input."""
    return [Case("euler", "discrete", 1.0, *size) for size in SIZES]


def grammar_prompts() -> list[str]:
    """Prompts that together hold every word of the grammar and fit CLIP's 77 tokens."""
    words = list(WORDS)
    return [" ".join(words[start : start + 36]) for start in range(0, len(words), 36)]


# --- the engine, in this process ---------------------------------------------------------------------------


def run_engine(settings: Settings, control: Path) -> dict[str, np.ndarray]:
    """Return what the engine makes: pictures by case, and the modules' outputs by module and run.

    Args:
        settings: what both sides are told.
        control: the ControlNet's file.
    """
    import sdcpp_py
    from sdcpp_py import engine

    made: dict[str, np.ndarray] = {}
    seen: dict[str, list[np.ndarray]] = {}

    def tap(phase: str, shape: tuple[int, ...], values: bytes) -> None:
        seen.setdefault(phase, []).append(np.frombuffer(values, np.float32).reshape(shape))

    common: dict[str, Any] = {"rng": "cpu", "threads": settings.threads, "progress": False}
    with sdcpp_py.StableDiffusion(settings.model, control_net=control, **common) as sd:

        def draw(prompt: str, case: Case, steps: int) -> np.ndarray:
            seen.clear()
            with engine.tap(tap):
                images = sd.txt2img(prompt, steps=steps, seed=settings.seed, **asdict(case))
            return np.asarray(images[0])

        for case in cases():
            made[f"picture {case}"] = draw(settings.prompt, case, settings.steps)
            if case in module_cases():
                made[f"unet {case}"] = np.concatenate(seen["sampling"])
                made[f"vae {case}"] = seen["decoding"][0]
        smallest = Case("euler", "discrete", 1.0, 64, 64)
        for prompt in (settings.prompt, "", *grammar_prompts()):
            draw(prompt, smallest, 1)
            made[f"clip {prompt}"] = seen["text"][0][0]

        @contextlib.contextmanager
        def tapped() -> Iterator[dict[str, list[np.ndarray]]]:
            seen.clear()
            with engine.tap(tap):
                yield seen

        made |= parity_pictures.run_engine(sd, settings.prompt, settings.steps, settings.seed, tapped)
    return made


# --- diffusers, in its own environment ---------------------------------------------------------------------


def training_sigmas() -> np.ndarray:
    """SD 1.x's noise levels of the timesteps 0 to 999: sqrt((1 - a) / a) of its scaled linear betas."""
    kept = np.cumprod(1.0 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    return np.sqrt((1.0 - kept) / kept)


def engine_schedule(scheduler: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The engine's schedule: sigmas (and 0 at the end), and the timesteps that the UNet is told.

    Between two timesteps the logarithm of sigma is linear, both ways. ``discrete``: timesteps evenly from 999 to 0.
    ``karras``: equation 5 of Karras et al. 2022 (arXiv:2206.00364) with rho 7 from the largest to the smallest sigma.
    """
    logs = np.log(training_sigmas())
    if scheduler == "discrete":
        times = np.linspace(999.0, 0.0, steps)
        sigmas = np.exp(np.interp(times, np.arange(1000), logs))
    else:
        sigmas = np.linspace(np.exp(logs[-1] / 7.0), np.exp(logs[0] / 7.0), steps) ** 7
        times = np.interp(np.log(sigmas), logs, np.arange(1000))
    return np.append(sigmas, 0.0).astype(np.float32), times.astype(np.float32)


def make_scheduler(case: Case) -> Any:
    """Return diffusers' scheduler for a case."""
    import torch
    from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

    class EngineDpm(DPMSolverMultistepScheduler):  # type: ignore[misc]
        """DPM++ 2M on the engine's schedule, from its first latents."""

        def set_timesteps(self, num_inference_steps: int, device: Any = None, **more: Any) -> None:
            super().set_timesteps(num_inference_steps, device, **more)
            sigmas, times = engine_schedule(case.scheduler, num_inference_steps)
            self.sigmas, self.timesteps = torch.from_numpy(sigmas), torch.from_numpy(times)
            self.init_noise_sigma = float(sigmas[0] / np.sqrt(sigmas[0] ** 2 + 1.0))

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    if case.sampler == "euler":
        karras = case.scheduler == "karras"
        return EulerDiscreteScheduler(timestep_spacing="linspace", use_karras_sigmas=karras, **betas)
    return EngineDpm(algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero", **betas)


def picture_row(what: str, found: np.ndarray, wanted: np.ndarray) -> Row:
    """Compare two pictures with values from 0 to 255."""
    difference = found.astype(np.float64) - wanted
    mean = max(float(np.mean(difference**2)), 1e-9)
    return Row("picture", what, float(10.0 * np.log10(255.0**2 / mean)), float(np.abs(difference).max()))


def module_row(part: str, what: str, found: np.ndarray, wanted: np.ndarray) -> Row:
    """Compare a module's output with diffusers'."""
    difference = found.astype(np.float64) - wanted
    share = np.linalg.norm(difference) / np.linalg.norm(wanted)
    return Row(part, what, float(-20.0 * np.log10(max(share, 1e-9))), float(np.abs(difference).max()))


def compare(settings: Settings, made: dict[str, np.ndarray], control: Path) -> list[Row]:
    """Do with diffusers what the engine did, and return the rows."""
    import diffusers
    import torch

    from sd1_to_diffusers import read_checkpoint

    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(settings.threads)
    torch.set_grad_enabled(False)
    modules = read_checkpoint(Path(settings.model))
    scale = modules.vae.config.scaling_factor

    def encode(prompt: str) -> Any:
        return modules.clip(torch.tensor([tokens(prompt)])).last_hidden_state

    def noise(case: Case) -> Any:
        shape = (1, modules.unet.config.in_channels, case.height // 8, case.width // 8)
        return torch.randn(shape, generator=torch.Generator().manual_seed(settings.seed))

    context, empty = encode(settings.prompt), encode("")
    rows = []
    for what, prompt in [("the prompt", settings.prompt), ("the empty prompt", "")]:
        rows.append(module_row("clip", what, made[f"clip {prompt}"], encode(prompt).numpy()))
    found = np.concatenate([made[f"clip {prompt}"] for prompt in grammar_prompts()])
    wanted = np.concatenate([encode(prompt).numpy() for prompt in grammar_prompts()])
    rows.append(module_row("clip", f"every word of the grammar ({len(WORDS)})", found, wanted))

    for case in module_cases():
        sigmas, times = engine_schedule(case.scheduler, settings.steps)
        own = torch.from_numpy(made[f"clip {settings.prompt}"])
        latents = noise(case) * float(sigmas[0])
        steps = []
        for index, (step, time) in enumerate(zip(torch.from_numpy(made[f"unet {case}"]), times, strict=True)):
            sigma, after = float(sigmas[index]), float(sigmas[index + 1])
            predicted = modules.unet(latents / (sigma**2 + 1.0) ** 0.5, float(time), own).sample[0]
            what = f"{case.width}x{case.height}, step {index + 1}"
            steps.append(module_row("unet", what, step.numpy(), predicted.numpy()))
            latents = latents + step * (after - sigma)
        worst = min(steps, key=lambda row: row.decibel)
        rows.append(Row("unet", f"{worst.what}, the worst of {len(steps)}", worst.decibel, worst.largest))
        decoded = modules.vae.decode(latents / scale).sample
        rows.append(module_row("vae", f"decoder, {case.width}x{case.height}", made[f"vae {case}"], decoded.numpy()))

    for case in cases():
        pipeline = diffusers.StableDiffusionPipeline(
            vae=modules.vae,
            text_encoder=modules.clip,
            tokenizer=None,
            unet=modules.unet,
            scheduler=make_scheduler(case),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        picture = pipeline(
            prompt_embeds=context,
            negative_prompt_embeds=empty,
            guidance_scale=case.cfg_scale,
            width=case.width,
            height=case.height,
            num_inference_steps=settings.steps,
            latents=noise(case),
            output_type="np",
        ).images[0]
        rows.append(picture_row(str(case), made[f"picture {case}"], np.round(picture * 255.0)))

    square = Case("euler", "discrete", 1.0, parity_pictures.SIDE, parity_pictures.SIDE)
    wanted = parity_pictures.run_diffusers(
        modules, control, lambda: make_scheduler(square), noise(square), (context, empty), settings.steps
    )
    rows.append(module_row("vae", "encoder, 128x128", made["encoder"], wanted["encoder"]))
    for each in parity_pictures.cases():
        rows.append(picture_row(str(each), made[f"picture {each}"], wanted[f"picture {each}"]))
    return rows


def worker(folder: Path) -> None:
    """Make the ControlNet in a folder; or read what the engine made there, and leave the rows."""
    settings = Settings(**json.loads((folder / "settings.json").read_text()))
    control = folder / CONTROL
    if not control.exists():
        parity_pictures.make_control(Path(settings.model), control)
        return
    with np.load(folder / "engine.npz") as stored:
        made = {name: stored[name] for name in stored.files}
    rows = compare(settings, made, control)
    versions = {name: metadata.version(name) for name in ("torch", "diffusers", "transformers")}
    answer = {"versions": versions, "rows": [asdict(row) for row in rows]}
    (folder / "rows.json").write_text(json.dumps(answer) + "\n")


def start_worker(python: Path, folder: Path, threads: int, script: Path = Path(__file__)) -> None:
    """Run a script's worker() on a folder, in the environment."""
    # Nothing is looked up on a hub: every weight comes from the checkpoint.
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": str(threads)}
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | quiet
    command = [python, script.resolve(), "--worker", folder]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-10:])
        raise ParityError(f"diffusers' side failed with status {done.returncode}:\n{tail}")


# --- the environment ---------------------------------------------------------------------------------------


def default_work() -> Path:
    """Return the folder for the environment, in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "sdcpp-py", "parity")


def make_environment(work: Path) -> Path:
    """Return the interpreter of the environment; make it (a download) unless an equal one is there."""
    folder, stamp = work / "venv", work / "venv.json"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    recipe = {"requirements": list(REQUIREMENTS), "python": sys.version}
    if stamp.is_file() and json.loads(stamp.read_text()) == recipe and python.is_file():
        return python
    work.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    print(f"installing torch and diffusers into {folder}", flush=True)
    venv.create(folder, clear=True, with_pip=True)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", *REQUIREMENTS]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-10:])
        raise SetupError(f"installing torch and diffusers failed with status {done.returncode}:\n{tail}")
    stamp.write_text(json.dumps(recipe, indent=1) + "\n")
    return python


# --- the command -------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text."""
    lines = [f"{'part':<8} {'what':<42} {'dB':>6} {'largest difference':>19}"]
    for row in rows:
        largest = f"{row.largest:.0f} of 255" if row.part == "picture" else f"{row.largest:.5f}"
        verdict = "ok" if row.passed else "TOO FAR"
        lines.append(f"{row.part:<8} {row.what:<42} {row.decibel:>6.2f} {largest:>19}  {verdict}")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    embedded = ROOT / "sdcpp_py" / "models" / "embedded.gguf"
    parser = argparse.ArgumentParser(description="Compare the engine with diffusers: pictures and modules.")
    parser.add_argument("--model", type=Path, default=embedded, help="SD 1.x checkpoint (default: the embedded model)")
    parser.add_argument("--prompt", default="a red circle on a white background", help="in the grammar's words")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each side (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, versions and rows")
    parser.add_argument("--work", type=Path, default=default_work(), help="folder for the environment")
    options = parser.parse_args(arguments)
    if options.steps < 2:
        parser.error("--steps must be at least 2")
    if unknown := [word for word in options.prompt.split() if word not in WORDS]:
        parser.error(f"{unknown[0]!r} is not a word of the grammar (scripts/training/embedded/grammar.py)")
    return options


def run(options: argparse.Namespace) -> int:
    """Draw, compare, print and return the exit status."""
    if not options.model.is_file():
        raise ParityError(f"{options.model} is not a file: pass --model with an SD 1.x checkpoint")
    python = make_environment(options.work.resolve())
    settings = Settings(str(options.model.resolve()), options.prompt, options.steps, options.seed, options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "settings.json").write_text(json.dumps(asdict(settings)))
        start_worker(python, folder, settings.threads)
        np.savez(folder / "engine.npz", **run_engine(settings, folder / CONTROL))
        start_worker(python, folder, settings.threads)
        answer = json.loads((folder / "rows.json").read_text())
    rows = [Row(**row) for row in answer["rows"]]
    passed = all(row.passed for row in rows)
    versions = {"sdcpp-py": metadata.version("sdcpp-py"), **answer["versions"]}
    if options.json is not None:
        report = {
            "settings": asdict(settings) | {"model": options.model.name},
            "versions": versions,
            "least": LEAST,
            "rows": [asdict(row) | {"passed": row.passed} for row in rows],
            "passed": passed,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{options.model.name}, {settings.prompt!r}, {settings.steps} steps, seed {settings.seed}; {names}\n")
    print(table(rows))
    return 0 if passed else 1


def exit_status(script: str, compare: Callable[[], int]) -> int:
    """Return a comparison's exit status: its own, 3 where its environment cannot be made, 2 for other failures."""
    try:
        return compare()
    except metadata.PackageNotFoundError as error:
        print(f"{script}: {error.name} is not installed for {sys.executable}: install sdcpp-py", file=sys.stderr)
    except SetupError as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 3
    except (ParityError, OSError) as error:
        print(f"{script}: {error}", file=sys.stderr)
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--worker"]:
        worker(Path(given[1]))
        return 0
    return exit_status("check_parity", lambda: run(parse(given)))


if __name__ == "__main__":
    sys.exit(main())

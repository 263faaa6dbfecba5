#!/usr/bin/env python3
"""Compare the engine's videos with diffusers' on the same tiny Wan checkpoints with random weights.

The engine draws with ``rng="cpu"``, whose noise is torch's; diffusers' pipelines draw the same in f32 on the CPU, with
the same weights, which diffusers' own converters read from the original names:

    scripts/training/check_video.py [--json FILE] [--work DIR] [CASE ...]

Run it with the Python that has sdcpp-py installed; environment and exit statuses are those of check_parity.py.

What a row says: for videos, drawn by the whole pipeline, the PSNR of all frames' 8-bit pixels; for UMT5 alone, which
gets the ids of the two prompts, 20 log10(|reference| / |difference|) of its output. CLIP looks at a picture of its own
size.

Where engine and diffusers define things differently:

- The engine's ``discrete`` schedule is put into diffusers' FlowMatchEulerDiscreteScheduler: evenly from timestep 999 to
  0, shifted by 5.
- The engine rounds what enters a matrix product or a convolution with f16 weights to f16.
- diffusers makes an MLP of what CLIP sees with GELU by the error function, the engine by its tanh approximation.
- Mean and deviation of the latents of Wan 2.2's autoencoder are read from the engine's source: diffusers has them in
  the published model's configuration alone.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from check_parity import (
    LEAST,
    Row,
    default_work,
    exit_status,
    make_environment,
    module_row,
    picture_row,
    start_worker,
    table,
)

TESTS = Path(__file__).resolve().parents[2] / "tests"
ENGINE = TESTS.parent / "vendor" / "stable-diffusion.cpp" / "src" / "wan.hpp"
CASES = {
    "t2v": "wan_t2v", "t2v-pair": "wan_t2v_pair", "i2v": "wan_i2v", "i2v-pair": "wan_i2v_pair", "vace": "wan_vace",
    "ti2v-text": "wan_ti2v", "ti2v-image": "wan_ti2v", "flf2v": "wan_flf2v",
}  # fmt: skip
"""What is drawn -> the family that draws it."""
PROMPT, NEGATIVE = "a lovely cat", "waves on a beach"
IDS = {PROMPT: (289, 51486, 6283, 1), NEGATIVE: (40692, 281, 369, 289, 24476, 1)}
"""What UMT5's tokenizer makes of the prompts."""
STEPS, FRAMES, SEED, SHIFT, BOUNDARY, TOKENS = 4, 9, 42, 5.0, 0.875, 512
GUIDANCE = (1.0, 5.0)
RESIDUAL = {
    "residual.0.": "norm1.", "residual.2.": "conv1.", "residual.3.": "norm2.", "residual.6.": "conv2.",
    "shortcut.": "conv_shortcut.",
}  # fmt: skip
"""Layers of a residual block, as the checkpoint and as diffusers names them."""
SIZES = {"i2v": (224, 224), "flf2v": (224, 224)}
"""Width and height: CLIP's own, so that nobody resizes; else 96x64."""


def size_of(case: str) -> tuple[int, int]:
    """Return width and height of a case's videos."""
    return SIZES.get(case, (96, 64))


def goes_on(case: str) -> bool:
    """Tell whether a case begins with a picture."""
    return case in ("i2v", "i2v-pair", "ti2v-image", "flf2v")


def shown(case: str, frame: int = 0) -> np.ndarray:
    """Return a picture that goes in: a bright square on colours that change, moving from frame to frame."""
    width, height = size_of(case)
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    made = np.stack([across, down, 255 - across], axis=-1)
    made[10:40, 8 + 4 * frame : 38 + 4 * frame] = (250, 240, 60)
    return made.astype(np.uint8)


# --- the engine, in this process ---------------------------------------------------------------------------


def run_engine(case: str, model: Path) -> dict[str, np.ndarray]:
    """Return the engine's videos by guidance, and what UMT5 gave by prompt.

    Args:
        case: what is drawn.
        model: the checkpoint.
    """
    import sdcpp_py
    from sdcpp_py import engine

    made: dict[str, np.ndarray] = {}
    texts: list[np.ndarray] = []

    def tap(phase: str, shape: tuple[int, ...], values: bytes) -> None:
        if phase == "text":
            texts.append(np.frombuffer(values, np.float32).reshape(shape))

    width, height = size_of(case)
    with sdcpp_py.StableDiffusion(model, rng="cpu", progress=False) as sd:
        for scale in GUIDANCE:
            few: Any = {
                "negative_prompt": NEGATIVE if scale != 1 else "", "frames": FRAMES, "steps": STEPS, "seed": SEED,
                "cfg_scale": scale, "sampler": "euler", "scheduler": "discrete", "flow_shift": SHIFT,
            }  # fmt: skip
            if case == "vace":
                few["control_frames"] = [shown(case, index) for index in range(FRAMES)]
            texts.clear()
            with engine.tap(tap):
                if case == "flf2v":
                    few["end_image"] = shown(case, FRAMES)
                if goes_on(case):
                    video = sd.img2vid(PROMPT, shown(case), **few)
                else:
                    video = sd.txt2vid(PROMPT, width=width, height=height, **few)
            made[f"video {scale}"] = np.stack([np.asarray(frame) for frame in video])
    for name, value in zip((PROMPT, NEGATIVE), texts, strict=True):
        made[f"umt5 {name}"] = value.reshape(TOKENS, -1)
    return made


# --- diffusers, in its own environment ---------------------------------------------------------------------


def engine_sigmas() -> np.ndarray:
    """Return the noise levels of the engine's ``discrete`` schedule: shift * t / (1 + (shift - 1) * t), and 0."""
    times = (np.linspace(999.0, 0.0, STEPS) + 1.0) / 1000.0
    return np.append(SHIFT * times / (1.0 + (SHIFT - 1.0) * times), 0.0).astype(np.float32)


def make_scheduler() -> Any:
    """Return diffusers' scheduler with the engine's noise levels."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler

    class EngineFlow(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
        """Euler on the engine's noise levels."""

        def set_timesteps(self, *_: Any, **__: Any) -> None:
            sigmas = engine_sigmas()
            self.num_inference_steps = len(sigmas) - 1
            self.sigmas, self.timesteps = torch.from_numpy(sigmas), torch.from_numpy(sigmas[:-1] * 1000.0)
            self._step_index = self._begin_index = None

    return EngineFlow()


def part(tensors: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the tensors of a part in f32, without its prefix."""
    return {name.removeprefix(prefix): value.float() for name, value in tensors.items() if name.startswith(prefix)}


def read_transformer(tensors: dict[str, Any], prefix: str) -> Any:
    """Return a transformer of a checkpoint as diffusers' module; its sizes are read from the tensors."""
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    own = part(tensors, prefix)
    width, channels = own["patch_embedding.weight"].shape[:2]
    seen, positions = own.get("img_emb.proj.1.weight"), own.get("img_emb.emb_pos")
    sizes: dict[str, Any] = {
        "num_attention_heads": width // 128, "attention_head_dim": 128, "in_channels": channels,
        "out_channels": own["head.head.weight"].shape[0] // 4, "text_dim": own["text_embedding.0.weight"].shape[1],
        "ffn_dim": own["blocks.0.ffn.0.weight"].shape[0], "image_dim": None if seen is None else seen.shape[1],
        "num_layers": len({name.split(".")[1] for name in own if name.startswith("blocks.")}),
        "added_kv_proj_dim": None if seen is None else width,
        "pos_embed_seq_len": None if positions is None else positions.shape[1],
    }  # fmt: skip
    vace = [name for name in own if name.startswith("vace_blocks.")]
    if vace:
        layers = len({name.split(".")[1] for name in vace})
        sizes |= {
            "vace_layers": list(range(0, sizes["num_layers"], sizes["num_layers"] // layers)),
            "vace_in_channels": 96,
        }
    module = (WanVACETransformer3DModel if vace else WanTransformer3DModel)(**sizes)
    named = convert_wan_transformer_to_diffusers(dict(own))
    if positions is not None:  # which the converter does not know
        named["condition_embedder.image_embedder.pos_embed"] = named.pop("img_emb.emb_pos")
    module.load_state_dict(named)
    return module.eval()


def read_autoencoder(tensors: dict[str, Any]) -> Any:
    """Return the autoencoder of a checkpoint as diffusers' module."""
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    own = part(tensors, "first_stage_model.")
    sizes: dict[str, Any] = {"base_dim": own["encoder.conv1.weight"].shape[0], "z_dim": own["conv2.weight"].shape[0]}
    if sizes["z_dim"] == 48:
        mean, deviation = statistics()
        sizes |= {
            "decoder_base_dim": own["decoder.conv1.weight"].shape[0] // 4, "is_residual": True, "in_channels": 12,
            "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16, "scale_factor_temporal": 4,
            "latents_mean": mean, "latents_std": deviation,
        }  # fmt: skip
    module = AutoencoderKLWan(**sizes)
    nested = {name: value for name, value in own.items() if re.match(r"\w+\.(down|up)samples\.\d+\.\1samples\.", name)}
    named = convert_wan_vae_to_diffusers({name: value for name, value in own.items() if name not in nested})
    module.load_state_dict({**named, **{nested_name(name): value for name, value in nested.items()}})
    return module.eval()


def statistics() -> tuple[list[float], list[float]]:
    """Return mean and deviation of each channel of Wan 2.2's latents."""
    block = ENGINE.read_text().split("== 48)")[1]
    mean, deviation = (
        [float(number) for number in re.findall(r"-?\d+\.\d+", values)]
        for values in re.findall(r"from_vector\(\{(.*?)\}\)", block, re.DOTALL)[:2]
    )
    return mean, deviation


def nested_name(name: str) -> str:
    """Return diffusers' name of a tensor in a level of Wan 2.2's autoencoder, whose converter is for 2.1's."""
    half, stack, level, _, index, *rest = name.split(".")
    way = stack.removesuffix("samples")
    inner = ".".join(rest)
    if inner.startswith(("resample.", "time_conv.")):
        return f"{half}.{way}_blocks.{level}.{way}sampler.{inner}"
    for old, new in RESIDUAL.items():
        inner = inner.replace(old, new)
    return f"{half}.{way}_blocks.{level}.resnets.{index}.{inner}"


def read_text_encoder(tensors: dict[str, Any]) -> Any:
    """Return the UMT5 encoder of a checkpoint as transformers' module."""
    from transformers import UMT5Config, UMT5EncoderModel

    own = part(tensors, "text_encoders.t5xxl.transformer.")
    rows, width = own["shared.weight"].shape
    config = UMT5Config(
        vocab_size=rows, d_model=width, d_kv=64,
        d_ff=own["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0],
        num_layers=len({name.split(".")[2] for name in own if name.startswith("encoder.block.")}),
        num_heads=width // 64, feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip
    module = UMT5EncoderModel(config)
    module.load_state_dict({**own, "encoder.embed_tokens.weight": own["shared.weight"]}, strict=False)
    return module.eval()


def read_vision(tensors: dict[str, Any]) -> Any:
    """Return the CLIP vision encoder of a checkpoint as transformers' module."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    own = part(tensors, "cond_stage_model.transformer.")
    own.pop("visual_projection.weight")
    width = own["vision_model.pre_layrnorm.weight"].shape[0]
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=own["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=len({name.split(".")[3] for name in own if ".layers." in name}),
        num_attention_heads=width // 80, image_size=224, patch_size=14, hidden_act="gelu",
    )  # fmt: skip
    module = CLIPVisionModel(config)
    known = set(module.state_dict())
    module.load_state_dict(
        {name if name in known else name.removeprefix("vision_model."): own[name] for name in own}, strict=False
    )
    return module.eval()


def encode(module: Any, prompt: str) -> Any:
    """Return a prompt as the transformer takes it: what its tokens became, and zeros up to the longest prompt."""
    import torch

    ids = torch.tensor([IDS[prompt]])
    given = torch.zeros((1, TOKENS, module.config.d_model))
    given[:, : ids.shape[1]] = module(ids).last_hidden_state
    return given


def draw(case: str, parts: dict[str, Any], scale: float) -> np.ndarray:
    """Return diffusers' video of a case, of shape (frames, height, width, 3), values from 0 to 255.

    Args:
        case: what is drawn.
        parts: the checkpoint's modules; of a pair of transformers the high-noise one first, as diffusers has them.
        scale: of the guidance.
    """
    import torch
    from diffusers import WanImageToVideoPipeline, WanPipeline, WanVACEPipeline
    from PIL import Image
    from transformers import CLIPImageProcessor

    width, height = size_of(case)
    latent, pixels = parts["vae"].config.z_dim, parts["vae"].config.scale_factor_spatial
    shape = (1, latent, (FRAMES - 1) // 4 + 1, height // pixels, width // pixels)
    few: dict[str, Any] = {
        "prompt_embeds": encode(parts["text"], PROMPT), "negative_prompt_embeds": encode(parts["text"], NEGATIVE),
        "num_frames": FRAMES, "width": width, "height": height, "num_inference_steps": STEPS, "guidance_scale": scale,
        "latents": torch.randn(shape, generator=torch.Generator().manual_seed(SEED)), "output_type": "np",
    }  # fmt: skip
    made: dict[str, Any] = {
        "tokenizer": None, "text_encoder": None, "vae": parts["vae"], "scheduler": make_scheduler(),
        "transformer": parts["first"],
    }  # fmt: skip
    if "second" in parts:
        made |= {"transformer_2": parts["second"], "boundary_ratio": BOUNDARY}
    if goes_on(case):
        made |= {"image_encoder": parts.get("vision"), "image_processor": CLIPImageProcessor()}
        pipeline: Any = WanImageToVideoPipeline(**made, expand_timesteps=case == "ti2v-image")
        few["image"] = Image.fromarray(shown(case))
        if case == "flf2v":
            few["last_image"] = Image.fromarray(shown(case, FRAMES))
    elif case == "vace":
        pipeline = WanVACEPipeline(**made)
        few["video"] = [Image.fromarray(shown(case, index)) for index in range(FRAMES)]
    else:
        pipeline = WanPipeline(**made, expand_timesteps=case == "ti2v-text")
    pipeline.set_progress_bar_config(disable=True)
    return np.asarray(pipeline(**few).frames[0]) * 255.0


def compare(case: str, model: Path, made: dict[str, np.ndarray]) -> list[Row]:
    """Do with diffusers what the engine did, and return the rows."""
    import torch
    from safetensors.torch import load_file

    torch.set_grad_enabled(False)
    tensors = load_file(model)
    low, high = "model.diffusion_model.", "model.high_noise_diffusion_model."
    parts: dict[str, Any] = {"vae": read_autoencoder(tensors), "text": read_text_encoder(tensors)}
    transformers = [prefix for prefix in (high, low) if any(name.startswith(prefix) for name in tensors)]
    for name, prefix in zip(("first", "second"), transformers, strict=False):
        parts[name] = read_transformer(tensors, prefix)
    if any(name.startswith("cond_stage_model.") for name in tensors):
        parts["vision"] = read_vision(tensors)
    rows = []
    for prompt, ids in IDS.items():
        wanted = encode(parts["text"], prompt)[0, : len(ids)].numpy()
        rows.append(module_row("umt5", f"{case}, {prompt!r}", made[f"umt5 {prompt}"][: len(ids)], wanted))
    for scale in GUIDANCE:
        found, wanted = made[f"video {scale}"], np.round(draw(case, parts, scale))
        rows.append(picture_row(f"video: {case}, cfg {scale:g}, {FRAMES} frames", found, wanted))
    return rows


def worker(folder: Path) -> None:
    """Read what the engine made in a folder, and leave the rows."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    rows = []
    for case in json.loads((folder / "cases.json").read_text()):
        with np.load(folder / f"{case}.npz") as stored:
            made = {name: stored[name] for name in stored.files}
        rows += [asdict(row) for row in compare(case, folder / f"{CASES[case]}.safetensors", made)]
    versions = {name: metadata.version(name) for name in ("torch", "diffusers", "transformers")}
    (folder / "rows.json").write_text(json.dumps({"versions": versions, "rows": rows}) + "\n")


# --- the command -------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> int:
    """Draw, compare, print and return the exit status."""
    sys.path.insert(0, str(TESTS))
    from support.checkpoints import write_checkpoint

    python = make_environment(options.work.resolve())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "cases.json").write_text(json.dumps(options.cases))
        for case in options.cases:
            model = folder / f"{CASES[case]}.safetensors"
            write_checkpoint(CASES[case], model, tiny=True)
            np.savez(folder / f"{case}.npz", **run_engine(case, model))
        start_worker(python, folder, options.threads, Path(__file__))
        answer = json.loads((folder / "rows.json").read_text())
    rows = [Row(**row) for row in answer["rows"]]
    versions = {"sdcpp-py": metadata.version("sdcpp-py"), **answer["versions"]}
    passed = all(row.passed for row in rows)
    if options.json is not None:
        report = {
            "versions": versions,
            "least": LEAST,
            "rows": [asdict(row) | {"passed": row.passed} for row in rows],
            "passed": passed,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{PROMPT!r}, {STEPS} steps, seed {SEED}; {names}\n\n{table(rows)}")
    return 0 if passed else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--worker"]:
        worker(Path(given[1]))
        return 0
    parser = argparse.ArgumentParser(description="Compare the engine's videos with diffusers'.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of diffusers' side (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write versions and rows")
    parser.add_argument("--work", type=Path, default=default_work(), help="folder for the environment")
    options = parser.parse_args(given)
    options.cases = options.cases or list(CASES)
    if unknown := [case for case in options.cases if case not in CASES]:
        parser.error(f"{unknown[0]!r} is no case: choose from {', '.join(CASES)}")
    return exit_status("check_video", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())

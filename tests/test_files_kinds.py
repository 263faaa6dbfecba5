"""Every argument against every kind of file: what does not fit is refused before loading, with where it would go."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import sdcpp_py
from sdcpp_py import ModelError, StableDiffusion
from sdcpp_py.file_kinds import file_kind
from sdcpp_py.model_files import ROLES, check_model_file
from support.checkpoints import FAMILIES, checkpoint_shapes, lora_shapes, safetensors_header
from support.model_formats import gguf, gguf_of, safetensors_of

Shapes = Mapping[str, tuple[int, ...]]


def sparse(path: Path, shapes: Shapes) -> Path:
    """Write a file of full size that takes no room: a header, and nothing behind it."""
    path.write_bytes(safetensors_header(dict(shapes), "f16", {}))
    os.truncate(path, path.stat().st_size + 2 * sum(int(np.prod(shape)) for shape in shapes.values()))
    return path


def below(family: str, prefix: str) -> Shapes:
    """Return the part of a checkpoint that has a prefix, without it."""
    shapes = checkpoint_shapes(family)
    return {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def control_shapes() -> Shapes:
    unet = below("sd1", "model.diffusion_model.")
    kept = {name: shape for name, shape in unet.items() if name.startswith(("time_embed", "input_blocks", "middle"))}
    return under(
        "control_model.",
        {**kept, "input_hint_block.0.weight": (16, 3, 3, 3), "zero_convs.0.0.weight": (320, 320, 1, 1)},
    )


DIFFUSION = "model.diffusion_model."
DIFFUSERS_UNET = {"conv_in.weight": (320, 4, 3, 3), "down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)}
DIFFUSERS_VAE = {
    "decoder.conv_in.weight": (512, 4, 3, 3),
    "decoder.up_blocks.0.resnets.0.conv1.weight": (512, 512, 3, 3),
}
T5_GGUF = {"enc.blk.0.attn_q.weight": (64, 64), "token_embd.weight": (99, 64)}
LLM_GGUF = {"blk.0.attn_q.weight": (64, 64), "token_embd.weight": (99, 64)}
PEFT = {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 64)}
OLD_LORA = {"unet.down_blocks.0.attentions.0.processor.to_q_lora.down.weight": (4, 64)}
LOKR = {"lycoris_output_blocks_0_1_proj_in.lokr_w1": (4, 4)}
XLABS = {"double_blocks.0.processor.qkv_lora1.down.weight": (4, 64)}
TAE = {"decoder.layers.0.weight": (64, 4, 3, 3), "encoder.layers.0.weight": (64, 3, 3, 3)}
TAEHV = {"decoder.1.weight": (256, 16, 3, 3), "encoder.0.weight": (64, 3, 3, 3)}
ESRGAN = {"conv_first.weight": (64, 3, 3, 3), "body.0.rdb1.conv1.weight": (32, 64, 3, 3)}
OLD_ESRGAN = {"model.0.weight": (64, 3, 3, 3), "model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)}
PHOTO_MAKER = {"pmid.fuse_module.mlp1.fc1.weight": (64, 64), "pmid.vision_model.embeddings.class_embedding": (64,)}
VISION = {"vision_model.encoder.layers.0.self_attn.q_proj.weight": (64, 64)}
MMPROJ = {"v.blk.0.attn_q.weight": (64, 64), "mm.0.weight": (64, 64)}


@dataclass(frozen=True)
class Kind:
    """A kind of file: its tensors, the arguments that it fits, and what an error says of it."""

    shapes: Shapes | Callable[[], Shapes]
    fits: tuple[str, ...]
    says: str


UPSCALERS = ("hires.model", "upscaler")
DIFFUSION_ALONE = ("diffusion_model", "high_noise_diffusion_model")
CHECKPOINT = ("model", *DIFFUSION_ALONE)
KINDS = {
    **{
        f"checkpoint {name}": Kind(lambda name=name: checkpoint_shapes(name), CHECKPOINT, "a whole checkpoint")
        for name in FAMILIES
    },
    **{
        f"diffusion {name}": Kind(lambda name=name: below(name, DIFFUSION), DIFFUSION_ALONE, "a diffusion model alone")
        for name in FAMILIES
    },
    "diffusion with its prefix": Kind(
        lambda: under(DIFFUSION, below("flux", DIFFUSION)), CHECKPOINT, "a diffusion model alone"
    ),
    "diffusion in diffusers' names": Kind(DIFFUSERS_UNET, DIFFUSION_ALONE, "a diffusion model alone"),
    "vae": Kind(lambda: below("sd1", "first_stage_model."), ("vae",), "a VAE"),
    "vae of 16 channels": Kind(lambda: below("flux", "first_stage_model."), ("vae",), "a VAE"),
    "vae of Wan": Kind(lambda: below("qwen_image", "first_stage_model."), ("vae",), "a VAE"),
    "vae in diffusers' names": Kind(DIFFUSERS_VAE, ("vae",), "a VAE"),
    "clip_l": Kind(
        lambda: below("sdxl", "conditioner.embedders.0.transformer."), ("clip_l",), "CLIP text encoder|clip_l="
    ),
    "clip_g": Kind(lambda: below("sd3", "text_encoders.clip_g.transformer."), ("clip_g",), "CLIP text encoder|clip_g="),
    "clip_vision": Kind(VISION, ("clip_vision",), "a CLIP vision encoder"),
    "t5": Kind(lambda: below("sd3", "text_encoders.t5xxl.transformer."), ("t5xxl",), "a T5 text encoder"),
    "t5 as GGUF": Kind(T5_GGUF, ("t5xxl",), "a T5 text encoder"),
    "llm": Kind(lambda: below("zimage", "text_encoders.llm."), ("llm", "llm_vision"), "a language model"),
    "llm as GGUF": Kind(LLM_GGUF, ("llm", "llm_vision"), "a language model"),
    "llm_vision": Kind(MMPROJ, ("llm_vision",), "the vision part of a language model"),
    "tae": Kind(TAE, ("taesd",), "a small autoencoder"),
    "tae for video": Kind(TAEHV, ("taesd",), "a small autoencoder"),
    "control_net": Kind(control_shapes, ("control_net",), "a ControlNet"),
    "photo_maker": Kind(PHOTO_MAKER, ("photo_maker",), "PhotoMaker"),
    "lora": Kind(lambda: lora_shapes(), ("LoRA",), "a LoRA"),
    "lora of PEFT": Kind(PEFT, ("LoRA",), "a LoRA"),
    "lora of old diffusers": Kind(OLD_LORA, ("LoRA",), "a LoRA"),
    "lokr": Kind(LOKR, ("LoRA",), "a LoRA"),
    "lora of xlabs": Kind(XLABS, ("LoRA",), "a LoRA"),
    "embedding": Kind({"emb_params": (2, 768)}, ("embedding",), "a textual inversion"),
    "embedding of diffusers": Kind({"<cat-toy>": (768,)}, ("embedding",), "a textual inversion"),
    "embedding for SDXL": Kind({"clip_l": (2, 768), "clip_g": (2, 1280)}, ("embedding",), "a textual inversion"),
    "upscaler": Kind(ESRGAN, UPSCALERS, "an upscaler"),
    "old upscaler": Kind(OLD_ESRGAN, UPSCALERS, "an upscaler"),
    "something else": Kind({"features.0.bias": (3,), "classifier.1.bias": (4,)}, (), "nothing that the engine knows"),
}


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("kinds")

    def write(name: str) -> Path:
        path = folder / f"{name.replace(' ', '_')}.safetensors"
        shapes = KINDS[name].shapes
        return path if path.exists() else sparse(path, shapes() if callable(shapes) else shapes)

    return write


@pytest.mark.parametrize("name", KINDS)
def test_roles(name: str, kinds: Callable[[str], Path]) -> None:
    path, kind = kinds(name), KINDS[name]
    for role in ROLES:
        if role in kind.fits:
            assert check_model_file(path, role) == os.fsencode(path)
        else:
            with pytest.raises(ModelError, match=f"holds .*({kind.says})") as caught:
                check_model_file(path, role)
            assert str(caught.value).startswith(f"{role}: {path} holds ")
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "role", "advice"),
    [
        ("diffusion flux", "model", "pass diffusion_model="),
        ("checkpoint sd1", "vae", "pass it as model="),
        ("checkpoint sd1", "LoRA", "pass it as model="),
        ("lora", "vae", "pass it in loras="),
        ("lora", "model", "pass it in loras="),
        ("vae", "model", "pass vae="),
        ("vae", "taesd", "pass vae="),
        ("tae", "vae", "pass taesd="),
        ("embedding", "model", "pass it in embeddings="),
        ("embedding", "LoRA", "pass it in embeddings="),
        ("t5", "clip_l", "pass t5xxl="),
        ("clip_l", "clip_g", "pass it there"),
        ("clip_g", "clip_l", "pass it there"),
        ("control_net", "model", "pass control_net="),
        ("upscaler", "model", "pass it where an upscaler is asked for"),
    ],
)
def test_advice(name: str, role: str, advice: str, kinds: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match=advice):
        check_model_file(kinds(name), role)


def test_families_that_the_engine_does_not_know(tmp_path: Path) -> None:
    names = ("transformer_blocks.0.attn.add_q_proj.weight", "single_transformer_blocks.0.attn.to_q.weight")
    path = sparse(tmp_path / "flux.safetensors", dict.fromkeys(names, (64, 64)))
    with pytest.raises(
        ModelError, match=r"diffusion_model: .* holds a diffusion model of a family that the engine does not"
    ):
        check_model_file(path, "diffusion_model")


def test_files_without_anything(tmp_path: Path) -> None:
    path = tmp_path / "nothing"
    contents = [(gguf([]), "no tensors"), (safetensors_of({}), "no tensors")]
    contents.append((safetensors_of({"mask": np.zeros(3, bool)}), r"no tensors that the engine can use \(only 'mask'"))
    for content, says in contents:
        path.write_bytes(content)
        for role in ROLES:
            with pytest.raises(ModelError, match=f"^{role}: {path} holds {says}"):
                check_model_file(path, role)


def test_arguments_are_checked(kinds: Callable[[str], Path], checkpoint: Path, sd: StableDiffusion) -> None:
    lora = kinds("lora")
    for role in ROLES:
        if role in ("LoRA", "embedding", "upscaler", "model", "hires.model"):
            continue
        with pytest.raises(ModelError, match=f"^{role}: .*a LoRA"):
            StableDiffusion(checkpoint, **{role: lora})
    with pytest.raises(ModelError, match=r"^model: .*a LoRA"):
        StableDiffusion(lora)
    with pytest.raises(ModelError, match=r"^embedding word: .*a LoRA"):
        StableDiffusion(checkpoint, embeddings={"word": lora})
    with pytest.raises(ModelError, match=r"^LoRA: .*a whole checkpoint"):
        sd.txt2img("a", width=64, height=64, steps=1, loras=[sdcpp_py.Lora(checkpoint)])
    with pytest.raises(ModelError, match=r"^hires.model: .*a LoRA"):
        sd.txt2img("a", width=64, height=64, steps=1, hires=sdcpp_py.Hires(model=lora))


@pytest.mark.parametrize(
    ("name", "family", "parts"),
    [
        ("sd1", "SD 1.x", {"diffusion", "vae", "clip"}),
        ("sd2", "SD 2.x", {"diffusion", "vae", "clip"}),
        ("sdxl", "SDXL", {"diffusion", "vae", "clip"}),
        ("sd3", "SD3", {"diffusion", "vae", "clip", "t5"}),
        ("flux", "Flux", {"diffusion", "vae", "clip", "t5"}),
        ("zimage", "Z-Image", {"diffusion", "vae", "llm"}),
        ("qwen_image", "Qwen-Image", {"diffusion", "vae", "llm"}),
    ],
)
def test_file_kind(name: str, family: str, parts: set[str], kinds: Callable[[str], Path]) -> None:
    kind = file_kind(kinds(f"checkpoint {name}"))
    assert (kind.family, kind.format, kind.whole) == (family, "safetensors", True)
    assert kind.parts - {"llm_vision"} == parts
    assert kind.types == {"F16": len(checkpoint_shapes(name))}
    if name == "sdxl":
        assert kind.token_widths == (768, 1280)


def test_formats(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(gguf_of({"emb_params": np.zeros((2, 768), np.float32)}))
    kind = file_kind(path)
    assert (kind.format, dict(kind.vector_widths)) == ("GGUF", {"emb_params": 768})


def test_a_large_file_takes_a_moment(kinds: Callable[[str], Path]) -> None:
    path = kinds("checkpoint qwen_image")
    assert path.stat().st_size > 20e9
    check_model_file(path, "model")  # the library is loaded, and the header is in memory
    best = min(timed(lambda: check_model_file(path, "model")) for _ in range(5))
    assert best < 0.1


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

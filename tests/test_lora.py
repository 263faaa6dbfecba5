"""LoRAs of every format draw what checkpoints draw that numpy merged; scripts/bench/loras.py prints all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdcpp_py import Lora, ModelError, StableDiffusion
from support import lora_formats as formats
from support import lora_layers as layers
from support.checkpoints import write_checkpoint

MODES = ("immediately", "at_runtime")
ENOUGH = 55.0


class Family:
    """A tiny checkpoint, loaded for both modes."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        path = folder / f"{name}.safetensors"
        write_checkpoint(name, path, tiny=True)
        self.tensors = layers.read_tensors(path)
        self.models = {mode: StableDiffusion(path, lora_apply_mode=mode) for mode in MODES}
        self.plain = draw(self.models["at_runtime"])
        self.truths: dict[bytes, layers.Array] = {}  # by what is merged: the same for a layer's changes under any names

    def check(self, sample: formats.Sample, code: str | Callable[[str], str] = "F32", metadata: Any = None) -> None:
        """Assert that both modes draw what the merged checkpoint draws, with all of the LoRA applied."""
        lora = self.folder / "lora.safetensors"
        layers.write_tensors(lora, sample.tensors, code, metadata)
        wanted = self.truth(sample.merged)
        assert formats.decibels(self.plain, wanted) < ENOUGH - 3, "the LoRA shows"
        for mode, model in self.models.items():
            found = formats.decibels(draw(model, lora), wanted)
            assert found >= ENOUGH, f"{mode}: {found:.1f} dB"
            (row,) = applied(model)
            assert (row["tensors"], row["applied"], row["skipped"]) == (len(sample.tensors), len(sample.tensors), 0)
            assert row["merged"] == (mode == "immediately")

    def truth(self, merged: dict[str, layers.Array]) -> layers.Array:
        """Return what a checkpoint with these tensors draws."""
        digest = hashlib.sha1()
        for name in sorted(merged):
            digest.update(name.encode() + merged[name].tobytes())
        if digest.digest() not in self.truths:
            path = self.folder / "truth.safetensors"
            layers.write_tensors(path, {**self.tensors, **merged}, "F16")
            with StableDiffusion(path) as model:
                self.truths[digest.digest()] = draw(model)
        return self.truths[digest.digest()]


def draw(model: StableDiffusion, *loras: Path | Lora) -> layers.Array:
    """Return a picture's pixels."""
    return np.asarray(model.txt2img("a cat", width=64, height=64, steps=1, seed=1, cfg_scale=1.0, loras=loras)[0])


def applied(model: StableDiffusion) -> list[dict[str, Any]]:
    """Return what became of the LoRAs of a model's last picture."""
    assert model._context is not None
    return model._context.loras()


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Family]]:
    """Return the families by name, each loaded once; the one before is freed."""
    made: list[Family] = []

    def get(name: str) -> Family:
        if not made or made[0].name != name:
            close()
            made.append(Family(name, tmp_path_factory.mktemp(name)))
        return made[0]

    def close() -> None:
        for family in made:
            for model in family.models.values():
                model.close()
        made.clear()

    yield get
    close()


@pytest.mark.parametrize("kind", formats.KINDS)
def test_kinds(kind: str, families: Callable[[str], Family]) -> None:
    family = families("sd1")
    family.check(formats.build("sd1", family.tensors, kind))


SD1_DIALECTS = [name for name in formats.DIALECTS if name not in ("kohya", "OneTrainer", "kohya, __")]


@pytest.mark.parametrize("dialect", SD1_DIALECTS)
def test_names_of_a_unet(dialect: str, families: Callable[[str], Family]) -> None:
    family = families("sd1")
    family.check(formats.build("sd1", family.tensors, "lora", dialect))


def test_an_alpha_without_a_number(lora: Path, sd: StableDiffusion, tmp_path: Path) -> None:
    tensors = layers.read_tensors(lora)
    name = next(each for each in tensors if each.endswith(".alpha"))
    layers.write_tensors(tmp_path / "a.safetensors", {**tensors, name: np.zeros(0, np.float32)}, "F32")
    with pytest.raises(ModelError, match=f"^LoRA: .* is damaged: '{name}' holds no number"):
        sd.txt2img("a", loras=[tmp_path / "a.safetensors"], width=64, height=64, steps=1)


ALPHAS = {
    "F64": (),
    "F16": (1,),
    "BF16": (1, 1),
    "I64": (),
    "I32": (1,),
    "I8": (),
    "U8": (1,),
    "I16": (),
    "U16": (1, 1),
    "U32": (),
    "U64": (1,),
}


@pytest.mark.parametrize("code", ALPHAS)
def test_alpha_of_any_type_and_shape(code: str, families: Callable[[str], Family]) -> None:
    family = families("sd1")
    sample = formats.build("sd1", family.tensors, wanted=lambda layer: "attn" in layer.path)
    alphas = {name: float(tensor) for name, tensor in sample.tensors.items() if name.endswith(".alpha")}
    for name, alpha in alphas.items():
        up = name.replace("alpha", "lora_up.weight")
        sample.tensors[up] = sample.tensors[up] * np.float32(alpha / 2)
        sample.tensors[name] = np.full(ALPHAS[code], 2.0, np.float32)
    family.check(sample, lambda name: code if name.endswith(".alpha") else "F32")


@pytest.mark.parametrize("dialect", ["kohya", "kohya, release", "diffusers, old", "PEFT", "ComfyUI"])
def test_names_of_sdxl(dialect: str, families: Callable[[str], Family]) -> None:
    family = families("sdxl")
    family.check(formats.build("sdxl", family.tensors, "lora", dialect))


# Every dialect for Flux; of the others what their names differ in. Z-Image's and Qwen's vocabularies take long to load.
TRANSFORMERS = {
    "sd3": (("lora", "kohya"), ("lora", "diffusers"), ("lora", "ComfyUI"), ("dora inputs", "kohya")),
    "flux": (
        ("lora", "kohya"),
        ("lora", "kohya, release"),
        ("lora", "diffusers"),
        ("lora", "PEFT"),
        ("lora", "LyCORIS"),
        ("loha", "kohya"),
        ("lokr", "kohya"),
        ("dora magnitude", "diffusers"),
    ),
    "zimage": (("lora", "kohya, __"), ("dora magnitude", "diffusers")),
    "qwen_image": (("lora", "diffusers"), ("lokr", "kohya")),
}


@pytest.mark.parametrize("family_name", TRANSFORMERS)
def test_transformers(family_name: str, families: Callable[[str], Family]) -> None:
    family = families(family_name)
    for kind, dialect in TRANSFORMERS[family_name]:
        family.check(formats.build(family_name, family.tensors, kind, dialect))


@pytest.mark.parametrize("family_name", ["sd3", "flux", "zimage"])
def test_some_of_the_parts_of_a_fused_layer(family_name: str, families: Callable[[str], Family]) -> None:
    family = families(family_name)
    parts = [("to_k", "add_k"), ("to_v", "add_v"), ("to_q", "to_v")]
    for words in [*parts, *([("to_q", "add_q"), ("proj_mlp",)] if family_name == "flux" else [])]:
        # In their own directions q, k and v would hide it if one of them were put in another's place.
        family.check(
            formats.build(
                family_name,
                family.tensors,
                "lora",
                "diffusers",
                lambda layer, words=words: any(word in layer.path for word in words),  # type: ignore[misc]
            )
        )


@pytest.mark.parametrize("family_name", ["sd3", "flux"])
def test_a_layer_that_gives_its_vectors_in_another_order(family_name: str, families: Callable[[str], Family]) -> None:
    """Diffusers' last modulation gives scale and shift, the releases' shift and scale."""
    family = families(family_name)
    tensor = "model.diffusion_model.final_layer.adaLN_modulation.1.weight"
    weight = family.tensors[tensor]
    made, change = formats.lora(formats.Maker(1, weight))
    half = weight.shape[0] // 2
    made["lora_up.weight"] = np.roll(made["lora_up.weight"], half, axis=0)
    tensors = {f"lora_unet_norm_out_linear.{role}": array for role, array in made.items()}
    family.check(formats.Sample(tensors, {tensor: weight + change}, []))


def test_biases_and_norms(families: Callable[[str], Family]) -> None:
    family = families("sd1")
    block = "model.diffusion_model.middle_block"
    sample = formats.build(
        "sd1", family.tensors, "lora", "diffusers", lambda layer: layer.path.endswith("attn2.to_out.0")
    )
    given = {
        f"{block}.0.in_layers.0.weight": "lora_unet_mid_block_resnets_0_norm1.w_norm",
        f"{block}.0.in_layers.0.bias": "lora_unet_mid_block_resnets_0_norm1.b_norm",
        f"{block}.0.in_layers.2.bias": "unet.mid_block.resnets.0.conv1.diff_b",
        f"{block}.1.transformer_blocks.0.attn2.to_out.0.bias": (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.lora_B.bias"
        ),
    }
    for seed, (tensor, name) in enumerate(given.items()):
        change = formats.Maker(seed, family.tensors[tensor]).draw(*family.tensors[tensor].shape)
        sample.tensors[name] = change
        sample.merged[tensor] = family.tensors[tensor] + change
    family.check(sample)


def test_xlabs(families: Callable[[str], Family]) -> None:
    family = families("flux")
    family.check(formats.xlabs(family.tensors))


def test_scale_of_metadata(families: Callable[[str], Family], tmp_path: Path) -> None:
    """Diffusers keeps alpha in the header's metadata: here twice the rank, and another one for some layers."""
    family = families("sd1")
    sample = formats.build("sd1", family.tensors, "lora", "diffusers", lambda layer: layer.component == "unet")
    for name, tensor in sample.tensors.items():
        if name.endswith("lora_B.weight"):
            sample.tensors[name] = tensor / (1.0 if ".attn2.to_k." in name else 2.0)
    config = {"unet.r": formats.RANK, "unet.lora_alpha": 2 * formats.RANK}
    config_of_some = {**config, "unet.alpha_pattern": {"attn2.to_k": formats.RANK}}
    family.check(sample, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(config_of_some)})


@pytest.mark.parametrize("weights", ["q8_0", "q4_0"])
def test_quantised_weights(weights: str, tmp_path: Path) -> None:
    """Merged, they are dequantised, added to and quantised again, exactly; at run time they stay as they are."""
    path, lora, truth = (tmp_path / f"{name}.safetensors" for name in ("model", "lora", "truth"))
    write_checkpoint("sd1", path, tiny=True, dtype="f32")
    tensors = layers.read_tensors(path)
    sample = formats.build(
        "sd1",
        {
            name: layers.dequantised(tensor, weights)
            for name, tensor in tensors.items()
            if tensor.ndim == 2 and ".attn" in name and tensor.shape[1] % 32 == 0
        },
    )
    layers.write_tensors(lora, sample.tensors)
    layers.write_tensors(truth, {**tensors, **sample.merged})
    with StableDiffusion(truth, weight_type=weights) as model:
        wanted = draw(model)
    rules = "attn=f32"
    dequantised = {name: layers.dequantised(tensors[name], weights) for name in sample.merged}
    layers.write_tensors(truth, {**tensors, **dequantised})
    with StableDiffusion(truth, weight_type=weights, tensor_type_rules=rules) as model:
        plain_f32 = draw(model)
    layers.write_tensors(truth, {**tensors, **sample.merged})
    with StableDiffusion(truth, weight_type=weights, tensor_type_rules=rules) as model:
        wanted_f32 = draw(model)
    with StableDiffusion(path, weight_type=weights, lora_apply_mode="immediately") as model:
        plain = draw(model)
        assert formats.decibels(plain, wanted) < 45, "the LoRA shows"
        assert np.array_equal(draw(model, lora), wanted)
        assert np.array_equal(draw(model), plain)
    with StableDiffusion(path, weight_type=weights) as model:
        found = draw(model, lora)
        assert not applied(model)[0]["merged"], "auto leaves quantised weights alone"
    # Quantised products differ from those of the same values as f32, with a LoRA as without.
    floor = formats.decibels(plain, plain_f32)
    assert formats.decibels(found, wanted_f32) >= min(ENOUGH, floor - 3)

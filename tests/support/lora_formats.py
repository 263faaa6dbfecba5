"""LoRAs in every format that people publish, and the checkpoint that each of them stands for, merged by numpy.

A *layer* is a weight of a checkpoint, or some of its rows; its change is made by a *kind* (LoRA, LoHa, ...), and
written under the name that a *dialect* (kohya, PEFT, ...) gives the layer.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from .lora_layers import Array, Layer, layers_of

RANK = 4
STRENGTH = 0.3
"""Size of a change beside its weight: enough that pictures differ, and not so much that activations run away."""

# --- kinds ------------------------------------------------------------------------------------------------------

Made = tuple[dict[str, Array], Array]
"""Tensors by role, in kohya's words, and the change of a weight that they make."""


@dataclass
class Maker:
    """Random factors of one layer, the same on every machine."""

    seed: int
    weight: Array
    stream: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.stream = np.random.Generator(np.random.PCG64(self.seed))

    def draw(self, *shape: int, spread: float = 1.0) -> Array:
        """Return random numbers that f16 holds, so that a file's dtype is no part of the truth."""
        return (self.stream.standard_normal(shape) * spread).astype(np.float16).astype(np.float32)

    def sized(self, change: Array) -> float:
        """Return the factor that makes a change as large as it should be beside the weight."""
        norm = float(np.linalg.norm(change))
        return STRENGTH * float(np.linalg.norm(self.weight)) / norm if norm else 1.0

    def alpha(self, change: Array, rank: int) -> Array:
        """Return the alpha that gives a change its size, as f16 holds it."""
        return np.float32(np.float16(self.sized(change) * rank))


def flat(weight: Array) -> Array:
    return weight.reshape(weight.shape[0], -1)


def lora(make: Maker, rank: int = RANK) -> Made:
    shape = make.weight.shape
    down, up = make.draw(rank, *shape[1:]), make.draw(shape[0], rank, *(1,) * (len(shape) - 2))
    change = (flat(up) @ flat(down)).reshape(shape)
    alpha = make.alpha(change, rank)
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": alpha}, change * (alpha / rank)


def lora_rank_1(make: Maker) -> Made:
    return lora(make, 1)


def tucker(make: Maker) -> Made:
    shape = make.weight.shape
    if len(shape) != 4 or shape[2] == 1:
        return lora(make)
    down, up = make.draw(RANK, shape[1], 1, 1), make.draw(shape[0], RANK, 1, 1)
    mid = make.draw(RANK, RANK, *shape[2:])
    change = np.einsum("nmkl,in,mj->ijkl", mid, flat(up), flat(down))
    alpha = make.alpha(change, RANK)
    tensors = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": alpha}
    return tensors, change * (alpha / RANK)


def loha(make: Maker) -> Made:
    shape = make.weight.shape
    columns = math.prod(shape[1:])
    tensors = {}
    halves = []
    for half in "12":
        a, b = make.draw(shape[0], RANK), make.draw(RANK, columns)
        tensors[f"hada_w{half}_a"], tensors[f"hada_w{half}_b"] = a, b
        halves.append(a @ b)
    change = (halves[0] * halves[1]).reshape(shape)
    tensors["alpha"] = make.alpha(change, RANK)
    return tensors, change * (tensors["alpha"] / RANK)


def loha_tucker(make: Maker) -> Made:
    shape = make.weight.shape
    if len(shape) != 4 or shape[2] == 1:
        return loha(make)
    tensors = {}
    halves = []
    for half in "12":
        core, a, b = make.draw(RANK, RANK, *shape[2:]), make.draw(RANK, shape[0]), make.draw(RANK, shape[1])
        tensors.update({f"hada_t{half}": core, f"hada_w{half}_a": a, f"hada_w{half}_b": b})
        halves.append(np.einsum("ijkl,jr,ip->prkl", core, b, a))
    change = halves[0] * halves[1]
    tensors["alpha"] = make.alpha(change, RANK)
    return tensors, change * (tensors["alpha"] / RANK)


def lokr(make: Maker, *, first: bool = False, second: bool = True, core: bool = False) -> Made:
    """LoKr; first, second: which of the two factors is a product of rank RANK; core: with a Tucker core."""
    shape = make.weight.shape
    f_out, f_in = (4 if shape[0] % 4 == 0 else 1), (2 if shape[1] % 2 == 0 else 1)
    small, large = (f_out, f_in), (shape[0] // f_out, shape[1] // f_in, *shape[2:])
    tensors: dict[str, Array] = {}
    if first:
        tensors["lokr_w1_a"], tensors["lokr_w1_b"] = make.draw(small[0], RANK), make.draw(RANK, small[1])
        one = tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    else:
        one = tensors["lokr_w1"] = make.draw(*small)
    if core and len(shape) == 4 and shape[2] > 1:
        t, a, b = make.draw(RANK, RANK, *shape[2:]), make.draw(RANK, large[0]), make.draw(RANK, large[1])
        tensors.update({"lokr_t2": t, "lokr_w2_a": a, "lokr_w2_b": b})
        two = np.einsum("ijkl,jr,ip->prkl", t, b, a)
    elif second:
        a, b = make.draw(large[0], RANK), make.draw(RANK, math.prod(large[1:]))
        tensors["lokr_w2_a"], tensors["lokr_w2_b"] = a, b
        two = (a @ b).reshape(large)
    else:
        two = tensors["lokr_w2"] = make.draw(*large)
    change = np.kron(one, two.reshape(large[0], -1)).reshape(shape[0], small[1], -1).reshape(shape)
    if first or second or core:
        alpha = tensors["alpha"] = make.alpha(change, RANK)
        return tensors, change * (alpha / RANK)
    # Whole factors have no rank that alpha could be divided by; it is written all the same.
    tensors["alpha"] = np.float32(3.0)
    size = np.float32(np.float16(make.sized(change)))
    name = "lokr_w1"
    tensors[name] = (tensors[name] * size).astype(np.float32)
    return tensors, np.kron(tensors[name], two.reshape(large[0], -1)).reshape(shape)


def norm_of_outputs(weight: Array) -> Array:
    return np.linalg.norm(flat(weight), axis=1).reshape(-1, *(1,) * (weight.ndim - 1))


def norm_of_inputs(weight: Array) -> Array:
    turned = np.moveaxis(weight, 1, 0)
    return np.linalg.norm(turned.reshape(turned.shape[0], -1), axis=1).reshape(1, -1, *(1,) * (weight.ndim - 2))


def decomposed(make: Maker, made: Made, norm: Callable[[Array], Array], role: str) -> Made:
    """Add DoRA's norms to a kind: W becomes norms * (W + change) / norm(W + change)."""
    tensors, change = made
    scale = norm(make.weight) * (1.0 + 0.3 * np.abs(make.draw(*norm(make.weight).shape)))
    scale = scale.astype(np.float32)
    new = scale * (make.weight + change) / norm(make.weight + change)
    return {**tensors, role: scale}, new - make.weight


def dora_magnitude(make: Maker) -> Made:
    tensors, change = decomposed(make, lora(make), norm_of_outputs, "lora_magnitude_vector")
    norms = tensors["lora_magnitude_vector"]
    # PEFT: a vector for linear layers, [1, outputs, 1, 1] for convolutions.
    tensors["lora_magnitude_vector"] = norms.reshape(-1) if norms.ndim == 2 else norms.reshape(1, -1, 1, 1)
    return tensors, change


def difference(make: Maker) -> Made:
    change = make.draw(*make.weight.shape, spread=0.02)
    change = (change * np.float32(make.sized(change))).astype(np.float32)
    return {"diff": change}, change


KINDS: dict[str, Callable[[Maker], Made]] = {
    "lora": lora,
    "rank 1": lora_rank_1,
    "tucker": tucker,
    "loha": loha,
    "loha tucker": loha_tucker,
    "lokr": lokr,
    "lokr both": lambda make: lokr(make, first=True),
    "lokr first": lambda make: lokr(make, first=True, second=False),
    "lokr whole": lambda make: lokr(make, second=False),
    "lokr tucker": lambda make: lokr(make, core=True),
    "dora outputs": lambda make: decomposed(make, lora(make), norm_of_outputs, "dora_scale"),
    "dora inputs": lambda make: decomposed(make, lora(make), norm_of_inputs, "dora_scale"),
    "dora magnitude": dora_magnitude,
    "dora loha": lambda make: decomposed(make, loha(make), norm_of_outputs, "dora_scale"),
    "dora lokr": lambda make: decomposed(make, lokr(make), norm_of_inputs, "dora_scale"),
    "diff": difference,
}


# --- dialects ---------------------------------------------------------------------------------------------------


def processor(path: str) -> str:
    """Return a layer of an attention as the attention processors of old diffusers name it."""
    block, _, name = path.removesuffix(".0").rpartition(".")
    return f"{block}.processor.{name}"


@dataclass(frozen=True)
class Dialect:
    """How a program writes names."""

    prefixes: Mapping[str, str]  # by component; a component without one is not written
    naming: str = "diffusers"  # or the model's own release
    underscores: bool = False
    roles: Mapping[str, str] = field(default_factory=dict)  # by kohya's words
    with_alpha: bool = True  # else the up factor is scaled already
    of_processor: bool = False  # an attention's layers, as its processor names them

    def name(self, layer: Layer, role: str) -> str:
        path = processor(layer.path) if self.of_processor else layer.path
        path = path.replace(".", "_") if self.underscores else path
        role = self.roles.get(role, role)
        return f"{self.prefixes[layer.component]}{path}{role if role.startswith('_') else '.' + role}"


KOHYA = {"unet": "lora_unet_", "transformer": "lora_unet_", "te1": "lora_te1_", "te2": "lora_te2_", "te3": "lora_te3_"}
DIFFUSERS = {"unet": "unet.", "transformer": "transformer.", "te1": "text_encoder.", "te2": "text_encoder_2."}
PEFT = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
ADAPTER = {"lora_down.weight": "lora_A.default.weight", "lora_up.weight": "lora_B.default.weight"}
MIDDLE = {"lora_down.weight": "lora.down.weight", "lora_up.weight": "lora.up.weight"}
LINEAR = {"lora_down.weight": "lora_linear_layer.down.weight", "lora_up.weight": "lora_linear_layer.up.weight"}
PROCESSOR = {"lora_down.weight": "_lora.down.weight", "lora_up.weight": "_lora.up.weight"}


DIALECTS: dict[str, Dialect] = {
    "kohya": Dialect(KOHYA, underscores=True),
    "kohya, te": Dialect({**KOHYA, "te1": "lora_te_"}, underscores=True),
    "kohya, release": Dialect(KOHYA, naming="original", underscores=True),
    "kohya, __": Dialect({"transformer": "lora_unet__"}, underscores=True),
    "diffusers": Dialect(DIFFUSERS, roles=PEFT, with_alpha=False),
    "diffusers, middle": Dialect(DIFFUSERS, roles=MIDDLE, with_alpha=False),
    "diffusers, old": Dialect({"unet": "unet."}, roles=PROCESSOR, with_alpha=False, of_processor=True),
    "diffusers, old, te": Dialect({"te1": "text_encoder."}, roles=LINEAR, with_alpha=False),
    "diffusers, bare": Dialect({"unet": "", "transformer": ""}, roles=PEFT, with_alpha=False),
    "PEFT": Dialect({"unet": "base_model.model.", "transformer": "base_model.model."}, roles=PEFT, with_alpha=False),
    "PEFT, te": Dialect({"te1": "base_model.model."}, roles=PEFT, with_alpha=False),
    "PEFT, adapter": Dialect(DIFFUSERS, roles=ADAPTER, with_alpha=False),
    "ComfyUI": Dialect({"unet": "diffusion_model.", "transformer": "diffusion_model."}, naming="original", roles=PEFT),
    "ComfyUI, alpha": Dialect({"unet": "diffusion_model.", "transformer": "diffusion_model."}, naming="original"),
    "release": Dialect({"unet": "model.diffusion_model.", "transformer": "model.diffusion_model."}, naming="original"),
    "LyCORIS": Dialect({"unet": "lycoris_", "transformer": "lycoris_"}, underscores=True),
    "OneTrainer": Dialect({"transformer": "lora_transformer_"}, underscores=True),
}


@dataclass
class Sample:
    """A LoRA and the weights that it makes of a checkpoint's."""

    tensors: dict[str, Array]
    merged: dict[str, Array]
    layers: list[Layer]


def build(
    family: str,
    weights: Mapping[str, Array],
    kind: str = "lora",
    dialect: str = "kohya",
    wanted: Callable[[Layer], bool] = lambda layer: True,
    strength: float = 1.0,
) -> Sample:
    """Return a LoRA of a kind, written in a dialect, for the layers of a checkpoint's weights that are wanted."""
    speech = DIALECTS[dialect]
    shapes = {name: weight.shape for name, weight in weights.items()}
    sample = Sample({}, {}, [])
    for layer in layers_of(family, shapes, speech.naming):
        if layer.component not in speech.prefixes or not wanted(layer):
            continue
        own = layer.of(weights[layer.tensor])
        tensors, change = KINDS[kind](Maker(zlib.crc32(f"{layer.component}.{layer.path}".encode()), own))
        if not speech.with_alpha and "alpha" in tensors:
            scale = tensors.pop("alpha") / tensors["lora_down.weight"].shape[0]
            tensors["lora_up.weight"] = (tensors["lora_up.weight"] * scale).astype(np.float32)
        for role, array in tensors.items():
            sample.tensors[speech.name(layer, role)] = array
        merged = sample.merged.setdefault(layer.tensor, np.array(weights[layer.tensor], np.float32))
        layer.of(merged)[...] += strength * change
        sample.layers.append(layer)
    if not sample.layers:
        raise ValueError(f"{dialect} writes nothing that is wanted of {family}")
    return sample


def xlabs(weights: Mapping[str, Array]) -> Sample:
    """Return a LoRA in the names of x-flux, whose single blocks map the output of their last layer as well."""
    sample = Sample({}, {}, [])
    for tensor, weight in weights.items():
        path = tensor.removeprefix("model.diffusion_model.").removesuffix(".weight")
        stack, _, rest = path.partition(".")
        number, _, inner = rest.partition(".")
        names = {
            "img_attn.qkv": "qkv_lora1",
            "img_attn.proj": "proj_lora1",
            "txt_attn.qkv": "qkv_lora2",
            "txt_attn.proj": "proj_lora2",
            "linear1": "qkv_lora",
            "linear2": "proj_lora",
        }
        if not tensor.endswith(".weight") or inner not in names:
            continue
        part = weight[: 3 * weight.shape[1]] if inner == "linear1" else weight
        if inner == "linear2":
            part = np.zeros((weight.shape[0], weight.shape[0]), np.float32)
        own = np.eye(weight.shape[0], dtype=np.float32) if inner == "linear2" else part
        made, change = lora(Maker(zlib.crc32(path.encode()), own))
        name = f"{stack}.{number}.processor.{names[inner]}"
        sample.tensors[f"{name}.down.weight"] = made["lora_down.weight"]
        sample.tensors[f"{name}.up.weight"] = (made["lora_up.weight"] * made["alpha"] / RANK).astype(np.float32)
        merged = sample.merged.setdefault(tensor, np.array(weight, np.float32))
        if inner == "linear2":
            merged += change @ weight
            bias = tensor.removesuffix("weight") + "bias"
            sample.merged[bias] = weights[bias] + change @ weights[bias]
        else:
            merged[: part.shape[0]] += change
        sample.layers.append(Layer("transformer", path, tensor))
    return sample


# --- comparing ------------------------------------------------------------------------------------------------------


def decibels(picture: Array, truth: Array) -> float:
    """Return the peak signal-to-noise ratio of 8-bit pictures."""
    error = float(np.mean((picture.astype(np.float64) - truth.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255.0**2 / error)

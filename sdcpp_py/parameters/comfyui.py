"""The graph that ComfyUI writes into its pictures: nodes by id, each with its inputs, of which a link is [id, output].

The form is that of its API: https://docs.comfy.org/development/comfyui-server/api-examples.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ArgumentError
from ..modes import IMG2IMG, INPAINT, TXT2IMG, Mode
from ..options.loras import Lora
from .found import Found, Parameters
from .names import COMFYUI_SAMPLERS, COMFYUI_SCHEDULERS

_SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
_MASKED = ("VAEEncodeForInpaint", "SetLatentNoiseMask", "InpaintModelConditioning")
_MODEL_NAMES = ("ckpt_name", "unet_name", "model_name")
_LONGEST = 200  # nodes of a chain, which may be a ring in a damaged file

Node = Mapping[str, Any]


class Graph:
    """Nodes by id; links that lead nowhere are none."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self.nodes = nodes

    def at(self, link: Any) -> Node | None:
        """Return the node that a link leads to."""
        if not isinstance(link, list) or len(link) != 2:
            return None
        return self.nodes.get(str(link[0]))

    def chain(self, node: Node, *names: str) -> Iterator[Node]:
        """Yield the nodes behind a node, along the first of some inputs that is a link."""
        following: Node | None = node
        for _ in range(_LONGEST):
            links = [following["inputs"][name] for name in names if name in following["inputs"]] if following else []
            following = next((each for link in links if (each := self.at(link)) is not None), None)
            if following is None:
                return
            yield following

    def value(self, given: Any) -> Any:
        """Return a value, also where a node gives it; None for one that cannot be told."""
        for _ in range(_LONGEST):
            node = self.at(given)
            if node is None:
                return None if isinstance(given, (list, dict)) else given
            inputs = node["inputs"]
            given = next((inputs[name] for name in ("value", "text", "string", "seed", "int") if name in inputs), None)
        return None


def _class(node: Node) -> str:
    return str(node.get("class_type"))


def read_graph(text: str) -> Parameters | None:
    """Return the parameters of a graph; None where it is none, or draws nothing.

    Of several samplers the one that begins from nothing counts; the others are unmapped.

    Args:
        text: as it stands under PNG's ``prompt``.
    """
    try:
        nodes = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(nodes, dict):
        return None
    graph = Graph(
        {
            name: node
            for name, node in nodes.items()
            if isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict)
        }
    )
    samplers = {name: node for name, node in graph.nodes.items() if _class(node) in _SAMPLERS}
    if not samplers:
        return None
    chosen = min(samplers, key=lambda name: _sources(graph, samplers[name]))
    sampler = samplers.pop(chosen)
    found = Found(_mode_of(graph, sampler), "ComfyUI", text)
    for name, node in samplers.items():
        found.unmapped[f"{_class(node)} {name}"] = json.dumps(node["inputs"])
    _read_prompts(graph, sampler, found)
    _read_sampler(graph, sampler, found)
    _read_latents(graph, sampler, found)
    _read_model(graph, sampler, found)
    for node in graph.nodes.values():
        if _class(node) == "VAEDecodeTiled":
            found.add(("vae_tiling",), True, _class(node), json.dumps(node["inputs"]))
        if _class(node) == "VAELoader":
            found.about["VAE"] = str(node["inputs"].get("vae_name"))
    return found.parameters()


def _sources(graph: Graph, sampler: Node) -> int:
    """Return how many samplers and pictures come before one, by its latents."""
    before = graph.chain(sampler, "latent_image", "samples", "latent", "pixels", "image", "images")
    return sum(_class(node) in _SAMPLERS for node in before)


def _mode_of(graph: Graph, sampler: Node) -> Mode:
    before = [_class(node) for node in graph.chain(sampler, "latent_image", "samples", "latent")]
    if any(name in _MASKED for name in before):
        return INPAINT
    return IMG2IMG if any(name.startswith("VAEEncode") for name in before) else TXT2IMG


def _around(graph: Graph, sampler: Node) -> list[Node]:
    """Return a sampler with the nodes that it is told by: noise, guider, sampler and levels of the custom ones."""
    links = (sampler["inputs"].get(name) for name in ("noise", "guider", "sampler", "sigmas"))
    return [sampler, *(node for link in links if (node := graph.at(link)) is not None)]


def _read_sampler(graph: Graph, sampler: Node, found: Found) -> None:
    plain = {"seed": "seed", "noise_seed": "seed", "steps": "steps", "cfg": "cfg_scale"}
    names = {"sampler_name": ("sampler", COMFYUI_SAMPLERS), "scheduler": ("scheduler", COMFYUI_SCHEDULERS)}
    steps = None
    for node in _around(graph, sampler):
        inputs = {name: graph.value(each) for name, each in node["inputs"].items()}
        for name, option in plain.items():
            value = inputs.get(name)
            if value is not None:
                found.add((option,), value, name)
        for name, (option, known) in names.items():
            value = inputs.get(name)
            if isinstance(value, str) and value in known:
                found.add((option,), known[value], name, value)
            elif value is not None:
                found.unmapped[name] = str(value)
        if _class(node) == "BasicGuider":
            found.add(("cfg_scale",), 1.0, "BasicGuider")
        denoise = inputs.get("denoise")
        if isinstance(denoise, (int, float)) and (found.mode is not TXT2IMG or denoise != 1):
            found.add(("strength",), denoise, "denoise")
        steps = inputs.get("steps") or steps
        for name, usual in (("start_at_step", 0), ("end_at_step", steps)):
            value = inputs.get(name)
            if isinstance(value, int) and isinstance(usual, int) and (value > usual if not usual else value < usual):
                found.unmapped[name] = str(value)


def _read_latents(graph: Graph, sampler: Node, found: Found) -> None:
    for node in graph.chain(sampler, "latent_image", "samples", "latent"):
        for side in ("width", "height"):
            value = graph.value(node["inputs"].get(side))
            if _class(node).startswith("Empty") and value is not None:
                found.add((side,), value, side)


def _read_prompts(graph: Graph, sampler: Node, found: Found) -> None:
    told = _around(graph, sampler)
    for option, names in (("prompt", ("positive", "conditioning")), ("negative_prompt", ("negative",))):
        start = next((node for node in told if any(name in node["inputs"] for name in names)), None)
        if start is None:
            continue
        for node in graph.chain(start, *names, "conditioning", "conditioning_1"):
            inputs, kind = node["inputs"], _class(node)
            if kind == "ConditioningZeroOut":
                break
            guidance = graph.value(inputs.get("guidance"))
            if option == "prompt" and guidance is not None:
                found.add(("guidance",), guidance, "guidance")
            texts = {name: graph.value(inputs.get(name)) for name in ("text", "text_g", "text_l", "t5xxl", "clip_l")}
            said = [text for text in texts.values() if isinstance(text, str)]
            if said:
                found.add((option,), said[0], option)
                if others := [text for text in said if text != said[0]]:
                    found.unmapped[f"{option} of the other text encoder"] = others[0]
                _read_clip(graph, node, found)
                break
            if kind != "FluxGuidance":
                found.unmapped[kind] = json.dumps(inputs)
        else:
            found.unmapped[option] = "of a node that is not known"


def _read_clip(graph: Graph, encoder: Node, found: Found) -> None:
    for node in graph.chain(encoder, "clip"):
        layer = graph.value(node["inputs"].get("stop_at_clip_layer"))
        if isinstance(layer, int):
            found.add(("clip_skip",), -layer, "stop_at_clip_layer", str(layer))


def _read_model(graph: Graph, sampler: Node, found: Found) -> None:
    loras: list[Lora] = []
    start = next((node for node in _around(graph, sampler) if "model" in node["inputs"]), sampler)
    for node in graph.chain(start, "model"):
        inputs, kind = {name: graph.value(each) for name, each in node["inputs"].items()}, _class(node)
        name, strength = inputs.get("lora_name"), inputs.get("strength_model")
        if isinstance(name, str) and isinstance(strength, (int, float)):
            clip = inputs.get("strength_clip", 0.0 if kind == "LoraLoaderModelOnly" else strength)
            try:
                lora = Lora(name.replace("\\", "/"), strength, te_multiplier=None if clip == strength else clip)
                loras.insert(0, lora)
            except ArgumentError:
                found.unmapped[kind] = json.dumps(node["inputs"])
        elif kind in ("ModelSamplingSD3", "ModelSamplingAuraFlow") and inputs.get("shift") is not None:
            found.add(("flow_shift",), inputs["shift"], "shift")
        elif model := next((inputs[each] for each in _MODEL_NAMES if inputs.get(each)), None):
            found.about["Model"] = str(model)
        else:
            found.unmapped[kind] = json.dumps(node["inputs"])
    if loras:
        found.add(("loras",), loras, "LoraLoader")

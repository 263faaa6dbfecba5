"""ESRGAN by numpy: random weights for it, the names of its releases, and what it makes of a picture.

The network is RRDBNet of Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks" (2018), and
with folded pixels that of Real-ESRGAN (2021).
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np

Weights = dict[str, Any]
SLOPE, RESIDUAL = 0.2, 0.2


def random_weights(
    scale: int, *, folds: int = 1, width: int = 12, growth: int = 6, blocks: int = 1, seed: int = 0
) -> Weights:
    """Return f16 weights of a network whose pictures are neither black nor white.

    Args:
        scale: 1, 2 or 4, of what the network sees.
        folds: pixels of each direction that it takes as channels of one: 1, 2 or 4.
        width: channels.
        growth: channels that each dense layer adds.
        blocks: number of them.
        seed: which random numbers.
    """
    convolutions = {"conv_first": (3 * folds**2, width), "conv_body": (width, width), "conv_hr": (width, width)}
    convolutions |= {f"conv_up{i + 1}": (width, width) for i in range(scale // 2)}
    convolutions["conv_last"] = (width, 3)
    for block, part, layer in itertools.product(range(blocks), (1, 2, 3), range(5)):
        name = f"body.{block}.rdb{part}.conv{layer + 1}"
        convolutions[name] = width + layer * growth, growth if layer < 4 else width
    random = np.random.default_rng(seed)
    weights: Weights = {}
    for name, (inputs, outputs) in convolutions.items():
        gain = 0.2 if name == "conv_last" else 1.4
        weight = random.standard_normal((outputs, inputs, 3, 3)) * gain / np.sqrt(9 * inputs)
        bias = random.standard_normal(outputs) * 0.05 + (0.5 if name == "conv_last" else 0.0)
        weights[f"{name}.weight"], weights[f"{name}.bias"] = weight.astype(np.float16), bias.astype(np.float16)
    return weights


def first_names(weights: Weights) -> Weights:
    """Return the weights under the names of ESRGAN's first releases."""
    ups = sum(name.startswith("conv_up") for name in weights) // 2
    blocks = max(int(name.split(".")[1]) for name in weights if name.startswith("body.")) + 1
    later = {f"conv_up{i + 1}": f"model.{3 * (i + 1)}" for i in range(ups)}
    hr = 3 * ups + 2
    later |= {"conv_first": "model.0", "conv_body": f"model.1.sub.{blocks}", "conv_hr": f"model.{hr}"}
    later["conv_last"] = f"model.{hr + 2}"

    def renamed(name: str) -> str:
        layer, _, kind = name.rpartition(".")
        if layer in later:
            return f"{later[layer]}.{kind}"
        return re.sub(r"body\.(\d+)\.rdb(\d)\.(conv\d)\.", r"model.1.sub.\1.RDB\2.\3.0.", name)

    return {renamed(name): weight for name, weight in weights.items()}


def trunk_names(weights: Weights) -> Weights:
    """Return the weights under the names of BSRGAN and others."""
    names = {"conv_body": "trunk_conv", "conv_hr": "HRconv", "conv_up": "upconv"}

    def renamed(name: str) -> str:
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        return re.sub(r"body\.(\d+)\.rdb(\d)\.", r"RRDB_trunk.\1.RDB\2.", name)

    return {renamed(name): weight for name, weight in weights.items()}


def upscale(weights: Weights, picture: Any, *, folds: int = 1) -> Any:
    """Return what the network makes of a picture.

    Args:
        weights: under BasicSR's names.
        picture: uint8 of shape (height, width, 3), sides multiples of *folds*.
        folds: as of :func:`random_weights`.
    """
    height, width, _ = picture.shape
    x = picture.transpose(2, 0, 1).astype(np.float32) / 255
    x = x.reshape(3, height // folds, folds, width // folds, folds).transpose(0, 2, 4, 1, 3)
    x = x.reshape(3 * folds**2, height // folds, width // folds)

    def conv(name: str, x: Any) -> Any:
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        weight = weights[f"{name}.weight"].astype(np.float32)
        y = np.tensordot(weight, windows, ([1, 2, 3], [0, 3, 4]))
        return y + weights[f"{name}.bias"].astype(np.float32)[:, None, None]

    def leaky(x: Any) -> Any:
        return np.where(x >= 0, x, SLOPE * x)

    x = first = conv("conv_first", x)
    blocks = max(int(name.split(".")[1]) for name in weights if name.startswith("body.")) + 1
    for block in range(blocks):
        before = x
        for part in (1, 2, 3):
            seen = x
            for layer in (1, 2, 3, 4):
                seen = np.concatenate([seen, leaky(conv(f"body.{block}.rdb{part}.conv{layer}", seen))])
            x = x + RESIDUAL * conv(f"body.{block}.rdb{part}.conv5", seen)
        x = before + RESIDUAL * x
    x = first + conv("conv_body", x)
    for name in ("conv_up1", "conv_up2"):
        if f"{name}.weight" in weights:
            x = leaky(conv(name, x.repeat(2, 1).repeat(2, 2)))
    x = conv("conv_last", leaky(conv("conv_hr", x)))
    return (np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)


def psnr(a: Any, b: Any) -> float:
    """Return the peak signal-to-noise ratio of two 8-bit pictures, in dB."""
    error = np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))

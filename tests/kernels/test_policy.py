"""The kernel policy: each model computes with its own, whatever else computes meanwhile, and says so."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from sdcpp_py import ArgumentError, StableDiffusion
from support.children import in_child
from support.loopback import Loopback

SMALL = {"width": 64, "height": 64, "steps": 2, "seed": 1, "progress": False}
STREAMED = {"runtime_backend": "loopback0", "params_backend": "cpu", "stream_layers": True, "threads": 2}


def draw(sd: StableDiffusion) -> bytes:
    return sd.txt2img("a red circle", **SMALL)[0].tobytes()  # type: ignore[arg-type]


@in_child
def test_each_model_has_its_own() -> None:
    Loopback()
    models = {
        (kernels, where): StableDiffusion(kernels=kernels, progress=False, **options)  # type: ignore[arg-type]
        for kernels in ("fast", "engine")
        for where, options in {"cpu": {"runtime_backend": "cpu", "threads": 2}, "loopback": STREAMED}.items()
    }
    alone = {key: draw(sd) for key, sd in models.items()}
    for kernels in ("fast", "engine"):
        assert alone[kernels, "cpu"] == alone[kernels, "loopback"], "placement changes no pixel"
    fast, engine = (np.frombuffer(alone[kernels, "cpu"], np.uint8).astype(int) for kernels in ("fast", "engine"))
    # Other roundings, and nothing else: how much they show depends on the processor that ggml's were made on.
    assert 0.0 < np.abs(fast - engine).mean() < 2.0

    # At once, on two devices: one with each policy.
    for pair in ((("fast", "cpu"), ("engine", "loopback")), (("engine", "cpu"), ("fast", "loopback"))):
        found: dict[tuple[str, str], list[bytes]] = {key: [] for key in pair}

        def repeat(key: tuple[str, str], into: list[bytes]) -> None:
            into.extend(draw(models[key]) for _ in range(3))

        threads = [threading.Thread(target=repeat, args=item) for item in found.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for key, pictures in found.items():
            assert pictures == [alone[key]] * 3, key

    # Neither a buffer of all windows of a convolution, nor one of all scores of attention.
    compute = {
        kernels: {row.module: row.compute_bytes for row in models[kernels, "loopback"].transfer_report().streams}
        for kernels in ("fast", "engine")
    }
    assert compute["fast"]["vae"] < 0.7 * compute["engine"]["vae"], compute
    assert compute["fast"]["diffusion"] < 0.9 * compute["engine"]["diffusion"], compute


def test_it_is_said() -> None:
    for kernels in ("fast", "engine"):
        with StableDiffusion(kernels=kernels, progress=False) as sd:
            assert f"kernels: {kernels}" in str(sd.plan)
            assert sd.plan.to_dict()["kernels"] == kernels
            image = sd.txt2img("a", **{**SMALL, "steps": 1})[0]  # type: ignore[arg-type]
        assert ("Kernels: engine" in image.info["parameters"]) == (kernels == "engine")
    with pytest.raises(ArgumentError, match="kernels"):
        StableDiffusion(kernels="slow")

"""What a caller says about modules, parsed: devices and pin policies."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcpp_py import placement
from sdcpp_py.errors import ArgumentError
from sdcpp_py.placement import MODULES, find_device, parse_spec
from support.placement_cases import CPU, DEVICES, SIZES, VULKAN, budget


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, {}),
        ("", {}),
        ("cuda0", {"*": "cuda0"}),
        ("te=cpu,diffusion=cuda0", {"te": "cpu", "diffusion": "cuda0"}),
        (" TE = CPU , all = cuda0 ,", {"te": "CPU", "*": "cuda0"}),
        ("cuda0,vae=cpu", {"*": "cuda0", "vae": "cpu"}),
        ("default=cpu", {"*": "cpu"}),
        ("*=cpu", {"*": "cpu"}),
        ("unet=a,clip=b,tae=c", {"diffusion": "a", "te": "b", "vae": "c"}),
        ("dit=a,t5xxl=b,clip-vision=c,control_net=d",
         {"diffusion": "a", "te": "b", "clip_vision": "c", "controlnet": "d"}),
        ("diff=a,text_enc=b,clip_v=c,photo=d,up=e",
         {"diffusion": "a", "te": "b", "clip_vision": "c", "photomaker": "d", "upscaler": "e"}),
        ({"te": "cpu", "All": "gpu"}, {"te": "cpu", "*": "gpu"}),
        ({}, {}),
    ],
    ids=str,
)  # fmt: skip
def test_parse_spec(spec: placement.Spec | None, expected: dict[str, str]) -> None:
    assert parse_spec("params_backend", spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tee=cpu", r"params_backend: module 'tee' is unknown; valid: diffusion, controlnet, te, vae, clip_vision"),
        ("=cpu", "module '' is unknown"),
        ("c=cpu", r"module 'c' is ambiguous \(clip_vision, controlnet, te\); valid: diffusion"),
        ("t=cpu", r"module 't' is ambiguous \(te, vae\)"),
        ("te=cpu,clip=cpu", "module 'te' is assigned twice"),
        ("all=cpu,cuda0", "the default is assigned twice"),
        ("te=", "nothing is assigned to 'te'"),
        (7, "must be a string or a mapping"),
        ({"te": 0}, "must map module to name, not 'te' to 0"),
        ({0: "cpu"}, "must map module to name"),
    ],
    ids=str,
)
def test_parse_spec_refuses(spec: placement.Spec, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        parse_spec("params_backend", spec)


@given(st.text(max_size=20))
def test_parse_spec_answers_or_raises_argument_error(text: str) -> None:
    with suppress(ArgumentError):
        assert parse_spec("params_backend", text).keys() <= {*MODULES, "*"}


@given(st.dictionaries(st.sampled_from([*MODULES]), st.sampled_from(["cpu", "cuda0", "auto"])))
def test_text_and_mapping_mean_the_same(spec: dict[str, str]) -> None:
    text = ",".join(f"{module}={name}" for module, name in spec.items())
    assert parse_spec("params_backend", text) == parse_spec("params_backend", spec) == spec


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("CPU", "CPU"), ("cpu", "CPU"), ("cp", "CPU"), ("cuda0", "CUDA0"), ("Cuda1", "CUDA1"), ("vulk", "Vulkan0"),
        ("gpu", "CUDA0"), ("GPU", "CUDA0"), ("auto", "CUDA0"),
    ],
)  # fmt: skip
def test_find_device(word: str, expected: str) -> None:
    assert find_device("runtime_backend", word, DEVICES).name == expected


def test_find_device_takes_an_integrated_gpu_where_there_is_no_other() -> None:
    assert find_device("x", "gpu", [CPU, VULKAN]).name == "Vulkan0"
    assert find_device("x", "auto", [CPU, VULKAN]).name == "Vulkan0"
    assert find_device("x", "auto", [CPU]).name == "CPU"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("cuda", r"device 'cuda' is ambiguous \(CUDA0, CUDA1\); devices: CPU, Vulkan0, CUDA0, CUDA1, Bare0"),
        ("metal", "device 'metal' is unknown; devices: CPU, Vulkan0"),
        ("blas", "device 'blas' is unknown"),
        ("disk", "device 'disk' is unknown"),
    ],
)
def test_find_device_lists_the_devices(word: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        find_device("runtime_backend", word, DEVICES)


def test_gpu_where_there_is_none() -> None:
    with pytest.raises(ArgumentError, match="runtime_backend: there is no GPU device; devices: CPU"):
        placement.plan(SIZES, [CPU], budget(0), runtime_backend="gpu")
    with pytest.raises(ArgumentError, match="there is no AUTO device; devices: none"):
        placement.plan(SIZES, [], budget(0))

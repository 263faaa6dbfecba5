"""The API of stable-diffusion.cpp's own server."""

from __future__ import annotations

import base64
import io
import json
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdcpp_py
from sdcpp_py.errors import ArgumentError
from sdcpp_py.modes import INPAINT, TXT2IMG, TXT2VID
from sdcpp_py.server.api.native_fields import from_fields, take_extra
from support.server import Server

WHOLE = json.loads(
    """{"prompt": "a red circle", "negative_prompt": "", "clip_skip": -1, "width": 64, "height": 64, "strength": 0.75,
    "seed": 5, "batch_count": 1, "auto_resize_ref_image": true, "increase_ref_index": false, "control_strength": 0.9,
    "embed_image_metadata": true, "init_image": null, "ref_images": [], "mask_image": null, "control_image": null,
    "sample_params": {"scheduler": "discrete", "sample_method": "euler", "sample_steps": 2, "eta": 1.0,
    "shifted_timestep": 0, "custom_sigmas": [], "flow_shift": 0.0, "guidance": {"txt_cfg": 7.0, "img_cfg": 7.0,
    "distilled_guidance": 3.5, "slg": {"layers": [7, 8, 9], "layer_start": 0.01, "layer_end": 0.2, "scale": 0.0}}},
    "lora": [], "hires": {"enabled": false, "upscaler": "Latent", "scale": 2.0, "target_width": 0, "target_height": 0,
    "steps": 0, "denoising_strength": 0.7, "upscale_tile_size": 128}, "vae_tiling_params": {"enabled": false,
    "tile_size_x": 0, "tile_size_y": 0, "target_overlap": 0.5, "rel_size_x": 0.0, "rel_size_y": 0.0},
    "cache_mode": "disabled", "cache_option": "", "scm_mask": "", "scm_policy_dynamic": true, "output_format": "png",
    "output_compression": 100}"""
)
"""The body that its document shows, with all fields; clients send it whole."""


def drawn(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    answer = server.http.post("/sdcpp/v1/img_gen", json=body)
    assert answer.status_code == 202, answer.text
    end = time.monotonic() + 30
    while (job := server.http.get(answer.json()["poll_url"]).json())["status"] in ("queued", "generating"):
        assert time.monotonic() < end
        time.sleep(0.02)
    return dict(job)


def test_jobs_are_those_of_the_document(server: Server, embedded: sdcpp_py.StableDiffusion) -> None:
    job = drawn(server, WHOLE)
    assert (job["status"], job["kind"], job["error"], job["warnings"]) == ("completed", "img_gen", None, [])
    picture = Image.open(io.BytesIO(base64.b64decode(job["result"]["images"][0]["b64_json"])))
    ours = {
        "width": 64,
        "height": 64,
        "steps": 2,
        "seed": 5,
        "sampler": "euler",
        "scheduler": "discrete",
        "cfg_scale": 7.0,
    }
    assert (np.asarray(picture) == np.asarray(embedded.txt2img("a red circle", **ours)[0])).all()
    assert job["progress"]["fraction"] == 1.0
    bare = drawn(server, {**WHOLE, "embed_image_metadata": False, "output_format": "jpeg", "nothing": 1})
    assert bare["warnings"] == ["nothing is no field that has an effect here"]
    picture = Image.open(io.BytesIO(base64.b64decode(bare["result"]["images"][0]["b64_json"])))
    assert (picture.format, picture.getexif().get_ifd(0x8769)) == ("JPEG", {})
    failed = drawn(server, {**WHOLE, "sample_params": {"guidance": {"distilled_guidance": 4.0}}})
    assert (failed["status"], failed["error"]["type"]) == ("failed", "ArgumentError")
    assert server.http.post(f"/sdcpp/v1/jobs/{failed['id']}/cancel").status_code == 409
    long = {**WHOLE, "sample_params": {"sample_steps": 5000}}
    running = server.http.post("/sdcpp/v1/img_gen", json=long).json()["id"]
    assert server.http.post(f"/sdcpp/v1/jobs/{running}/cancel").status_code == 200
    assert server.wait(running)["state"] == "cancelled"
    for content in (b"[]", b"{", b'{"prompt": 3}'):
        assert server.http.post("/sdcpp/v1/img_gen", content=content).status_code == 400
    assert server.http.get("/sdcpp/v1/jobs/none").status_code == 404


def test_capabilities_can_be_sent_back(server: Server) -> None:
    told = server.http.get("/sdcpp/v1/capabilities").json()
    assert told["supported_modes"] == ["img_gen", "vid_gen"]
    assert "euler_a" in told["samplers"]
    assert told["upscalers"][-1] == {"name": "tiny"}
    defaults = told["defaults_by_mode"]["img_gen"]
    assert defaults["sample_params"]["guidance"]["txt_cfg"] == 3.0  # of the embedded model
    defaults["sample_params"]["sample_steps"] = 1
    job = drawn(server, {**defaults, "prompt": "x", "width": 64, "height": 64})
    assert (job["status"], job["warnings"]) == ("completed", [])


def test_fields_are_those_of_the_declarations() -> None:
    body = {
        "init_image": "AAAA", "mask_image": "AAAA", "strength": 0.5, "cache_mode": "easycache",
        "cache_option": "threshold=0.3,start=0.2", "lora": [{"path": "a", "multiplier": 0.5}],
        "sample_params": {"custom_sigmas": [3.0, 1.0, 0.0], "sample_steps": 9, "scheduler": "karras"},
    }  # fmt: skip
    asked = from_fields(INPAINT, body)
    assert asked.options == {
        "image": "AAAA", "mask": "AAAA", "strength": 0.5, "sigmas": [3.0, 1.0, 0.0],
        "cache": {"mode": "easycache", "reuse_threshold": 0.3, "start_percent": 0.2},
        "loras": [{"path": "a", "multiplier": 0.5}],
    }  # fmt: skip
    assert from_fields(TXT2IMG, {"strength": 0.5}, {"strength": 0.75}).notes == ["strength has no effect in txt2img"]
    assert from_fields(TXT2IMG, {"strength": 0.75}, {"strength": 0.75}).notes == []
    assert from_fields(TXT2VID, {"video_frames": 9, "high_noise_sample_params": {"sample_steps": -1}}).options == {
        "frames": 9
    }
    assert from_fields(TXT2IMG, {"hires": {"enabled": True, "scale": 2.0}}).options == {"hires": {"scale": 2.0}}
    with pytest.raises(ArgumentError, match="cache_option: 'x'"):
        from_fields(TXT2IMG, {"cache_mode": "ucache", "cache_option": "x"})
    assert take_extra('a <sd_cpp_extra_args>{"seed": 1}</sd_cpp_extra_args> b') == ("a  b", {"seed": 1})
    twice = '<sd_cpp_extra_args>{"seed": 1}</sd_cpp_extra_args>x<sd_cpp_extra_args>{"steps": 2}</sd_cpp_extra_args>y'
    assert take_extra(twice) == ("xy", {"seed": 1, "steps": 2})
    open_ends = "<sd_cpp_extra_args>" * 400_000
    assert take_extra(open_ends) == (open_ends, {})  # and does not take minutes
    assert take_extra("<sd_cpp_extra_args>{}</sd_cpp_extra_args>" * 100_000) == ("", {})
    with pytest.raises(ArgumentError, match="no JSON"):
        take_extra("<sd_cpp_extra_args>{</sd_cpp_extra_args>")

"""The API of A1111's web UI, called by webuiapi, and in the sequences of Open WebUI and SillyTavern."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import webuiapi
from PIL import Image

import sdcpp_py
from sdcpp_py.server.api.a1111_fields import (
    ImageToImage,
    TextToImage,
    Wanted,
    sampler_of,
    scheduler_of,
    take_mask,
    wanted_by,
)
from support.server import Server

OURS = {"seed": 7, "steps": 4, "cfg_scale": 3.0}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[webuiapi.WebUIApi]:
    made = webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1", sampler="Euler", steps=4)
    with made.session:
        yield made


def same(first: Image.Image, second: Image.Image) -> bool:
    return bool((np.asarray(first) == np.asarray(second)).all())


def test_pictures_are_the_packages(client: webuiapi.WebUIApi, embedded: sdcpp_py.StableDiffusion) -> None:
    side = {"width": 64, "height": 64}
    made = client.txt2img(prompt="a red circle", batch_size=1, n_iter=2, **OURS, **side)
    wanted = embedded.txt2img("a red circle", sampler="euler", batch_count=2, **OURS, **side)
    assert [same(one, other) for one, other in zip(made.images, wanted, strict=True)] == [True, True]
    assert (made.info["all_seeds"], made.info["warnings"], made.info["sampler_name"]) == ([7, 8], [], "Euler")
    assert made.info["infotexts"][1] == wanted[1].info["parameters"]
    info = client.png_info(made.images[0])
    assert info.info == wanted[0].info["parameters"]
    assert (info.parameters["Prompt"], info.parameters["Seed"]) == ("a red circle", "7")
    again = client.img2img(images=[wanted[0]], prompt="a blue star", denoising_strength=0.5, **OURS, **side)
    assert same(again.image, embedded.img2img("a blue star", wanted[0], sampler="euler", strength=0.5, **OURS)[0])
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    for part in (True, False):
        asked = {"mask_image": mask, "inpaint_full_res": part, "denoising_strength": 0.5}
        again = client.img2img(images=[wanted[0]], prompt="a blue star", **asked, **OURS, **side)
        ours = {"only_masked": part, "padding": 0 if part else 32, "mask_blur": 4, "strength": 0.5, "sampler": "euler"}
        assert same(again.image, embedded.inpaint("a blue star", wanted[0], mask, **ours, **OURS, **side)[0])
    larger = client.txt2img(
        prompt="x", enable_hr=True, hr_scale=2, hr_upscaler="Latent", restore_faces=True, **OURS, **side
    )
    assert larger.image.size == (128, 128)
    assert larger.info["warnings"] == ["restore_faces has no effect"]
    assert client.txt2img(prompt="x", send_images=False, **OURS, **side).images == []


def test_pictures_are_made_larger(client: webuiapi.WebUIApi, server: Server) -> None:
    photo = Image.new("RGB", (24, 16), "teal")
    assert "tiny" in [row["name"] for row in client.get_upscalers()]
    assert client.extra_single_image(photo, upscaler_1="tiny", upscaling_resize=2).image.size == (48, 32)
    fitted = client.extra_single_image(photo, resize_mode=1, upscaling_resize_w=40, upscaling_resize_h=40)
    assert fitted.image.size == (40, 40)
    assert [each.size for each in client.extra_batch_images([photo] * 2, upscaler_1="Nearest").images] == [(48, 32)] * 2
    turned, exif = io.BytesIO(), photo.getexif()
    exif[0x112] = 6  # lies on its side
    photo.save(turned, "JPEG", exif=exif)
    for name in ("None", "tiny"):
        body = {"image": base64.b64encode(turned.getvalue()).decode(), "upscaler_1": name}
        made = server.http.post("/sdapi/v1/extra-single-image", json=body).json()["image"]
        assert Image.open(io.BytesIO(base64.b64decode(made))).size == (32, 48)
    with pytest.raises(RuntimeError, match="upscaler_1 .*is unknown"):
        client.extra_single_image(photo, upscaler_1="none")


def test_progress_moves_and_interrupt_is_obeyed(client: webuiapi.WebUIApi, server: Server) -> None:
    results: list[webuiapi.WebUIApiResult] = []
    thread = threading.Thread(
        target=lambda: results.append(client.txt2img(prompt="x", steps=5000, width=64, height=64, cfg_scale=3.0))
    )
    thread.start()
    seen = []
    end = time.monotonic() + 20
    while time.monotonic() < end and len(seen) < 3:
        now = server.http.get("/sdapi/v1/progress").json()
        if now["current_image"] and (not seen or now["progress"] > seen[-1]):
            seen.append(now["progress"])
            assert now["state"]["sampling_steps"] == 5000
        time.sleep(0.05)
    begin = time.monotonic()
    assert server.http.post("/sdapi/v1/interrupt").status_code == 200
    thread.join(10)
    assert time.monotonic() - begin < 0.5
    assert len(seen) == 3
    assert results[0].info["interrupted"]
    assert server.http.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0
    asked = {"prompt": "x", "steps": 6, "n_iter": 500, "seed": 7, "width": 64, "height": 64}
    answers: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: answers.append(server.http.post("/sdapi/v1/txt2img", json=asked).json()))
    thread.start()
    while server.http.get("/sdapi/v1/progress").json()["state"]["job_no"] < 1 and time.monotonic() < end + 20:
        time.sleep(0.02)
    assert server.http.post("/sdapi/v1/interrupt").status_code == 200
    thread.join(10)
    info = json.loads(answers[0]["info"])  # what was done by then is there
    assert 1 <= len(answers[0]["images"]) < 500
    assert (info["interrupted"], info["all_seeds"]) == (True, [*range(7, 7 + len(answers[0]["images"]))])
    job = server.job(info["job"])
    assert (job["state"], len(job["pictures"])) == ("cancelled", len(answers[0]["images"]))
    assert server.http.get(f"/api/jobs/{job['id']}/report").status_code == 200


def test_the_lists_are_there(client: webuiapi.WebUIApi, server: Server) -> None:
    """All that webuiapi asks for, and the calls of SillyTavern and Open WebUI before they draw."""
    assert client.util_get_sampler_names()[0] == "DDIM trailing"
    assert "automatic" in client.util_get_scheduler_names()
    assert client.util_get_model_names() == ["embedded", "other"]
    for name in ("cmd_flags", "sd_vae", "latent_upscale_modes", "loras", "hypernetworks", "face_restorers", "memory",
                 "realesrgan_models", "prompt_styles", "scripts", "embeddings"):  # fmt: skip
        getattr(client, f"get_{name}")()
    client.refresh_checkpoints()
    client.util_wait_for_ready()
    assert client.util_get_current_model() == "embedded"
    headers = {"x-sdcpp-client": "webui"}
    options = server.http.get("/sdapi/v1/options", headers=headers).json()
    answer = server.http.post("/sdapi/v1/options", json={**options, "sd_model_checkpoint": "other"}, headers=headers)
    assert answer.status_code == 200
    body = {"prompt": "x", "batch_size": 1, "width": 64, "height": 64, "steps": 1, "negative_prompt": ""}
    made = server.http.post("/sdapi/v1/txt2img", json=body, headers=headers).json()
    assert json.loads(made["info"])["sd_model_name"] == "other"
    settings = {"samples_format": "jpg", "CLIP_stop_at_last_layers": 2, "theirs": 1}
    assert server.http.post("/sdapi/v1/options", json=settings, headers=headers).json() == {}
    kept = server.http.get("/sdapi/v1/options", headers=headers).json()
    assert (kept["samples_format"], kept["CLIP_stop_at_last_layers"]) == ("jpeg", 2)
    made = server.http.post("/sdapi/v1/txt2img", json=body, headers=headers).json()
    assert base64.b64decode(made["images"][0]).startswith(b"\xff\xd8")
    assert (json.loads(made["info"])["clip_skip"], json.loads(made["info"])["sd_model_name"]) == (2, "other")
    answer = server.http.post("/sdapi/v1/options", json={"samples_format": "exe"})
    assert (answer.status_code, "samples_format 'exe' is unknown" in answer.json()["detail"]) == (400, True)
    assert client.util_get_current_model() == "embedded"
    assert server.http.request("OPTIONS", "/sdapi/v1/txt2img").status_code == 204
    # What SillyTavern sends where nobody chose a sampler, and Forge's clients whatever the model.
    body = {"url": server.url, "auth": "", "prompt": "x", "negative_prompt": "", "sampler_name": "DDIM",
            "scheduler": "normal", "steps": 2, "cfg_scale": 7, "width": 64, "height": 64, "restore_faces": False,
            "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 2, "hr_additional_modules": [], "clip_skip": 1,
            "denoising_strength": 0.7, "hr_second_pass_steps": 0, "override_settings_restore_afterwards": True,
            "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"}, "seed": 7,
            "distilled_cfg_scale": 3.0}  # fmt: skip
    told = json.loads(server.http.post("/sdapi/v1/txt2img", json=body).json()["info"])
    assert (told["sampler_name"], told["scheduler"], told["all_seeds"]) == ("Euler", "Automatic", [7])
    assert [each.partition(";")[0].partition(":")[0] for each in told["warnings"]] == [
        "sampler 'DDIM' is not here",
        "guidance has no effect",
    ]
    body = {"prompt": "x", "batch_size": 1, "width": 64, "height": 64, "steps": 1}
    for wrong, said in (
        ({"sampler_name": "none"}, "sampler_name 'none' is unknown"),
        ({"override_settings": {"sd_model_checkpoint": "none"}}, "sd_model_checkpoint 'none' is unknown"),
        ({"override_settings": {"sd_model_checkpoint": " " * 400_000 + "x"}}, "is unknown"),  # and takes no minutes
        ({"override_settings": {"CLIP_stop_at_last_layers": "x"}}, "CLIP_stop_at_last_layers must be an integer"),
        ({"alwayson_scripts": {"controlnet": {"args": 5}}}, "controlnet.args must be a list, not 5"),
        ({"theirs": "\ud800"}, "is not valid Unicode text"),
    ):
        sent = json.dumps({**body, **wrong})
        answer = server.http.post("/sdapi/v1/txt2img", content=sent, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert said in answer.json()["detail"]


def test_masks_are_what_is_opaque_or_white() -> None:
    painted = Image.new("RGBA", (8, 8))
    painted.paste((0, 0, 0, 255), (0, 0, 4, 8))
    files = []
    for mask in (painted, Image.new("L", (8, 8), 255)):
        buffer = io.BytesIO()
        mask.save(buffer, "PNG")
        files.append(buffer.getvalue())
    wanted = Wanted("inpaint", {"mask_blur": 4, "strength": 0.5})
    take_mask(wanted, files[0])
    taken = np.asarray(Image.open(io.BytesIO(wanted.options["mask"])))
    assert (taken[:, :4].min(), taken[:, 4:].max(), wanted.mode, wanted.notes) == (255, 0, "inpaint", [])
    take_mask(wanted, files[1])
    assert (wanted.mode, wanted.options) == ("img2img", {"strength": 0.5})
    assert wanted.notes == ["mask: all of the picture is drawn anew, as without one"]
    wanted = Wanted("inpaint", {"invert": True})
    take_mask(wanted, files[1])
    assert wanted.mode == "inpaint"  # nothing is to be drawn, which the mode itself refuses


def test_what_has_another_effect_here_is_told() -> None:
    facts: dict[str, Any] = {"names": {"sample_method": [], "scheduler": []}, "defaults": {}}
    wanted = wanted_by(TextToImage(prompt="x", width=910, height=512, hr_prompt="x", infotext="Steps: 3"), facts)
    assert (wanted.options["width"], wanted.options["height"]) == (904, 512)
    assert wanted.notes == ["width 910 is no multiple of 8: 904 is drawn", "infotext has no effect"]
    for fill, count in ((None, 0), (1, 0), (2, 1)):
        body = ImageToImage(init_images=["AAAA"], mask="AAAA", inpainting_fill=fill)
        assert len(wanted_by(body, facts).notes) == count
    assert wanted_by(ImageToImage(init_images=["AAAA"], inpainting_fill=2), facts).notes == []


def test_null_is_a_field_that_is_not_given() -> None:
    assert TextToImage(prompt="x", negative_prompt=None, n_iter=None) == TextToImage(prompt="x")  # type: ignore[arg-type]


def test_names_of_theirs_are_ours() -> None:
    samplers = ["euler", "euler_a", "dpm++2m", "lcm"]
    assert sampler_of("Euler a", samplers) == ("euler_a", None, True)
    assert sampler_of("DPM++ 2M Karras", samplers) == ("dpm++2m", "karras", True)
    assert sampler_of("euler_a", samplers) == ("euler_a", None, True)
    assert sampler_of("DDIM trailing", samplers) == ("ddim_trailing", None, True)
    assert sampler_of("DPM++ 2M SDE Karras", samplers) == ("dpm++2m", "karras", False)
    schedulers = ["discrete", "karras", "sgm_uniform"]
    assert scheduler_of("Automatic", "euler", schedulers) is None
    assert scheduler_of("automatic", "dpm++2m", schedulers) == "karras"
    assert scheduler_of("SGM Uniform", None, schedulers) == "sgm_uniform"
    facts = {"names": {"sample_method": samplers, "scheduler": schedulers}, "defaults": {}}
    unit = {"enabled": True, "image": "AAAA", "module": "canny", "weight": 0.5}
    body = TextToImage(
        prompt="x", sampler_name="Euler", eta=1.0, clip_skip=2, styles=["a"], subseed=-1, tiling=True,
        override_settings={"CLIP_stop_at_last_layers": 1, "samples_format": "jpg", "other": 1},
        alwayson_scripts={"ControlNet": {"args": [unit, unit]}, "ADetailer": {"args": [False]},
                          "roop": {"args": [True]}},
    )  # fmt: skip
    wanted = wanted_by(body, facts)
    assert (wanted.options["clip_skip"], wanted.output) == (2, {"format": "jpeg"})
    assert (wanted.options["control_image"], wanted.options["control_strength"], wanted.options["canny"]) == (
        "AAAA",
        0.5,
        True,
    )
    assert "eta" not in wanted.options
    assert sorted(wanted.notes) == [
        "ControlNet: one unit has an effect, the first", "alwayson_scripts.roop has no effect",
        "override_settings.other has no effect", "styles has no effect", "tiling has no effect",
    ]  # fmt: skip


def test_controlnet_is_what_its_first_unit_says() -> None:
    facts: dict[str, Any] = {"names": {"sample_method": [], "scheduler": []}, "defaults": {}}
    unit: dict[str, Any] = {"module": "canny", "threshold_a": 50, "threshold_b": -1, "guidance_end": 0.5}
    scripts = {"controlnet": {"args": [unit]}}
    wanted = wanted_by(ImageToImage(init_images=["AAAA"], alwayson_scripts=scripts), facts)  # its own is looked at
    assert (wanted.options["control_image"], wanted.options["canny_low"], "canny_high" in wanted.options) == (
        "AAAA",
        50,
        False,
    )
    assert wanted.notes == ["ControlNet: guidance_end has no effect"]
    unit["module"] = "openpose"
    wanted = wanted_by(TextToImage(prompt="x", alwayson_scripts=scripts), facts)
    assert ("control_image" in wanted.options, wanted.notes) == (
        False,
        ["ControlNet: a unit without a picture has no effect"],
    )
    unit["image"] = "AAAA"
    wanted = wanted_by(TextToImage(prompt="x", alwayson_scripts=scripts), facts)
    assert wanted.notes[0] == "ControlNet: module 'openpose' is not here; the picture is looked at as it is"

"""Our own API, asked over a socket."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import resource
import sys
import time
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import sdcpp_py
from support.build_tree import ROOT
from support.server import DRAWN, Server


def pixels(data: bytes | Image.Image) -> np.ndarray:
    return np.asarray(data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data)))


def as_png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_pictures_are_those_of_the_package(server: Server, embedded: sdcpp_py.StableDiffusion) -> None:
    """In every mode, with several pictures, and with what a worker told of them."""
    wanted = embedded.txt2img("a red circle", **DRAWN, seed=5, batch_count=2)
    job = server.wait(server.submit(seed=5, batch_count=2)["id"])
    assert (job["state"], job["seeds"], job["warnings"]) == ("done", [5, 6], [])
    for path, image in zip(job["pictures"], wanted, strict=True):
        answer = server.http.get(path)
        assert answer.headers["content-type"] == "image/png"
        assert (pixels(answer.content) == pixels(image)).all()
        assert sdcpp_py.read_parameters(answer.content)["seed"] == sdcpp_py.read_parameters(image)["seed"]
    tag = {"if-none-match": answer.headers["etag"]}
    assert (server.http.get(path, headers=tag).status_code, server.http.get(path, headers=tag).content) == (304, b"")
    part = server.http.get(path, headers={"range": "bytes=1-3", "if-range": answer.headers["etag"]})
    assert (part.status_code, part.content) == (206, b"PNG")
    head = server.http.head(path)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(answer.content)))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    cases = {
        "img2img": ({"image": as_png(wanted[0]), "strength": 0.5}, {"image": wanted[0], "strength": 0.5}),
        "inpaint": ({"image": as_png(wanted[0]), "mask": as_png(mask)}, {"image": wanted[0], "mask": mask}),
    }
    for mode, (asked, given) in cases.items():
        done = server.wait(
            server.submit(mode, seed=5, steps=4, prompt="a blue star", width=None, height=None, **asked)["id"]
        )
        drawn = getattr(embedded, mode)("a blue star", seed=5, steps=4, **given)
        assert (pixels(server.http.get(done["pictures"][0]).content) == pixels(drawn[0])).all(), mode
        went_in = server.http.get(f"/api/jobs/{done['id']}/inputs/{done['options']['image']}")
        assert went_in.headers["content-type"] == "image/png"
        assert (pixels(went_in.content) == pixels(wanted[0])).all()
        assert server.http.get(f"/api/jobs/{done['id']}/inputs/{len(given)}").status_code == 404
    report = server.http.get(f"/api/jobs/{job['id']}/report").json()
    assert report["parameters"]["prompt"] == "a red circle"
    assert [row["module"] for row in report["memory"]["modules"]] == [
        row.module for row in embedded.memory_report().modules
    ]
    assert {"plan", "prediction", "transfer", "timings", "text"} <= report.keys()
    found = server.http.post("/api/parameters", files={"picture": server.http.get(job["pictures"][1]).content}).json()
    assert (found["mode"], found["options"]["seed"], found["options"]["steps"]) == ("txt2img", 6, 2)
    names = [
        row["id"] for row in server.http.get("/api/jobs", params={"search": "RED circle", "limit": 500}).json()["jobs"]
    ]
    assert job["id"] in names
    assert server.http.delete(f"/api/jobs/{job['id']}").status_code == 204
    assert (
        server.http.get(f"/api/jobs/{job['id']}").status_code == server.http.get(job["pictures"][0]).status_code == 404
    )


def test_loras_upscalers_and_models_are_called_by_name(server: Server) -> None:
    plain, tagged, named = (
        server.wait(server.submit(seed=1, **asked)["id"])
        for asked in (
            {},
            {"prompt": "a red circle<lora:embedded-outline:1>"},
            {"loras": [{"path": "embedded-outline", "multiplier": 1.0}]},
        )
    )
    first, second, third = (server.http.get(each["pictures"][0]).content for each in (plain, tagged, named))
    assert (pixels(second) == pixels(third)).all()
    assert (pixels(first) != pixels(second)).any()
    assert server.http.get("/api/models/embedded/loras").json() == ["embedded-outline"]
    larger = server.wait(server.submit("upscale", image=as_png(Image.new("RGB", (24, 16), "teal")))["id"])
    assert pixels(server.http.get(larger["pictures"][0]).content).shape == (32, 48, 3)
    other = server.wait(server.submit(model="other", steps=None)["id"])
    assert server.http.get(f"/api/jobs/{other['id']}/report").json()["parameters"]["steps"] == 3
    models = {row["name"]: row for row in server.http.get("/api/models").json()}
    assert list(models) == ["tiny", "embedded", "other"]
    assert models["embedded"]["default"]
    assert models["other"]["loaded"] == ["worker 1"]
    server.http.post("/api/models/other/unload").raise_for_status()
    end = time.monotonic() + 10
    while server.http.get("/api/models").json()[2]["loaded"] and time.monotonic() < end:
        time.sleep(0.05)
    assert server.http.get("/api/models").json()[2]["loaded"] == []


def test_events_tell_of_a_job_from_its_begin_to_its_end(server: Server) -> None:
    job = server.submit(steps=40, preview="proj", preview_interval=10)
    events = server.events(job["id"])
    kinds = [kind for _, kind, _ in events]
    assert kinds[0] == "queued"
    assert "running" in kinds
    assert kinds[-1] == "done"
    fractions = [data["fraction"] for _, kind, data in events if kind == "progress"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    shown = [data["preview"] for _, _, data in events if "preview" in data]
    assert 3 <= len(shown) <= 4
    assert shown[0].startswith("data:image/jpeg;base64,")
    assert server.http.get(f"/api/jobs/{job['id']}/preview").headers["content-type"] == "image/jpeg"
    assert server.events(job["id"], str(events[-2][0])) == events[-1:]
    assert server.events(job["id"], "9" * 5000) == events  # more digits than Python reads


def test_a_job_is_cancelled_at_any_moment(server: Server) -> None:
    running, waiting = server.submit(steps=5000), server.submit(steps=5000)
    server.wait(running["id"], "running")
    assert server.job(waiting["id"])["position"] == 0
    assert server.http.post(f"/api/jobs/{waiting['id']}/cancel").json()["state"] == "cancelled"
    begin = time.monotonic()
    server.http.post(f"/api/jobs/{running['id']}/cancel").raise_for_status()
    assert server.wait(running["id"])["error"]["type"] == "CancelledError"
    assert time.monotonic() - begin < 0.5
    late = server.submit(steps=5000, seconds=0.3)
    assert server.wait(late["id"])["error"]["type"] == "DeadlineError"
    assert server.wait(server.submit()["id"])["state"] == "done"


def test_a_key_makes_a_second_request_the_same_job(server: Server) -> None:
    key = {"idempotency-key": "once"}
    first = server.submit(headers=key)
    assert server.submit(headers=key)["id"] == first["id"]
    body = {"mode": "txt2img", "options": {"prompt": "another", **DRAWN}}
    answer = server.http.post("/api/jobs", json=body, headers=key)
    assert (answer.status_code, answer.json()["error"]["type"]) == (409, "ConflictError")
    assert server.submit(headers={**key, "x-sdcpp-client": "somebody else"})["id"] != first["id"]
    answer = server.http.post("/api/jobs", json=body, headers={"idempotency-key": "k" * 257})
    assert "at most 256 characters" in answer.json()["error"]["message"]


def test_the_example_of_the_page_runs(server: Server) -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    for shown, soon in (
        ("http://127.0.0.1:7860", server.url),
        ('"seed": 42', '"seed": 42, "width": 64, "height": 64, "steps": 2'),
    ):
        assert shown in code
        code = code.replace(shown, soon)
    made: dict[str, Any] = {}
    exec(code, made)
    made["http"].close()
    assert made["star"]["state"] == "done"
    assert "modules" in made["report"]
    table = set(re.findall(r"/api/[\w/]*\w", page))
    known = {path.replace("{job}", "ID").replace("{index}", "N").replace("{name}", "NAME") for path in
             server.http.get("/api/openapi.json").json()["paths"]}  # fmt: skip
    assert table - {"/api/openapi"} <= known


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompt": "x", "stepz": 3}, "txt2img.options.stepz: is no field here"),
        ({"steps": 3}, "txt2img.options.prompt: is missing"),
        ({"prompt": "x", "steps": 0}, "steps must be from 1 to 10000, not 0"),
        ({"prompt": "x", "width": 16384, "height": 16384}, "txt2img: 268.4 megapixels in all"),
        ({"prompt": "x", "loras": ["../../etc/passwd"]}, "lora_model_dir; name a file in the model's folder"),
        ({"prompt": "<lora:/etc/passwd:1>"}, "leads out of lora_model_dir"),
        ({"prompt": "x", "hires": {"model": "/etc/passwd"}}, "hires.model '...' is no upscaler here"),
        ({"prompt": "x", "sigmas": [1] * 20_000}, "sigmas must have at most 10001 members"),
        ({"prompt": "x", "loras": ["x"] * 20_000}, "loras must have at most 10001 members"),
        ({"prompt": "x", "hires": {"skale": 2}}, "hires has no 'skale'"),
        ({"prompt": "x", "photo_maker": {"id_images": [], "id_embed": "/etc/passwd"}}, "requests name no files"),
        ({"prompt": "x", "control_image": "/etc/passwd"}, "control_image must be a picture as base64"),
        ({"prompt": "x", "control_image": "http://localhost/"}, "control_image must be a picture as base64"),
        ({"prompt": "x", "control_image": base64.b64encode(b"GIF").decode()}, "control_image is no picture"),
        ({"prompt": "x", "guidance": 3.0}, "guidance has no effect"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(server: Server, asked: dict, said: str) -> None:
    answer = server.http.post("/api/jobs?wait=30", json={"mode": "txt2img", "options": asked})
    error = answer.json()["error"]
    assert said in error["message"]
    assert "\n" not in error["message"]
    # What only the model can tell is the job's failure.
    assert answer.status_code == (202 if "no effect" in said else 400)


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b'{"mode": ', "application/json", "the body is no JSON: Expecting value at character 9"),
        (b'{"mode": "txt2img"}', "text/plain", "sent with Content-Type: application/json"),
        (b"[" * 40_000, "application/json", "the body cannot be read; send a JSON object"),
    ],
)
def test_what_is_wrong_with_a_body_is_said_in_a_line(server: Server, body: bytes, kind: str, said: str) -> None:
    answer = server.http.post("/api/jobs", content=body, headers={"content-type": kind})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_websockets_are_answered_as_what_is_not_there(server: Server) -> None:
    headers = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
               "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
    assert server.http.get("/queue/join", headers=headers).status_code == 404


def test_a_job_is_bounded_where_its_picture_says_the_size(server: Server) -> None:
    file = io.BytesIO()
    Image.new("L", (2000, 1000)).save(file, "PNG")
    options = {"prompt": "x", "image": base64.b64encode(file.getvalue()).decode(), "batch_count": 20}
    for sides, said in (({}, "40.0 megapixels"), ({"width": 4000}, "160.0 megapixels")):
        answer = server.http.post("/api/jobs", json={"mode": "img2img", "options": {**options, **sides}})
        assert said in answer.json()["error"]["message"]


def test_the_document_has_every_option_of_every_mode(server: Server) -> None:
    document = server.http.get("/api/openapi.json").json()
    schemas = document["components"]["schemas"]
    from sdcpp_py.modes import DRAWING, FILMING, UPSCALE

    for mode in (*DRAWING, *FILMING, UPSCALE):
        title = mode.name[0].upper() + mode.name[1:]
        known = schemas[f"{title}Options"]["properties"]
        assert set(known) == {name for name, option in mode.declared.items() if option.kind.in_json}
    steps = schemas["Txt2imgOptions"]["properties"]["steps"]["anyOf"][0]
    assert (steps["minimum"], steps["maximum"], steps["description"]) == (1, 10_000, "sampling steps")
    # It speaks to those who write JSON, and not Python.
    said = " ".join(re.findall(r'"description": "(.*?[^\\])"', json.dumps(document)))
    assert "as they were asked for" in said
    for word in ("Pillow", "PIL", "callback", "mapping", "numpy", "None", "True", "ArgumentError"):
        assert not re.search(rf"\b{word}\b", said), word
    assert "euler_a" in schemas["Txt2imgOptions"]["properties"]["sampler"]["anyOf"][0]["enum"]
    forms = server.http.get("/api/modes").json()
    assert forms["inpaint"]["options"]["properties"]["mask"]["x-panel"] == "Pictures in"
    for path in ("/v1/images/generations", "/sdapi/v1/txt2img", "/sdcpp/v1/img_gen"):
        assert "post" in document["paths"][path]


def test_the_server_tells_how_it_is(server: Server) -> None:
    assert server.http.get("/api/health").json() == {"status": "ok", "version": sdcpp_py.__version__}
    assert server.http.get("/api/ready").json()["ready"]
    assert server.http.get("/api/devices").json()[0]["name"] == sdcpp_py.devices()[0].name
    server.wait(server.submit()["id"])
    (worker,) = server.http.get("/api/workers").json()
    assert (worker["ready"], worker["restarts"]) == (True, 0)
    metrics = server.http.get("/api/metrics").text
    assert 'sdcpp_jobs_total{mode="txt2img",model="embedded",state="done"}' in metrics
    answer = server.http.get("/api/nothing")
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "Not Found")
    assert "default-src 'self'" in answer.headers["content-security-policy"]


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="reads what a process has loaded from Linux's /proc")
def test_the_front_never_loads_the_engine(server: Server) -> None:
    def loaded(pid: int) -> bool:
        with open(f"/proc/{pid}/maps") as maps:
            return any("_engine." in line for line in maps)

    (worker,) = server.worker_pids()
    assert loaded(worker)
    assert not loaded(server.process.pid)


def test_a_client_that_goes_away_cancels_where_it_asked_for_that(server: Server) -> None:
    body = {"mode": "txt2img", "options": {"prompt": "gone", **DRAWN, "steps": 5000}}
    for asked, state in (("1", "cancelled"), ("0", "running")):
        headers = {"x-sdcpp-cancel-on-disconnect": asked, "x-sdcpp-client": f"leaves {asked}"}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/api/jobs?wait=60", json=body, headers=headers, timeout=0.5)
        (job,) = server.http.get("/api/jobs", params={"client": f"leaves {asked}"}).json()["jobs"]
        assert server.wait(job["id"], state)["state"] == state
        server.http.post(f"/api/jobs/{job['id']}/cancel")


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process")
def test_an_upload_needs_no_room_on_a_disk(server: Server) -> None:
    """A folder of temporary files that is full is nothing that the client can do anything about."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8))
    buffer, text = io.BytesIO(), PngInfo()
    text.add_text("parameters", "a cat\nSteps: 7")
    noise.save(buffer, "PNG", pnginfo=text)
    assert len(buffer.getvalue()) > 1 << 20
    before = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        answer = server.http.post("/api/parameters", files={"picture": buffer.getvalue()})
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, before)
    assert answer.status_code == 200, answer.text
    assert answer.json()["options"]["steps"] == 7

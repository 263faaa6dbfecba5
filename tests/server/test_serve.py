"""The command: its start, its end, and what it does with its options."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from sdcpp_py import cli
from sdcpp_py.errors import ArgumentError, ModelError
from sdcpp_py.server.model_list import folder_upscalers, one_model, read_models, served_models
from sdcpp_py.server.serve import _listen, checked, state_folder
from sdcpp_py.server.workers import make_workers
from support.server import DRAWN, serving

TOKEN = "0123456789abcdef"


def test_the_front_and_the_workers_may_be_killed(tmp_path: Path) -> None:
    """Every job that was taken ends done: a worker is killed, and then the front, which ends its workers with it."""
    with serving(tmp_path / "store", "--workers", "2") as server:
        os.kill(server.worker_pids()[0], signal.SIGKILL)  # one that has nothing to do
        jobs = [server.submit(steps=15, seed=seed) for seed in range(3)]
        server.wait(jobs[0]["id"], "running", "done")
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        workers = server.worker_pids()
        os.kill(workers[-1], signal.SIGSTOP)  # one that hears nothing any more
        server.end(signal.SIGKILL)
    end = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}/exe") for pid in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in workers)
    with serving(tmp_path / "store") as server:
        for job in jobs:
            done = server.wait(job["id"])
            assert done["state"] == "done", done
            assert server.http.get(done["pictures"][0]).content.startswith(b"\x89PNG")


def test_sigterm_drains(tmp_path: Path) -> None:
    """Who waits for a picture under way gets it; who waits for another is told; nothing is lost."""
    answers: dict[str, httpx.Response] = {}
    seen: list[tuple[int, str, dict[str, Any]]] = []
    with serving(tmp_path / "store", token=TOKEN) as server:
        assert httpx.get(f"{server.url}/api/ready").status_code == 401
        server.wait(server.submit()["id"])

        def ask(name: str, steps: int) -> None:
            body: dict[str, Any] = {"mode": "txt2img", "options": {"prompt": name, **DRAWN, "steps": steps}}
            answers[name] = server.http.post("/api/jobs?wait=60", json=body)

        threads = []
        for name, steps in (("running", 120), ("waiting", 1)):
            threads.append(threading.Thread(target=ask, args=(name, steps)))
            threads[-1].start()
            state = {"running": "running", "waiting": "queued"}[name]
            while not server.http.get("/api/jobs", params={"state": state}).json()["jobs"]:
                time.sleep(0.01)
        (under_way,) = server.http.get("/api/jobs", params={"state": "running"}).json()["jobs"]
        threads.append(threading.Thread(target=lambda: seen.extend(server.events(under_way["id"]))))
        threads[-1].start()
        alone = server.submit(steps=1)
        host, port = server.url.removeprefix("http://").split(":")
        half = socket.create_connection((host, int(port)))  # of somebody who never sends the rest
        half.sendall(b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nAuthorization: Bearer "
                     + TOKEN.encode() + b"\r\n\r\n{")  # fmt: skip
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGTERM)  # as systemd does, which sends it to every process of a service
        server.process.send_signal(signal.SIGTERM)
        while (ready := server.http.get("/api/ready")).status_code == 200:
            time.sleep(0.01)
        assert ready.status_code == 503
        assert server.job(under_way["id"])["state"] == "running"  # whoever asks is answered until the end
        begun = time.monotonic()
        assert server.process.wait(30) == 0
        assert time.monotonic() - begun < 30  # though --drain-seconds is 60
        half.close()
        for thread in threads:
            thread.join()
    assert answers["running"].json()["state"] == "done"
    assert answers["running"].json()["attempts"] == 1
    assert answers["waiting"].status_code == 503
    assert seen[-1][1] == "done"  # who follows it is not cut off
    assert TOKEN not in (tmp_path / "store.log").read_text()
    with serving(tmp_path / "store", token=TOKEN) as server:
        (job,) = server.http.get("/api/jobs", params={"search": "waiting"}).json()["jobs"]
        assert server.wait(job["id"])["state"] == server.wait(alone["id"])["state"] == "done"
        last = server.submit(steps=20)
        server.wait(last["id"], "running", "done")
        assert server.end(signal.SIGTERM) == 0  # with a job under way that nobody waits for
    with serving(tmp_path / "store", token=TOKEN) as server:
        done = server.job(last["id"])
        assert (done["state"], done["attempts"]) == ("done", 1)


def test_too_many_jobs_are_refused_with_a_time(tmp_path: Path) -> None:
    with serving(tmp_path / "store", "--queue-size", "2", "--max-upload", "0.01", "--drain-seconds", "0") as server:
        server.wait(server.submit(steps=9000)["id"], "running")
        for _ in range(2):
            server.submit()
        for path, body in (
            ("/api/jobs", {"mode": "txt2img", "options": {"prompt": "x"}}),
            ("/v1/images/generations", {"prompt": "x"}),
            ("/sdapi/v1/txt2img", {"prompt": "x"}),
            ("/sdcpp/v1/img_gen", {"prompt": "x"}),
        ):
            answer = server.http.post(path, json=body)
            assert (answer.status_code, int(answer.headers["retry-after"]) >= 1) == (429, True)
        assert server.http.post("/v1/images/generations", json={"prompt": "x" * 20_000}).status_code == 413
        port = server.url.rpartition(":")[2]
        form = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 90\r\n\r\n--x\r\n"
        with socket.create_connection(("127.0.0.1", int(port))) as half:  # of somebody who goes away
            half.sendall(b"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\n" + form)
            time.sleep(0.1)
        command = [sys.executable, "-m", "sdcpp_py", "serve", "--port", port, "--store", str(tmp_path / "b")]
        other = subprocess.run(command, capture_output=True, text=True)
        assert (other.returncode, other.stdout) == (1, "")
        assert "cannot be listened on (Address already in use" in other.stderr
    assert "Traceback" not in (tmp_path / "store.log").read_text()
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # of clients that read nothing any more
        with _listen("127.0.0.1", 0) as listening:
            assert 0 < listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 60_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from other machines, which needs a token"),
        (["--port", "99999"], "--port must be from 0 to 65535"),
        (["--models", "none.toml"], "models file none.toml: cannot be read"),
        (["-m", "none.safetensors", "--models", "x"], "model and --models are given"),
        (["-m", "none.safetensors"], "none: model none.safetensors does not exist"),
        (["--upscaler-dir", "none"], "--upscaler-dir none is no folder"),
    ],
)
def test_wrong_options_are_said_in_a_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SDCPP_TOKEN", raising=False)
    assert cli.main(["serve", "--store", str(tmp_path), *arguments]) == 1
    assert said in capsys.readouterr().err


def test_models_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"

    def read(text: str) -> Any:
        file.write_text(text)
        return read_models(file)

    found = read(
        '[models.sd]\nmodel = "sd.safetensors"\nvae = "/v.safetensors"\nlora_model_dir = "loras"\n'
        "[models.sd.defaults]\nsteps = 9\n[models.shapes]\n[upscalers.x4]\nmodel = 'x4.pth'\n"
    )
    assert list(found) == ["sd", "shapes", "x4"]
    assert found["sd"].loading["model"] == str(tmp_path / "sd.safetensors")
    assert found["sd"].lora_folder == str(tmp_path / "loras")
    assert found["sd"].drawn_with == {"steps": 9}
    assert found["shapes"].drawn_with["width"] == 128
    assert found["x4"].kind == "upscaler"
    for text, said in (
        ("[models", "models.toml: "),
        ("[upscalers.x]\nmodel = 'x'", "names no model"),
        ("[modles.x]", "modles is neither models nor upscalers"),
        ("[models.x]\nstepz = 1", "x: stepz is no option of loading"),
        ("[models.x.defaults]\nstepz = 1", "defaults.stepz is no option of drawing"),
        ("[models.x.defaults]\nsteps = 0", "x: defaults.steps must be from 1"),
        ("[models.x]\ndefaults = 5", "x: defaults must be a table"),
        ("models = 5", "models must be tables, written as"),
        ("[models.'a/b']", "models.'a/b' is no name"),
        ("[models.'']", "models.'' is no name"),
        ("[models.x]\nthreads = 0", "x: threads must be from 1"),
    ):
        with pytest.raises(ArgumentError, match=said):
            read(text)
    assert list(one_model({})) == ["embedded"]
    assert list(one_model({"model": tmp_path / "a.gguf"})) == ["a"]
    (tmp_path / "x.pth").touch()
    assert list(folder_upscalers(tmp_path)) == ["x"]
    with pytest.raises(ModelError):
        folder_upscalers(tmp_path / "none")


def test_workers_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    models = served_models(checked({}), {})
    (one,) = make_workers(checked({}), models)
    assert (one.device, one.threads) == ("", None)
    three = make_workers(checked({"workers": 3, "worker_devices": "cuda0, cuda1", "model_memory": 2.0}), models)
    assert [worker.device for worker in three] == ["cuda0", "cuda1", "cuda0"]
    assert {worker.budget for worker in three} == {2.0 * 2**30}
    assert all(worker.threads for worker in three)
    assert [each.device for each in make_workers(checked({"workers": "cuda0, cuda1"}), models)] == ["cuda0", "cuda1"]
    assert len(make_workers(checked({"workers": "2"}), models)) == 2
    for wrong in ({"workers": "0"}, {"workers": " "}, {"workers": "cpu", "worker_devices": "cuda0"}):
        with pytest.raises(ArgumentError, match="workers"):
            make_workers(checked(wrong), models)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    if sys.platform == "linux":
        assert state_folder() == Path("/state/sdcpp-py/server")

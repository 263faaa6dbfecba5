"""Workers on a Ray cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sdcpp_py.errors import ArgumentError, BackendError
from sdcpp_py.server.ray_worker import connect, shares
from support.build_tree import ROOT


def test_a_cluster_is_shared() -> None:
    """A worker for each GPU; without any, all cores of the smallest node, or as many as make the number wanted."""
    cpus = [{"CPU": 8.0}, {"CPU": 4.0}, {"memory": 1e9}]
    assert shares([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}], None) == (2, {"num_gpus": 1, "num_cpus": 1})
    assert shares([{"CPU": 8.0, "GPU": 2.0}], 5)[0] == 5  # more nodes may come
    assert shares(cpus, None) == (3, {"num_cpus": 4})
    assert shares(cpus, 6) == (6, {"num_cpus": 2})
    assert shares(cpus, 99) == (99, {"num_cpus": 1})
    with pytest.raises(ArgumentError, match="neither GPUs nor CPUs"):
        shares([{"memory": 1e9}], None)


def test_a_cluster_that_is_not_there_is_said_soon() -> None:
    pytest.importorskip("ray")
    with pytest.raises(BackendError, match=r"no Ray cluster at 127.0.0.1:9 \(.*refused.*; ray start --head starts one"):
        connect("127.0.0.1:9")


@pytest.mark.slow
def test_a_node_may_be_killed() -> None:
    """In the middle of 300 pictures: all come, and none twice."""
    pytest.importorskip("ray")
    script = ROOT / "scripts" / "bench" / "cluster.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout[done.stdout.index("{\n") :])
    assert report["pictures in the index"] == report["files"] == 300
    assert 100 <= report["done when a node was killed"] < 300
    assert len(report["pictures of each worker"]) == 3


@pytest.mark.slow
def test_ray_serve_has_the_same_apis(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    code = f"""
import socket, httpx, json, ray
from ray import serve
from sdcpp_py.server.ray_app import build
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={{"port": port}})
serve.run(build({{"store": {str(tmp_path)!r}, "workers": "2", "max_pixels": "1"}}), name="sdcpp", route_prefix="/")
http = httpx.Client(base_url=f"http://127.0.0.1:{{port}}", timeout=60)
asked = {{"mode": "txt2img", "options": {{"prompt": "a red circle", "seed": 42, "steps": 2}}}}
job = http.post("/api/jobs?wait=60", json=asked).json()
found = {{
    "state": job["state"],
    "file": http.get(job["pictures"][0]).content[:4].hex(),
    "workers": len(http.get("/api/workers").json()),
    "openai": http.post("/v1/images/generations", json={{"prompt": "x", "size": "64x64", "steps": 1}}).status_code,
    "large": http.post("/v1/images/generations", json={{"prompt": "x", "size": "2048x2048"}}).status_code,
    "name": http.get("/api/ready", headers={{"host": "elsewhere"}}).status_code,
}}
print(json.dumps(found))
serve.shutdown()
ray.shutdown()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{"))) == {
        "state": "done", "file": "89504e47", "workers": 2, "openai": 200, "large": 400, "name": 421,
    }  # fmt: skip

"""A batch on a Ray cluster of this machine, of whose nodes one is killed in the middle.

``python scripts/bench/cluster.py [--nodes 3] [--pictures 300]`` starts a cluster with a CPU a node, draws pictures of
the embedded model on it with ``sdcpp batch --ray``, kills a node when a third is done, and says how many pictures came,
and how many lines were begun or drawn twice. Needs ``sdcpp-py[ray]``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any


def rows(index: Path) -> list[dict[str, Any]]:
    """Return the rows of an index that are whole."""
    lines = index.read_text().split("\n")[:-1] if index.exists() else []
    return [json.loads(line) for line in lines]


def batch(folder: Path, address: str, pictures: int, kill: Any) -> dict[str, Any]:
    """Draw, call *kill* when a third is done, and return what came of it."""
    out = folder / "out"
    asked = [{"prompt": "a red circle", "seed": seed} for seed in range(pictures)]
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, asked)))
    command = [sys.executable, "-m", "sdcpp_py", "batch", str(folder / "lines.jsonl"), "-o", str(out), "--ray", address,
               "-W", "64", "-H", "64", "--steps", "4"]  # fmt: skip
    begin = time.monotonic()
    killed = None
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            if killed is None and len(rows(out / "index.jsonl")) >= pictures // 3:
                killed = len(rows(out / "index.jsonl"))
                kill()
            time.sleep(0.1)
    found = rows(out / "index.jsonl")
    files = {row["file"] for row in found}
    drawn = {hashlib.sha256((out / row["file"]).read_bytes()).digest() for row in found}
    return {
        "exit status": process.returncode,
        "pictures asked for": pictures,
        "pictures in the index": len(found),
        "files": len(files & {file.name for file in out.iterdir()}),
        "lines drawn twice": len(found) - len({row["line"] for row in found}),
        "different pictures": len(drawn),
        "begun more than once": sum(row["attempts"] > 1 for row in found),
        "done when a node was killed": killed,
        "pictures of each worker": dict(Counter(row["worker"] for row in found)),
        "seconds": round(time.monotonic() - begin, 1),
    }


def main() -> int:
    """Measure, print, and return 0 where every picture came once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=300)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(arguments.nodes)]
        cluster.wait_for_nodes()
        with tempfile.TemporaryDirectory() as folder:
            kill = lambda: cluster.remove_node(nodes[0], allow_graceful=False)  # noqa: E731
            report = batch(Path(folder), cluster.address, arguments.pictures, kill)
    finally:
        cluster.shutdown()
    print(json.dumps(report, indent=2))
    whole = report["pictures in the index"] == report["files"] == report["different pictures"] == arguments.pictures
    return 0 if whole and not report["exit status"] and not report["lines drawn twice"] else 1


if __name__ == "__main__":
    sys.exit(main())

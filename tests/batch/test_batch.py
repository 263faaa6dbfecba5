"""Batches of many lines: what is asked for, what is kept, and what an end in the middle leaves."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdcpp_py import cli
from sdcpp_py.batch import run as running
from sdcpp_py.batch.lines import Item, Lines, LinesError
from sdcpp_py.batch.run import BatchError, run
from sdcpp_py.errors import ArgumentError, SdcppError
from sdcpp_py.server.model_list import ServedModel
from support.fake_worker import FakeWorker

MODELS = {"a": ServedModel("a"), "x4": ServedModel("x4", "upscaler")}


def read(folder: Path, *lines: Any, suffix: str = ".jsonl", **more: Any) -> list[Item]:
    file = folder / f"lines{suffix}"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return Lines(MODELS, folder, **more).read(file)


def test_lines_are_pictures(tmp_path: Path) -> None:
    """Each picture of a line is drawn by itself, as the batch draws it; what is asked for twice is two."""
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    items = read(
        tmp_path,
        {"prompt": "x", "seed": 5, "batch_count": 3, "name": "cat"},
        "",
        '"x"',
        {"prompt": "x", "seed": 6, "steps": 9},
        {"mode": "img2img", "prompt": "y", "image": "photo.png", "output": {"format": "webp"}},
        {"mode": "upscale", "image": "photo.png"},
        defaults={"steps": 9},
        output={"format": "jpeg"},
    )
    assert [(each.line, each.name, each.options.get("seed")) for each in items[:5]] == [
        (1, "cat", 5), (1, "cat-2", 6), (1, "cat-3", 7), (3, "000003", None), (4, "000004", 6),
    ]  # fmt: skip
    assert [each.output["format"] for each in items] == ["jpeg"] * 5 + ["webp", "jpeg"]
    assert items[6].model == "x4"
    assert "steps" not in items[6].options
    assert len({each.key for each in items}) == len(items)  # the fifth is the second once more
    fewer = read(tmp_path, '"x"', {"prompt": "x", "seed": 6, "steps": 9}, output={"format": "jpeg"})
    assert fewer[1].key == items[1].key
    assert fewer[0].key != items[3].key  # without the steps
    assert [each.options for each in read(tmp_path, "{a} b", "", "c", suffix=".txt")] == [
        {"prompt": "{a} b"},
        {"prompt": "c"},
    ]
    with pytest.raises(ArgumentError, match="holds no line"):
        read(tmp_path, " ", "")


def test_bad_lines_are_found_before_anything_is_drawn(tmp_path: Path) -> None:
    bad: list[tuple[Any, str]] = [
        ({"prompt": "x", "stepz": 3}, "'stepz' is no option here; did you mean steps"),
        ({"prompt": "x", "sampler": "eulerr"}, "sampler 'eulerr' is unknown"),
        ("a cat", "is no JSON: Expecting value at character 1"),
        ("[1]", "must be an object of options or a prompt"),
        ({"mode": "img2img", "prompt": "x", "image": "none.png"}, "image none.png cannot be read"),
        ({"mode": "paint"}, "mode 'paint' is unknown; valid: txt2img"),
        ({"prompt": "x", "model": "b"}, "model 'b' is not served; there are a, x4"),
        ({"prompt": "x", "model": ["a"]}, "model must be a name"),
        ({"steps": 3}, "txt2img needs prompt"),
        ({"prompt": "x", "sigmas": [3, 0], "steps": 7}, "steps has no effect with sigmas"),
        ({"prompt": "x", "seed": 2**63 - 2, "batch_count": 9}, "seed must be from"),
        ({"prompt": "x", "loras": ["y"]}, "no folder of LoRAs"),
        ({"prompt": "x", "output": {"format": "gif"}}, "output.format 'gif' is unknown"),
        ({"prompt": "x", "name": "../x"}, "name '../x' cannot be that of a file"),
        ({"prompt": "y", "name": "Twice"}, "name 'Twice' is that of a picture of line 1, too"),
    ]
    with pytest.raises(LinesError, match=f"{len(bad)} of {len(bad) + 1} lines are wrong; nothing was drawn") as caught:
        read(tmp_path, {"prompt": "x", "name": "twice"}, *(line for line, _ in bad))
    for number, ((_, said), problem) in enumerate(zip(bad, caught.value.problems, strict=True), 2):
        assert problem.startswith(f"{tmp_path}/lines.jsonl:{number}: ")
        assert said in problem


Drawing = Callable[..., tuple[list[str], list[dict[str, Any]]]]


@pytest.fixture
def drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drawing:
    """Runs a batch of prompts with workers that are told what to do; returns what they drew, and the index."""

    def draw(prompts: list[Any], *workers: FakeWorker, **options: Any) -> tuple[list[str], list[dict[str, Any]]]:
        file = tmp_path / "prompts.jsonl"
        file.write_text("\n".join(json.dumps(each) for each in prompts))
        made = list(workers)
        monkeypatch.setattr(running, "make_workers", lambda values, models: made)
        try:
            run(file, {"output": tmp_path / "out", **options}, {}, {}, lambda item, job, count: None)
        finally:
            index = (tmp_path / "out" / "index.jsonl").read_text().splitlines()
            draw.rows = [json.loads(line) for line in index]  # type: ignore[attr-defined]
        return sorted(each for worker in made for each in worker.drawn), draw.rows  # type: ignore[attr-defined]

    return draw


def test_what_is_done_is_not_drawn_again(drawing: Drawing, tmp_path: Path) -> None:
    out = tmp_path / "out"
    drawn, rows = drawing(["a", "b", "a"], FakeWorker(), FakeWorker(deaths=1))
    assert drawn == ["a", "a", "b"]
    assert [(row["line"], row["state"], row["file"]) for row in rows] == [
        (1, "done", "000001.png"), (2, "done", "000002.png"), (3, "done", "000003.png"),
    ]  # fmt: skip
    assert drawing(["a", "b", "a"], FakeWorker())[0] == []
    # Lines that are inserted, changed or gone; a picture that is cut off or gone.
    (out / "000002.png").write_bytes(b"pic")
    drawn, rows = drawing(["new", "a", "b", "a"], FakeWorker())
    assert drawn == ["b", "new"]
    files = {row["prompt"]: row["file"] for row in rows}
    assert files["new"].startswith("000001-")  # what the first line was is still asked for
    assert files["b"] == "000003-" + next(row["key"] for row in rows if row["prompt"] == "b")[:8] + ".png"
    drawn, rows = drawing(["other"], FakeWorker(), index=tmp_path / "results.parquet")
    assert [row["prompt"] for row in rows if row["file"] == "000001.png"] == ["other"]
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(tmp_path / "results.parquet").to_pylist()
    assert [row["key"] for row in table] == [row["key"] for row in rows]
    # A row that was cut off counts for nothing; what is no index is left alone.
    with (out / "index.jsonl").open("a") as index:
        index.write('{"key": "cut')
    assert drawing(["other"], FakeWorker())[0] == []
    (out / "index.jsonl").write_text("letter\nto you\n")
    with pytest.raises(ArgumentError, match="index.jsonl:1 is no row of a batch"):
        run(tmp_path / "prompts.jsonl", {"output": out}, {}, {}, lambda *_: None)
    assert (out / "index.jsonl").read_text() == "letter\nto you\n"


def test_what_fails_is_said_and_tried_again(drawing: Drawing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BatchError, match=r"1 of 3 pictures could not be drawn; .*index.jsonl says why"):
        drawing(["a", "fail", "b"], FakeWorker())
    rows = {row["prompt"]: row for row in drawing.rows}  # type: ignore[attr-defined]
    assert rows["fail"]["error"] == {"type": "DeviceMemoryError", "message": "too large"}
    assert (rows["fail"]["state"], rows["fail"]["file"], rows["b"]["state"]) == ("failed", None, "done")
    many = FakeWorker()
    with pytest.raises(BatchError, match="20 pictures failed alike, the rest was left: DeviceMemoryError: too large"):
        drawing(["fail"] * 50, many)
    assert len(drawing.rows) < 30  # type: ignore[attr-defined]

    def full(part: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    begun = FakeWorker()
    with pytest.raises(Exception, match=r"00000[12].png cannot be written \(No space left on device\)"):
        drawing([f"n{index}" for index in range(50)], begun)
    assert len(begun.drawn) < 5
    monkeypatch.undo()


def test_what_cannot_be_begun_with_has_its_row(drawing: Drawing, tmp_path: Path) -> None:
    """As of a picture that went away since the lines were read. That the index cannot be written is said in a line."""
    photo = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(photo)

    class Removing(FakeWorker):
        async def run(self, *given: Any) -> Any:
            photo.unlink(missing_ok=True)
            return await super().run(*given)

    lines: list[Any] = [{"prompt": name} for name in "abcd"]
    with pytest.raises(BatchError, match="1 of 5 pictures could not be drawn"):
        drawing([*lines, {"mode": "img2img", "prompt": "e", "image": "photo.png"}], Removing())
    row = drawing.rows[-1]  # type: ignore[attr-defined]
    assert (row["line"], row["state"], row["error"]["type"]) == (5, "failed", "ArgumentError")
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "out" / "index.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 700, hard))  # of the rows of five more one fits, and a half
    try:
        with pytest.raises(SdcppError, match=r"index.jsonl cannot be written \(File too large\)"):
            drawing([f"n{index}" for index in range(5)], FakeWorker())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert drawing([f"n{index}" for index in range(5)], FakeWorker())[0] != []


def rows_of(index: Path) -> list[dict[str, Any]]:
    """Return the whole rows of an index."""
    lines = index.read_text().split("\n")[:-1] if index.exists() else []
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_a_batch_may_be_ended_anyhow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL of a worker, of the command, and Ctrl-C: each costs at most a picture a worker, and none is cut off."""
    asked = [{"prompt": f"a red circle {number}", "seed": number} for number in range(60)]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, asked)))
    out = tmp_path / "out"
    arguments = [
        str(tmp_path / "lines.jsonl"),
        "-o",
        str(out),
        "--workers",
        "2",
        "-W",
        "64",
        "-H",
        "64",
        "--steps",
        "8",
    ]
    command = [sys.executable, "-m", "sdcpp_py", "batch", *arguments]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}

    def started() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def until(count: int) -> None:
        end = time.monotonic() + 60
        while len(rows_of(out / "index.jsonl")) < count:
            assert time.monotonic() < end
            time.sleep(0.01)

    def whole() -> list[str]:
        for row in rows_of(out / "index.jsonl"):
            with Image.open(out / row["file"]) as image:
                image.load()
        return [row["key"] for row in rows_of(out / "index.jsonl")]

    process = started()
    until(5)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    until(15)
    process.kill()
    process.communicate()
    kept = whole()
    process = started()
    until(len(kept) + 5)
    process.send_signal(signal.SIGINT)
    said = process.communicate()
    assert (process.returncode, said[1]) == (130, "sdcpp: interrupted\n")
    assert said[0].startswith(f"{len(kept)} of 60 are there already\n")
    kept = whole()
    pictures = {file.name for file in out.iterdir() if file.suffix == ".png"}
    assert len(pictures) <= len(kept) + 2
    assert not list(out.glob(".*.part"))
    assert cli.main(["batch", *arguments]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert (len(printed), printed[-1]) == (60 - len(kept) + 2, "60 of 60 drawn")
    assert len(set(whole())) == 60
    assert [row["seed"] for row in rows_of(out / "index.jsonl")] == list(range(60))

import dataclasses
import importlib.util
import json
import lzma
import re

import pytest

import gpu
from on_gpu import files, jobs, meaning, run, showing
from on_gpu.jobs import GIB, Job, Shot
from on_gpu.worker import Worker, kernels
from support import checkpoints

SMALL = {"a.weight": (40, 30), "a.bias": (40,), "n.weight": (7,), "scalar": (), "k.weight": (3, 2, 3, 3)}
RATE = {True: 50e9, False: 10e9}
SHOT = "512x512"


def copies():
    return [
        {"pinned": pinned, "size": size, "bytes_per_s": [rate * part for part in (0.9, 1.0, 1.1)]}
        for pinned, rate in RATE.items()
        for size, part in ((GIB, 1.0), (1 << 16, 0.1))
    ]


def row(mode, sampling, budget=8.0, shot=SHOT, streamed=None, **more):
    made = {"family": "zimage", "mode": mode, "budget": budget, "mmap": False, "shot": shot, "steps": 8, "passes": 8}
    made |= {"load_seconds": 9.0, "pixels": ["aa"], "contrast": 9.0, "device_peak_bytes": 7 * GIB}
    made["runs"] = [{"sampling": sampling * part, "total": 1.0 + sampling * part} for part in (0.98, 1.0, 1.03)]
    if streamed is not None:
        stream = {"module": "diffusion", "mode": "overlapped", "reason": "", "streamed_bytes": streamed}
        made["streams"] = [{**stream, "pass_seconds": sampling / 8, "peak_bytes": int(7.9 * GIB)}]
    return {**made, **more}


def report(*rows, dry=False):
    machine = {"dry": dry, "platform": "Linux", "processors": 16}
    return {"gpu": None, "machine": machine, "embedded": None, "copies": copies(), "rows": list(rows), "left_out": []}


def good_rows():
    # 4 GB streamed at 50 GB/s take 0.08 s a pass; computing takes 0.06 s.
    return [
        row("pinned-overlapped", 8 * 0.082, streamed=4e9),
        row("pinned-in-turn", 8 * 0.15, streamed=4e9),
        row("pageable-in-turn", 8 * 0.5, streamed=4e9),
        row("resident", 8 * 0.06, budget=None),
        row("diffusers-leaf", 8 * 0.4, budget=None),
    ]


def found(what, *rows, **more):
    return [each for each in meaning.verdicts(report(*rows, **more)) if re.search(what, each.what)]


def test_several_processes_write_the_same_file(tmp_path):
    checkpoints.write_safetensors(tmp_path / "a", SMALL, dtype="bf16", seed=0, metadata={"format": "pt"})
    files.write_weights(tmp_path / "b", SMALL, "bf16", 2)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("family", "layers"), [("sd1", 128), ("sdxl", 560), ("zimage", 68)])
def test_lora_is_for_the_attention_of_the_denoiser(family, layers):
    shapes = files.lora_shapes(family)
    base = checkpoints.checkpoint_shapes(family)
    downs = {name: shape for name, shape in shapes.items() if name.endswith(".lora_A.weight")}
    assert len(downs) == layers
    assert len(shapes) == 2 * layers
    for name, (rank, inputs) in downs.items():
        outputs, same_rank = shapes[name.replace("lora_A", "lora_B")]
        assert base[f"model.{name.removesuffix('.lora_A.weight')}.weight"] == (outputs, inputs)
        assert rank == same_rank == 16


def test_every_job_is_named_once_and_known():
    for listed in (jobs.all_jobs(), jobs.kernel_jobs()):
        names = [job.name for job in listed]
        assert len(set(names)) == len(names)
    every = jobs.all_jobs() + jobs.kernel_jobs()
    peers = {"peer", *(f"diffusers-{way}" for way in ("leaf", "block", "resident", "graph", "decode"))}
    assert {job.mode for job in every} == {*jobs.MODES, *peers, "profile", "profile-engine"}
    assert {job.family for job in every} <= set(jobs.DTYPES)
    assert Job("zimage", "pinned-in-turn", None, ()).name == "zimage/pinned-in-turn/all"
    assert Job("sdxl", "pinned-in-turn", 4, (), mmap=True).name == "sdxl/pinned-in-turn/4/mmap"


def test_every_streamed_picture_has_what_it_is_compared_with():
    every = jobs.all_jobs()
    resident = {(job.family, shot) for job in every if job.mode == "resident" for shot in job.shots}
    for job in every:
        if job.mode == "pinned-overlapped":
            names = {(family, shot.name) for family, shot in resident}
            assert {(job.family, shot.name) for shot in job.shots} <= names


def test_tiny_job_draws_the_same_pictures_smaller():
    job = jobs.tiny(Job("zimage", "pinned-overlapped", 8, (Shot(512), Shot(1024, tiled=True, lora=True))))
    assert [(shot.size, shot.steps, shot.repeats, shot.tiled, shot.lora) for shot in job.shots] == [
        (64, 2, 1, False, False),
        (128, 2, 1, True, True),
    ]
    assert job.budget == 8 / jobs.DRY_SHARE
    assert jobs.tiny(dataclasses.replace(job, budget=None)).budget is None


def test_guidance_computes_twice_a_step():
    assert Shot(1024, steps=8, cfg_scale=7.0).passes == 16
    assert Shot(1024, steps=8, cfg_scale=7.0).name == "1024x1024 cfg 7"
    assert Shot(512, lora=True).name == "512x512 LoRA"
    assert (Shot(512, pictures=4).name, Shot(512, pictures=4).passes) == ("512x512 batch of 4", 32)


def test_bandwidth_is_that_of_the_largest_copies():
    assert meaning.bandwidth(copies(), True) == pytest.approx(50e9)
    assert meaning.bandwidth(copies(), False) == pytest.approx(10e9)
    assert meaning.bandwidth([], True) is None


def test_bound_is_the_longer_one_when_overlapped_and_the_sum_in_turn():
    rows = good_rows()
    overlapped, pinned, pageable, resident, diffusers = (meaning.bound(each, report(*rows)) for each in rows)
    assert overlapped == pytest.approx(max(0.06, 4e9 / 50e9))
    assert pinned == pytest.approx(0.06 + 4e9 / 50e9)
    assert pageable == pytest.approx(0.06 + 4e9 / 10e9)
    assert resident is None
    assert diffusers is None
    once = row("pinned-in-turn", 1.0, budget=None)
    assert meaning.bound(once, report(*rows)) == pytest.approx(0.06)
    assert meaning.bound(rows[0], report(rows[0])) is None


def test_a_pass_is_timed_by_the_steps_after_the_first():
    worker = Worker.__new__(Worker)
    tiles = [(0, 9, 8.0), (1, 3, 8.5), (2, 3, 8.6)]  # three rows of tiles, after three steps
    worker.ticks = [(0, 3, 1.0), (1, 3, 3.0), (2, 3, 3.5), (3, 3, 4.1), *tiles]
    assert worker.step(Shot(512, steps=3)) == {"step": pytest.approx(0.55)}
    worker.ticks = [(1, 3, 3.0), (2, 3, 3.5)]
    assert worker.step(Shot(512, steps=3)) == {"step": pytest.approx(0.5)}
    worker.ticks = [(1, 1, 3.0)]
    assert worker.step(Shot(512, steps=1)) == {}
    timed = row("peer", 9.0)
    timed["runs"] = [{"total": 5.0, "step": 0.4}]
    assert meaning.pass_seconds(timed) == pytest.approx(0.4)
    assert meaning.pass_seconds({**timed, "passes": 16}) == pytest.approx(0.2)


def test_kernels_are_summed_by_name():
    events = [
        {"cat": "kernel", "name": "void gemm<float, 1>(int*)", "dur": 2000},
        {"cat": "kernel", "name": "gemm", "dur": 1000},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD (Pinned -> Device)", "dur": 500},
        {"cat": "cpu_op", "name": "gemm", "dur": 9e9},
        {"ph": "M"},
    ]
    assert kernels(events) == [
        {"name": "gemm", "seconds": pytest.approx(0.003), "count": 2},
        {"name": "Memcpy HtoD ", "seconds": pytest.approx(0.0005), "count": 1},
    ]
    made = row("profile", 1.0, kernels=kernels(events), total=0.9)
    del made["runs"]
    (title, _, cells), *_ = [each for each in showing.tables(report(made)) if each[0].startswith("Kernels")]
    assert "0.00 of 0.90 s" in title
    assert cells[0] == ("gemm", "0.003", "86%", "2")


def test_every_kind_of_answer_is_kept_and_said(capsys):
    bench = run.Bench.__new__(run.Bench)
    bench.found = {"rows": [], "copies": []}
    kernels = row("profile", 1.0, kernels=[{"name": "gemm", "seconds": 1.0, "count": 1}], total=1.0)
    del kernels["runs"], kernels["load_seconds"]
    load = {"family": "sdxl", "mode": "pinned-in-turn", "budget": 4, "mmap": True, "shot": "load", "load_seconds": 4.3}
    answers = [row("resident", 0.5), kernels, load, {**load, "error": "no room"}]
    for answer in answers:
        bench.keep(answer)
    bench.keep({"copies": [1]})
    assert bench.found == {"rows": answers, "copies": [1]}
    said = capsys.readouterr().err
    for part in ("512x512: total 1.500 sampling 0.500", "512x512: 1 kernels", "load: 4.30", "load: no room"):
        assert part in said


def test_passes_side_by_side_take_what_one_does_or_what_they_compute():
    rows = good_rows()
    guided = {"shot": f"{SHOT} cfg 7", "passes": 16}
    resident = row("resident", 16 * 0.06, budget=None, **guided)
    for seconds, good in ((1.0, True), (1.3, False)):
        (each,) = found("^lanes", *rows, resident, row("pinned-overlapped", seconds, streamed=4e9, **guided))
        assert each.good is good, each.got
    assert not found("^lanes", *rows)


def test_good_rows_pass():
    given = meaning.verdicts(report(*good_rows()))
    assert [each for each in given if not each.good] == []
    assert len(found("pinned over pageable", *good_rows())) == 2
    assert found("overlapped over in turn", *good_rows())[0].asked == ">= 1.40"
    assert found("over diffusers-leaf", *good_rows())[0].got == "0.20"


@pytest.mark.parametrize(
    ("index", "changed", "what"),
    [
        (0, row("pinned-overlapped", 8 * 0.1, streamed=4e9), "pass over bound"),
        (0, row("pinned-overlapped", 0.6, streamed=4e9, device_peak_bytes=8 * GIB + 1), "counted by the device"),
        (0, row("pinned-overlapped", 0.6, streamed=4e9, pixels=["bb"]), "pixels identical"),
        (0, row("pinned-overlapped", 0.6, streamed=4e9, contrast=0.0), "more than one colour"),
        (0, row("pinned-overlapped", 8 * 0.14, streamed=4e9), "overlapped over in turn"),
        (0, row("pinned-overlapped", 0.6), "streamed"),
        (1, row("pinned-in-turn", 8 * 0.4), "pinned over pageable, sampling"),
        (1, {**row("pinned-in-turn", 1.0, error="GenerationError: no"), "runs": []}, "rows without an error"),
        (4, row("diffusers-leaf", 8 * 0.08, budget=None), "over diffusers-leaf"),
    ],
)
def test_a_row_that_falls_short_is_named(index, changed, what):
    rows = good_rows()
    rows[index] = changed
    assert [each for each in found(what, *rows) if not each.good]


def test_dry_run_judges_no_times():
    rows = good_rows()
    rows[0] = row("pinned-overlapped", 8 * 0.5, streamed=4e9)
    given = meaning.verdicts(report(*rows, dry=True))
    assert all(each.good and not each.timed for each in given)
    assert found("pixels identical", *rows, dry=True)


def test_where_all_stays_or_the_host_copies_nothing_is_asked():
    rows = good_rows()
    rows[1] = row("pinned-in-turn", 8 * 0.5, streamed=0)
    assert not found("pinned over pageable", *rows)
    rows = [row("pageable-overlapped", 8 * 0.45, streamed=4e9), *good_rows()[2:]]
    assert not found("overlapped over in turn", *rows)
    assert found("pixels identical", *rows)


def test_several_runs_are_shown_as_one(capsys, tmp_path):
    first, second = report(*good_rows()[:3]), report(*good_rows()[3:])
    first["left_out"] = ["zimage/resident/all", "sdxl/peer/4"]
    for name, given in (("a", first), ("b", second)):
        (tmp_path / name).write_text(json.dumps(given))
    assert meaning.merged([first, second])["left_out"] == ["sdxl/peer/4"]
    again = {**first["rows"][0], "load_seconds": 1.0}
    assert meaning.merged([first, second, report(again)])["rows"][0] == again
    assert gpu.main(["--show", str(tmp_path / "a"), str(tmp_path / "b"), "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert "| pinned-overlapped | 8 GiB | 1.656 (1.64..1.68) |" in printed
    assert "SHORT" not in printed
    assert "left out: sdxl/peer/4" in printed


def test_plot_has_a_bar_for_each_row(tmp_path):
    pytest.importorskip("matplotlib")
    showing.plot(report(*good_rows()), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_packed_module_is_placed_beside_the_package(tmp_path, monkeypatch):
    (tmp_path / "sdcpp_py").mkdir()
    spec = importlib.util.spec_from_file_location("sdcpp_py", tmp_path / "sdcpp_py" / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    (tmp_path / "m.so.xz").write_bytes(lzma.compress(b"module"))
    run.place_module(tmp_path / "m.so.xz")
    assert (tmp_path / "sdcpp_py" / "libggml-cuda.so").read_bytes() == b"module"


def test_kernels_are_compared_with_pytorchs_and_ggmls():
    rows = [
        row("resident", 8 * 0.06, budget=None),
        row("resident-engine", 8 * 0.12, budget=None, pixels=["bb"]),
        row("diffusers-graph", 8 * 0.05, budget=None),
    ]
    rows[0]["runs"] = [{**run, "decoding": 0.1} for run in rows[0]["runs"]]
    rows.append({**row("diffusers-decode", 1.0, budget=None), "runs": [{"decoding": 0.2}]})
    # Pixels are the same within a policy; each of PyTorch's ways is compared with what it does.
    assert not found("pixels", *rows)
    assert [each.good for each in found("over diffusers", *rows)] == [False, True]

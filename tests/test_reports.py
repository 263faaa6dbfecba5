from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcpp_py.reports import (
    GIB,
    MIB,
    MemoryReport,
    NetworkStream,
    TransferReport,
    show_bytes,
    show_max_vram,
    show_segments,
    table,
)

MEMORY = [
    {
        "module": "diffusion",
        "runtime_device": "CUDA0",
        "params_device": "CPU",
        "wanted_buffer_type": "CUDA_Host",
        "buffer_type": "CUDA_Host",
        "pinned": True,
        "bytes": 3 * GIB // 2,
        "pinned_bytes": 3 * GIB // 2,
        "disk_bytes": 0,
        "tensors": 686,
        "reason": "",
    },
    {
        "module": "vae",
        "runtime_device": "CUDA0",
        "params_device": "CPU",
        "wanted_buffer_type": "CUDA_Host",
        "buffer_type": "CPU+CUDA_Host",
        "pinned": False,
        "bytes": 100 << 20,
        "pinned_bytes": 40 << 20,
        "disk_bytes": 2 * GIB,
        "tensors": 248,
        "reason": "the driver refused",
    },
]
TRANSFER = [
    {
        "module": "diffusion",
        "to_device_bytes_pinned": 10**10,
        "to_device_bytes_pageable": 0,
        "from_device_bytes": 2 * 10**9,
        "seconds": 0.5,
        "copies": 700,
        "from_disk_bytes": 0,
        "disk_seconds": 0.0,
    },
    {
        "module": "vae",
        "to_device_bytes_pinned": 0,
        "to_device_bytes_pageable": 0,
        "from_device_bytes": 0,
        "seconds": 0.0,
        "copies": 0,
        "from_disk_bytes": 0,
        "disk_seconds": 0.0,
    },
]


def test_memory_report() -> None:
    report = MemoryReport.from_rows(MEMORY)
    assert report.modules[0].pinned
    assert report.bytes == 3 * GIB // 2 + (100 << 20)
    assert report.pinned_bytes == 3 * GIB // 2 + (40 << 20)
    assert str(report) == (
        "module     runs on  weights on  buffer type    pinned       size  tensors  reason\n"
        "diffusion  CUDA0    CPU         CUDA_Host      yes      1.50 GiB      686\n"
        "vae        CUDA0    CPU         CPU+CUDA_Host  no      100.0 MiB      248  the driver refused\n"
        "weights 1.60 GiB, of which pinned 1.54 GiB; on disk 2.00 GiB more"
    )
    assert json.loads(json.dumps(report.to_dict())) == {
        "modules": MEMORY,
        "bytes": report.bytes,
        "pinned_bytes": report.pinned_bytes,
        "disk_bytes": 2 * GIB,
    }


def test_transfer_report() -> None:
    report = TransferReport.from_rows(TRANSFER)
    assert report.modules[0].bytes == 12 * 10**9
    assert report.modules[0].gb_per_s == 24.0
    assert report.modules[1].gb_per_s is None
    lines = str(report).splitlines()
    assert lines[0].split("  ")[0] == "module"
    assert [line.split()[0] for line in lines] == ["module", "diffusion", "vae", "total"]
    assert lines[1].endswith("700    0.500  24.00")
    assert lines[2].endswith("0    0.000      -")
    content = json.loads(json.dumps(report.to_dict()))
    assert content["modules"][0] == {**TRANSFER[0], "bytes": 12 * 10**9, "gb_per_s": 24.0}
    assert content["total"]["gb_per_s"] == 24.0
    assert content["streams"] == []
    read = {"from_disk_bytes": 4 * GIB, "disk_seconds": 2.0}
    assert str(TransferReport.from_rows([{**TRANSFER[0], **read}])).endswith(
        "read from disk: 4.00 GiB, 2.15 GB/s a thread"
    )


# --- streams ----------------------------------------------------------------------------------------------------------

STREAM: dict[str, Any] = {
    "module": "diffusion",
    "runner": "z_image",
    "device": "CUDA0",
    "mode": "overlapped",
    "reason": "",
    "budget_bytes": 8 * GIB,
    "peak_bytes": 8 * GIB - MIB,
    "compute_bytes": GIB,
    "weight_bytes": 12 * GIB,
    "resident_bytes": 6 * GIB,
    "streamed_bytes": 6 * GIB,
    "slot_bytes": GIB,
    "slots": 24,
    "borrowed_slots": 0,
    "passes": 8,
    "graphs": 8,
    "lanes": 1,
    "lanes_reason": "",
    "copied_bytes": 48 * GIB,
    "saved_bytes": 0,
    "pass_seconds": 0.5,
    "copy_seconds": 0.3,
    "stall_seconds": 0.015,
    "resident": ", ".join(f"layers.{number}" for number in range(15)),
    "streamed": ", ".join(f"layers.{number}" for number in range(15, 30)),
}
RESIDENT = {
    **STREAM, "mode": "resident", "peak_bytes": 5 * GIB, "resident_bytes": 4 * GIB, "streamed_bytes": 0,
    "slot_bytes": 0, "slots": 0, "copy_seconds": 0.0, "stall_seconds": -1.0, "streamed": "",
}  # fmt: skip


def stream(*, pinned: bool = True, on_disk: bool = False, **values: object) -> NetworkStream:
    return NetworkStream.from_row({**STREAM, **values}, pinned, on_disk)


def test_stream_of_a_row() -> None:
    made = stream()
    assert stream(lanes=4).advice.startswith("compute-bound: copying takes 0.300 s for 4 passes, ")
    assert made.resident == tuple(f"layers.{number}" for number in range(15))
    assert len(made.streamed) == 15
    assert made.hidden == pytest.approx(0.95)
    assert made.compute_seconds == pytest.approx(0.485)
    content = json.loads(json.dumps(made.to_dict()))
    assert content["streamed"][-1] == "layers.29"
    assert (content["hidden"], content["advice"]) == (made.hidden, made.advice)
    assert content.keys() == {*STREAM, "pinned", "on_disk", "hidden", "advice"}


def test_what_was_not_measured_is_none() -> None:
    made = stream(pass_seconds=0.0, copy_seconds=-1.0, stall_seconds=-1.0)
    assert (made.pass_seconds, made.copy_seconds, made.stall_seconds) == (None, None, None)
    assert (made.hidden, made.compute_seconds) == (None, None)
    assert stream(copy_seconds=-1.0).hidden is None
    assert stream(stall_seconds=-1.0).hidden is None
    kept = NetworkStream.from_row(RESIDENT, True)
    assert (kept.hidden, kept.copy_seconds, kept.streamed) == (None, None, ())
    assert kept.compute_seconds == 0.5


def test_waiting_is_not_known_for_pageable_weights() -> None:
    made = stream(pinned=False)
    assert (made.stall_seconds, made.hidden) == (None, None)
    in_turn = stream(pinned=False, mode="in turn", copy_seconds=0.3, stall_seconds=0.3)
    assert in_turn.hidden == 0.0, "there the copies are timed themselves"


seconds = st.floats(-1.0, 100.0)


@given(seconds, seconds, seconds, st.booleans(), st.integers(0, 9), st.integers(0, 3))
def test_hidden_is_a_fraction_and_advice_is_a_line(
    took: float, copying: float, waiting: float, pinned: bool, passes: int, kind: int
) -> None:
    made = stream(
        pinned=pinned, pass_seconds=took, copy_seconds=copying, stall_seconds=waiting, passes=passes,
        mode=("overlapped", "in turn", "overlapped", "resident")[kind],
        **({"streamed_bytes": 0, "slots": 0, "slot_bytes": 0} if kind == 3 else {}),
    )  # fmt: skip
    assert made.hidden is None or 0.0 <= made.hidden <= 1.0
    assert made.advice
    assert "\n" not in made.advice


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        ({},
         "compute-bound: copying takes 0.300 s a pass, computing 0.485 s, and copies hide behind it; a larger budget "
         "gains little"),
        # As long as computing and hidden: nothing to gain.
        ({"pass_seconds": 0.5, "copy_seconds": 0.5, "stall_seconds": 0.02},
         "compute-bound: copying takes 0.500 s a pass, computing 0.480 s, and copies hide behind it; a larger budget "
         "gains little"),
        # Half of the copying hides, so half of the 6 GiB would have to become resident.
        ({"pass_seconds": 1.0, "copy_seconds": 1.0, "stall_seconds": 0.5, "peak_bytes": 8 * GIB},
         "transfer-bound: copying takes 1.000 s a pass, computing 0.500 s; a budget of about 11.00 GiB would "
         "hide the copies, a smaller weight_type means fewer"),
        # Never more than what holds everything: the slots are not needed then.
        ({"pass_seconds": 9.0, "copy_seconds": 9.0, "stall_seconds": 8.9999, "peak_bytes": 8 * GIB},
         "transfer-bound: copying takes 9.000 s a pass, computing 0.000 s; a budget of about 13.00 GiB would "
         "hide the copies, a smaller weight_type means fewer"),
        ({"pass_seconds": 1.0, "copy_seconds": 1.0, "stall_seconds": 0.5, "reason": "CUDA0 refused 9 GiB"},
         "transfer-bound: copying takes 1.000 s a pass, computing 0.500 s; free memory of CUDA0, or use a smaller "
         "weight_type"),
        ({"pass_seconds": 0.5, "copy_seconds": 0.3, "stall_seconds": 0.1},
         "uneven: copying takes 0.300 s a pass, computing 0.400 s, and 0.100 s more pass waiting for copies that come "
         "late; a larger budget has more room for slots"),
        ({"passes": 1, "pass_seconds": 0.0, "stall_seconds": -1.0}, "not measured: it was computed too few times"),
        ({"passes": 0}, "idle: the last generation did not compute it"),
        ({"mode": "in turn", "slot_bytes": GIB // 4, "peak_bytes": 8 * GIB, "reason": "CUDA0 has no events"},
         "in turn: a larger budget means fewer copies, and 13.75 GiB none"),
        (RESIDENT, "resident: everything stays on CUDA0; max_vram=5.00 would do for it"),
        ({**RESIDENT, "budget_bytes": 5 * GIB}, "resident: everything stays on CUDA0"),
    ],
)  # fmt: skip
def test_advice(values: dict[str, object], advice: str) -> None:
    assert stream(**values).advice == advice


def test_advice_for_pageable_weights() -> None:
    assert stream(pinned=False).advice.startswith("pageable: copies hold up the host")
    assert stream(pinned=False, on_disk=True).advice.startswith("on disk: what host memory does not keep of ")
    assert stream(on_disk=True).hidden is None, "what is waited for the disk is in the copying"
    assert stream(pinned=False, **RESIDENT).advice.startswith("resident: ")


def test_streams_in_the_report() -> None:
    te = {**RESIDENT, "module": "te", "runner": "llm", "resident": "a, b"}
    report = TransferReport.from_rows(TRANSFER, [te, STREAM])
    assert [row.pinned for row in report.streams] == [True, True]
    lines = str(report).splitlines()
    assert lines[:4] == str(TransferReport.from_rows(TRANSFER)).splitlines()
    assert lines[4:8] == [
        "",
        "network            device  mode        passes  lanes  seconds    copied  copying  waiting  hidden           "
        "slots      peak    budget  reason",
        "te llm             CUDA0   resident         8      1    0.500   0.0 MiB        -        -       -           "
        "    -  5.00 GiB  8.00 GiB",
        "diffusion z_image  CUDA0   overlapped       8      1    0.500  6.00 GiB    0.300    0.015     95%  24 in 1.0"
        "0 GiB  8.00 GiB  8.00 GiB",
    ]
    assert lines[-2:] == [
        f"te llm             a, b                         -                             {report.streams[0].advice}",
        f"diffusion z_image  layers.0 ... layers.14 (15)  layers.15 ... layers.29 (15)  {report.streams[1].advice}",
    ]
    content = json.loads(json.dumps(report.to_dict()))
    assert content["streams"] == [row.to_dict() for row in report.streams]
    pageable = [{**TRANSFER[0], "to_device_bytes_pageable": 1}, TRANSFER[1]]
    assert [row.pinned for row in TransferReport.from_rows(pageable, [te, STREAM]).streams] == [True, False]


@given(st.integers(1, 2**45))
def test_max_vram_is_rounded_up(size: int) -> None:
    shown = float(show_max_vram(size)) * GIB
    assert size * (1 - 1e-9) <= shown <= size + (0.01001 if size >= GIB else 0.0001001) * GIB


def test_segments() -> None:
    assert show_segments([]) == ""
    assert show_segments(["a"]) == "a"
    assert show_segments(["a", "b"]) == "a, b"
    assert show_segments([f"layers.{number}" for number in range(30)]) == "layers.0 ... layers.29 (30)"


def test_empty_reports_are_tables_too() -> None:
    assert str(MemoryReport(())).endswith("weights 0.0 MiB, of which pinned 0.0 MiB")
    assert str(TransferReport(())).splitlines()[-1].startswith("total")
    assert TransferReport(()).to_dict()["modules"] == []


@given(st.lists(st.fixed_dictionaries({name: st.integers(0, 2**50) for name in (
    "to_device_bytes_pinned", "to_device_bytes_pageable", "from_device_bytes", "copies"
)}), max_size=5))  # fmt: skip
def test_total_is_the_sum(rows: list[dict[str, int]]) -> None:
    report = TransferReport.from_rows([{**row, "module": "te", "seconds": 1.0} for row in rows])
    for name in ("bytes", "copies", "from_device_bytes", "seconds"):
        assert getattr(report.total, name) == sum(getattr(module, name) for module in report.modules)


cells = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)


@given(st.lists(st.tuples(cells, cells, cells), max_size=6))
def test_table_columns_line_up(rows: list[tuple[str, str, str]]) -> None:
    lines = table(("first", "second", "third"), rows, ("second",)).splitlines()
    assert len(lines) == len(rows) + 1
    width = max(len(row[0]) for row in [("first",), *rows])
    for line, row in zip(lines[1:], rows, strict=True):
        assert line.split() == list(row)
        assert line.startswith(row[0])
        assert line[width : width + 2] == "  "


def test_sizes() -> None:
    assert show_bytes(0) == "0.0 MiB"
    assert show_bytes(GIB - 1) == "1024.0 MiB"
    assert show_bytes(5 * GIB // 2) == "2.50 GiB"

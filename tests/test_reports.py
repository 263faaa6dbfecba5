from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from sdcpp_py.reports import GIB, MemoryReport, TransferReport, show_bytes, table

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
    },
    {
        "module": "vae",
        "to_device_bytes_pinned": 0,
        "to_device_bytes_pageable": 0,
        "from_device_bytes": 0,
        "seconds": 0.0,
        "copies": 0,
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
        "weights 1.60 GiB, of which pinned 1.54 GiB"
    )
    assert json.loads(json.dumps(report.to_dict())) == {
        "modules": MEMORY,
        "bytes": report.bytes,
        "pinned_bytes": report.pinned_bytes,
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

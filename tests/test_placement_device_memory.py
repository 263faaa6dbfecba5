"""The budget of a device's memory."""

from __future__ import annotations

import pytest

from sdcpp_py import placement
from sdcpp_py.devices import Device
from sdcpp_py.errors import ArgumentError
from sdcpp_py.placement import DeviceBudget
from sdcpp_py.reports import GIB


def sized(total: float, free: float, reserve: float = 1.0) -> Device:
    memory = int(total * GIB), int(free * GIB)
    return Device("CUDA0", "a GPU", "gpu", *memory, "CUDA_Host", "CUDA", None, {}, int(reserve * GIB))


@pytest.mark.parametrize(
    ("max_vram", "total", "free", "size", "detail"),
    [
        (8.0, 24, 20, 8, "given as max_vram"),
        (22.0, 24, 20, 22, "given as max_vram, more than the 20.00 GiB that are free now"),
        (100.0, 24, 20, 100, "given as max_vram, more than the 24.00 GiB that it has"),
        (8.0, 0, 0, 8, "given as max_vram"),
        (-2.5, 24, 20, 17.5, "20.00 GiB free now - 2.50 GiB given as max_vram"),
        (None, 24, 20, 19, "20.00 GiB free now - 1.00 GiB reserve"),
    ],
)
def test_device_budget(max_vram: float | None, total: float, free: float, size: float, detail: str) -> None:
    made = placement.device_budget(sized(total, free), max_vram, True)
    assert made == DeviceBudget("CUDA0", int(size * GIB), detail)


def test_the_reserve_is_the_devices_own() -> None:
    made = placement.device_budget(sized(5, 2, reserve=0.5), None, True)
    assert made == DeviceBudget("CUDA0", int(1.5 * GIB), "2.00 GiB free now - 512.0 MiB reserve")


@pytest.mark.parametrize(("max_vram", "total", "free"), [(-20, 24, 20), (-30, 24, 20), (None, 24, 0.5), (None, 0, 0)])
def test_nothing_left_of_a_device(max_vram: float | None, total: float, free: float) -> None:
    with pytest.raises(
        ArgumentError, match=r"nothing of CUDA0 may be used \(.*free now - .*\); set max_vram to a budget"
    ):
        placement.device_budget(sized(total, free), max_vram, True)


@pytest.mark.parametrize(
    ("max_vram", "message"),
    [
        (0, "max_vram 0 leaves nothing: give a budget in GiB"),
        (-0.0, "leaves nothing"),
        (1e-30, "max_vram 1e-30 leaves nothing"),
        (float("nan"), "max_vram must be a finite number"),
        (float("inf"), "max_vram must be a finite number"),
        (1e30, "max_vram must be a finite number from"),
        (-1e30, "max_vram must be a finite number from"),
        ("much", "max_vram must be a number, not 'much'"),
        ("8", "max_vram must be a number, not '8'"),
    ],
)
def test_max_vram_is_checked(max_vram: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        placement.check_max_vram(max_vram)  # type: ignore[arg-type]


def test_max_vram_is_a_number_or_none() -> None:
    assert placement.check_max_vram(-1) == -1.0
    assert placement.check_max_vram(None) is None

"""Schedulers give noise levels that lead to a picture, or refuse; samplers get along them with finite numbers."""

from __future__ import annotations

import ctypes
import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdcpp_py
from sdcpp_py import engine
from support.checkpoints import write_checkpoint

FAMILIES = ["sd1", "sd2", "sdxl", "edm", "sd3", "flux", "flux2"]
FLOW = {"sd3": 3.0, "flux": 1.15, "flux2": 1.0}
TEXT = 500
STEPS = [1, 2, 3, 20, 21, 50, 100, 1000]
SAMPLERS = list(engine.enum_names("sample_method"))
SCHEDULERS = list(engine.enum_names("scheduler"))
SMALL: dict[str, Any] = {"width": 64, "height": 64, "seed": 1, "progress": False}


@functools.cache
def native() -> ctypes.CDLL:
    return ctypes.CDLL(str(engine.versions()["library"]))


def levels(family: str, scheduler: str, steps: int, shift: float | None = None) -> np.ndarray | str:
    """Return a scheduler's noise levels, or what it refuses them with."""
    found = np.empty(steps + 2, np.float32)
    text = ctypes.create_string_buffer(TEXT)
    by_shift = ctypes.c_float(FLOW.get(family, 1.0) if shift is None else shift)
    pointer = found.ctypes.data_as(ctypes.c_void_p)
    size = ctypes.c_size_t(TEXT)
    count = native().sdcpp_probe_levels(
        family.encode(), by_shift, scheduler.encode(), steps, pointer, len(found), text, size
    )
    return text.value.decode() if count < 0 else found[:count]


def sampled(sampler: str, along: Any, *, flow: bool = False, eta: float = 0.0) -> bool | str:
    """Return whether a sampler ends with finite values, or what the levels are refused with."""
    array = np.asarray(along, np.float32)
    text = ctypes.create_string_buffer(TEXT)
    pointer = array.ctypes.data_as(ctypes.c_void_p)
    outcome = native().sdcpp_probe_sample(
        sampler.encode(), flow, ctypes.c_float(eta), pointer, len(array), text, ctypes.c_size_t(TEXT)
    )
    return text.value.decode() if outcome < 0 else bool(outcome)


def refusal(family: str, scheduler: str, steps: int) -> str | None:
    """Return what must be said of a scheduler whose definition gives a family no levels."""
    if scheduler == "ays" and family not in ("sd1", "sdxl", "edm"):
        return "scheduler ays has noise levels for SD 1, SDXL and SVD only, not for this model; use discrete"
    if scheduler == "gits" and family in FLOW:
        return "scheduler gits has noise levels for SD models only, not for this flow model; use discrete"
    if scheduler == "gits" and steps < 2:
        return "scheduler gits needs at least 2 steps, not 1; use discrete"
    return None


@pytest.mark.parametrize("family", FAMILIES)
def test_levels_descend_to_nothing_and_every_sampler_gets_along_them(family: str) -> None:
    for scheduler, steps in itertools.product(SCHEDULERS, STEPS):
        found, said = levels(family, scheduler, steps), refusal(family, scheduler, steps)
        where = (family, scheduler, steps)
        if said is not None:
            assert str(found).startswith(said), where
            continue
        assert not isinstance(found, str), (where, found)
        assert len(found) == steps + 1, where
        assert np.isfinite(found).all(), where
        assert (np.diff(found) <= 0).all(), where
        assert found[-2] > 0 == found[-1], where
        if steps > 100:
            continue
        repeats = bool((np.diff(found) == 0).any())
        for sampler, eta in itertools.product(SAMPLERS, (0.0, 0.3, 1.0)):
            outcome = sampled(sampler, found, flow=family in FLOW, eta=eta)
            if isinstance(outcome, str):
                assert repeats, (where, sampler, eta, outcome)
                assert sampler in ("ipndm_v", "dpm++2mv2"), (where, sampler, eta, outcome)
                assert outcome == (
                    f"sampler {sampler} cannot go along noise levels that repeat, as these do; use fewer steps, or "
                    "another sampler or scheduler"
                )
            else:
                assert outcome, (where, sampler, eta)


@pytest.mark.parametrize("scheduler", ["karras", "exponential"])
def test_one_step_is_the_first_level_of_the_definition(scheduler: str) -> None:
    one, many = levels("sd1", scheduler, 1), levels("sd1", scheduler, 5)
    assert not isinstance(one, str)
    assert not isinstance(many, str)
    assert one[0] == pytest.approx(many[0], rel=1e-5)


@pytest.mark.parametrize(("family", "shift"), [("sd3", 0.0), ("sd3", -1.0), ("flux", 1000.0), ("flux", np.nan)])
def test_flow_shifts_without_levels(family: str, shift: float) -> None:
    said = levels(family, "simple", 4, shift)
    assert isinstance(said, str)
    assert "noise levels that must be finite and descend to 0" in said
    assert said.endswith("or another flow_shift")


@pytest.mark.parametrize("scheduler", ["ays", "gits"])
def test_tables_are_not_interpolated_beyond_what_floats_can_tell(scheduler: str) -> None:
    assert len(levels("sd1", scheduler, 10_000)) == 10_001
    assert levels("sd1", scheduler, 10_001) == f"scheduler {scheduler} takes at most 10000 steps, not 10001"


@pytest.mark.parametrize(
    ("along", "fault"),
    [
        ([], "fewer than two"),
        ([1], "fewer than two"),
        ([np.inf, 0], "some that are not finite"),
        ([np.nan, 0], "some that are not finite"),
        ([1, -1], "some that are not above 0 before the last"),
        ([0, 0], "some that are not above 0 before the last"),
        ([1, 1e-46, 0], "some that are not above 0 before the last"),
        ([1, 2, 0], "some that ascend"),
    ],
)
def test_levels_that_lead_nowhere(along: list[float], fault: str) -> None:
    for sampler in SAMPLERS:
        assert str(sampled(sampler, along)).endswith(f"there are {fault}")


@pytest.mark.parametrize(
    ("sampler", "eta", "taken"),
    [("tcd", 1.0, True), ("tcd", 1.01, False), ("tcd", 10.0, False), ("ddim_trailing", 1.0, True)]
    + [("ddim_trailing", 10.0, False)]
    + [(each, 10.0, True) for each in SAMPLERS if each not in ("tcd", "ddim_trailing")],
)
def test_eta(sampler: str, eta: float, taken: bool) -> None:
    for flow in (False, True):
        outcome = sampled(sampler, levels("flux" if flow else "sd1", "discrete", 6), flow=flow, eta=eta)
        if taken:
            assert outcome is True
        else:
            assert f"sampler {sampler} cannot take eta {eta:f}" in str(outcome)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_levels_of_ones_own(sampler: str) -> None:
    """Any that descend, however unevenly: what comes is finite, or refused."""
    random = np.random.default_rng(5)
    lists = [[5, 1], [5, 5, 5, 5, 0], [1e9, 1e-9, 0], [1e-30, 1e-31, 0], [3, 3, 2, 2, 2, 1, 0], [1e-4, 1e-5, 0]]
    lists += [sorted(np.exp(random.uniform(-12, 12, random.integers(2, 9))), reverse=True) for _ in range(100)]
    for along, flow, eta in itertools.product(lists, (False, True), (0.0, 1.0)):
        assert sampled(sampler, along, flow=flow, eta=eta) is not False, (along, flow, eta)


REFUSED = {
    "ays": ("sd3", {"scheduler": "ays", "steps": 4}, "scheduler ays has noise levels for SD 1"),
    "gits on a flow model": ("sd3", {"scheduler": "gits", "steps": 4}, "scheduler gits has noise levels for SD models"),
    "gits": ("sd1", {"scheduler": "gits", "steps": 1}, "scheduler gits needs at least 2 steps"),
    "gits of a second pass": (
        "sd1",
        {"scheduler": "gits", "steps": 2, "hires": sdcpp_py.Hires(steps=1, denoising_strength=1.0)},
        "scheduler gits needs at least 2 steps",
    ),
    "flow_shift": ("sd3", {"flow_shift": 0.0, "steps": 2}, "or another flow_shift$"),
    "eta": ("sd1", {"sampler": "tcd", "eta": 2.0, "steps": 2}, "sampler tcd cannot take eta 2"),
    "a level that no float holds": ("sd1", {"sigmas": [1, 1e-46, 0]}, "some that are not above 0"),
    "an end without a picture": ("sd3", {"sigmas": [1.0, 1.0]}, "must end below 1"),
    "a tiny part of a schedule": (
        "sd1",
        {"steps": 1000, "hires": sdcpp_py.Hires(steps=1000, denoising_strength=0.0001)},
        "hires: 1000 steps at a denoising_strength of 0.0001.* are too small a part",
    ),
}
DRAWN = {
    "karras": ("sd1", {"scheduler": "karras", "steps": 1}),
    "exponential": ("sd3", {"scheduler": "exponential", "steps": 1}),
    "repeated levels": ("sd1", {"sampler": "dpm++2m", "sigmas": [9, 3, 3, 1, 0]}),
    "a weak second pass": (
        "sd1",
        {"steps": 1, "hires": sdcpp_py.Hires(scale=1.5, steps=1, denoising_strength=0.01)},
    ),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a loaded tiny model of a family, each loaded once."""
    folder = tmp_path_factory.mktemp("families")
    made: dict[str, sdcpp_py.StableDiffusion] = {}

    def load(family: str) -> sdcpp_py.StableDiffusion:
        if family not in made:
            path: Path = write_checkpoint(family, folder / f"{family}.safetensors", tiny=True)["model"]
            made[family] = sdcpp_py.StableDiffusion(path)
        return made[family]

    yield load
    for sd in made.values():
        sd.close()


def test_refused_before_any_work(loaded: Any) -> None:
    for family, options, message in REFUSED.values():
        seen: list[str] = []
        with (
            engine.tap(lambda phase, shape, values, seen=seen: seen.append(phase)),  # type: ignore[misc]
            pytest.raises(sdcpp_py.ArgumentError, match=message) as caught,
        ):
            loaded(family).txt2img("a cat", **{**SMALL, **options})
        assert seen == []
        assert caught.value.engine_log == ()


@pytest.mark.parametrize("case", DRAWN)
def test_drawn(loaded: Any, case: str) -> None:
    family, options = DRAWN[case]
    image = loaded(family).txt2img("a cat", **{**SMALL, **options})[0]
    assert len(image.getcolors(1 << 16) or []) > 100

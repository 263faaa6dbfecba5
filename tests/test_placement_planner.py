"""From specs and budgets to a plan."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdcpp_py.errors import ArgumentError, PlacementError
from sdcpp_py.placement import MODULES, DeviceBudget, Plan
from sdcpp_py.placement.on_disk import RING_BYTES
from sdcpp_py.reports import GIB
from support.placement_cases import DEVICES, OFFLOAD, SIZES, pinned, plan, row


def test_nothing_asked() -> None:
    made = plan()
    assert [row.module for row in made.modules] == [*MODULES]
    for each in made.modules:
        assert (each.runtime_device, each.params_device, each.buffer_type) == ("CUDA0", "CUDA0", "CUDA0")
        assert (each.pinned, each.pin) == (False, "auto")
    assert row(made, "te").reason == "nothing to pin: its weights live on CUDA0, which computes it"
    assert row(made, "upscaler").reason == "nothing to pin: it has no weights in these files"
    assert made.unaffordable == ()


def test_weights_on_disk() -> None:
    """Streamed, with as much of them in pinned host memory as the budget has left for them, what is read most first."""
    ring = RING_BYTES
    made = plan(ring + 9 * GIB, runtime_backend="cuda0", params_backend="disk")
    rows = {name: row(made, name) for name in SIZES}
    assert all(each.streamed and each.overlapped and each.params_device == "disk" for each in rows.values())
    assert [rows[name].kept_bytes for name in ("diffusion", "te", "vae")] == [8 * GIB, GIB, 0]
    assert pinned(made) == ["diffusion", "te"]
    assert made.pinned_bytes == 9 * GIB
    assert [budget.device for budget in made.device_budgets] == ["CUDA0"]
    assert rows["te"].reason == "on disk; host memory keeps 1.00 GiB of it"
    assert made.placements()[0]["keep_bytes"] == 8 * GIB
    assert all(rows[name].past_cache for name in rows), "nothing is known of the system's cache"

    mixed = plan(5 * GIB, runtime_backend="cuda0", params_backend="Diffusion=Disk,te=cpu")
    assert [row(mixed, name).streamed for name in ("diffusion", "te", "vae")] == [True, False, False]
    assert row(mixed, "te").pinned, "what the CPU keeps comes first"
    assert row(mixed, "diffusion").kept_bytes == GIB - ring
    never = plan(9 * GIB, runtime_backend="te=cpu,all=cuda0", params_backend="disk", pin_params="never")
    assert row(never, "te").params_device == "CPU", "it computes it"
    assert not pinned(never)
    assert row(never, "diffusion").kept_bytes == 5 * GIB - ring, "what the CPU computes is in host memory, too"
    for asked in ({"runtime_backend": "cpu"}, {"runtime_backend": "te=cpu,all=cuda0", "params_backend": "te=disk"}):
        with pytest.raises(ArgumentError, match="params_backend is 'disk' for .*leave it out of params_backend"):
            plan(**{"params_backend": "disk", **asked})


def test_offloaded_weights_are_pinned() -> None:
    made = plan(**OFFLOAD)
    assert pinned(made) == ["diffusion", "te", "vae"]
    te = row(made, "te")
    assert (te.runtime_device, te.params_device, te.buffer_type) == ("CUDA0", "CPU", "CUDA_Host")
    assert te.reason == "page-locked for CUDA0"
    assert made.pinned_bytes == sum(SIZES.values())
    assert made.placements()[0] == {
        "module": "diffusion",
        "runtime_device": "CUDA0",
        "params_device": "CPU",
        "keep_bytes": 0,
        "past_cache": False,
        "pin": True,
        "stream": False,
        "overlap": False,
    }
    assert len(made.placements()) == len(MODULES)


def test_mixed_specs() -> None:
    made = plan(runtime_backend="te=cpu,unet=cuda1,vae=cpu,all=vulkan0", params_backend="all=cpu,vae=cuda1")
    assert [(row.runtime_device, row.params_device) for row in made.modules] == [
        ("CUDA1", "CPU"), ("Vulkan0", "CPU"), ("CPU", "CPU"), ("CPU", "CUDA1"),
        ("Vulkan0", "CPU"), ("Vulkan0", "CPU"), ("Vulkan0", "CPU"),
    ]  # fmt: skip
    assert pinned(made) == ["diffusion"]
    assert row(made, "vae").reason == "nothing to pin: its weights live in the memory of CUDA1"


def test_params_backend_follows_the_runtime_backend() -> None:
    made = plan(runtime_backend="te=cpu,diffusion=cuda1", params_backend="diffusion=cpu")
    assert [(row(made, name).runtime_device, row(made, name).params_device) for name in SIZES] == [
        ("CUDA1", "CPU"), ("CPU", "CPU"), ("CUDA0", "CUDA0"),
    ]  # fmt: skip


def test_a_device_without_a_host_buffer_type() -> None:
    made = plan(runtime_backend="bare0", params_backend="cpu")
    assert pinned(made) == []
    assert row(made, "te").buffer_type == "CPU"
    assert row(made, "te").reason == "nothing to pin: Bare0 has no host buffer type"
    assert made.unaffordable == ()
    for require in ("require", {"te": "require"}):
        with pytest.raises(PlacementError, match=r"must be pinned, but Bare0 has no host buffer type; use pin_params"):
            plan(runtime_backend="bare0", params_backend="cpu", pin_params=require)


def test_auto_pins_what_is_affordable_in_order() -> None:
    made = plan(9 * GIB, **OFFLOAD)
    assert pinned(made) == ["diffusion", "vae"]
    assert made.unaffordable == ("te",)
    assert row(made, "te").reason == "pageable: only 1.00 GiB of the pin budget left"
    assert row(made, "te").buffer_type == "CPU"
    assert pinned(plan(7 * GIB, **OFFLOAD)) == ["te", "vae"]
    assert pinned(plan(0, **OFFLOAD)) == []


def test_never_asks_for_nothing() -> None:
    made = plan(pin_params="never", **OFFLOAD)
    assert pinned(made) == []
    assert made.unaffordable == ()
    assert row(made, "te").reason == "pageable: pin_params is never"


def test_policies_by_module() -> None:
    made = plan(6 * GIB, pin_params="te=require,vae=never", **OFFLOAD)
    assert pinned(made) == ["te"]
    assert made.unaffordable == ("diffusion",)
    assert row(made, "diffusion").reason == "pageable: only 2.00 GiB of the pin budget left"
    assert [row(made, name).pin for name in SIZES] == ["auto", "require", "never"]
    assert pinned(plan(pin_params={"all": "NEVER", "te": "auto"}, **OFFLOAD)) == ["te"]


def test_require_names_the_numbers() -> None:
    with pytest.raises(PlacementError) as caught:
        plan(9 * GIB, pin_params="require", **OFFLOAD)
    assert str(caught.value) == (
        "12.25 GiB (13153337344 bytes) must be pinned for diffusion, te, vae, but the pin budget is 9.00 GiB "
        "(9663676416 bytes), set by pin_budget: given by the caller; use pin_params='auto' to pin what fits"
    )
    assert pinned(plan(sum(SIZES.values()), pin_params="require", **OFFLOAD)) == ["diffusion", "te", "vae"]


def test_require_with_nothing_to_pin() -> None:
    for specs in ({}, {"runtime_backend": "cpu"}, {"runtime_backend": "cpu", "params_backend": "cpu"}):
        with pytest.raises(ArgumentError, match="pin_params is 'require', but there is nothing to pin: no module"):
            plan(pin_params="require", **specs)
    for module in ("diffusion", "controlnet"):
        with pytest.raises(ArgumentError, match=f"'require' for {module}, but there is nothing to pin: it"):
            plan(pin_params={module: "require"})


def test_require_for_all_passes_over_what_cannot_be_pinned() -> None:
    made = plan(runtime_backend="cuda0,te=cpu", params_backend="cpu", pin_params="require")
    assert pinned(made) == ["diffusion", "vae"]
    assert row(made, "te").reason == "nothing to pin: its weights live on CPU, which computes it"


@pytest.mark.parametrize("word", ["always", "req", "1"])
def test_unknown_policy(word: str) -> None:
    with pytest.raises(ArgumentError, match=f"pin_params '{word}' is unknown; valid: auto, require, never"):
        plan(pin_params=f"te={word}")


def test_a_typo_is_an_error_wherever_it_stands() -> None:
    every = ",".join(f"{module}=cpu" for module in MODULES)
    with pytest.raises(ArgumentError, match="params_backend: device 'cuba0' is unknown"):
        plan(params_backend=f"{every},all=cuba0")


def test_plan_is_a_table_and_plain_values() -> None:
    made = plan(9 * GIB, **OFFLOAD)
    lines = str(made).splitlines()
    assert lines[:5] == [
        "module     runs on  weights on  buffer type  pinned  streamed       size  reason",
        "diffusion  CUDA0    CPU         CUDA_Host    yes     no         8.00 GiB  page-locked for CUDA0",
        "te         CUDA0    CPU         CPU          no      no         4.00 GiB  " + row(made, "te").reason,
        "vae        CUDA0    CPU         CUDA_Host    yes     no        256.0 MiB  page-locked for CUDA0",
        "not in these files: controlnet, clip_vision, photomaker, upscaler",
    ]
    assert "pin budget 9.00 GiB, set by pin_budget" in lines
    content = json.loads(json.dumps(made.to_dict()))
    assert content["modules"][0]["buffer_type"] == "CUDA_Host"
    assert content["unaffordable"] == ["te"]
    assert content["budget"]["bytes"] == 9 * GIB
    assert content["device_budgets"] == []


# --- streaming --------------------------------------------------------------------------------------------------------


def streamed(made: Plan) -> list[str]:
    return [row.module for row in made.modules if row.streamed and row.bytes]


def test_host_params_are_streamed_within_max_vram() -> None:
    made = plan(max_vram=5.5, stream_layers=True, **OFFLOAD)
    assert streamed(made) == pinned(made) == ["diffusion", "te", "vae"]
    for what in ("stream", "overlap"):
        assert [place[what] for place in made.placements()] == [True] * len(MODULES), "what is loaded later too"
    assert made.device_budgets == (DeviceBudget("CUDA0", 11 * GIB // 2, "given as max_vram"),)
    lines = str(made).splitlines()
    assert lines[1].endswith("  CUDA_Host    yes     overlapped   8.00 GiB  page-locked for CUDA0")
    assert lines[-2:] == ["device    budget  because", "CUDA0   5.50 GiB  given as max_vram"]
    assert json.loads(json.dumps(made.to_dict()))["device_budgets"] == [
        {"device": "CUDA0", "bytes": 11 * GIB // 2, "detail": "given as max_vram"}
    ]


def test_only_host_params_are_streamed() -> None:
    made = plan(
        runtime_backend="te=cpu,unet=cuda1,vae=cuda0", params_backend="te=cpu,unet=cpu", max_vram=4, stream_layers=True
    )
    assert streamed(made) == ["diffusion"]
    assert row(made, "te").reason == "nothing to pin or stream: its weights live on CPU, which computes it"
    assert row(made, "vae").reason == "nothing to pin or stream: its weights live on CUDA0, which computes it"
    assert [budget.device for budget in made.device_budgets] == ["CUDA1"]
    made = plan(runtime_backend="bare0,te=cuda0", params_backend="cpu", max_vram=4, stream_layers=True)
    assert streamed(made) == ["diffusion", "te", "vae"]
    assert row(made, "vae").reason == "nothing to pin: Bare0 has no host buffer type"
    assert [budget.device for budget in made.device_budgets] == ["Bare0", "CUDA0"]


def test_the_pin_budget_serves_streamed_modules_first() -> None:
    made = plan(9 * GIB, runtime_backend="cuda0", params_backend="cpu,te=cuda0", max_vram=4, stream_layers=True)
    assert pinned(made) == streamed(made) == ["diffusion", "vae"]


@pytest.mark.parametrize("asked", [{"stream_layers": True}, {"stream_layers": True, "max_vram": 8}, {"max_vram": 8}])
@pytest.mark.parametrize(
    "specs", [{}, {"runtime_backend": "cpu", "params_backend": "cpu"}, {"params_backend": "cuda1"}]
)
def test_what_would_do_nothing_is_an_error(asked: dict[str, object], specs: dict[str, str]) -> None:
    what = "stream_layers has nothing to stream" if "stream_layers" in asked else "max_vram has nothing to limit"
    with pytest.raises(ArgumentError, match=rf"{what}: no module .* params_backend='cpu' with a GPU") as caught:
        plan(**asked, **specs)
    assert "\n" not in str(caught.value)
    with pytest.raises(ArgumentError, match=what):
        plan(weights={}, **asked, **OFFLOAD)


def test_max_vram_alone_says_that_nothing_overlaps() -> None:
    made = plan(max_vram=6, **OFFLOAD)
    assert streamed(made) == ["diffusion", "te", "vae"]
    assert not any(place["overlap"] for place in made.placements())
    assert "in turn" in str(made).splitlines()[1]
    assert made.device_budgets[0].detail == (
        "given as max_vram; copies and computations take turns: stream_layers lets them overlap"
    )
    assert plan(max_vram=-6, **OFFLOAD).device_budgets[0].detail.endswith("stream_layers lets them overlap")


# --- rules ------------------------------------------------------------------------------------------------------------

weights_of = st.dictionaries(st.sampled_from([*MODULES]), st.integers(0, 100))
budgets = st.integers(0, 400)
policies = st.dictionaries(st.sampled_from([*MODULES]), st.sampled_from(["auto", "require", "never"]))
places = st.dictionaries(
    st.sampled_from([*MODULES, "*"]), st.sampled_from(["cpu", "cuda0", "cuda1", "vulkan0", "bare0"])
)


@given(weights_of, budgets, policies, places, places)
def test_plan_keeps_the_rules(
    weights: dict[str, int], size: int, pins: dict[str, str], runtime: dict[str, str], home: dict[str, str]
) -> None:
    specs = {"pin_params": pins, "runtime_backend": runtime, "params_backend": home}
    try:
        made = plan(size, weights, **specs)
    except (ArgumentError, PlacementError) as error:
        assert "require" in pins.values(), error
        return
    assert made == plan(size, dict(reversed(weights.items())), **specs), "deterministic"
    assert made.pinned_bytes <= size, "never exceeds the budget"
    kinds = {device.name: device for device in DEVICES}
    for each in made.modules:
        runs, keeps = kinds[each.runtime_device], kinds[each.params_device]
        pinnable = keeps.kind == "cpu" and runs is not keeps and runs.host_buffer_type is not None and each.bytes > 0
        assert each.buffer_type == (runs.host_buffer_type if each.pinned else keeps.name)
        assert each.reason
        if each.pinned:
            assert pinnable
            assert each.pin != "never"
        if each.pin == "require":
            assert each.pinned, "what is required is pinned, or it is an error"
        assert (each.module in made.unaffordable) == (pinnable and each.pin == "auto" and not each.pinned)


@given(weights_of, budgets, budgets)
def test_auto_is_monotone_in_the_budget(weights: dict[str, int], one: int, other: int) -> None:
    small, large = (plan(size, weights, **OFFLOAD) for size in sorted((one, other)))
    assert small.pinned_bytes <= large.pinned_bytes
    # Whoever comes first in the order is served first: the first difference is to the larger budget's advantage.
    assert [row.pinned for row in small.modules] <= [row.pinned for row in large.modules]
    assert small.pinned_bytes == sum(weights.values()) or small.unaffordable


@given(weights_of, budgets)
def test_require_pins_all_or_raises(weights: dict[str, int], size: int) -> None:
    needed = sum(weights.values())
    if not needed:
        with pytest.raises(ArgumentError, match="nothing to pin"):
            plan(size, weights, pin_params="require", **OFFLOAD)
    elif needed > size:
        with pytest.raises(PlacementError, match=rf"\({needed} bytes\) must be pinned .* \({size} bytes\)"):
            plan(size, weights, pin_params="require", **OFFLOAD)
    else:
        assert plan(size, weights, pin_params="require", **OFFLOAD).pinned_bytes == needed

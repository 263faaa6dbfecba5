"""The planner on described machines: models of full size without their weights, nothing loaded or computed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

import sdcpp_py
from plans import Clock, cells, demand_of
from sdcpp_py import ArgumentError, PinBudget
from sdcpp_py.placement.alternative import Place
from sdcpp_py.placement.assume import parse_assume
from sdcpp_py.placement.choice import alternatives, choose
from sdcpp_py.placement.demand import Demand, NetworkDemand
from sdcpp_py.placement.machine import Accelerator, Machine
from sdcpp_py.reports import GIB
from support.children import in_child
from support.denoiser_probe import MODELS, header_only
from support.loopback import Loopback


@pytest.fixture(scope="module", params=["SD 1.5", "Z-Image"])
def demand(request: pytest.FixtureRequest) -> Demand:
    with header_only(MODELS[request.param]) as path:
        return demand_of(MODELS[request.param], path)


def machine_of(assume: str) -> Machine:
    return parse_assume(assume).machine(PinBudget(()), 8)


def test_more_memory_is_never_slower(demand: Demand) -> None:
    """Each machine has a plan, the fastest of all that fit, which asks for no more than there is."""
    found = {}
    for gpu, ram, bus in itertools.product((2, 4, 8, 16, 24, 80), (4, 8, 32, 64), (3, 12, 50)):
        machine = machine_of(f"gpu={gpu}GiB,ram={ram}GiB,bus={bus}GB/s")
        choice = choose(machine, demand)
        assert choice is not None
        found[gpu, ram, bus] = choice.seconds
        every = [each for each in alternatives(machine, demand) if each.fits and not each.tight]
        assert min(each.seconds or 0.0 for each in every) >= 0.999 * choice.seconds
        places = choice.chosen.places.items()
        on_gpu = sum(demand.group_bytes(group) for group, place in places if str(place) == "GPU0")
        assert on_gpu <= gpu * GIB
        in_host = sum(
            demand.group_bytes(group) for group, place in places if place.home == "host" or place.device == "CPU"
        )
        assert in_host + choice.chosen.kept_bytes <= machine.host_bytes
        from_disk = sum(demand.group_bytes(group) for group, place in places if place.home == "disk")
        assert choice.chosen.kept_bytes <= from_disk
        assert not from_disk or not machine.holds(sum(demand.weights.values()))
    for (gpu, ram, bus), seconds in found.items():
        more = [found[key] for key in found if key[0] >= gpu and key[1] >= ram and key[2] >= bus]
        assert max(more) <= 1.001 * seconds
    everything = choose(machine_of("gpu=80GiB,ram=64GiB"), demand)
    assert everything is not None
    assert {str(place) for place in everything.chosen.places.values()} == {"GPU0"}
    none = choose(machine_of("gpu=none,ram=64GiB"), demand)
    assert none is not None
    assert {str(place) for place in none.chosen.places.values()} == {"CPU"}
    assert none.seconds > 10 * everything.seconds
    assert choose(machine_of("gpu=2MiB,ram=1GiB"), demand) is None


def test_weights_on_disk_where_host_memory_is_short() -> None:
    """What is kept in host memory is read once; what rules the disk out is said, and so is what it takes."""
    with header_only(MODELS["Z-Image"]) as path:
        demand = demand_of(MODELS["Z-Image"], path)
        short = "gpu=4GiB,ram=8GiB,bus=12GB/s"
        text = str(sdcpp_py.plan(path, assume=f"{short},disk=2GB/s"))
        with pytest.raises(ArgumentError, match="nothing fits"):
            sdcpp_py.plan(path, assume=f"{short},disk=2GB/s", lora_apply_mode="immediately")
        merging = sdcpp_py.plan(path, assume="gpu=48GiB,ram=8GiB", lora_apply_mode="immediately")
    assert "GPU0 from disk" in text
    assert "disk 2 GB/s" in text
    assert "of what is on disk host memory keeps" in text
    assert merging.choice is not None
    assert any("lora_apply_mode is 'immediately'" in each.reason for each in merging.choice.rejected)

    def seconds(assume: str, **changed: Any) -> float:
        choice = choose(machine_of(assume), replace(demand, **changed))
        assert choice is not None
        assert choice.chosen.places["diffusion"].home == "disk"
        return choice.seconds

    usual = seconds(f"{short},disk=2GB/s")
    slow = seconds(f"{short},disk=0.5GB/s")
    assert slow > 2 * usual, "the disk is what counts"
    assert seconds("gpu=4GiB,ram=8GiB,bus=50GB/s,disk=2GB/s") == pytest.approx(
        seconds("gpu=4GiB,ram=8GiB,bus=12GB/s,disk=2GB/s"), rel=0.02
    ), "the bus is not"
    assert seconds("gpu=4GiB,ram=10GiB,disk=0.5GB/s") < 0.8 * slow, "more is kept"
    half = {module: replace(each, stored_bytes=each.disk_bytes // 2) for module, each in demand.stored.items()}
    assert seconds(f"{short},disk=0.5GB/s", stored=half) < 0.7 * slow, "8-bit floats take half in the file"
    converted = {module: replace(each, converted_bytes=each.disk_bytes) for module, each in half.items()}
    assert seconds(f"{short},disk=0.5GB/s", stored=converted) > seconds(f"{short},disk=0.5GB/s", stored=half)
    packed = {module: replace(each, disk_bytes=0, stored_bytes=0) for module, each in demand.stored.items()}
    assert choose(machine_of(short), replace(demand, stored=packed)) is None
    two = choose(machine_of("gpu=8GiB+8GiB,ram=8GiB,disk=2GB/s"), demand)
    assert two is not None
    assert two.seconds <= usual


@in_child
def test_the_chosen_plan_is_the_best_by_the_clock() -> None:
    """A small part of scripts/bench/plans.py: every way is tried on the virtual clock."""
    loopback = Loopback(
        dry=1, poison=0, check_uninitialised=0, check_sources=0, defer_downloads=0, memory_total=1 << 42
    )
    name = "SD 1.5"
    with header_only(MODELS[name]) as path:
        demand = demand_of(MODELS[name], path)
        clock = Clock(loopback, MODELS[name], path, demand)
        found = list(cells(name, clock, demand, ((2,), (32, 2), (3, 12), (2,))))
        clock.close()
    assert len(found) == 4
    for each in found:
        assert f"diffusion GPU0 {'streamed' if each.disk is None else 'from disk'}" in each.plan
        assert each.failed == ""
        assert each.tried > 1
        assert each.ratio is not None
        assert each.ratio <= 1.05
        assert each.predicted == pytest.approx(each.seconds, rel=0.25)


def test_two_gpus_are_no_slower_than_one(demand: Demand) -> None:
    one, two = (choose(machine_of(f"gpu={gpus},ram=64GiB,bus=3GB/s"), demand) for gpus in ("16GiB", "16GiB+12GiB"))
    assert one is not None
    assert two is not None
    assert two.seconds <= one.seconds
    used = {place.device for place in two.chosen.places.values()}
    large = sum(demand.weights.values()) > 16 * GIB
    assert used == ({"GPU0", "GPU1"} if large else {"GPU0"})


def test_plans_without_loading() -> None:
    """Of a file's header, with tiles where the VAE does not fit, and words for all of it."""
    with header_only(MODELS["SD 1.5"]) as path:
        tiled = sdcpp_py.plan(path, assume="gpu=2GiB,ram=32GiB", width=1024, height=1024)
        with pytest.raises(ArgumentError, match=r"nothing fits: even on the CPU it needs .* of host memory"):
            sdcpp_py.plan(path, assume="gpu=none,ram=2GiB")
    assert tiled.choice is not None
    tile = tiled.choice.chosen.tile
    assert tile in (32, 64)
    text = str(tiled)
    assert "chosen for txt2img 1024x1024, 20 steps" in text
    assert "assumed machine: GPU0 2.00 GiB" in text
    assert f"tiles of {tile} latent pixels that overlap by half" in text
    assert "not 9" in text or "its compute buffer" in text, "why the VAE needs tiles"
    assert tiled.to_dict()["choice"]["chosen"]["vae_tile"] == tile
    assert tiled.seconds == tiled.choice.seconds > 0
    with pytest.raises(ArgumentError, match="mode 'draw' is unknown; valid: txt2img"):
        sdcpp_py.plan(mode="draw")
    with pytest.raises(ArgumentError, match="option 'frames' is none of txt2img"):
        sdcpp_py.plan(frames=3)


def test_asked_placement_is_not_chosen() -> None:
    made = sdcpp_py.plan(assume="gpu=8GiB,ram=16GiB", runtime_backend="te=cpu,all=gpu", params_backend="cpu")
    assert made.choice is None
    assert {row.module: row.runtime_device for row in made.modules if row.bytes} == {
        "diffusion": "GPU0",
        "te": "CPU",
        "vae": "GPU0",
    }


@pytest.mark.parametrize(
    ("assume", "said"),
    [
        ("gpu=12", "gpu=12 has no meaning; gpu is the memory of a GPU such as 12GiB"),
        ("gpu=12GiB,vram=3GiB", "'vram' is unknown; valid: gpu: memory of a GPU"),
        ("gpu=-3GiB", "gpu=-3GiB has no meaning"),
        ("ram=0GiB", "ram=0GiB has no meaning"),
        ("ram=1.2.3GiB", "has no meaning"),
        ("bus=12GiB", "bus=12GiB has no meaning; bus is the rate of copies to a GPU such as 12GB/s"),
        ("compute=fast", "compute=fast has no meaning"),
        ("ram=16GiB,ram=8GiB", "ram is given twice"),
        ("ram", "ram= has no meaning"),
        ("", "assume describes nothing; valid: gpu"),
        (7, "assume must be a text such as gpu=12GiB,ram=16GiB or a mapping, not 7"),
    ],
)
def test_descriptions_that_have_no_meaning(assume: object, said: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_assume(assume)  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_descriptions() -> None:
    found = parse_assume("gpu=12GiB+8GB,gpu=512MiB,ram=16GiB,bus=25GB/s,compute=100TFLOPS")
    assert found.gpus == (12 * GIB, 8 * 10**9, 512 << 20)
    assert (found.ram, found.bus, found.compute) == (16 * GIB, 25e9, 100e12)
    assert parse_assume({"gpu": ["12GiB", "8GB"], "ram": "16GiB"}).gpus == (12 * GIB, 8 * 10**9)
    assert parse_assume("gpu=none,bus=1.5e1GB/s").gpus == ()


def test_all_alternatives_are_timed() -> None:
    """What is chosen is the fastest of all, by hand-made numbers whose times can be told."""
    network = {"fixed_bytes": 0, "largest_segment_bytes": GIB // 8, "compute_bytes": GIB, "operations": 0}
    rows = [
        {
            "module": "diffusion",
            "network": "net",
            "weight_bytes": 8 * GIB,
            "graphs": 10,
            "flops": 50e12,
            "moved_bytes": 0,
        },
        {"module": "te", "network": "text", "weight_bytes": 4 * GIB, "graphs": 1, "flops": 1e9, "moved_bytes": 0},
    ]
    networks = tuple(NetworkDemand(**{**network, **row}) for row in rows)
    demand = Demand(networks, {"diffusion": 8 * GIB, "te": 4 * GIB}, {}, 1, "a picture")

    def machine(gpu: int, bus: float = 10e9, host: int = 64) -> Machine:
        card = Accelerator("GPU0", gpu * GIB, 0, bus_rate=bus)
        return Machine((card,), "CPU", host * GIB, host * GIB, 1e12)

    def places(machine: Machine) -> dict[str, str]:
        choice = choose(machine, demand)
        assert choice is not None
        return {group: str(place) for group, place in choice.chosen.places.items()}

    assert places(machine(13)) == {"diffusion": "GPU0", "te": "GPU0"}
    # Reading 4 GiB once takes the CPU 0.5 s, and the bus 0.4 s, or 4 s.
    assert places(machine(9)) in (
        {"diffusion": "GPU0 streamed", "te": "GPU0 streamed"},
        {"diffusion": "GPU0", "te": "CPU"},
    )
    assert places(machine(9, bus=1e9)) == {"diffusion": "GPU0", "te": "CPU"}
    assert places(machine(4, host=13)) in (
        {"diffusion": "GPU0 streamed", "te": "GPU0 streamed"},
        {"diffusion": "GPU0 streamed", "te": "CPU"},
    )
    assert choose(machine(4, host=8), demand) is None
    some = list(alternatives(machine(9), demand))
    assert len(some) == 9
    too_large = next(each for each in some if each.places["te"] == each.places["diffusion"] == Place("GPU0", "device"))
    assert too_large.reason.startswith("GPU0 has 9.00 GiB, not weights of 12.00 GiB")

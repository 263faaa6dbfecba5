"""The planner on described machines: models of full size without their weights, nothing loaded or computed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

import sdcpp_py
from sdcpp_py import ArgumentError, placement
from sdcpp_py.placement import Demand, Machine, Place, choose, parse_assume
from sdcpp_py.placement.choice import alternatives
from sdcpp_py.reports import GIB
from support.denoiser_probe import MODELS, header_only


@pytest.fixture(scope="module", params=["SD 1.5", "Z-Image"])
def model(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    with header_only(MODELS[request.param]) as path:
        yield request.param, path


def plan(path: Path, assume: str, **options: object) -> sdcpp_py.Plan:
    return sdcpp_py.plan(path, assume=assume, **options)


def test_more_memory_is_never_slower(model: tuple[str, Path]) -> None:
    """Of some machines each has a plan, the fastest of all that fit, which asks for no more than there is."""
    name, path = model
    size = MODELS[name].width
    found = {}
    for gpu, ram, bus in itertools.product((2, 6, 24, 80), (32, 64), (3, 25)):
        made = plan(path, f"gpu={gpu}GiB,ram={ram}GiB,bus={bus}GB/s", width=size, height=size)
        assert made.choice is not None
        found[gpu, ram, bus] = made.choice.seconds
        assert all(each.seconds is None or each.tight or each.seconds >= 0.999 * made.choice.seconds
                   for each in made.choice.rejected)  # fmt: skip
        on_gpu = sum(row.bytes for row in made.modules if row.params_device == "GPU0")
        hosted = sum(row.bytes for row in made.modules if row.params_device == "CPU")
        assert on_gpu <= gpu * GIB
        assert hosted <= ram * GIB
    for (gpu, ram, bus), seconds in found.items():
        more = [found[key] for key in found if key[0] >= gpu and key[1] >= ram and key[2] >= bus]
        assert max(more) <= 1.001 * seconds
    everything = plan(path, "gpu=80GiB,ram=64GiB", width=size, height=size)
    assert {row.params_device for row in everything.modules} == {"GPU0"}
    none = plan(path, "gpu=none,ram=64GiB", width=size, height=size)
    assert {row.runtime_device for row in none.modules} == {"CPU"}
    assert none.seconds is not None
    assert everything.seconds is not None
    assert none.seconds > 10 * everything.seconds
    with pytest.raises(ArgumentError, match="nothing fits: even on the CPU it needs .* of host memory"):
        plan(path, "gpu=2MiB,ram=1GiB")
    text = str(everything)
    assert "chosen for txt2img" in text
    assert "assumed machine: GPU0 80.00 GiB" in text
    assert everything.to_dict()["choice"]["chosen"]["places"]["diffusion"] == {"device": "GPU0", "home": "device"}


def test_modules_go_apart_and_tiles_are_taken(model: tuple[str, Path]) -> None:
    name, path = model
    if name == "SD 1.5":
        tiled = plan(path, "gpu=3GiB,ram=32GiB", width=1536, height=1536)
        assert tiled.choice is not None
        assert tiled.choice.chosen.tile == 64
        assert "tiles of 64 latent pixels that overlap by half" in str(tiled)
        asked = plan(path, "gpu=3GiB,ram=32GiB", width=1536, height=1536, vae_tiling=True)
        assert asked.choice is not None
        assert asked.choice.chosen.tile == 0, "tiles that were asked for are not the planner's"
    else:
        one, two = (plan(path, f"gpu={gpus},ram=64GiB,bus=3GB/s") for gpus in ("16GiB", "16GiB+12GiB"))
        devices = {row.runtime_device for row in two.modules if row.bytes}
        assert devices == {"GPU0", "GPU1"}
        assert one.seconds is not None
        assert two.seconds is not None
        assert two.seconds <= one.seconds


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
    networks = tuple(placement.NetworkDemand(**{**network, **row}) for row in rows)
    demand = Demand(networks, {"diffusion": 8 * GIB, "te": 4 * GIB}, {}, 1, "a picture")

    def machine(gpu: int, bus: float = 10e9, host: int = 64) -> Machine:
        card = placement.Accelerator("GPU0", gpu * GIB, 0, bus_rate=bus)
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

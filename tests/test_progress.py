"""Events of a call, previews, bars, pictures that come one by one, and calls that are awaited."""

from __future__ import annotations

import asyncio
import io
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

import sdcpp_py
from sdcpp_py import ArgumentError, ProgressEvent, StableDiffusion
from sdcpp_py.progress import Part, Watch, bar

SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 3, "seed": 1, "progress": False}


@pytest.fixture(scope="module")
def sd() -> Iterator[StableDiffusion]:
    with StableDiffusion(progress=False) as made:
        yield made


def check_fractions(events: list[ProgressEvent]) -> None:
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert fractions[0] < 1.0
    assert [event.phase for event in events].count("done") == 1
    assert events[-1].phase == "done"


def test_events_of_loading() -> None:
    events: list[ProgressEvent] = []
    StableDiffusion(progress=events.append).close()
    check_fractions(events)
    assert {event.phase for event in events} == {"loading", "done"}
    read = [event.bytes for event in events if event.phase == "loading"]
    assert read == sorted(read)
    assert read[-1] > 10_000_000
    assert events[-2].step == events[-2].steps > 100


def test_events_of_drawing(sd: StableDiffusion) -> None:
    events: list[ProgressEvent] = []
    sd.txt2img("a", **{**SMALL, "progress": events.append}, batch_count=2)
    check_fractions(events)
    assert list(dict.fromkeys(event.phase for event in events)) == ["text", "sampling", "decoding", "done"]
    sampled = [(event.picture, event.step) for event in events if event.phase == "sampling" and event.steps]
    assert sampled == [(picture, step) for picture in (1, 2) for step in (0, 1, 2, 3)]
    assert {event.pictures for event in events[:-1]} == {2}
    assert 0 <= events[0].seconds <= events[-1].seconds


def test_events_of_a_second_pass_of_pictures_and_tiles(sd: StableDiffusion) -> None:
    events: list[ProgressEvent] = []
    hires = sdcpp_py.Hires(scale=2.0, upscaler="lanczos", steps=2)
    given = {**SMALL, "progress": events.append}
    sd.txt2img("a", **given, hires=hires, vae_tiling=sdcpp_py.Tiling(tile_size_x=8, tile_size_y=8))
    check_fractions(events)
    assert events[0].phase == "loading", "of the encoder"
    assert {event.picture for event in events if event.phase == "sampling"} == {1}, "twice"
    tiles = [event for event in events if event.phase == "decoding" and event.steps]
    assert tiles[-1].step == tiles[-1].steps > 1
    events.clear()
    sd.img2img("a", Image.new("RGB", (64, 64), "red"), strength=0.9, **given)
    check_fractions(events)
    phases = list(dict.fromkeys(event.phase for event in events))
    assert phases == ["encoding", "text", "sampling", "decoding", "done"], "the encoder is there"


def test_previews_stay_valid(sd: StableDiffusion) -> None:
    kept: list[Image.Image] = []

    def keep(event: ProgressEvent) -> None:
        if event.preview is not None:
            kept.append(event.preview)

    tiny = {**SMALL, "steps": 100, "cfg_scale": 1.0}
    sd.txt2img("a red circle", **{**tiny, "progress": keep}, preview="proj")
    assert len(kept) == 100
    assert {image.size for image in kept} == {(8, 8)}
    assert len({image.tobytes() for image in kept}) > 50
    kept.clear()
    again = sd.txt2img("a red circle", **{**SMALL, "steps": 5, "progress": keep}, preview="vae", preview_interval=2)
    assert [image.size for image in kept] == [(64, 64)] * 3, "steps 2, 4 and the last one"
    assert kept[-1].tobytes() == again[0].tobytes(), "the last one is the picture"


def test_previews_that_cannot_be(sd: StableDiffusion) -> None:
    for given, message in (
        ({"preview": "proj"}, r"^preview has no effect without progress=\.\.\."),
        ({"preview": "tae", "progress": print}, r"^preview 'tae' needs taesd="),
        ({"preview": "none", "progress": print}, r"^preview 'none' is unknown; valid: proj, tae, vae"),
        ({"preview_interval": 0}, "^preview_interval must be from 1"),
    ):
        with pytest.raises(ArgumentError, match=message):
            sd.txt2img("a", **{**SMALL, **given})


def test_an_exception_in_any_phase(sd: StableDiffusion) -> None:
    before = sd.txt2img("a", **SMALL)[0].tobytes()
    for phase in ("text", "sampling", "decoding", "done"):
        error = LookupError(phase)

        def fail(event: ProgressEvent, phase: str = phase, error: LookupError = error) -> None:
            if event.phase == phase:
                raise error

        with pytest.raises(LookupError) as caught:
            sd.txt2img("a", **{**SMALL, "progress": fail}, preview="proj")
        assert caught.value is error
        assert sd.txt2img("a", **SMALL)[0].tobytes() == before


def test_fractions_never_fall() -> None:
    """Whatever comes in whatever order."""
    events: list[ProgressEvent] = []
    watch = Watch(events.append, ("text", "sampling", "decoding"), 2, Part(1, 4))
    from sdcpp_py.engine import Step

    for step in (
        Step("sampling", 4, 4, 2, 2),
        Step("sampling", 0, 0, 1, 2),
        Step("text"),
        Step("unknown", 5, 3),
        Step("sampling", 9, 4, 9, 2),
        Step("decoding", 1, 2, 3, 2),
    ):
        watch(step)
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions)
    assert all(0.25 <= fraction <= 0.5 for fraction in fractions)


def test_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with bar("loading") as advance:
        assert advance is None, "nobody sees it"
    monkeypatch.setattr(sys, "stderr", Terminal())
    with bar("loading", False) as advance:
        assert advance is None
    with bar("loading") as advance:
        assert advance is not None
        for step in range(5):
            advance(ProgressEvent("sampling", step, 4, 2, 3))
    assert "sampling 2/3:   0%|          | 0/12" in sys.stderr.getvalue()  # type: ignore[attr-defined]


# --- one by one -------------------------------------------------------------------------------------------------------


def test_stream_draws_the_batch(sd: StableDiffusion) -> None:
    events: list[ProgressEvent] = []
    given = {**SMALL, "progress": events.append}
    batch = sd.txt2img("a", **given, batch_count=3)
    check_fractions(events)
    phases = [(event.phase, event.picture) for event in events if event.phase in ("sampling", "decoding")]
    each = [(phase, picture) for picture in (1, 2, 3) for phase in ("sampling", "decoding")]
    assert list(dict.fromkeys(phases)) == each, "decoded when it is sampled"
    events.clear()
    assert [image.tobytes() for image in sd.stream("a", **given, batch_count=3)] == [each.tobytes() for each in batch]
    check_fractions(events)
    assert {event.picture for event in events if event.phase == "sampling"} == {1, 2, 3}
    photo = Image.new("RGB", (64, 64), "red")
    (drawn,) = sd.stream("a", image=photo, strength=0.9, **SMALL)
    assert drawn.tobytes() == sd.img2img("a", photo, strength=0.9, **SMALL)[0].tobytes()


def test_what_is_finished_is_kept(sd: StableDiffusion) -> None:
    got: list[Image.Image] = []
    stop = {**SMALL, "progress": lambda event: event.picture == 3 and sd.cancel()}
    with pytest.raises(sdcpp_py.CancelledError) as caught:
        got.extend(sd.stream("a", **stop, batch_count=4))
    assert len(got) == 2
    assert list(caught.value.finished) == got

    class OwnError(Exception):
        pass

    def fail(event: ProgressEvent) -> None:
        if event.phase == "decoding" and event.picture == 3:
            raise OwnError

    batch = sd.txt2img("a", **SMALL, batch_count=3)
    with pytest.raises(sdcpp_py.CancelledError) as caught:  # pictures are decoded as they are sampled
        sd.txt2img("a", **stop, batch_count=4)
    assert [each.tobytes() for each in caught.value.finished] == [each.tobytes() for each in batch[:2]]
    for draw in (sd.txt2img, lambda *given, **options: list(sd.stream(*given, **options))):
        with pytest.raises(OwnError) as own:
            draw("a", **{**SMALL, "progress": fail}, batch_count=3)
        done = own.value.finished  # type: ignore[attr-defined]
        assert [each.tobytes() for each in done] == [each.tobytes() for each in batch[:2]]
        assert "Seed: 2" in done[1].info["parameters"]


def test_a_stream_of_nonsense(sd: StableDiffusion) -> None:
    photo = Image.new("RGB", (64, 64))
    with pytest.raises(ArgumentError, match=r"^no mode takes mask, prompt alone; txt2img: prompt; img2img: "):
        sd.stream("a", mask=photo)
    with pytest.raises(ArgumentError, match="^steps must be"):
        next(sd.stream("a", steps=0))
    with pytest.raises(TypeError, match="stepps"):
        next(sd.stream("a", stepps=1))


# --- awaited ----------------------------------------------------------------------------------------------------------


def test_calls_are_awaited(sd: StableDiffusion) -> None:
    photo = Image.new("RGB", (64, 64), "red")
    expected = sd.txt2img("a", **SMALL)[0].tobytes()

    async def work() -> list[bytes]:
        first, second = await asyncio.gather(sd.atxt2img("a", **SMALL), sd.aimg2img("a", photo, strength=0.9, **SMALL))
        streamed = [image async for image in sd.astream("a", **SMALL, batch_count=2)]
        return [first[0].tobytes(), second[0].tobytes(), *(image.tobytes() for image in streamed)]

    first, second, third, fourth = asyncio.run(work())
    assert first == third == expected
    assert second != first != fourth


def test_a_task_cancels_its_own_call(sd: StableDiffusion) -> None:
    expected = sd.txt2img("a", **SMALL)[0].tobytes()
    long = {**SMALL, "steps": 5000}

    async def work() -> float:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        long["progress"] = lambda event: loop.call_soon_threadsafe(begun.set)
        first = asyncio.create_task(sd.atxt2img("a", **long))
        await begun.wait()
        waiting = asyncio.create_task(sd.atxt2img("b", **long))
        other = asyncio.create_task(sd.atxt2img("a", **SMALL))
        await asyncio.sleep(0.05)
        begin = time.perf_counter()
        waiting.cancel()
        first.cancel()
        results = await asyncio.gather(first, waiting, return_exceptions=True)
        took = time.perf_counter() - begin
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        assert (await other)[0].tobytes() == expected, "it was not cancelled"
        with pytest.raises(ArgumentError):
            await sd.atxt2img("a", steps=0)
        return took

    assert asyncio.run(work()) < 10

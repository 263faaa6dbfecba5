"""Who hears how far a call is: the caller's own function, or a bar on a terminal or in a notebook."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import engine

if TYPE_CHECKING:
    from PIL import Image

SHARES = {"loading": 0.1, "encoding": 0.02, "text": 0.02, "sampling": 0.86, "decoding": 0.1}
"""What each phase counts of a call that has it, roughly as long as it takes."""


@dataclass(frozen=True)
class ProgressEvent:
    """How far a call is: one when a phase begins, one after each step, one when all is done.

    Attributes:
        phase: ``loading`` (of weights), ``encoding`` (of pictures that go in), ``text`` (encoding the prompts),
            ``sampling``, ``decoding``, of other calls ``upscaling`` or ``converting``; ``done`` at the end.
        step: of the phase: sampling steps of the picture, tiles while encoding and decoding, tensors while loading.
        steps: of how many; 0 where that is not known.
        picture: of a batch, counted from 1, in a second pass again. 0 where it is about none.
        pictures: of how many.
        seconds: since the call began.
        bytes: that were read while loading.
        fraction: of the whole call that is done, from 0 to 1; it never falls.
        frames: previews of the picture, or of the frames of a video, where they were asked for. They are the caller's.
    """

    phase: str
    step: int = 0
    steps: int = 0
    picture: int = 0
    pictures: int = 0
    seconds: float = 0.0
    bytes: int = 0
    fraction: float = 0.0
    frames: tuple[Image.Image, ...] = field(default=(), repr=False)

    @property
    def preview(self) -> Image.Image | None:
        """The preview, of a video that of its first frame; None where none was made at this step."""
        return self.frames[0] if self.frames else None


Progress = Callable[[ProgressEvent], object]


@dataclass(frozen=True)
class Part:
    """Which engine call of how many that count as one, and when the first of them began."""

    index: int = 0
    count: int = 1
    begin: float | None = None


WHOLE = Part()


class Watch:
    """Makes events of what the engine says of one call.

    Args:
        tell: who hears of them.
        phases: of the call, in their order.
        passes: how often each picture, or a video, is sampled.
        part: which call of how many this is: several that draw a picture each count as one.

    Attributes:
        previews: how many it has told of.
    """

    def __init__(self, tell: Progress, phases: Sequence[str], passes: int = 1, part: Part = WHOLE) -> None:
        self.previews = 0
        self._tell = tell
        self._passes = passes
        self._index, self._count = part.index, part.count
        self._begin = time.perf_counter() if part.begin is None else part.begin
        self._fraction = 0.0
        self._pass = self._last = 0
        self._sampled: dict[int, float] = {}
        whole = sum(SHARES.get(phase, 1.0) for phase in phases)
        self._shares = {phase: SHARES.get(phase, 1.0) / whole for phase in phases}
        self._done = dict.fromkeys(phases, 0.0)

    def _emit(self, **fields: Any) -> None:
        """Tell of an event."""
        fraction = (self._index + self._fraction) / self._count
        self._tell(ProgressEvent(seconds=time.perf_counter() - self._begin, fraction=fraction, **fields))

    def __call__(self, step: engine.Step) -> None:
        """Tell of what the engine says."""
        done = step.step / step.steps if step.steps > 0 else 0.0
        if step.picture and step.pictures:
            if step.phase == "sampling":  # several may be sampled side by side
                self._sampled[step.picture] = max(self._sampled.get(step.picture, 0.0), done)
                done = sum(self._sampled.values()) / (step.pictures * self._passes)
            else:
                done = (step.picture - 1 + done) / step.pictures
        elif step.phase == "sampling":  # of a video, once or by two models
            self._pass += step.step < self._last
            self._last = step.step
            done = (self._pass + done) / self._passes
        if step.phase in self._done:
            self._done[step.phase] = min(done, 1.0)
            for phase in self._done:
                if phase == step.phase:
                    break
                if step.pictures < 2 or phase != "sampling":  # pictures may be decoded before others are sampled
                    self._done[phase] = 1.0
        now = sum(share * self._done[phase] for phase, share in self._shares.items())
        self._fraction = max(self._fraction, min(now, 1.0))
        self.previews += bool(step.frames)
        self._emit(
            phase=step.phase,
            step=step.step,
            steps=step.steps,
            picture=step.picture and self._index + (step.picture - 1) % (step.pictures or 1) + 1,
            pictures=step.pictures * self._count,
            bytes=step.bytes,
            frames=_images(step.frames),
        )

    def done(self) -> None:
        """Tell that the call is done, if it is the last one."""
        self._fraction = 1.0
        if self._index + 1 == self._count:
            self._emit(phase="done")


def _images(frames: tuple[tuple[int, int, bytes], ...]) -> tuple[Image.Image, ...]:
    """Return previews as Pillow images."""
    if not frames:
        return ()
    from PIL import Image

    return tuple(Image.frombytes("RGB", (width, height), data) for width, height, data in frames)


def _is_shown(stream: Any) -> bool:
    """Tell whether a person sees a stream, which may be closed: a terminal, or a notebook's."""
    if "ipykernel" in sys.modules:
        return True
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False


@contextlib.contextmanager
def bar(label: str, wanted: bool | None = None) -> Iterator[Progress | None]:
    """Yield a callback that moves a bar, by the steps of each phase, or of all pictures; None where nobody sees it.

    Args:
        label: of the first phase.
        wanted: True for a bar in any case, False for none.
    """
    # There is none in a process without a console, and a program may have put anything in its place.
    if wanted is False or sys.stderr is None or (wanted is None and not _is_shown(sys.stderr)):
        yield None
        return
    if "ipykernel" in sys.modules and "ipywidgets" in sys.modules:
        from tqdm.notebook import tqdm_notebook as kind
    else:
        from tqdm import tqdm as kind  # type: ignore[assignment]

    shown: Any
    with kind(desc=label, leave=False, unit="step", file=sys.stderr) as shown:
        last = label
        sampled: dict[int, int] = {}  # steps of each picture of a batch, of which several may be under way

        def advance(event: ProgressEvent) -> None:
            nonlocal last
            done, total, label = event.step, event.steps, event.phase
            if event.pictures > 1:
                label += f" {event.picture}/{event.pictures}"
                if event.phase == "sampling":
                    if event.step < sampled.get(event.picture, 0):  # a second pass
                        sampled.clear()
                    sampled[event.picture] = event.step
                    before = (min(sampled) - 1) * event.steps  # of a stream
                    done, total = before + sum(sampled.values()), event.steps * event.pictures
                elif sampled:  # others are sampled yet
                    if not shown.desc.startswith(label):
                        shown.set_description(label)
                    return
            if not total:
                return
            shown.set_description(label, refresh=False)
            if (event.phase, total) != (last, shown.total) or done < shown.n:
                shown.reset(total)
            last = event.phase
            shown.update(done - shown.n)

        yield advance


def beside_bars() -> contextlib.AbstractContextManager[None]:
    """Return a context in which lines may be written to a terminal: bars are drawn again below them."""
    if "tqdm" not in sys.modules:
        return contextlib.nullcontext()
    from tqdm import tqdm

    return tqdm.external_write_mode()


@contextlib.contextmanager
def progress(
    wanted: bool | Progress | None, *phases: str, passes: int = 1, part: Part = WHOLE
) -> Iterator[Watch | None]:
    """Yield the callback for a call of the engine: it tells the caller's, moves a bar where one is seen, or is None.

    Args:
        wanted: the caller's function, True for a bar, False for nothing, None for a bar where a person sees it.
        phases: of the call, in their order.
        passes: how often each picture, or a video, is sampled.
        part: which call of how many this is: several that draw a picture each count as one.
    """
    with contextlib.ExitStack() as stack:
        tell = wanted if callable(wanted) else stack.enter_context(bar(phases[0], wanted))
        if tell is None:
            yield None
            return
        watch = Watch(tell, phases, passes, part)
        yield watch
        watch.done()

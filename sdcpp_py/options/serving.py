"""The options of the server."""

import functools
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypedDict

from ..errors import ArgumentError
from ..model_files import StrPath
from .checks import show
from .declare import Opt, Option, Range
from .kinds import Folder, Integer


class TextFile(Folder):
    """A file that is read as text."""

    metavar = "FILE"


class Processes(Integer):
    """How many processes, or the device of each."""

    metavar = "N|DEVICE,..."
    schema: ClassVar[Mapping[str, Any]] = {"type": ["integer", "string"]}

    def check(self, name: str, value: Any, option: Option) -> Any:
        """Return the number, or the names of devices."""
        if not isinstance(value, str):
            return super().check(name, value, option)
        if re.fullmatch(r"\s*\d+\s*", value):
            return super().check(name, int(value), option)
        if not value.strip(" ,"):
            raise ArgumentError(f"{name} must be a number or names of devices, not {show(value)}")
        return value

    def read(self, text: str, option: Option) -> Any:
        """Return the text, which may be either."""
        return text


_network = functools.partial(Opt, panel="Network")
_workers = functools.partial(Opt, panel="Workers")
_queue = functools.partial(Opt, panel="Queue")
_store = functools.partial(Opt, panel="Store")


class Network(TypedDict, total=False):
    """Who may speak to the server, and how much at once."""

    host: Annotated[
        str,
        _network("address to listen on; any but a loopback one needs a token", flags="--host --listen-ip",
                 default="127.0.0.1"),
    ]  # fmt: skip
    port: Annotated[
        int,
        Range(0, 65535),
        _network("port to listen on; 0 takes a free one", flags="--port --listen-port", default=7860),
    ]  # fmt: skip
    token_file: Annotated[
        StrPath | None,
        _network("file with the token that clients send, one a line, as NAME:TOKEN or TOKEN; the variable SDCPP_TOKEN "
                 "holds one, too", flags="--token-file", kind=TextFile()),
    ]  # fmt: skip
    allowed_hosts: Annotated[
        str,
        _network("names by which browsers may reach it besides its address, separated by commas",
                 flags="--allowed-hosts", default="", metavar="HOST,..."),
    ]  # fmt: skip
    cors_origins: Annotated[
        str,
        _network("origins of other pages that may call it, separated by commas", flags="--cors-origins", default="",
                 metavar="ORIGIN,..."),
    ]  # fmt: skip
    max_upload: Annotated[
        float,
        Range(0.001, 4096.0),
        _network("the largest request, in MiB", flags="--max-upload", default=64.0, metavar="MIB"),
    ]  # fmt: skip
    max_pixels: Annotated[
        float,
        Range(0.01, 268.0),
        _network("megapixels of the largest picture that goes in, and of all that one job draws",
                 flags="--max-pixels", default=32.0, metavar="MEGAPIXELS"),
    ]  # fmt: skip
    cancel_on_disconnect: Annotated[
        bool,
        _network("cancel a job when the client that waits for its pictures goes away", flags="--cancel-on-disconnect",
                 default=False),
    ]  # fmt: skip


class Served(TypedDict, total=False):
    """What draws."""

    models_file: Annotated[
        StrPath | None,
        _workers("file of the models by name (models.toml), with their options of loading", flags="--models",
                 kind=TextFile()),
    ]  # fmt: skip
    upscaler_dir: Annotated[
        StrPath | None,
        _workers("folder of upscalers, which requests call by their files' names",
                 flags="--upscaler-dir --hires-upscalers-dir", kind=Folder()),
    ]  # fmt: skip


class Working(Served, total=False):
    """The processes that draw."""

    workers: Annotated[
        int | str | None,
        Range(1, 256),
        _workers("processes that draw: how many, or the device of each, where a model names none: 2, cuda0,cuda1",
                 flags="--workers", kind=Processes(), engine_default="1, or one for each of the devices"),
    ]  # fmt: skip
    worker_devices: Annotated[
        str,
        _workers("devices of the processes in turn, where their number is given besides", flags="--worker-devices",
                 default="", metavar="DEVICE,..."),
    ]  # fmt: skip
    model_memory: Annotated[
        float | None,
        Range(0.0),
        _workers("GiB of weights that a process keeps; the model that was used least recently goes first",
                 flags="--model-memory", metavar="GIB", engine_default="half of the memory, shared by the processes"),
    ]  # fmt: skip
    hang_seconds: Annotated[
        float,
        Range(1.0),
        _workers("seconds without a step, a tile or a tensor after which a process counts as hung and is replaced",
                 flags="--hang-seconds", default=900.0, metavar="SECONDS"),
    ]  # fmt: skip


class Unloading(TypedDict, total=False):
    """When models that nobody uses go."""

    idle_unload: Annotated[
        float,
        Range(0.0),
        _workers("seconds after which a model that nobody uses is unloaded; 0 for never", flags="--idle-unload",
                 default=0.0, metavar="SECONDS"),
    ]  # fmt: skip


class Queueing(TypedDict, total=False):
    """Which jobs are taken, and how long they may take."""

    queue_size: Annotated[
        int,
        Range(1, 1_000_000),
        _queue("jobs that may wait; more are refused with 429", flags="--queue-size", default=1000),
    ]  # fmt: skip
    client_queue: Annotated[
        int | None,
        Range(1, 1_000_000),
        _queue("jobs of one client that may wait", flags="--client-queue", engine_default="as many as may wait in all"),
    ]  # fmt: skip
    job_seconds: Annotated[
        float,
        Range(1.0),
        _queue("seconds after which a job ends unfinished, waiting included, unless it says less", default=86400.0,
               flags="--job-seconds", metavar="SECONDS"),
    ]  # fmt: skip
    drain_seconds: Annotated[
        float,
        Range(0.0),
        _queue("seconds that jobs under way have left on SIGTERM; what is not done then is drawn after the next start",
               flags="--drain-seconds", default=60.0, metavar="SECONDS"),
    ]  # fmt: skip


class Storing(TypedDict, total=False):
    """Where jobs and pictures are kept."""

    store: Annotated[
        StrPath | None,
        _store("folder of the jobs and their pictures", flags="--store", kind=Folder(),
               engine_default="sdcpp-py/server in the user's folder for state"),
    ]  # fmt: skip
    store_limit: Annotated[
        float,
        Range(0.001),
        _store("GiB of pictures that are kept; the oldest go first", flags="--store-limit", default=10.0,
               metavar="GIB"),
    ]  # fmt: skip


class ServingOptions(Network, Working, Unloading, Queueing, Storing, total=False):
    """Every option of ``sdcpp serve`` besides those of loading a model."""

"""``sdcpp serve``: a server of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import BackendError
from ..options.declare import declared
from ..options.serving import ServingOptions
from .drawing import LOADING_FLAGS, Verbose, start_logging
from .flags import Flag, flags, options_of, take_flags
from .output import echo
from .sd_cli import PLACING

_OPTIONS = declared(ServingOptions)
_FLAGS = flags(_OPTIONS)


def _serve(verbose: Verbose = False, *, given: Mapping[Flag, Any]) -> None:
    """Serve pictures over HTTP: a queue, workers, the APIs of OpenAI, A1111 and sd-server, and our own."""
    start_logging(verbose)
    try:
        from ..server.serve import run
    except ImportError as error:
        raise BackendError(f'{error.name} is missing: pip install "sdcpp-py[server]"') from None
    from ..modes import LOADING

    own = options_of({flag: given[flag] for flag in _FLAGS if flag in given}, _OPTIONS)
    loading = options_of({flag: given[flag] for flag in LOADING_FLAGS if flag in given}, LOADING.declared)
    run(own, loading, lambda address: echo(f"serving on {address}"))


command: Callable[..., None] = take_flags(_serve, [*_FLAGS, *LOADING_FLAGS], PLACING)

"""Connections of clients, which are held to what comes before a request's body: its size, and in what time."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 << 10
"""Of a request's line and headers, besides what came with their first or their last byte."""
HEAD_SECONDS = 30.0
"""In which they must come, from the connection's or the request's first byte on."""


class Connection(HttpToolsProtocol):
    """Uvicorn's connection, with bounds for the head of a request, which it takes without any."""

    _late: asyncio.TimerHandle | None = None  # while a head is awaited
    _taken = 0

    def _await_head(self) -> None:
        self._taken = 0
        self._late = self.loop.call_later(HEAD_SECONDS, self._end_late)

    def _have_head(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end_late(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Await the first request."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Await nothing more."""
        self._have_head()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Await the rest of a request's head."""
        if self._late is None:
            self._await_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Leave the body to those who read it."""
        self._have_head()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Take what came, unless it is too much of a head."""
        awaited = self._late
        super().data_received(data)
        # What a head begins in may have the end of a body before it.
        if awaited is not None and self._late is awaited and not self.transport.is_closing():
            self._taken += len(data)
            if self._taken > HEAD_BYTES:
                self._have_head()
                self.send_400_response(f"the address and headers may have {HEAD_BYTES >> 10} KiB together")

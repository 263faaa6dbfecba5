"""What comes before a request's body: how much of it is taken, and how long it is awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn

from sdcpp_py.server import connection
from sdcpp_py.server.connection import HEAD_BYTES, Connection

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def served(work: Callable[[Callable[[], Awaitable[Streams]]], Awaitable[None]]) -> None:
    """Let some work connect to a server."""

    async def run() -> None:
        config = uvicorn.Config(answer, port=0, lifespan="off", log_config=None, http=Connection, ws="none")
        server = uvicorn.Server(config)
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            await asyncio.wait_for(work(lambda: asyncio.open_connection("127.0.0.1", port)), 60)
        finally:
            await server.shutdown()

    asyncio.run(run())


async def status(reader: asyncio.StreamReader) -> bytes:
    return (await reader.readline())[9:12]


def test_more_headers_than_a_request_has_are_not_taken() -> None:
    async def work(connect: Callable[[], Awaitable[Streams]]) -> None:
        for head in (HEAD + b"X-A: b\r\n" * 100_000, HEAD + b"X-A: " + b"b" * 1_000_000, b"GET /" + b"a" * 1_000_000):
            reader, writer = await connect()
            writer.write(head)
            assert await status(reader) == b"400"
            writer.close()
        reader, writer = await connect()
        for _ in range(3):  # each request has its own bound, and bodies have none here
            writer.write(HEAD + b"X-A: " + b"b" * (HEAD_BYTES - 100) + b"\r\nContent-Length: 200000\r\n\r\n")
            assert await status(reader) == b"200"
            writer.write(b"x" * 200_000)
            await reader.readuntil(b"ok")
        writer.close()

    served(work)


def test_heads_that_do_not_come_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)

    async def work(connect: Callable[[], Awaitable[Streams]]) -> None:
        silent, slow, used = [await connect() for _ in range(3)]
        slow[1].write(HEAD)
        used[1].write(HEAD + b"\r\n")
        await used[0].readuntil(b"ok")
        used[1].write(HEAD)
        for reader, writer in (silent, slow, used):
            assert await reader.read() == b""  # closed
            writer.close()

    served(work)

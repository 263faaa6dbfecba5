"""What the front and a worker say to each other through a pipe: a JSON object, and the bytes that go with it.

A frame is the length of the JSON text (4 bytes, big-endian), the text, and the bytes of its blobs, whose lengths the
text has under ``blobs``. No pickles: what one side sends cannot make the other run anything.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

_LENGTH = struct.Struct("!I")
_MOST_TEXT = 64 << 20
_MOST_BLOB = 4 << 30


class Frame(NamedTuple):
    """One message and its bytes."""

    message: dict[str, Any]
    blobs: tuple[bytes, ...] = ()


def pack(message: dict[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """Return a frame as bytes."""
    text = json.dumps({**message, "blobs": [len(blob) for blob in blobs]}).encode()
    return b"".join((_LENGTH.pack(len(text)), text, *blobs))


def _lengths(message: dict[str, Any]) -> list[int]:
    """Take the lengths of the blobs out of a message."""
    lengths = message.pop("blobs")
    if any(not 0 <= each <= _MOST_BLOB for each in lengths):
        raise ValueError("a blob of a frame is too long")
    return [int(each) for each in lengths]


def _checked(length: int) -> int:
    """Return the length of a text that is not too long."""
    if length > _MOST_TEXT:
        raise ValueError("the text of a frame is too long")
    return length


def read(file: IO[bytes]) -> Frame:
    """Return the next frame of a file.

    Raises:
        EOFError: the other side has closed it.
        ValueError: what came is no frame.
    """

    def exactly(count: int) -> bytes:
        data = file.read(count)
        if len(data) < count:
            raise EOFError
        return data

    message = json.loads(exactly(_checked(_LENGTH.unpack(exactly(_LENGTH.size))[0])))
    return Frame(message, tuple(exactly(each) for each in _lengths(message)))


async def receive(stream: asyncio.StreamReader) -> Frame:
    """Return the next frame of a stream; the errors are those of :func:`read`."""
    try:
        (length,) = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))
        message = json.loads(await stream.readexactly(_checked(length)))
        return Frame(message, tuple([await stream.readexactly(each) for each in _lengths(message)]))
    except (asyncio.IncompleteReadError, ConnectionError):
        raise EOFError from None

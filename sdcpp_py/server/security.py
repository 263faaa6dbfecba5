"""Who may speak to the server: hosts, tokens, origins, sizes of requests, and signed addresses of pictures."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ArgumentError

BODY_SECONDS = 600.0
"""In which all of a request's body must come."""
PAUSE_SECONDS = 30.0
"""Within that, without any of it."""
MOST_VALUES = 50_000
"""Of a request's JSON: each that is wrong is named in the answer, with what was given."""
_UNCOUNTED = ("multipart/", "image/", "video/", "application/octet-stream")  # types of bodies that are no JSON
_TOO_SLOW = "the rest of the body did not come in time; send it again"
OPEN_PATHS = frozenset({"/", "/api/health"})
"""What may be asked without a token: the page, which asks for one, and whether the server lives."""
_OPEN_FOLDER = "/page/"  # the files of the page
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
_SHORTEST_TOKEN = 16
_SIGNED_SECONDS = 3600
_HOST = re.compile(r"[\w.-]+|\[[0-9a-f:.]+\]")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([\w.-]+|\[[0-9a-f:.]+\])(:\d+)?")
_METHODS = "GET, HEAD, POST, DELETE, OPTIONS"
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; style-src 'self'; script-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Of content: nothing from elsewhere, no script within a page."""


def is_loopback(host: str) -> bool:
    """Tell whether an address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_tokens(file: str | os.PathLike[str] | None, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the tokens that clients may send: token -> name of the client.

    Raises:
        ArgumentError: the file cannot be read, or a token is too short to be one.
    """
    lines = []
    if file is not None:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise ArgumentError(f"token_file {os.fspath(file)} cannot be read") from None
    if environment.get("SDCPP_TOKEN"):
        lines.append(environment["SDCPP_TOKEN"])
    found = {}
    for number, line in enumerate(filter(None, map(str.strip, lines)), 1):
        name, _, token = line.rpartition(":")
        if len(token) < _SHORTEST_TOKEN:
            raise ArgumentError(f"token {number} has less than {_SHORTEST_TOKEN} characters; take a longer one")
        found[token] = name or f"token {number}"
    return found


@dataclass(frozen=True)
class Security:
    """Who may speak to the server.

    Attributes:
        tokens: token -> name of its client; none are needed where there are none.
        hosts: names in the Host header that are answered, without ports; empty for any.
        origins: of other pages that may call it.
        upload: bytes of the largest request.
        secret: signs addresses of pictures.
    """

    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    upload: int = 64 << 20
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def client_of(self, token: str) -> str | None:
        """Return the name of a token's client, None for no token; every token is compared, each in constant time."""
        found = None
        for known, name in self.tokens.items():
            if hmac.compare_digest(known.encode(), token.encode("utf-8", "surrogateescape")):
                found = name
        return found

    def sign(self, path: str) -> str:
        """Return a path with a signature, by which it may be got without a token for an hour."""
        end = int(time.time()) + _SIGNED_SECONDS
        return f"{path}?expires={end}&signature={self._signature(path, end)}"

    def _signature(self, path: str, end: int) -> str:
        return hmac.new(self.secret, f"{end} {path}".encode(), hashlib.sha256).hexdigest()

    def is_signed(self, path: str, query: str) -> bool:
        """Tell whether a query signs a path, now."""
        values = parse_qs(query)
        try:
            end, signature = int(values["expires"][0]), values["signature"][0]
        except (KeyError, ValueError):
            return False
        return time.time() < end and hmac.compare_digest(self._signature(path, end).encode(), signature.encode())


def make_security(
    host: str, tokens: Mapping[str, str], allowed_hosts: Iterable[str], origins: Iterable[str], upload: int
) -> Security:
    """Return who may speak to a server.

    Raises:
        ArgumentError: it would listen to other machines without a token, or a name or an origin is none, which would
            never be met.
    """
    if not tokens and not is_loopback(host):
        raise ArgumentError(
            f"--host {host} can be reached from other machines, which needs a token: --token-file, or SDCPP_TOKEN"
        )
    names = {each.strip().lower() for each in allowed_hosts if each.strip()}
    for name in names:
        if not _HOST.fullmatch(name):
            raise ArgumentError(f"--allowed-hosts {name[:64]!r} is no name of a host; write it without scheme and port")
    pages = {each.strip().lower() for each in origins if each.strip()}
    for page in pages:
        if not _ORIGIN.fullmatch(page):
            raise ArgumentError(
                f"--cors-origins {page[:64]!r} is no origin; write scheme, host and port, as https://app.example:8443"
            )
    # Where a token is needed a page of another name cannot call it, whatever the name leads to.
    hosts = frozenset({*_LOOPBACK, host.lower(), *names}) if names or not tokens else frozenset()
    return Security(dict(tokens), hosts, frozenset(pages), upload)


def _token(headers: Headers) -> str:
    """Return the token of a request: a bearer's, the password of basic authentication, or OpenAI's and Azure's key."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return ""
    return headers.get("api-key", "")


def _host(headers: Headers) -> str:
    """Return the name that a request calls the server by, without a port."""
    value = headers.get("host", "").lower()
    if value.startswith("["):
        return value.partition("]")[0] + "]"
    return value.partition(":")[0]


class Guard:
    """Refuses what may not be asked, before anything reads it; sets who asks as ``client`` in the scope's state.

    Args:
        app: what is guarded.
        security: who may speak to it.
    """

    def __init__(self, app: ASGIApp, security: Security) -> None:
        self._app = app
        self._security = security

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        safe = _safe_headers(headers, self._security.origins)
        if refusal is not None:
            await self._refuse(scope, receive, send, safe, *refusal)
            return
        if scope["method"] == "OPTIONS":
            plain = {key.decode(): value.decode() for key, value in safe}
            await Response(status_code=204, headers={**plain, "allow": _METHODS})(scope, receive, send)
            return
        is_head = scope["method"] == "HEAD" and not scope["path"].endswith("/events")  # which have no end
        if is_head:
            scope = {**scope, "method": "GET"}
        taken = values = 0
        begun = ended = False
        counted = not headers.get("content-type", "").lower().startswith(_UNCOUNTED)
        loop = asyncio.get_running_loop()
        end = loop.time() + BODY_SECONDS

        async def limited() -> Message:
            nonlocal taken, values, ended
            if ended:  # what follows is that the client goes away, for which there is time
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), min(PAUSE_SECONDS, end - loop.time()))
            except asyncio.TimeoutError:
                raise HTTPException(408, _TOO_SLOW, {"connection": "close"}) from None
            ended = not message.get("more_body", False)
            taken += len(message.get("body", b""))
            if taken > self._security.upload:
                raise HTTPException(413, self._too_large(), {"connection": "close"})
            if counted:
                values += sum(message.get("body", b"").count(sign) for sign in (b",", b"[", b"{"))
            if values > MOST_VALUES:
                said = f"a request may have {MOST_VALUES} values; send less at once"
                raise HTTPException(413, said, {"connection": "close"})
            return message

        async def told(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message["headers"], *safe]
            elif is_head and message["type"] == "http.response.body":
                message["body"] = b""
            try:
                await send(message)
            except RuntimeError as error:
                if "handler is closed" not in str(error):
                    raise
                # So says uvloop of a connection that ended meanwhile; whoever answers hears of it as of any other.

        try:
            await self._app(scope, limited, told)
        except HTTPException as error:
            if not begun:
                await self._refuse(scope, receive, send, safe, error.status_code, error.detail)

    def _too_large(self) -> str:
        return f"a request may have {self._security.upload >> 20} MiB; send smaller pictures"

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """Return the status and the message of a refusal, None for none; note who asks."""
        security = self._security
        client = headers.get("x-sdcpp-client", "")[:64]
        address = (scope.get("client") or ("local", 0))[0]
        scope.setdefault("state", {})["client"] = client or address
        if security.hosts and _host(headers) not in security.hosts:
            return 421, "this name of the server is not known; start it with --allowed-hosts"
        origin = headers.get("origin", "")
        if origin and origin.lower() not in security.origins and not _is_own(origin, headers):
            return 403, "pages of this origin may not call the server; start it with --cors-origins"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > security.upload:
            return 413, self._too_large()
        path = scope["path"]
        # A browser asks whether it may ask, without a token.
        is_open = path in OPEN_PATHS or path.startswith(_OPEN_FOLDER)
        if not security.tokens or is_open or scope["method"] == "OPTIONS":
            return None
        if scope["method"] in ("GET", "HEAD") and security.is_signed(path, scope["query_string"].decode("latin-1")):
            return None
        name = security.client_of(_token(headers))
        if name is None:
            return 401, "a token is needed: Authorization: Bearer TOKEN"
        scope["state"]["client"] = f"{name}/{client}" if client else name
        return None

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, safe: list[tuple[bytes, bytes]], status: int, message: str
    ) -> None:
        more = {"www-authenticate": 'Bearer realm="sdcpp", Basic realm="sdcpp"'} if status == 401 else {}
        body = {"error": {"type": "RefusedError", "message": message, "code": None, "param": None}, "detail": message}
        plain = {key.decode(): value.decode() for key, value in safe}
        # What is left of the request is not read.
        response = JSONResponse(body, status, headers={"connection": "close", **plain, **more})
        await response(scope, receive, send)


def _is_own(origin: str, headers: Headers) -> bool:
    """Tell whether an origin is the server's own, by the name that it was called by."""
    return origin.partition("://")[2] == headers.get("host", "")


def _safe_headers(asked: Headers, origins: frozenset[str]) -> list[tuple[bytes, bytes]]:
    """Return the headers that every answer has, refusals too: a page that may call is to read why it was refused."""
    headers = {
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
    }
    origin = asked.get("origin", "")
    if origin.lower() in origins:
        headers |= {
            "access-control-allow-origin": origin,
            "access-control-allow-methods": _METHODS,
            # Clients in browsers send headers of their own besides, as OpenAI's does; what is not known is not read.
            "access-control-allow-headers": asked.get("access-control-request-headers", "authorization, content-type"),
            "access-control-expose-headers": "retry-after",
            "access-control-max-age": "600",
            "cross-origin-resource-policy": "cross-origin",
            "vary": "origin, access-control-request-headers",
        }
    return [(key.encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]

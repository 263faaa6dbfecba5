"""Who may speak to the server, and what it takes from them."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from sdcpp_py.errors import ArgumentError
from sdcpp_py.server import security as guarding
from sdcpp_py.server.security import Guard, Security, is_loopback, make_security, read_tokens

TOKEN = "0123456789abcdef"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    body = await request.body()
    await PlainTextResponse(f"{scope['state']['client']} {len(body)}")(scope, receive, send)


def ask(security: Security, path: str = "/api/jobs", method: str = "GET", **more: Any) -> httpx.Response:
    async def work() -> httpx.Response:
        transport = httpx.ASGITransport(app=Guard(echo, security))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860") as client:
            return await client.request(method, path, **more)

    return asyncio.run(work())


def test_a_body_that_comes_by_half_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def half(pause: float) -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"x"
            await asyncio.sleep(pause)

    monkeypatch.setattr(guarding, "PAUSE_SECONDS", 0.1)
    assert ask(Security(), method="POST", content=half(0.0)).text == "127.0.0.1 4"
    late = ask(Security(), method="POST", content=half(5.0))
    assert (late.status_code, late.headers["connection"]) == (408, "close")
    assert "did not come in time" in late.json()["error"]["message"]
    monkeypatch.setattr(guarding, "BODY_SECONDS", 0.1)
    assert ask(Security(), method="POST", content=half(0.06)).status_code == 408


def test_bodies_of_too_many_values_are_not_read() -> None:
    many = "[" + "0," * guarding.MOST_VALUES + "0]"
    refused = ask(Security(), method="POST", content=many, headers={"content-type": "application/json"})
    assert refused.status_code == 413
    assert f"{guarding.MOST_VALUES} values" in refused.json()["error"]["message"]
    assert ask(Security(), method="POST", content=many).status_code == 413  # read as JSON where nothing is said
    for kind in ("image/png", "multipart/form-data; boundary=x"):
        assert ask(Security(), method="POST", content=many, headers={"content-type": kind}).status_code == 200
    assert ask(Security(), method="POST", content="0," * 10_000).status_code == 200


def test_other_machines_need_a_token() -> None:
    with pytest.raises(ArgumentError, match="needs a token"):
        make_security("0.0.0.0", {}, [], [], 1000)
    assert [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "example.org")] == [True] * 3 + [
        False
    ] * 2
    security = make_security("0.0.0.0", {TOKEN: "me"}, [], [], 1000)
    assert TOKEN not in repr(security)
    basic = base64.b64encode(f"user:{TOKEN}".encode()).decode()
    for headers, status in (
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Basic ???"}, 401),
        ({"authorization": f"Bearer {TOKEN}é"}, 401),
        ({"authorization": f"Bearer {TOKEN}"}, 200),
        ({"authorization": f"Basic {basic}"}, 200),
        ({"api-key": TOKEN}, 200),
    ):
        answer = ask(security, headers={key: value.encode() for key, value in headers.items()})
        assert answer.status_code == status, headers
        assert answer.text == "me 0" or "a token is needed" in answer.text
    opened = {path: ask(security, path).status_code for path in ("/api/health", "/", "/page/main.js", "/pages")}
    assert [path for path, status in opened.items() if status == 200] == ["/api/health", "/", "/page/main.js"]


def test_pictures_have_signed_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    security = make_security("0.0.0.0", {TOKEN: "me"}, [], [], 1000)
    path = "/api/jobs/1/pictures/0"
    signed = security.sign(path)
    assert ask(security, signed).status_code == 200
    for wrong in (
        path,
        signed[:-1] + ("0" if signed[-1] != "0" else "1"),
        signed.replace("/0?", "/1?"),
        f"{path}?expires=x&signature=y",
    ):
        assert ask(security, wrong).status_code == 401
    assert ask(security, signed, "POST").status_code == 401
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    assert ask(security, signed).status_code == 401


def test_pages_of_others_are_kept_out() -> None:
    """By the name that they call the server by, and by where they are from."""
    security = make_security("127.0.0.1", {}, ["pictures.example"], ["https://app.example"], 1000)
    for host, status in (
        ("127.0.0.1:7860", 200),
        ("localhost", 200),
        ("[::1]:1", 200),
        ("pictures.example", 200),
        ("evil.example", 421),
    ):
        assert ask(security, headers={"host": host}).status_code == status
    assert ask(security, headers={"origin": "https://evil.example"}).status_code == 403
    assert ask(security, "/", "OPTIONS", headers={"origin": "https://evil.example"}).status_code == 403
    assert ask(security, headers={"origin": "http://127.0.0.1:7860"}).status_code == 200
    answer = ask(security, "/", "OPTIONS", headers={"origin": "https://app.example"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (204, "https://app.example")
    assert "access-control-allow-origin" not in ask(security).headers
    # A page that may call reads why it was refused, and sends headers of its client's own.
    security = make_security("0.0.0.0", {TOKEN: "me"}, [], ["https://App.example"], 1000)
    own = {"origin": "https://app.example", "access-control-request-headers": "authorization,x-stainless-lang"}
    refused = ask(security, headers=own)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://app.example")
    allowed = ask(security, "/v1/images/generations", "OPTIONS", headers=own).headers["access-control-allow-headers"]
    assert allowed == "authorization,x-stainless-lang"
    for origin in ("*", "https://app.example/", "app.example"):  # which would never be met
        with pytest.raises(ArgumentError, match="is no origin"):
            make_security("127.0.0.1", {}, [], [origin], 1000)
    with pytest.raises(ArgumentError, match="without scheme and port"):
        make_security("127.0.0.1", {}, ["pictures.example:8443"], [], 1000)


def test_head_is_get_without_a_body() -> None:
    answer = ask(Security(), method="HEAD")
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "11", b"")
    security = make_security("0.0.0.0", {TOKEN: "me"}, [], [], 1000)
    assert ask(security, security.sign("/api/jobs/1/pictures/0"), "HEAD").status_code == 200
    assert ask(security).headers["x-content-type-options"] == "nosniff"


def test_requests_have_a_largest_size() -> None:
    security = make_security("127.0.0.1", {}, [], [], 1000)
    assert ask(security, "/", "POST", content=b"x" * 1000).text.endswith(" 1000")
    assert ask(security, "/", "POST", content=b"x" * 1001).status_code == 413

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"x" * 100

    # Without a length: what comes is counted.
    assert ask(security, "/", "POST", content=parts()).status_code == 413
    assert ask(security, headers={"content-length": "-1"}).status_code == 413


def test_tokens_are_read_from_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"alice:{TOKEN}\n\n{TOKEN}2\n")
    assert read_tokens(file, {"SDCPP_TOKEN": f"{TOKEN}3"}) == {
        TOKEN: "alice",
        f"{TOKEN}2": "token 2",
        f"{TOKEN}3": "token 3",
    }
    assert read_tokens(None, {}) == {}
    file.write_text("short")
    with pytest.raises(ArgumentError, match="less than 16") as caught:
        read_tokens(file, {})
    assert "short" not in str(caught.value)
    with pytest.raises(ArgumentError, match="cannot be read"):
        read_tokens(tmp_path / "none", {})


def test_a_client_that_is_gone_is_no_failure_of_the_server() -> None:
    """uvloop says it by an error of its own, which would be in the log with a traceback for each."""

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def gone(message: Any) -> None:
        raise RuntimeError(f"unable to perform operation on <TCPTransport>; the {said}")

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")], "query_string": b""}
    said = "handler is closed"
    asyncio.run(Guard(echo, Security())(dict(scope), receive, gone))
    said = "sky fell"
    with pytest.raises(RuntimeError, match="sky fell"):
        asyncio.run(Guard(echo, Security())(dict(scope), receive, gone))

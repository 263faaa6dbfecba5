"""The page's files, as the server gives them."""

from __future__ import annotations

import re

import httpx

from sdcpp_py.server.api.page import FOLDER
from sdcpp_py.server.security import POLICY
from support.server import Server

LIMIT = 200_000  # bytes of the page


def refers_to(name: str, text: str) -> set[str]:
    """Return the files of the page that one of them refers to."""
    if name.endswith(".js"):
        return {each[2:] for each in re.findall(r'from "(\./[^"]+)"', text)}
    return {each.removeprefix("page/") for each in re.findall(r'(?:src|href)="(?!#)([^"]+)"', text)}


def test_files_are_served_and_nothing_else(server: Server) -> None:
    """Each is there and is what browsers take it for, none comes from elsewhere, none holds what the policy forbids."""
    seen: dict[str, int] = {}
    open_ones = {"index.html"}
    while open_ones:
        name = open_ones.pop()
        answer = httpx.get(f"{server.url}/" if name == "index.html" else f"{server.url}/page/{name}")
        assert answer.status_code == 200, name
        assert answer.headers["content-security-policy"] == POLICY
        kind = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
        assert answer.headers["content-type"] == f"{kind[name.rpartition('.')[2]]}; charset=utf-8"
        again = httpx.get(answer.url, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        seen[name] = len(answer.content)
        text = answer.text
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), f"{name} asks another server"
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=\"|\sstyle=\"|javascript:", text), name
        assert not re.search(r"\beval\(|new Function|innerHTML|insertAdjacentHTML|document\.write", text), name
        open_ones |= refers_to(name, text) - seen.keys()
    assert seen.keys() == {each.name for each in FOLDER.iterdir()}, "a file that nothing refers to"
    preloaded = set(re.findall(r'modulepreload" href="page/([^"]+)"', (FOLDER / "index.html").read_text()))
    assert preloaded == {name for name in seen if name.endswith(".js")} - {"main.js"}
    assert sum(seen.values()) < LIMIT
    for path in ("/page/../page.py", "/page/..%2fapp.py", "/page/", "/page/none.js"):
        assert httpx.get(server.url + path).status_code == 404
    assert "script-src 'self';" in POLICY
    assert "unsafe" not in POLICY


def test_what_forms_are_made_of(server: Server) -> None:
    """Models say their modes, the one that was never loaded of another file says that it is not known."""
    found = {each["name"]: each["modes"] for each in server.http.get("/api/models").json()}
    assert found == {"embedded": ["txt2img", "img2img", "inpaint"], "other": found["embedded"], "tiny": ["upscale"]}
    modes = server.http.get("/api/modes").json()
    assert modes["txt2img"]["formats"][0] == "png"
    assert modes["txt2vid"]["formats"][0] == "webp"
    for name, mode in modes.items():
        assert all(each["title"] for each in mode["options"]["properties"].values()), name

"""The page in a browser: what a person does with it, and what there is to see then."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python.sync_playwright as axe
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import expect

from .server import Server


def ready(page: Any) -> Any:
    page.wait_for_selector("html[data-ready]")
    return page


def prompt(page: Any) -> Any:
    return page.get_by_label("Prompt", exact=True)


def mode(page: Any, name: str) -> None:
    page.locator("#modes label", has_text=re.compile(f"^{name}$")).click()


@contextlib.contextmanager
def asked(page: Any) -> Iterator[None]:
    """Wait until what is done inside has asked for a job, and that is shown."""
    is_job = lambda answer: answer.url.endswith("/api/jobs") and answer.request.method == "POST"  # noqa: E731
    with page.expect_response(is_job) as response:
        yield
    expect(page.locator("#stage")).to_have_attribute("data-job", response.value.json()["id"])


def draw(page: Any, text: str = "") -> None:
    if text:
        prompt(page).fill(text)
    with asked(page):
        page.locator("#draw").click()


def option(page: Any, panel: str, label: str, value: str) -> None:
    """Give an option a value, in its panel."""
    details = page.locator("details", has=page.locator(f"summary >> text='{panel}'"))
    if details.get_attribute("open") is None:
        details.locator("summary").click()
    details.get_by_label(label, exact=True).fill(value)


def done(page: Any, count: int = 1) -> list[np.ndarray]:
    """Wait until pictures are shown, and return their pixels."""
    expect(page.locator("#stage [role=status]").first).to_contain_text(re.compile("^It failed| in "), timeout=15_000)
    expect(page.locator("#stage [role=status]").first).not_to_contain_text("It failed")
    images = page.locator("#stage figure img")
    expect(images).to_have_count(count)
    paths = page.evaluate("() => [...document.querySelectorAll('#stage figure img')].map((each) => each.src)")
    return [
        np.asarray(Image.open(io.BytesIO(page.request.get(path).body())).convert("RGB")).astype(int) for path in paths
    ]


def newest(site: Server) -> dict[str, Any]:
    return dict(site.http.get("/api/jobs", params={"limit": 1}).json()["jobs"][0])


def drop(page: Any, data: bytes, name: str = "picture.png", on: str = "body") -> None:
    """Drop a picture, as a browser's own event."""
    page.evaluate(
        """([on, data, name]) => {
            const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
            const file = new File([bytes], name, { type: "image/png" });
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(file);
            const event = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
            document.querySelector(on).dispatchEvent(event);
        }""",
        [on, base64.b64encode(data).decode(), name],
    )


def png(image: Image.Image, text: str = "") -> bytes:
    info, buffer = PngInfo(), io.BytesIO()
    if text:
        info.add_text("parameters", text)
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def look(page: Any, name: str) -> None:
    """Keep a picture of the page where the variable SCREENSHOTS names a folder, for people to look at."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def sound(page: Any, where: str) -> None:
    """Check that axe finds nothing serious."""
    found = axe.Axe().run(page).response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    told = [
        (each["id"], [node["target"] for node in each["nodes"]], each["nodes"][0]["failureSummary"]) for each in serious
    ]
    assert not told, f"{where}: {told}"

"""The page in a browser, as a person uses it.

Needs a Chromium of the system, or the one that the variable CHROMIUM names, and the dependency group ``page``.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdcpp_py.server.api.page import FOLDER
from support.checkpoints import write_checkpoint
from support.server import Server, serving

pytestmark = pytest.mark.slow
api = pytest.importorskip("playwright.sync_api", reason="playwright is not there: pip install --group page")
pytest.importorskip("axe_playwright_python", reason="axe is not there: pip install --group page")

from support.page import asked, done, draw, drop, look, mode, newest, option, png, prompt, ready, sound  # noqa: E402

expect = api.expect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
DESK = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium is found: install one, or name it in the variable CHROMIUM")
    with api.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, parts: Path) -> Iterator[Server]:
    """A server of its own, whose history holds what these tests draw."""
    folder = tmp_path_factory.mktemp("site")
    loras = Path(__file__).parents[1] / "data"
    tables = [f'[models.embedded]\nlora_model_dir = "{loras}"\ndefaults = {{ width = 64, height = 64, steps = 4 }}\n']
    for family in ("flux", "wan_t2v"):
        file = write_checkpoint(family, folder / f"{family}.safetensors", tiny=True)["model"]
        tables.append(f'[models."{family}"]\nmodel = "{file}"\nthreads = 1\n')
    tables.append(f'[upscalers.twice]\nmodel = "{parts / "upscaler.safetensors"}"\n')
    (folder / "models.toml").write_text("\n".join(tables))
    with serving(folder / "store", "--models", str(folder / "models.toml")) as running:
        yield running


@pytest.fixture
def opened(browser: Any, site: Server) -> Iterator[Open]:
    """A function that opens the page; what the console complains of, as of the policy, fails the test."""
    contexts, said = [], []

    def open_page(url: str = "", **options: Any) -> Any:
        context = browser.new_context(**{**DESK, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url or site.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    # The browser itself tells of what the server refuses, which the page is tested to say.
    assert [each for each in said if "status of 40" not in each and "net::ERR" not in each] == []


def test_first_picture(opened: Open, site: Server) -> None:
    """One press from the opened page to a picture; then a batch, with previews, and what it took."""
    took = []
    for _ in range(3):  # on a busy machine, and the first with a browser that has just begun
        page = ready(opened())
        took.append(page.evaluate("() => performance.getEntriesByName('usable')[0].startTime"))
    size = sum(each.stat().st_size for each in FOLDER.iterdir())
    print(f"\nusable after {', '.join(f'{each:.0f}' for each in took)} ms, {size} bytes of files")
    assert min(took) < 1000
    sound(page, "welcome")
    look(page, "welcome")
    page.locator(".chip").first.click()
    done(page)
    page.get_by_role("button", name="Remove").click()
    expect(page.locator(".welcome")).to_be_visible()
    option(page, "Picture", "Batch count", "2")
    option(page, "Sampling", "Steps", "12")
    option(page, "Sampling", "Seed", str(2**63 - 2))  # more than JavaScript's own numbers hold
    draw(page, "a red circle on a white background")
    expect(page.locator("img.preview")).to_be_visible()
    expect(page.locator("#stage")).to_contain_text("Sampling")
    assert 0 < page.locator("progress").evaluate("(each) => each.value") < 1
    first, second = done(page, 2)
    assert (first != second).any()
    job = newest(site)
    assert job["options"]["seed"] == 2**63 - 2
    assert job["seeds"] == [2**63 - 2, 2**63 - 1]
    assert job["options"]["preview"] == "proj"
    expect(page.locator("figcaption")).to_have_text([f"seed {2**63 - 2}", f"seed {2**63 - 1}"])
    expect(page.locator(".report")).to_contain_text("resident")
    expect(page.locator(".report")).to_contain_text("sampling")
    page.locator("figure button").nth(1).click()
    page.get_by_role("button", name="Again", exact=True).click()
    draw(page)
    expect(page.locator("#stage figure")).to_have_count(1)
    assert (done(page)[0] == second).all()
    assert newest(site)["options"]["seed"] == 2**63 - 1


def test_cancel_and_queue(opened: Open, site: Server) -> None:
    """What is under way is cancelled, and what waits is drawn and shown by itself."""
    page = ready(opened())
    option(page, "Sampling", "Steps", "5000")
    draw(page, "a long one")
    expect(page.locator("#stage")).to_contain_text("Sampling")
    option(page, "Sampling", "Steps", "4")
    prompt(page).fill("a short one")
    page.locator("#draw").click()
    expect(page.locator("#waiting")).to_have_text("1 more job to come")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#stage .prompt")).to_have_text("a short one", timeout=5000)
    done(page)
    expect(page.locator("#waiting")).to_be_empty()
    expect(page.locator(".tiles .cancelled")).to_have_count(1)
    states = {each["options"]["prompt"]: each["state"] for each in site.http.get("/api/jobs?limit=2").json()["jobs"]}
    assert states == {"a long one": "cancelled", "a short one": "done"}
    # What the server refuses is said, and the field is shown.
    mode(page, "Picture")
    page.locator("#draw").click()
    expect(page.locator("#notice")).to_contain_text("Choose a picture")
    mode(page, "Text")
    option(page, "Sampling", "Seed", "-2")
    page.locator("#draw").click()
    expect(page.locator("#notice")).to_contain_text("seed: must be from -1")


def test_painted_mask(opened: Open, site: Server) -> None:
    """What is painted over is drawn anew, what was undone or erased is not, and all else stays to the pixel."""
    page = ready(opened())
    draw(page, "a red circle on a white background")
    (before,) = done(page)
    page.get_by_role("button", name="Paint over it").click()
    mask = page.locator("canvas.mask")
    mask.scroll_into_view_if_needed()

    def stroke(*points: tuple[float, float]) -> None:
        box = mask.bounding_box()
        for index, (x, y) in enumerate(points):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
            if index == 0:
                page.mouse.down()
        page.mouse.up()

    def painted() -> float:
        return float(mask.evaluate(
            """(each) => {
                const { width, height } = each;
                const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
                copy.drawImage(each, 0, 0);
                const { data } = copy.getImageData(0, 0, width, height);
                return data.filter((value, index) => index % 4 === 3 && value > 127).length / (width * height);
            }"""
        ))  # fmt: skip

    stroke((0.2, 0.2), (0.8, 0.2))
    top = painted()
    assert 0.05 < top < 0.3
    stroke((0.2, 0.8), (0.8, 0.8))
    assert painted() > 1.5 * top
    page.get_by_role("button", name="Undo").click()
    assert painted() == top
    page.get_by_role("button", name="Redo").click()
    assert painted() > 1.5 * top
    page.get_by_role("button", name="Eraser").click()
    page.get_by_label("Size", exact=True).fill("16")
    stroke((0.1, 0.8), (0.9, 0.8))
    assert painted() == pytest.approx(top, abs=0.01)
    look(page, "inpaint")
    sound(page, "inpaint")
    page.get_by_role("button", name="Larger").click()
    sound(page, "the mask as large as the window")
    page.get_by_role("button", name="Done").click()
    option(page, "Pictures in", "Strength", "1")
    draw(page, "a blue star on a black background")
    expect(page.locator("#stage .prompt")).to_have_text("a blue star on a black background")
    (after,) = done(page)
    job = newest(site)
    assert (job["mode"], job["options"]["strength"]) == ("inpaint", 1)
    changed = np.abs(after - before).max(axis=2) > 0
    assert changed[13, 20:44].mean() > 0.9
    assert not changed[32:].any()


def test_dropped_pictures(opened: Open, site: Server) -> None:
    """Ours is drawn again to the pixel, another program's is read, one that says nothing is begun with."""
    page = ready(opened())
    option(page, "Sampling", "Seed", "77")
    option(page, "Guidance", "CFG scale", "4.5")
    draw(page, "two small pink hearts on a gray background")
    (wanted,) = done(page)
    file = site.http.get(newest(site)["pictures"][0]).content
    page.get_by_role("button", name="Reset options").click()
    prompt(page).fill("something else")
    drop(page, file)
    expect(page.locator("#notice")).to_contain_text("picture.png are in the form")
    expect(prompt(page)).to_have_value("two small pink hearts on a gray background")
    draw(page)
    (again,) = done(page)
    assert (again == wanted).all()
    assert newest(site)["options"]["cfg_scale"] == 4.5
    told = "a green moon\nNegative prompt: a sun\nSteps: 7, Sampler: Euler a, Size: 64x64, Face restoration: CodeFormer"
    drop(page, png(Image.new("RGB", (64, 64)), told), "other.png")
    expect(prompt(page)).to_have_value("a green moon")
    expect(page.get_by_label("Negative prompt")).to_have_value("a sun")
    expect(page.locator("#notice")).to_contain_text("CodeFormer")
    expect(page.locator("[data-panel=Sampling] [data-name=steps] input")).to_have_value("7")
    expect(page.locator("[data-name=sampler] select")).to_have_value("euler_a")
    drop(page, png(Image.new("RGB", (64, 64), "red")), "plain.png")
    expect(page.locator("#notice")).to_contain_text("plain.png says nothing")
    expect(page.get_by_role("radio", name="Picture")).to_be_checked()
    expect(page.locator("[data-name=image] .thumbs li")).to_contain_text("64")
    drop(page, b"no picture", "broken.png")
    expect(page.locator("#notice")).to_contain_text("no picture")


def test_again_brings_what_went_in(opened: Open, site: Server) -> None:
    """The picture and the mask of an earlier job are in the form, so that it is drawn again to the pixel."""
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    photo, painted = (base64.b64encode(png(each)).decode() for each in (Image.new("RGB", (64, 64), "teal"), mask))
    sides = {"width": None, "height": None}
    job = site.submit("inpaint", prompt="a gold ring", image=photo, mask=painted, seed=4, mask_blur=0, **sides)
    site.wait(job["id"])
    page = ready(opened())
    page.locator(".tiles button", has_text="a gold ring").click()
    (wanted,) = done(page)
    page.get_by_role("button", name="Again", exact=True).click()
    expect(page.locator("[data-name=image] .thumbs li")).to_have_count(1)
    draw(page)
    (drawn,) = done(page)
    assert (drawn == wanted).all()
    assert newest(site)["id"] != job["id"]


def test_history(opened: Open, site: Server) -> None:
    """Jobs of others appear by themselves, words find them, and one that is chosen is shown."""
    page = ready(opened())
    job = site.submit(prompt="an Orange cross", batch_count=2)
    site.wait(job["id"])
    expect(page.locator(".tiles button", has_text="an Orange cross")).to_contain_text("2")
    draw(page, "a purple ring")
    done(page)
    page.get_by_label("Search").fill("orange CROSS")
    expect(page.locator(".tiles li")).to_have_count(1)
    expect(page.locator("#history [role=status]")).to_contain_text("1 with")
    page.locator(".tiles button").click()
    done(page, 2)
    page.locator("summary", has_text="Parameters").last.click()
    expect(page.locator(".parameters")).to_contain_text(str(site.job(job["id"])["seeds"][0]))
    page.get_by_role("button", name="Enlarge").click()
    expect(page.locator("dialog [role=status]")).to_contain_text("1 of 2")
    page.keyboard.press("ArrowRight")
    expect(page.locator("dialog [role=status]")).to_contain_text("2 of 2")
    sound(page, "enlarged")
    page.keyboard.press("Escape")
    page.get_by_label("Search").fill("nothing like that")
    expect(page.locator("#history [role=status]")).to_contain_text("Nothing with")
    page.get_by_role("button", name="Remove").click()
    expect(page.locator(".welcome")).to_be_visible()
    page.get_by_label("Search").fill("")
    expect(page.locator(".tiles button", has_text="a purple ring")).to_be_visible()
    expect(page.locator(".tiles button", has_text="an Orange cross")).to_have_count(0)
    page.reload()
    ready(page)
    expect(prompt(page)).to_have_value("a purple ring")


def test_below_a_path_of_a_proxy(opened: Open, site: Server) -> None:
    """A proxy puts the page under a path of its own, and takes it off; a prompt is written in its own direction."""
    page = ready(opened())
    below = f"{site.url}/pictures/"
    page.context.route(f"{below}**", lambda route: route.continue_(url=route.request.url.replace("/pictures/", "/", 1)))
    asked_for: list[str] = []
    page.on("request", lambda request: asked_for.append(request.url))
    page.goto(below)
    ready(page)
    option(page, "Sampling", "Steps", "2")
    draw(page, "עיגול אדום")
    page.wait_for_function("() => document.querySelector('#stage figure img')?.naturalWidth > 0")
    assert [url for url in asked_for if not url.startswith((below, "blob:", "data:"))] == []
    direction = "(each) => getComputedStyle(each).direction"
    for element in (prompt(page), page.locator("#stage .prompt"), page.locator(".tiles .text").first):
        assert element.evaluate(direction) == "rtl"


def test_keyboard_alone(opened: Open, site: Server) -> None:
    """From the opened page to a painted mask, and to a cancel, without a pointer; where the focus is can be seen."""
    page = ready(opened())
    press = page.keyboard.press

    def tab_to(matches: str, back: bool = False) -> None:
        for _ in range(80):
            if page.evaluate(f"() => document.activeElement.matches({json.dumps(matches)})"):
                return
            press("Shift+Tab" if back else "Tab")
        raise AssertionError(f"{matches} is not reached by the keyboard")

    expect(prompt(page)).to_be_focused()
    page.keyboard.type("a yellow diamond")
    with asked(page):
        press("Control+Enter")
    (before,) = done(page)
    tab_to("#stage .tools button:nth-of-type(3)")
    press("Enter")  # paint over it
    expect(page.locator("[data-name=image] .thumbs li")).to_have_count(1)
    tab_to("canvas.mask", back=True)
    look_at = "() => getComputedStyle(document.activeElement.closest('.board')).outlineStyle"
    assert page.evaluate(look_at) == "solid"
    for _ in range(6):
        press("ArrowUp")
    press("Space")
    for _ in range(4):
        press("ArrowRight")
    press("Space")
    press("Control+z")
    press("Control+y")
    press("ArrowLeft")
    with asked(page):
        press("Control+Enter")
    (after,) = done(page)
    assert newest(site)["mode"] == "inpaint"
    assert 0 < (np.abs(after - before).max(axis=2) > 0).mean() < 0.5
    tab_to("#modes input", back=True)
    press("ArrowLeft")
    press("ArrowLeft")
    expect(page.get_by_role("radio", name="Text")).to_be_checked()
    page.locator("summary", has_text="Sampling").focus()
    press("Enter")
    tab_to("[data-name=steps] input")
    page.keyboard.type("5000")
    press("Enter")  # within the form: Draw
    expect(page.locator("#stage .cancel")).to_be_visible()
    tab_to("#stage .cancel")
    press("Space")
    expect(page.locator("#stage [role=status]")).to_have_text("Cancelled")


def test_other_modes(opened: Open, site: Server) -> None:
    """Another model brings its own modes: reference pictures, videos; LoRAs are chosen by name."""
    page = ready(opened())
    page.locator("summary", has_text="LoRA").click()
    name = page.locator("[data-name=loras] option").nth(1).text_content()
    page.get_by_label("LoRAs").select_option(name)
    page.get_by_label(f"Strength of {name}").fill("0.5")
    draw(page, "a white moon")
    expect(page.locator("#stage [role=status]").first).not_to_contain_text("Sampling")
    assert newest(site)["options"]["loras"] == [{"path": name, "multiplier": 0.5}]
    page.get_by_role("button", name=f"Remove {name}").click()
    page.get_by_role("button", name="Upscale it").click()
    expect(page.locator("#model")).to_have_value("twice")
    expect(page.locator("[data-name=image] .thumbs li")).to_have_count(1)
    draw(page)
    expect(page.locator("#stage [role=status]").first).to_have_text("1 picture")
    expect(page.locator(".report")).to_contain_text("resident")
    page.locator("#model").select_option("flux")
    mode(page, "Edit")
    two = [
        {"name": f"{each}.png", "mimeType": "image/png", "buffer": png(Image.new("RGB", (64, 64), each))}
        for each in ("red", "blue")
    ]
    page.locator("[data-name=images] input").set_input_files(two)
    expect(page.locator("[data-name=images] li")).to_have_count(2)
    page.get_by_role("button", name="Move picture 2 forward").click()
    option(page, "Sampling", "Steps", "1")
    option(page, "Picture", "Width", "64")
    option(page, "Picture", "Height", "64")
    draw(page, "at night")
    done(page)
    assert (newest(site)["mode"], newest(site)["options"]["images"]) == ("edit", [0, 1])
    expect(page.get_by_role("radio", name="Video")).to_have_count(0)  # what it has is known now
    page.locator("#model").select_option("wan_t2v")
    mode(page, "Video")
    option(page, "Picture", "Width", "32")
    option(page, "Picture", "Height", "32")
    page.locator("[data-name=frames] input").fill("5")
    draw(page, "waves")
    done(page)
    expect(page.locator("#stage")).to_contain_text("1 video in")
    expect(page.get_by_role("radio", name="Edit")).to_have_count(0)
    page.get_by_role("button", name="Server").click()
    page.get_by_role("button", name="Unload wan_t2v").click()
    expect(page.locator("dialog tr", has_text="wan_t2v")).to_contain_text("not loaded")
    sound(page, "server")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [DESK, PHONE], ids=["desk", "phone"])
def test_looks(opened: Open, site: Server, scheme: str, screen: dict[str, Any]) -> None:
    """In light and dark, on a desk and on a phone: sound, and no wider than the window; also what was streamed."""
    site.wait(site.submit(prompt="a green star", batch_count=4, seed=3)["id"])
    page = ready(opened(color_scheme=scheme, **screen))
    done(page, 4)
    name = f"{scheme}_{screen['viewport']['width']}"
    page.evaluate("() => document.querySelectorAll('details').forEach((each) => (each.open = true))")
    for switch in page.locator(".group > .switch > input").all():
        switch.check()
    sound(page, name)
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    dark = page.evaluate("() => getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 128")
    assert dark == (scheme == "dark")
    look(page, f"{name}_open")
    row = {"module": "diffusion", "runner": "unet", "passes": 8, "resident_bytes": 3 << 30, "streamed_bytes": 2 << 30,
           "hidden": 0.75, "mode": "overlapped", "advice": "compute-bound"}  # fmt: skip

    places = {"diffusion": {"device": "CUDA0", "home": "disk"}, "te": {"device": "CPU", "home": "device"}}
    chosen = {"places": places, "vae_tile": 32, "seconds": 5.0, "reason": ""}
    rejected = [{**chosen, "seconds": None, "reason": "needs 9 GiB of host memory"}]
    choice = {"picture": "txt2img 64x64", "considered": 9, "chosen": chosen, "rejected": rejected}

    def streamed(route: Any) -> None:
        report = route.fetch().json()
        report["transfer"]["streams"] = [row]
        report["plan"]["choice"] = choice
        report["prediction"] = {"predicted": {"text": 1.0, "sampling": 4.0}, "happened": {"text": 1.5, "sampling": 4.0}}
        route.fulfill(json=report)

    page.route("**/report", streamed)
    page.reload()
    ready(page)
    for text in ("resident 3.0", "streamed, hidden 1.50 GiB", "streamed, waited for 512.0 MiB"):
        expect(page.locator(".measures")).to_contain_text(text)
    for text in ("5.00 s predicted, 5.50 s taken", "9 ways", "CUDA0 from disk", "needs 9 GiB of host memory"):
        expect(page.locator(".report")).to_contain_text(text)
    look(page, name)


def test_server_that_comes_back(opened: Open, tmp_path: Path) -> None:
    """A page that is open when its server dies shows the picture that the next one draws."""
    with serving(tmp_path / "store") as site:
        port = site.url.rpartition(":")[2]
        page = ready(opened(site.url))
        option(page, "Sampling", "Steps", "60")
        draw(page, "a red circle")
        expect(page.locator("#stage")).to_contain_text("Sampling")
        site.end(signal.SIGKILL)
    with serving(tmp_path / "store", "--port", port):
        done(page)
        expect(page.locator(".tiles .done")).to_have_count(1)


def test_token(browser: Any, opened: Open, tmp_path: Path) -> None:
    """A server with a token is of no use without it; the tab that was told it draws and shows pictures."""
    with serving(tmp_path / "store", token="a token of the test") as site:
        page = opened(site.url)
        page.get_by_role("textbox", name="Token").fill("a wrong one of the test")
        page.keyboard.press("Enter")
        expect(page.locator("dialog .error")).to_contain_text("does not know this token")
        sound(page, "token")
        page.get_by_role("textbox", name="Token").fill("a token of the test")
        page.keyboard.press("Enter")
        ready(page)
        option(page, "Sampling", "Steps", "2")
        draw(page, "a red circle")
        expect(page.locator("#stage figure img")).to_have_attribute("src", re.compile("^blob:"))
        page.wait_for_function("() => document.querySelector('#stage figure img').naturalWidth > 0")
        assert page.evaluate("() => [...Object.keys(localStorage), document.cookie].join().includes('token')") is False
        page.reload()
        ready(page)
        expect(page.locator("#stage figure img")).to_be_visible()

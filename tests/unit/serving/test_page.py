"""The page in headless Chromium: phone and desktop, by keyboard, as a screen reader hears it."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from pipeline.editing.student_export import StudentExport
from tests.chromium import CHROMIUM, Page, chromium
from tests.tiny_export import EFFECTS
from tests.unit.serving.bad_requests import photograph
from tests.unit.serving.case import Negative, application

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}
MADE = "!$('results').hidden"
# What a finger is to touch, and is lower than 44 px.
SMALL = """
[...document.querySelectorAll("button, .button, input:not([type=radio]):not(.unseen), #effects li")]
  .filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 43.9)
  .map((e) => [e.id, e.getBoundingClientRect().height])
"""
# Every text against the nearest opaque background behind it, by WCAG's formula.
CONTRASTS = """
(() => {
  const numbers = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => numbers(c).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.checkVisibility()) continue;
    if (element.closest(".unseen, .skip, .frame, script, style")) continue;
    let behind = element, colour = "";
    for (; behind; behind = behind.parentElement) {
      colour = getComputedStyle(behind).backgroundColor;
      const parts = numbers(colour);
      if (parts.length === 3 || parts[3] === 1) break;
    }
    const [a, b] = [light(getComputedStyle(element).color), light(colour)].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) poor.push([element.tagName, element.textContent.slice(0, 30), ratio]);
  }
  return poor;
})()
"""


@pytest.fixture(scope="module")
def address(tiny_export: StudentExport, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    app = application(tiny_export, Negative().edit, tmp_path_factory.mktemp("cache"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def opened(page: Page, address: str, size: str, dark: bool = False) -> Page:
    page.errors.clear()
    page.open(address, *SIZES[size], dark=dark)
    page.wait_for(f"$('effects').children.length === {len(EFFECTS)}")
    return page


def photographed(page: Page, folder: Path) -> Page:
    path = folder / "portrait.png"
    path.write_bytes(photograph("PNG", 1, (300, 400)))
    page.give_file("#file", path)
    page.wait_for("!$('frame').hidden")
    return page


@pytest.mark.parametrize("size", SIZES)
def test_the_way_through_by_keyboard_alone(
    page: Page, address: str, size: str, tmp_path: Path
) -> None:
    photographed(opened(page, address, size), tmp_path)
    page.tab_to("#search")
    for letter in "old":
        page.press(letter)
    assert page.js("[...$('effects').children].filter(i => !i.hidden).length") == 1
    page.press("ArrowDown")
    page.press(" ")
    chosen = "[...document.querySelectorAll('[aria-selected=true]')].map(i => i.dataset.name)"
    assert page.js(chosen) == ["old_film"]
    page.js("$('search').value = ''; search()")
    page.press("Home")
    page.press(" ")
    assert sorted(page.js(chosen)) == ["old_film", "snow"]
    assert page.js("$('chosen').innerText") == "Chosen: old film, then snow"
    # A third takes the place of the second.
    page.press("End")
    page.press("Enter")
    assert sorted(page.js(chosen)) == ["neon", "old_film"]
    page.tab_to("input[name=order]")
    page.press("ArrowDown")
    page.tab_to("#seed")
    for letter in "42":
        page.call("Input.insertText", text=letter)
    page.tab_to("#make")
    ring = page.js("getComputedStyle(document.activeElement).outline")
    assert "solid" in ring and "3px" in ring
    page.press("Enter")
    page.wait_for(MADE)
    assert page.js("$('fact-seed').textContent") == "42"
    assert page.js("$('download').download") == "portrait.old_film+neon.42.png"
    assert "Done: old film, then neon" in page.js("$('said').textContent")
    page.js("document.activeElement.blur()")
    page.tab_to("#split")
    before = page.js("$('frame').style.getPropertyValue('--split')")
    page.press("ArrowRight", times=3)
    after = page.js("$('frame').style.getPropertyValue('--split')")
    assert (before, after) == ("50%", "53%")
    assert "solid" in page.js("getComputedStyle($('bar'), '::after').outline")
    assert page.errors == []


@pytest.mark.parametrize("size", SIZES)
def test_it_fits_its_width_and_a_finger(
    page: Page, address: str, size: str, tmp_path: Path
) -> None:
    photographed(opened(page, address, size), tmp_path)
    assert page.js("document.documentElement.scrollWidth <= innerWidth")
    assert page.js(SMALL) == []
    columns = page.js("getComputedStyle(document.querySelector('main')).gridTemplateColumns")
    assert len(columns.split()) == (1 if size == "phone" else 2)


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_can_be_read(page: Page, address: str, dark: bool, tmp_path: Path) -> None:
    photographed(opened(page, address, "desktop", dark), tmp_path)
    page.js("choose('snow'); choose('fog'); fail('Something that went wrong.')")
    assert page.js(CONTRASTS) == []
    ground = page.js("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 24, 26)" if dark else "rgb(246, 245, 241)")


def test_a_screen_reader_is_told_what_all_things_are(
    page: Page, address: str, tmp_path: Path
) -> None:
    photographed(opened(page, address, "desktop"), tmp_path)
    page.js("choose('snow'); choose('fog'); make(false)")
    page.wait_for(MADE)
    told = page.accessible()
    for expected in (
        ("heading", "CollectionLoRA"),
        ("listbox", "Effects one, or two to compose"),
        ("option", "night rain"),
        ("searchbox", "Search the effects"),
        ("slider", "Compare before and after"),
        ("image", "The photograph, before"),
        ("image", "The photograph with snow, then fog"),
        ("button", "Make it"),
        ("link", "Download"),
        ("group", "Compose"),
    ):
        assert expected in told, expected
    assert any(role == "textbox" and name.startswith("Seed") for role, name in told)
    assert {"status", "main"} <= {role for role, _ in told}
    controls = {"button", "link", "textbox", "searchbox", "slider", "radio", "option", "listbox"}
    assert [(role, name) for role, name in told if role in controls and not name.strip()] == []


def test_mistakes_are_said_aloud_and_lead_to_what_is_missing(
    page: Page, address: str, tmp_path: Path
) -> None:
    opened(page, address, "phone")
    page.js("make(false)")
    assert page.js("$('wrong').textContent") == "First choose a photograph."
    assert ("alert", "") in [(role, "") for role, _ in page.accessible() if role == "alert"]
    photographed(page, tmp_path)
    page.js("make(false)")
    assert page.js("document.activeElement.id") == "effect-snow"
    page.js("choose('snow'); $('seed').value = '99999999999'; make(false)")
    assert "whole number" in page.js("$('wrong').textContent")
    # What the server refuses is shown in its own words.
    page.js("$('seed').value = ''; state.photograph = new Blob(['x'], {type: 'image/png'})")
    page.js("make(false)")
    page.wait_for("$('wrong').textContent.includes('cannot be read')")
    page.errors.clear()


def test_it_is_one_file_and_keeps_to_its_policy(page: Page, address: str) -> None:
    opened(page, address, "desktop")
    loaded = page.js("performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded and all(name.startswith(address) for name in loaded), loaded
    blocked = page.js("fetch('https://example.invalid/').then(() => 'loaded', () => 'refused')")
    assert blocked == "refused"
    assert any("Content Security Policy" in e for e in page.errors), json.dumps(page.errors)

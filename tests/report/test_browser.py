"""Pages in a real browser: no console errors, nothing wider than the screen, points by keyboard, its place
kept on reload. Skipped where there is no chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lmscale.report.live import live_section
from lmscale.report.page import page as page_of
from lmscale.report.registry import analyse
from lmscale.report.write import Report, write_files
from lmscale.studies.results import Results
from lmscale.sweep.overview import overview
from tests.report import planted_store as planted
from tests.waiting import PATIENCE

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = [
    pytest.mark.skipif(not BROWSER, reason="there is no chromium on this machine"),
    pytest.mark.slow,
]
#: Widths of a phone, a laptop and a sheet of A4 between its margins.
WIDTHS = (390, 718, 1280)


def opened(path, width, *, probe="", wait="--virtual-time-budget=2000"):
    """What the console says, and the title of the page, which a probe sets."""
    page = path
    if probe:
        # A copy that lets the probe's script run, and waits for it.
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text())
        page = path.parent / "probed.html"
        page.write_text(text.replace("</body>", f"<script>{probe}</script></body>"))
    flags = [
        "--headless",
        "--disable-gpu",
        "--no-sandbox",
        "--enable-logging=stderr",
        "--log-level=0",
    ]
    flags += [f"--window-size={width},900", wait, "--dump-dom"]
    found = subprocess.run(
        [BROWSER, *flags, f"file://{page}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    console = [line for line in found.stderr.splitlines() if "CONSOLE" in line]
    return console, re.search(r"<title>(.*?)</title>", found.stdout, re.DOTALL).group(1)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with wide tables, wide and narrow figures, points and progress."""
    path = tmp_path_factory.mktemp("browser") / "store"
    runs = planted.size_runs(layers=(1,), seeds=(0, 1))
    store = planted.plant(
        path, runs, analyses=["size"], status=lambda k, run: "running" if k == 3 else "done"
    )
    store.write_table()
    results = Results.read(store)
    sections = [live_section(overview(store), results)]
    sections += [analyse(name, results) for name in ("size", "curves")]
    return Path(os.fspath(write_files(store, Report(results, sections, []))))


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(page, width):
    probe = """
    const inside = (one) => one.closest(".plate, .sheet, .note, svg");
    const wide = [...document.querySelectorAll("main *")].filter((one) => !inside(one) || one.matches(".plate, .sheet"))
      .filter((one) => one.getBoundingClientRect().right > innerWidth + 1);
    document.title = JSON.stringify({ page: document.documentElement.scrollWidth, screen: innerWidth,
      wide: wide.map((one) => one.tagName + "." + one.className) });
    """
    _, title = opened(page, width, probe=probe)
    found = json.loads(title)
    assert found["page"] <= found["screen"] and found["wide"] == []


def test_a_screen_reader_finds_names_where_they_count_and_a_keyboard_whatever_scrolls(page):
    """What an audit of accessibility found: labels on elements that may have none, figures out of reach of a
    keyboard, empty heads of columns."""
    probe = """
    const all = (what) => [...document.querySelectorAll(what)].map((one) => one.outerHTML.slice(0, 80));
    document.title = JSON.stringify({
      named: all("svg [aria-label]:not([role])"),
      unnamed: all("svg:not([aria-label]), [tabindex='0'][role='application']:not([aria-label])"),
      beyond: [...document.querySelectorAll(".plate, .sheet")]
        .filter((one) => one.scrollWidth > one.clientWidth && one.tabIndex < 0).map((one) => one.className),
      heads: [...document.querySelectorAll("th")].filter((one) => !one.textContent.trim()).length,
      wide: document.querySelectorAll(".plate.wide").length, points: document.querySelectorAll(".point").length });
    """
    _, title = opened(page, 390, probe=probe)
    found = json.loads(title)
    assert found.pop("wide") > 0 and found.pop("points") > 0
    assert found == {"named": [], "unnamed": [], "beyond": [], "heads": 0}


def test_the_console_is_silent(page):
    assert opened(page, 1280)[0] == []


def test_the_console_is_heard(page):
    console, _ = opened(page, 1280, probe="console.error('aloud')")
    assert any("aloud" in line for line in console)


def test_arrow_keys_step_through_the_points(page):
    probe = """
    const plate = document.querySelector(".plate[tabindex]");
    const press = (key) => plate.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    const said = () => document.querySelector(".note").textContent;
    plate.focus();
    const found = ["ArrowRight", "ArrowRight", "ArrowLeft", "End"].map((key) => { press(key); return said(); });
    press("Escape");
    document.title = JSON.stringify({ found, hidden: document.querySelector(".note").hidden,
      last: [...plate.querySelectorAll(".point")].pop().dataset.note,
      role: document.querySelector(".note").getAttribute("role") });
    """
    _, title = opened(page, 1280, probe=probe)
    answer = json.loads(title)
    first, second, back, end = answer["found"]
    assert first == back != second and "N = " in first and "loss" in first
    assert end == answer["last"] and answer["hidden"] and answer["role"] == "status"


def test_a_page_that_reloads_stays_where_it_is_read(tmp_path):
    runs = planted.size_runs(layers=(), seeds=(0,))
    results = Results.read(planted.plant(tmp_path / "store", runs, analyses=[]))
    reading = tmp_path / "page.html"
    reading.write_text(page_of(results, [], [], reload_seconds=0.5))
    probe = """
    const loads = Number(sessionStorage.getItem("loads") || 0) + 1;
    sessionStorage.setItem("loads", loads);
    const made = () => document.getElementById("made").getBoundingClientRect().top;
    if (loads === 1) scrollBy(0, made() + 40);
    // It does not reload while text is selected.
    else getSelection().selectAllChildren(document.querySelector("h1"));
    document.title = JSON.stringify({ loads, top: made() });
    """
    _, title = opened(reading, 1280, probe=probe, wait="--virtual-time-budget=1500")
    found = json.loads(title)
    assert found["loads"] == 2 and found["top"] == pytest.approx(-40, abs=2)

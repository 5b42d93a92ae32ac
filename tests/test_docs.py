"""The pages: their numbers are the program's, their links lead somewhere, the site is built."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")})


def test_the_worked_example_of_the_conventions_is_what_its_code_gives():
    text = (ROOT / "docs" / "concepts.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    values = {}
    exec(code, values)
    for convention, *numbers in values["table"]:
        row = " | ".join([f"`{convention}`", *(f"{number:,.0f}" for number in numbers)])
        assert f"| {row} |" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_exist(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_front_page_stays_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api" / "laws.html").read_text()
    assert "fit_isoflop" in page and "Hoffmann et al. 2022" in page
    # What the theme lacks: the switch of colours, landmarks, and what a keyboard needs.
    for path in [tmp_path / "index.html", *tmp_path.glob("*/*.html")]:
        page = path.read_text()
        for part in ('id="hljs-light"', 'id="hljs-dark"', 'role="banner"'):
            assert page.count(part) == 1, (path, part)
        assert not re.search("<pre>|<table>|<th></th>", page), path

"""The files that a report writes: complete, self-contained, repeatable, and true to the fits."""

import dataclasses
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest

from lmscale import studies
from lmscale.report import write_report
from lmscale.report.caveats import repeated_text
from lmscale.report.style import inline
from lmscale.studies.results import Results
from lmscale.wording import with_interval
from tests.report import planted_store as planted

CONTRACT = {
    "law",
    "parameters",
    "intervals",
    "objective",
    "converged",
    "n_used",
    "dropped",
    "exponents",
    "warnings",
}


class Text(HTMLParser):
    """The text of a page, its tags in order, and its ids."""

    def __init__(self, page: str):
        super().__init__()
        self.words, self.ids, self.open = [], [], []
        self.feed(page)
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in ("meta", "br", "link", "img", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)


def read(store):
    return (store.path / "report.html").read_text()


def statuses(index, run):
    return {3: "diverged", 9: "failed", 14: "out_of_memory"}.get(index, "done")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A finished grid of Transformers with one run each diverged, failed and out of memory."""
    store = planted.plant(
        tmp_path_factory.mktemp("store") / "isoflop",
        planted.isoflop_runs(lstm=False, seeds=(0, 1), sizes=6),
        analyses=["isoflop", "curves"],
        status=statuses,
        noise=0.004,
    )
    assert write_report(store) == store.path / "report.html"
    return store


def test_it_writes_the_page_every_figure_twice_and_the_fits(store):
    names = {path.name for path in (store.path / "figures").iterdir()}
    views = {f"isoflop-transformer-{count}" for count in ("kaplan", "chinchilla", "exact")}
    stems = {"isoflop-transformer", *views, "isoflop-exponents", "curves"}
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    for stem in stems:
        png = (store.path / "figures" / f"{stem}.png").read_bytes()
        assert png.startswith(b"\x89PNG") and len(png) > 10_000
        root = ElementTree.fromstring((store.path / "figures" / f"{stem}.svg").read_text())
        assert root.tag.endswith("svg")
    assert not list(Path(store.path).rglob("*.tmp"))


def test_the_page_needs_no_network_and_no_other_file(store):
    page = read(store)
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"<(link|img|iframe|script[^>]+src)|@import|url\((?!#)", page)
    assert page.count("<svg") == 6


def test_the_page_is_well_formed_with_unique_ids(store):
    parsed = Text(read(store))
    assert not parsed.open
    assert len(parsed.ids) == len(set(parsed.ids))


def test_the_numbers_on_the_page_are_those_of_the_fits(store):
    fits = json.loads((store.path / "fits.json").read_text())
    text = Text(read(store)).text
    assert len(fits) == 4
    for key, fit in fits.items():
        convention = key.split("/")[2]
        for symbol in ("N", "D"):
            shown = with_interval(
                fit["exponents"][convention][symbol], fit["exponent_intervals"][convention][symbol]
            )
            assert shown in text


def test_the_page_opens_with_the_planted_exponent(store):
    low, high = json.loads((store.path / "fits.json").read_text())["isoflop/transformer/standard"][
        "intervals"
    ]["a"]
    assert low < planted.Law().exponent < high
    assert high - low < 0.06
    lead = Text(re.search(r'<p class="lead">.*?</p>', read(store)).group()).text
    value = re.search(r"N ∝ C([\d.]+) \(95% interval ([\d.]+) to ([\d.]+)\)", lead)
    assert float(value.group(1)) == pytest.approx(0.5, abs=0.02)
    assert float(value.group(2)) == pytest.approx(low, abs=0.001)


def test_fits_have_the_keys_of_the_contract(store):
    fits = json.loads((store.path / "fits.json").read_text())
    assert set(fits) == {
        f"isoflop/transformer/{c}" for c in ("kaplan", "chinchilla", "standard", "exact")
    }
    for fit in fits.values():
        assert set(fit) >= CONTRACT
        assert fit["converged"] and fit["n_used"] >= 20


def test_runs_that_did_not_end_well_are_marked_with_their_reason(store):
    page = read(store)
    for status, reason in (
        ("diverged", "the training loss is nan"),
        ("failed", html.escape("ValueError: <planted> failure")),
        ("out_of_memory", "RESOURCE_EXHAUSTED"),
    ):
        row = re.search(rf'<tr[^>]*>(?:(?!</tr>).)*chip {status}".*?</tr>', page).group()
        assert reason in row
    assert "<planted>" not in page
    assert Text(page).text.count("done") >= 45


def test_figures_follow_the_colour_scheme(store):
    """Every colour is a variable with a light and a dark value: none would stay black on black."""
    page = read(store)
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    for svg in svgs:
        raw = re.sub(r"var\(--c[0-9a-f]{6},#[0-9a-f]{6}\)", "", svg)
        assert not re.search(r"(fill|stroke): ?#[0-9a-f]{6}", raw)
    used = set(re.findall(r"var\(--c([0-9a-f]{6})", page))
    light, dark = re.findall(r":root\{(--c[^}]*)\}", page)
    assert all(f"--c{colour}:" in light and f"--c{colour}:" in dark for colour in used)
    # Paper is white whatever the screen is.
    assert "@media screen and (prefers-color-scheme: dark){:root{" in page


@pytest.mark.slow
def test_equal_stores_give_equal_bytes_whatever_matplotlib_is_set_to(store):
    files = [store.path / "report.html", store.path / "fits.json"]
    files += sorted((store.path / "figures").iterdir())
    before = [path.read_bytes() for path in files]
    with matplotlib.rc_context({"font.size": 25, "lines.linewidth": 9, "xtick.direction": "in"}):
        settings = dict(matplotlib.rcParams)
        write_report(store)
        assert dict(matplotlib.rcParams) == settings
    assert [path.read_bytes() for path in files] == before


def test_inline_figures_keep_their_ids_apart():
    from lmscale.report.section import Chart

    svg = '<svg width="9pt" viewBox="0 0 1 1"><g id="a"/><use href="#a"/><g clip-path="url(#a)"/></svg>'
    chart = Chart(name="fig", caption="", alt="", svg=svg, png=b"")
    assert inline(chart) == (
        '<svg viewBox="0 0 1 1"><g id="fig-a"/><use href="#fig-a"/>'
        '<g clip-path="url(#fig-a)"/></svg>'
    )


def test_the_head_of_the_report_names_runs_that_repeat_their_text(tmp_path):
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=5)
    longest = max(run.spec.n_tokens for run in runs)
    store = planted.plant(tmp_path, runs, analyses=[])
    experiment = store.experiment()

    def said(tokens, **fields):
        corpus = {**experiment["corpus"], "train_tokens": tokens}
        study = dataclasses.replace(
            Results.read(store), experiment={**experiment, **fields, "corpus": corpus}
        )
        return repeated_text(study)

    assert said(-(-longest // 4)) is None
    line = said(longest // 5)
    assert "pass over their text more than 4 times, up to 5: repeated text is worth less" in line
    assert f"the runs need {-(-longest // 4):,} training tokens" in line
    assert "up to 5: what this study is about; the runs need" in said(
        longest // 5, repeats_text=True
    )
    (store.path / "experiment.json").write_text(
        json.dumps({**experiment, "corpus": {**experiment["corpus"], "train_tokens": longest // 5}})
    )
    write_report(store)
    assert line in Text(read(store)).text


def test_an_unfinished_store_is_drawn_and_says_so(tmp_path):
    def status(index, run):
        if run.labels["budget"] > 5e12:
            return ("pending", "running", "preempted")[index % 3]
        return "done"

    store = planted.plant(
        tmp_path,
        planted.isoflop_runs(lstm=False, seeds=(0,), sizes=5),
        analyses=["isoflop"],
        status=status,
    )
    write_report(store)
    text = Text(read(store)).text
    assert "The experiment is not finished" in text
    assert "No exponent yet. Transformer: 2 of 4 budgets with a usable profile" in text
    assert "a power law needs 3" in text
    assert (store.path / "figures" / "isoflop-transformer.png").exists()
    fit = json.loads((store.path / "fits.json").read_text())["isoflop/transformer/standard"]
    assert not fit["exponents"] and not fit["converged"]
    assert any("no exponent" in warning for warning in fit["warnings"])


def test_a_store_in_which_everything_failed_still_has_its_page(tmp_path):
    store = planted.plant(
        tmp_path,
        planted.isoflop_runs(planted.BUDGETS[:2], seeds=(0,), sizes=3),
        analyses=studies.names(),
        status=lambda index, run: "failed",
    )
    write_report(store)
    text = Text(read(store)).text
    assert "no run has ended well yet (6 failed)" in text
    assert "12 runs failed: 12× ValueError: <planted> failure" in text
    fits = json.loads((store.path / "fits.json").read_text())
    assert fits and all(set(fit) >= CONTRACT and fit["n_used"] == 0 for fit in fits.values())


def test_stores_without_runs_or_with_an_analysis_of_another_version(tmp_path):
    store = planted.plant(tmp_path, [], analyses=["isoflop", "size", "position", "curves", "wave"])
    write_report(store)
    text = Text(read(store)).text
    assert "This experiment declares no runs." in text
    assert "This version of lmscale has no analysis 'wave'" in text


def test_the_checklist_is_filled_from_the_data(store):
    text = Text(read(store)).text
    text = text[text.rindex("What a reader needs to know") :]
    assert "3 of 48 runs did not end well" in text
    assert "Nopt = kN C" in text
    assert "2 (0 and 1)" in text
    assert "planted (fingerprint 0123456789ab)" in text
    assert (
        "237 documents of valid; 1.2% of valid (1 document by more than half), in exact 32-token "
        "copies of training text"
    ) in text

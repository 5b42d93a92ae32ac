"""A store that a stranger wrote: what it says is shown, and never run, followed or obeyed."""

import csv
import html.parser
import json
import re
import xml.dom.minidom

import pytest

from lmscale import cli
from lmscale.report.front import write_front
from lmscale.report.page import render_page
from lmscale.report.write import write_report
from lmscale.sweep.claims import Claim
from lmscale.sweep.store import Store, StoreError
from tests.report.planted_store import isoflop_runs, plant

#: Breaks out of text, of an attribute, of a comment and of a script; a formula that is none.
EVIL = "\"'></h1><evil onclick=run()>&lt;--></script> $\\frac$ \x1b[31m \u202e"
BUDGETS = (1e12, 3e12)


class _Tags(html.parser.HTMLParser):
    """The tags and attributes of a page, and the addresses in it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.ids = set(), set(), []
        self.addresses = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name in ("href", "src", "xlink:href"):
                self.addresses.add(value)


def poison(path, keep=()):
    """Ends every string in a file of JSON with `EVIL`, but for the values of the names in `keep`."""

    def walk(value, name=None):
        if isinstance(value, dict):
            return {key: walk(inner, key) for key, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner, name) for inner in value]
        return value + EVIL if isinstance(value, str) and name not in keep else value

    rewrite(path, walk(json.loads(path.read_text())))


def rewrite(path, values):
    """Writes a file of JSON as a stranger may, whose digests agree: by leaving them out."""
    values = {name: value for name, value in values.items() if name not in ("digest", "digests")}
    path.write_text(json.dumps(values))


def planted(path):
    claim = Claim(text="So.", source="Them", measure="size/alpha", low=0.4, high=0.6)
    return plant(
        path,
        isoflop_runs(BUDGETS, seeds=(0,), sizes=5),
        analyses=["size", "curves"],
        status=lambda index, run: "failed" if index == 3 else "done",
        claims=[claim],
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A store, and the same with evil in its strings; the folder that holds each."""
    folders = tmp_path_factory.mktemp("good"), tmp_path_factory.mktemp("evil")
    for folder in folders:
        store = planted(folder / "store")
        if folder is folders[1]:
            poison(store.path / "experiment.json", keep=("run", "measure"))
            for path in store.path.glob("runs/*/status.json"):
                poison(path, keep=("run", "status"))
            for path in store.path.glob("runs/*/result.json"):
                poison(path, keep=("run", "status"))
            values = json.loads((store.path / "experiment.json").read_text())
            # Analyses that there are, so that their figures are drawn, and one that there is not.
            values["analyses"] = ["size", "curves", EVIL]
            values["corpus"]["vocab_size"] = EVIL
            values["fields"] = {EVIL: EVIL}
            rewrite(store.path / "experiment.json", values)
        store.write_table()
        write_report(store)
        write_front(folder)
    return folders


@pytest.mark.parametrize("name", ["store/report.html", "index.html"])
def test_a_page_gets_no_tag_attribute_or_address_from_a_store(pages, name):
    good, evil = (_Tags((folder / name).read_text()) for folder in pages)
    # The report sets some of what it finds in italics or higher.
    assert evil.tags <= good.tags | {"i", "sub", "sup"}
    assert evil.attributes <= good.attributes
    local = re.compile(r"(#|figures/|store/)[^:<>\"']*")
    outside = {a for a in evil.addresses if not local.fullmatch(a)}
    # A link to a section is named as the section is, whatever that holds.
    assert all(address.startswith("#") for address in outside), outside
    assert "&lt;evil onclick" in (pages[1] / name).read_text()


def test_a_figure_is_well_formed_whatever_its_labels(pages):
    figures = list((pages[1] / "store" / "figures").glob("*.svg"))
    assert len(figures) >= 2
    for figure in figures:
        text = figure.read_text()
        xml.dom.minidom.parseString(text)
        assert "<evil" not in text


def test_a_page_runs_its_own_script_only():
    evil = "<script>alert(1)</script>"
    page = render_page("front.html", evil, lead=evil, studies=[])
    assert page.count("<script") == page.count("</script") == 1 and "alert(1)" in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]{43}='", policy)
    assert "unsafe-inline" not in policy.split("script-src")[1]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_the_table_is_a_formula(tmp_path, start):
    store = planted(tmp_path)
    formula = start + 'HYPERLINK("http://evil","x")'
    values = json.loads((tmp_path / "experiment.json").read_text())
    for entry in values["runs"]:
        entry["labels"] |= {"family": formula, formula: "x"}
    rewrite(tmp_path / "experiment.json", values)
    store.write_table()
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name, cell in row.items():
            assert not name.startswith(("=", "+", "-", "@", "\t", "\r"))
            if cell.startswith(("=", "+", "-", "@", "\t", "\r")):
                float(cell)
    assert {row["family"] for row in rows} == {f"'{formula}"}
    assert {float(row["seed"]) for row in rows} == {0.0}


@pytest.mark.parametrize(
    "name", ["../../x", "..", ".", "", "/etc", "a/b", "a\\b", "a\nb", "a\0b", "x" * 300]
)
def test_a_run_outside_of_the_store_is_refused(tmp_path, name, capsys):
    store = planted(tmp_path / "store")
    outside = tmp_path / "x"
    (store.path / "runs" / next(store.declared())[0].path.name).rename(outside)
    values = json.loads((store.path / "experiment.json").read_text())
    values["runs"][0]["run"] = name
    rewrite(store.path / "experiment.json", values)
    with pytest.raises(StoreError, match="names a run"):
        list(Store(store.path).declared())
    for command in (["status"], ["report"], ["fit", "--law", "isoflop"]):
        assert cli.main([command[0], str(store.path), *command[1:]]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "names a run" in error


def test_a_terminal_is_told_no_commands(tmp_path, capsys):
    store = planted(tmp_path)
    for path in store.path.glob("runs/*/status.json"):
        poison(path)
    assert cli.main(["status", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "evil" in shown
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)


def test_half_a_character_is_damage(tmp_path, capsys):
    planted(tmp_path)
    text = (tmp_path / "experiment.json").read_text()
    (tmp_path / "experiment.json").write_text(text.replace("A planted law", "\\udc80"))
    with pytest.raises(ValueError, match="half a character"):
        Store(tmp_path).experiment()

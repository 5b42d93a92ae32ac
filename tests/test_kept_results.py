"""The kept results in docs/results give the tables, fits and verdicts that their pages say."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmscale.report.page import lead_section
from lmscale.report.summary import read_summary
from lmscale.report.write import read_results
from lmscale.studies.results import Results
from lmscale.sweep.kept import KEPT
from lmscale.sweep.store import Store

FOLDERS = sorted(
    p.parent for p in (Path(__file__).parents[1] / "docs" / "results").glob(f"*/{KEPT}")
)
NAMES = [folder.name for folder in FOLDERS]


def test_some_are_kept():
    assert len(FOLDERS) >= 4


@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(folder, marks=[] if folder.name == "isoflop-cpu" else pytest.mark.slow)
        for folder in FOLDERS
    ],
    ids=NAMES,
)
def test_the_table_is_that_of_the_runs(folder):
    store = Store.open(folder)
    before = (folder / "results.csv").read_bytes()
    assert store.write_table()["status"].isin(["done", "diverged"]).all()
    assert (folder / "results.csv").read_bytes() == before and not store.damage()


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_fits_and_verdicts_are_those_of_the_page(folder):
    sections, verdicts = read_results(Results.read(folder))
    summary, page = read_summary(folder), (folder / "README.md").read_text()
    assert [verdict.word for verdict in verdicts] == [one["word"] for one in summary.verdicts]
    assert all(f"**{verdict.word}**" in page for verdict in verdicts)
    assert lead_section(sections).finding == summary.finding

"""The notebooks and the Python guide run from their first cell to the last, as a user would run them."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.report import planted_store as planted

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"


@pytest.fixture
def place(tmp_path):
    """A folder with a store where the pages have theirs, of a planted law."""
    store = planted.plant(
        tmp_path / "results" / "isoflop-cpu",
        planted.isoflop_runs(lstm=False, seeds=(0,), sizes=5),
        analyses=["isoflop"],
        noise=0.002,
    )
    store.write_table()
    return tmp_path


@pytest.mark.slow
def test_the_guide_runs(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("MPLBACKEND", "agg")
    flops = np.repeat(np.geomspace(1e18, 1e21, 4), 5)
    params = np.sqrt(flops / 60) * np.tile(np.geomspace(0.4, 2.5, 5), 4)
    tokens = flops / 6 / params
    loss = 1.7 + 400 / params**0.34 + 400 / tokens**0.28
    rows = [f"{n},{d},{x},train" for n, d, x in zip(params, tokens, loss, strict=True)]
    Path("runs.csv").write_text("\n".join(["size,D,c4_en,mode", *rows]) + "\n")
    page = (FOLDER.parent / "guide" / "python.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    # The planted budgets are larger.
    exec(code.replace("budget < 1e11", "budget < 1e13"), {})
    assert Path("mine.pdf").exists() and Path("profiles.svg").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.name)
def test_the_notebook_runs(path, place):
    notebook = nbformat.read(path, as_version=4)
    # On a planted law advice and losses are of other budgets than those of the stored run.
    for cell in notebook.cells:
        cell["source"] = cell["source"].replace("1.92e12", "5e13").replace("[1e12, 2e12]", "[5e13]")
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(place)}}
    )
    client.execute()
    written = {"profiles.pdf", "mine.png", "report.svg", "runs.csv"}
    assert written <= {file.name for file in place.iterdir()}


def test_the_stored_outputs_are_of_the_stored_cells():
    for path in FOLDER.glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
        assert not any(out.output_type == "error" for cell in cells for out in cell["outputs"])

"""The examples of CONTRIBUTING.md work as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest

from lmscale import laws, optimizers
from lmscale.cli import main
from tests.report import planted_store as planted
from tests.studies import test_families as families

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


@pytest.fixture
def example(tmp_path):
    """Writes the Python block below a heading to a file."""

    def write(heading: str, name: str) -> Path:
        section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        (code,) = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
        path = tmp_path / name
        path.write_text(code)
        return path

    return write


def test_a_law_of_ones_own_is_fitted_by_the_command(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(laws, "LAWS", dict(laws.LAWS))
    flops = np.geomspace(1e18, 1e22, 30)
    table = tmp_path / "runs.csv"
    rows = [f"{c},{9.0 - 0.12 * np.log(c)}" for c in flops]
    table.write_text("flops,loss\n" + "\n".join(rows) + "\n")
    path = example("Add a law", "log_law.py")
    argv = ["fit", str(table), "--law", "log", "--load", str(path), "--largest", "20"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "L = a - b ln C" in said
    fit = laws.fit(table, "log", largest=20)
    assert fit.n_used == 20
    assert fit.parameters == pytest.approx({"a": 9.0, "b": 0.12}, rel=1e-6)
    assert fit.predict(flops=1e20) == pytest.approx(9.0 - 0.12 * np.log(1e20))


def test_an_optimizer_of_ones_own_is_known_by_its_name(example, corpus, monkeypatch):
    monkeypatch.setattr(optimizers, "_REGISTRY", dict(optimizers._REGISTRY))
    # Devices can be set up once a process, and another test may have done so.
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)
    path = example("Add an optimizer", "lion.py")
    argv = ["plan", "isoflop", "--data", "tiny", "--device", "h100", "--budgets", "1e11", "--json"]
    assert main([*argv, "--optimizer", "lion", "--load", str(path)]) == 0
    assert optimizers.optimizer("lion").moments == 1


def test_a_study_is_read_in_a_notebook(example, tmp_path):
    store = tmp_path / "store"
    planted.plant(store, families.runs(), analyses=["families"], law=families.law, noise=0.005)
    path = example("Add a study", "notebook.py")
    code = path.read_text().replace("results/model_size-cpu", str(store))
    values = {}
    exec(code, values)
    estimate = values["found"].estimates["collapse"]
    assert estimate.interval[0] < estimate.value < estimate.interval[1]


def test_the_files_that_the_page_names_exist():
    root = Path(__file__).parents[1]
    names = re.findall(r"`((?:lmscale|tests|launch|experiments)/[\w/.]*)`", PAGE)
    assert len(names) > 15
    assert [name for name in names if "NAME" not in name and not (root / name).exists()] == []

"""What the page concludes from the parametric fit of a planted surface."""

import dataclasses

import pytest

from lmscale.report import analyse
from lmscale.studies import parametric
from lmscale.studies.results import Results
from tests.report import planted_store as planted
from tests.report.fixtures import throughout

# The full grid of 4500 starts takes seconds and finds the same minimum here.
few_starts = throughout(parametric, "STARTS", "coarse")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=6)
    store = planted.plant(tmp_path_factory.mktemp("p"), runs, analyses=["parametric"], noise=0.003)
    return Results.read(store)


@pytest.fixture(scope="module")
def section(study):
    return analyse("parametric", study)


def test_the_exponent_heads_the_section(section):
    assert "standard convention" in section.measures["a"].what
    assert section.conclusive and "N ∝ C^0." in section.finding


def test_published_parameters_stand_beside(section):
    (grid,) = section.grids
    assert list(grid.header[2:]) == ["Hoffmann et al. 2022", "Besiroglu et al. 2024"]
    cells = {row[0]: row for row in grid.rows}
    assert cells["alpha"][2] == "0.3392" and cells["alpha"][3].startswith("0.348 (0.317")
    assert cells["a = beta/(alpha+beta)"][3] == "0.513"


def test_two_figures_are_drawn(section):
    names = [chart.name for chart in section.charts]
    assert names == ["parametric-transformer", "parametric-residuals-transformer"]


@pytest.mark.slow
def test_warnings_of_the_fit_are_passed_on(study):
    """One ratio of tokens to parameters cannot tell the two terms apart."""
    line = study.table.assign(tokens=20.0 * study.table["params_standard"]).drop(columns="budget")
    section = analyse("parametric", dataclasses.replace(study, table=line))
    assert any("can hardly be told apart" in warning for warning in section.warnings)
    assert section.measures["a_minus_approach_2"].value is None


def test_too_few_runs_are_refused_in_words(study):
    few = dataclasses.replace(study, table=study.table.head(4))
    section = analyse("parametric", few)
    assert section.finding.startswith("No surface for the Transformer")
    assert section.measures["a"].value is None and section.measures["a"].undecided_because
    assert section.fits["transformer/standard"].warnings

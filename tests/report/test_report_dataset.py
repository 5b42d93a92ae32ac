"""The section on size and dataset: what it says of a planted law, its charts and tables."""

import pytest

from lmscale.report import analyse
from lmscale.studies import Results, dataset
from tests.report import planted_store as planted
from tests.report.fixtures import throughout
from tests.studies.test_dataset import declared, plant

few_draws = throughout(dataset, "BOOTSTRAP", 100)


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    path = tmp_path_factory.mktemp("dataset")
    return analyse("dataset", Results.read(plant(path, declared())))


@pytest.mark.slow
def test_the_finding_holds_the_exponent(section):
    assert section.conclusive and "Overfitting depends on N^0.7" in section.finding


@pytest.mark.slow
def test_charts_and_tables(section):
    assert [chart.name for chart in section.charts] == [
        "dataset",
        "dataset-overfitting",
        "dataset-stopping",
    ]
    assert len(section.grids[1].rows) == 24
    paper = [row[2] for row in section.grids[0].rows]
    assert paper[:2] == ["0.0760", "0.103"]


@pytest.mark.slow
def test_seeds_that_share_a_subset_are_said_to(section):
    assert "seeds that share each subset" in section.measures["overfitting_exponent"].what
    assert any("which sequences were drawn is in no interval" in w for w in section.warnings)


@pytest.mark.slow
def test_more_overfitting_says_what_it_is_read_from(section):
    more = section.measures["more_overfitting"]
    assert more.interval[0] > 0
    assert "largest size over that of the smallest" in more.what
    assert "5 subsets, 3 seeds" in more.what


def test_few_runs_fit_nothing(tmp_path):
    one = declared(seeds=(0,), divisors=(1,), sizes=(2e4,))
    section = analyse("dataset", Results.read(plant(tmp_path / "one", one)))
    assert section.finding.startswith("No law L(N, D) yet") and not section.conclusive
    assert all(measure.value is None for measure in section.measures.values())
    pending = planted.plant(
        tmp_path / "none", one, analyses=["dataset"], status=lambda index, run: "pending"
    )
    finding = analyse("dataset", Results.read(pending)).finding
    assert finding == "No run on a dataset has ended well yet."

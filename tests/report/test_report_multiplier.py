"""What the page says of a compute multiplier."""

import pandas as pd
import pytest

from lmscale.report.sections.multiplier import section
from lmscale.studies.multiplier import Multiplier
from lmscale.studies.results import Results
from tests.studies.planted_frontiers import found

RESULTS = Results({"runs": []}, pd.DataFrame({"status": [], "family": []}))


def findings(times, growth):
    c = found(times, growth, names=("transformer", "lstm"))
    estimates = {one.name: one for one in (c.middle, c.growth, c.joint, c.exponents)}
    return Multiplier("standard", (c.base, c.other), (c,), estimates)


@pytest.fixture(scope="module")
def growing():
    return section(findings(2.0, 0.25), RESULTS)


def test_it_says_the_factor_where_it_was_read_and_that_it_grows(growing):
    assert "the LSTM needs" in growing.finding[0].lower() + growing.finding[1:]
    assert "times the compute of the Transformer" in growing.finding
    assert "grows with compute as C^0.2" in growing.finding
    assert "no single number says it" in growing.details[0]
    (by_family, by_loss) = growing.grids
    assert by_family.rows[0][-1] == "not borne by the data"
    factors = [float(row[-1].split(" (")[0]) for row in by_loss.rows]
    assert len(factors) == 5 and factors == sorted(factors)


def test_it_names_what_keeps_it_from_a_verdict(growing):
    """Of the planted frontiers no rate was searched."""
    assert not growing.conclusive
    assert any("learning rates were not searched" in text for text in growing.warnings)
    assert growing.measures["lstm"].undecided_because
    assert "at " in growing.measures["lstm"].what and "LSTM" in growing.measures["lstm"].what


def test_no_difference_is_said_as_such_and_one_number_where_the_data_bear_it():
    same = section(findings(1.0, 0.0), RESULTS)
    assert "may be no difference at all" in same.finding
    assert "at every loss" in same.details[0]


def test_one_family_is_no_comparison():
    nothing = section(Multiplier("standard", (), (), {}), RESULTS)
    assert nothing.finding == "No comparison: these runs are of one architecture."
    assert not nothing.charts and not nothing.grids

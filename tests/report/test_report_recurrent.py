"""The section on reused layers: what it says of planted gains, and where there is no comparison."""

from lmscale.report import analyse
from lmscale.report.sections import recurrent as recurrent_section
from tests.report.fixtures import undrawn_section
from tests.studies.test_recurrent import read

undrawn = undrawn_section(recurrent_section)


def test_the_gain_at_equal_size_is_said(tmp_path, drawn):
    section = analyse("recurrent", read(tmp_path))
    what = section.measures["params"].what
    assert "mean of 5 models with reuse 2× and 4×, 3 seeds each" in what
    assert "below the plain one" in section.finding and section.conclusive
    assert section.charts


def test_no_plain_runs_no_comparison(tmp_path, undrawn):
    def status(index, run):
        return "pending" if run.labels["family"] == "transformer" else "done"

    section = analyse("recurrent", read(tmp_path, status=status))
    assert section.finding.startswith("No comparison yet")
    assert section.charts and not section.measures


def test_a_seed_that_is_left_out_is_said(tmp_path, undrawn):
    # The first model's second seed, at each of the three rates.
    lost = read(tmp_path, status=lambda index, run: "diverged" if index in (1, 4, 7) else "done")
    section = analyse("recurrent", lost)
    assert any("Transformer: 1 seed left out" in w for w in section.warnings)

"""Reused layers against plain ones: planted gains and losses come back."""

import math

import numpy as np
import pytest

from lmscale.report import analyse
from lmscale.report.analyses import recurrent
from lmscale.report.analyses.recurrent import behind
from lmscale.spec import TransformerSpec
from lmscale.studies.papers import points
from lmscale.studies.results import Results
from lmscale.sweep import load_scales
from tests.fake_corpus import fake_corpus
from tests.report import planted_store as planted

GAIN = 0.05


def law(spec):
    """Every doubling of use gains 0.05 nats at equal N."""
    reuse = getattr(spec.model, "reuse", 1)
    return planted.SizeLaw()(spec) - GAIN * math.log2(reuse)


def study(path, *, seeds=(0, 1, 2), status=lambda index, run: "done"):
    runs = load_scales("recurrent_transformer")[2]["cpu"].runs(fake_corpus(512))
    runs = [run for run in runs if run.spec.seed in seeds]
    return Results.read(
        planted.plant(path, runs, analyses=["recurrent"], law=law, noise=0.01, status=status)
    )


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes most of an analysis' time, and one test of it will do."""
    monkeypatch.setattr(recurrent, "_chart", lambda *args: None)


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    return analyse("recurrent", study(tmp_path_factory.mktemp("recurrent")))


def test_the_gain_at_equal_size_comes_back(section):
    measure = section.measures["params"]
    low, high = measure.interval
    # Three models apply their layers twice and two four times.
    assert low < -GAIN * (3 + 4) / 5 < high < 0
    assert "mean of 5 models with reuse 2× and 4×, 3 seeds each" in measure.what
    assert "below the plain one" in section.finding and section.conclusive


def test_the_loss_at_equal_compute_comes_back(section):
    law = planted.SizeLaw()
    sizes = [24.0 * w**2 for w in (16, 24, 32)]
    gaps = []
    for reuse, n in [(2, n) for n in sizes] + [(4, n) for n in sizes[:2]]:
        plain = (law.N_c / (reuse * n)) ** law.alpha
        gaps.append((law.N_c / n) ** law.alpha - GAIN * math.log2(reuse) - plain)
    low, high = section.measures["compute"].interval
    assert 0 < low < np.mean(gaps) < high


def test_two_seeds_decide_nothing(tmp_path, undrawn):
    section = analyse("recurrent", study(tmp_path, seeds=(0, 1)))
    for measure in section.measures.values():
        assert measure.value is not None and measure.interval is None
        assert "needs 3 seeds, not 2" in measure.undecided_because


def test_no_plain_runs_no_comparison(tmp_path, undrawn):
    def status(index, run):
        return "pending" if run.labels["family"] == "transformer" else "done"

    section = analyse("recurrent", study(tmp_path, status=status))
    assert section.finding.startswith("No comparison yet")
    assert section.charts and not section.measures


def test_a_diverged_run_leaves_its_seed_out(tmp_path, undrawn):
    # The first model's second seed, at each of the three rates.
    section = analyse(
        "recurrent",
        study(tmp_path, status=lambda index, run: "diverged" if index in (1, 4, 7) else "done"),
    )
    assert any("Transformer: 1 seed left out" in w for w in section.warnings)
    assert section.measures["params"].interval is None


def test_nothing_is_extrapolated():
    plain = np.array([1e4, 1e5])
    gaps = behind([5e3, 1e4, 3e4, 2e5], [4.0, 4.0, 4.0, 4.0], plain, [4.0, 3.0])
    assert np.isnan(gaps[[0, 3]]).all()
    assert gaps[1] == pytest.approx(0)
    assert 0 < gaps[2] < 1


def test_the_papers_points_are_its_claims():
    """Below the plain ones at equal N, above them at equal compute, and their sizes are counted."""
    table = points("kaplan2020_fig7")
    plain = table[table["family"] == "transformer"].sort_values("n_params")
    reused = points("kaplan2020_fig17")
    args = reused["loss"], plain["n_params"], plain["loss"]
    assert (behind(reused["n_params"], *args) < 0).all()
    assert (behind(reused["n_params_unshared"], *args) > 0).all()
    for row in reused.itertuples():
        model = TransformerSpec(
            n_layer=row.depth // row.reuse, d_model=row.d_model, n_ctx=1024, vocab_size=50_257
        )
        assert row.n_params == 12 * model.n_layer * row.d_model**2

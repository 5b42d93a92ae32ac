"""Reused layers against plain ones: planted gains and losses come back."""

import math

import numpy as np
import pytest

from lmscale.spec import TransformerSpec
from lmscale.studies import Results, recurrent
from lmscale.studies.papers import points
from lmscale.studies.recurrent import behind
from lmscale.sweep import load_scales
from tests.fake_corpus import fake_corpus
from tests.report import planted_store as planted

GAIN = 0.05


def law(spec):
    """Every doubling of use gains 0.05 nats at equal N."""
    reuse = getattr(spec.model, "reuse", 1)
    return planted.SizeLaw()(spec) - GAIN * math.log2(reuse)


def read(path, *, seeds=(0, 1, 2), status=lambda index, run: "done"):
    runs = load_scales("recurrent_transformer")[2]["cpu"].runs(fake_corpus(512))
    runs = [run for run in runs if run.spec.seed in seeds]
    return Results.read(
        planted.plant(path, runs, analyses=["recurrent"], law=law, noise=0.01, status=status)
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return recurrent.study(read(tmp_path_factory.mktemp("recurrent")))


def test_the_gain_at_equal_size_comes_back(found):
    gap = found.estimates["params"]
    # Three models apply their layers twice and two four times.
    assert gap.interval[0] < -GAIN * (3 + 4) / 5 < gap.interval[1] < 0
    assert (gap.n, gap.seeds) == (5, 3)
    assert [family.reuse for family in found.reused] == [2, 4]


def test_the_loss_at_equal_compute_comes_back(found):
    law = planted.SizeLaw()
    sizes = [24.0 * w**2 for w in (12, 16, 24)]
    gaps = []
    for reuse, n in [(2, n) for n in sizes] + [(4, n) for n in sizes[:2]]:
        plain = (law.N_c / (reuse * n)) ** law.alpha
        gaps.append((law.N_c / n) ** law.alpha - GAIN * math.log2(reuse) - plain)
    low, high = found.estimates["compute"].interval
    assert 0 < low < np.mean(gaps) < high


def test_two_seeds_decide_nothing(tmp_path):
    for gap in recurrent.study(read(tmp_path, seeds=(0, 1))).estimates.values():
        assert gap.value is not None and gap.interval is None
        assert "needs 3 seeds, not 2" in gap.undecided_because


def test_no_plain_runs_no_comparison(tmp_path):
    def status(index, run):
        return "pending" if run.labels["family"] == "transformer" else "done"

    found = recurrent.study(read(tmp_path, status=status))
    assert found.plain is None and found.families
    for gap in found.estimates.values():
        assert gap.value is None and "plain Transformer" in gap.undecided_because


def test_a_diverged_run_leaves_its_seed_out(tmp_path):
    # The first model's second seed, at each of the three rates.
    lost = read(tmp_path, status=lambda index, run: "diverged" if index in (1, 4, 7) else "done")
    found = recurrent.study(lost)
    assert found.plain.seeds == (0, 2)
    assert found.estimates["params"].interval is None


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
    assert max(recurrent.paper_gaps("params").values()) < 0
    assert min(recurrent.paper_gaps("compute").values()) > 0
    for row in reused.itertuples():
        model = TransformerSpec(
            n_layer=row.depth // row.reuse, d_model=row.d_model, n_ctx=1024, vocab_size=50_257
        )
        assert row.n_params == 12 * model.n_layer * row.d_model**2

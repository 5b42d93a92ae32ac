"""Loss against size by depth: a planted collapse comes back, and the paper's points are read."""

import numpy as np
import pytest

from lmscale.report import Study, analyse
from lmscale.report.analyses import families
from lmscale.report.analyses.families import collapse, single_layer_shift
from lmscale.report.papers import points
from lmscale.spec import TransformerSpec
from lmscale.sweep import Run, make_run, width_rule
from tests.report import planted_store as planted

SINGLE = 0.04


def runs(depths=(1, 2, 3, 6), widths=(8, 16, 32, 64), seeds=(0, 1, 2)):
    return [
        Run(
            make_run(
                TransformerSpec(
                    n_layer=n, d_model=width, n_ctx=planted.N_CTX, vocab_size=planted.VOCAB
                ),
                steps=1000,
                data=planted.DATA,
                evals=planted.EVALS,
                batch_size=4,
                learning_rate=width_rule(),
                seed=seed,
            ),
            {"family": f"transformer, {n} layer{'s' * (n > 1)}"},
        )
        for n in depths
        for width in widths
        for seed in seeds
    ]


def law(spec):
    return planted.SizeLaw()(spec) * (1 + SINGLE * (spec.model.n_layer == 1))


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes most of an analysis' time, and one test of it will do."""
    monkeypatch.setattr(families, "_chart", lambda *args: None)


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    store = planted.plant(
        tmp_path_factory.mktemp("families"), runs(), analyses=["families"], law=law, noise=0.005
    )
    return analyse("families", Study.read(store))


def test_depths_collapse_without_embeddings_only(section):
    measure = section.measures["collapse"]
    assert measure.value > 3
    low, high = measure.interval
    assert 1.5 < low < measure.value < high
    assert "12 models of two or more layers, 3 seeds each" in measure.what
    assert section.conclusive and len(section.charts) == 1


def test_the_shift_of_a_single_layer_comes_back(section):
    measure = section.measures["single_layer"]
    low, high = measure.interval
    assert low < SINGLE < high
    assert measure.value == pytest.approx(SINGLE, abs=0.005)
    # One of the four lies below the sizes of the deeper ones.
    assert "3 models" in measure.what


def test_the_exponent_is_not_judged_on_unfinished_training(section):
    fit = section.fits["depth 2 and more/kaplan"]
    low, high = fit.intervals["alpha_N"]
    assert low < planted.SizeLaw().alpha < high
    assert fit.n_used == 36
    measure = section.measures["alpha_N"]
    assert measure.interval == (low, high)
    assert "tokens a parameter" in measure.why


def test_few_models_give_no_verdict(tmp_path, undrawn):
    store = planted.plant(tmp_path, runs(depths=(1, 2), seeds=(0,)), analyses=["families"], law=law)
    section = analyse("families", Study.read(store))
    assert section.finding.startswith("No verdict on depth yet: 4 models")
    assert not section.conclusive and section.charts
    assert all(m.value is None and m.why for m in section.measures.values())


def test_nothing_trained_yet(tmp_path):
    store = planted.plant(
        tmp_path, runs(), analyses=["families"], status=lambda index, run: "pending"
    )
    assert "No run" in analyse("families", Study.read(store)).finding


def test_the_papers_own_points_collapse():
    paper = points("kaplan2020_fig6_nonembed")
    total = paper["N_nonembed"] + (50_257 + 1024) * paper["d_model"]
    deep = paper["n_layer"] > 1
    found = collapse(paper["N_nonembed"][deep], total[deep], paper["test_loss"][deep])
    assert found.n_models == 31
    assert found.without == pytest.approx(0.018, abs=0.001)
    assert found.ratio == pytest.approx(2.45, abs=0.05)
    assert found.interval[0] > 1.5
    value, (low, high), m = single_layer_shift(
        paper["n_layer"], paper["N_nonembed"], paper["test_loss"]
    )
    assert m == 6
    assert 0 < low < value < high


def test_depths_that_separate_either_way_do_not_collapse():
    """Where loss follows the count with embeddings, the ratio is below 1."""
    n_layer, width = np.meshgrid([2, 3, 6], [8, 16, 32, 64])
    n = 12.0 * n_layer * width**2
    total = n + 1000 * width
    loss = (1e13 / total) ** 0.08
    found = collapse(n.ravel(), total.ravel(), loss.ravel())
    assert found.interval[1] < 1

"""The worth of repeated data: a planted decay comes back, with and without enough seeds."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from lmscale_experiments.repeat import SCALES

from lmscale import flops
from lmscale.laws.data_constrained import data_constrained_loss, effective
from lmscale.report import analyse
from lmscale.report.analyses import repeat
from lmscale.studies.fits import refused
from lmscale.studies.results import Results
from tests.report import planted_store as planted

CORPUS = SimpleNamespace(
    name="planted",
    fingerprint="0123456789ab",
    vocab_size=planted.VOCAB,
    n_tokens=lambda split: 30_000_000,
)
TRUE = {
    "E": 1.8,
    "A": 60.0,
    "B": 80.0,
    "alpha": 0.4,
    "beta": 0.4,
    "R_D_star": 12.0,
    "R_N_star": 1e3,
}


def law(spec):
    return float(
        data_constrained_loss(
            TRUE,
            params=flops.n_params(spec.model, "chinchilla"),
            tokens=spec.n_tokens,
            unique_tokens=spec.data.subset_tokens,
        )
    )


def declared(**fields):
    small = {
        "sizes": (1e4, 4e4, 1.6e5),
        "unique_tokens": 2**17,
        "epochs": (1, 2, 4, 8, 16, 32, 64),
        "fresh": (2, 4, 8, 16),
    }
    return replace(SCALES["cpu"], **(small | fields)).runs(CORPUS)


def study_of(path, runs, noise=0.002, **options):
    return Results.read(
        planted.plant(path, runs, analyses=["repeat"], law=law, noise=noise, **options)
    )


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeat, "BOOTSTRAP", 100)
        yield


@pytest.fixture
def no_law(monkeypatch):
    """Leaves the law out, which costs most of an analysis."""
    monkeypatch.setattr(
        repeat, "_fit", lambda runs, vocab_size: refused("data-constrained", "not asked for")
    )


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    return analyse("repeat", study_of(tmp_path_factory.mktemp("repeat"), declared()))


def test_the_decay_comes_back(section):
    measure = section.measures["R_D_star"]
    assert measure.value == pytest.approx(TRUE["R_D_star"], rel=0.15)
    assert measure.interval[0] < measure.value < measure.interval[1]
    assert section.conclusive and "R_D* =" in section.finding


def test_worth_is_read_off_the_fresh_runs_without_a_law(section):
    measure = section.measures["worth_at_16"]
    truth = effective(1.0, 15.0, TRUE["R_D_star"]) / 16
    assert measure.value == pytest.approx(truth, abs=0.05)
    assert measure.interval[0] < measure.value < measure.interval[1]


def test_excess_and_gain_are_paired_by_seed(section):
    excess = section.measures["excess_at_4"]
    assert 0 < excess.interval[0] < excess.value < excess.interval[1] < 0.03
    gain = section.measures["gain_beyond_40"]
    assert "from 32 to 64 epochs" in gain.what
    assert gain.interval[0] < gain.value < gain.interval[1]


def test_charts_and_tables(section):
    assert [chart.name for chart in section.charts] == ["repeat", "repeat-worth"]
    assert [row[0] for row in section.grids[0].rows] == ["2", "4", "8", "16", "32", "64"]
    assert section.grids[0].rows[1][5] == "0.931"


def test_one_seed_has_no_intervals(tmp_path, no_law):
    section = analyse("repeat", study_of(tmp_path, declared(seeds=(0,))))
    measure = section.measures["excess_at_4"]
    assert measure.value is not None and measure.interval is None
    assert "needs 3 seeds, not 1" in measure.undecided_because
    assert any("not known" in text for text in section.warnings)


def test_a_worth_that_fresh_runs_do_not_reach_decides_nothing(tmp_path, no_law):
    """Otherwise the sizes that repeat best drop out of the mean, and cap it at the longest run."""

    def mixed(spec):
        best = spec.model.d_model > 40
        return law(spec) - (0.2 if best and spec.n_tokens == 16 * 2**17 else 0.0)

    runs = declared(fresh=(2, 4, 8))
    store = planted.plant(tmp_path, runs, analyses=["repeat"], law=mixed, noise=0.002)
    section = analyse("repeat", Results.read(store))
    measure = section.measures["worth_at_16"]
    assert measure.interval and "left out: not all seeds" in measure.undecided_because
    assert "mean of 2 sizes" in measure.what or "mean of 1 size," in measure.what
    assert "of 3" in section.grids[0].rows[3][3]
    # At 4 epochs every size has its fresh runs.
    assert not section.measures["excess_at_4"].undecided_because


def test_seeds_of_one_cell_are_one_point_of_the_law(tmp_path):
    """More seeds that stray alike tell no more about R_D*."""

    def strays(spec):
        own = np.random.default_rng([spec.model.d_model, spec.steps, spec.data.subset_tokens])
        return law(spec) * (1 + 0.004 * own.standard_normal())

    intervals = []
    for seeds in ((0,), (0, 1, 2, 3)):
        path = tmp_path / str(len(seeds))
        store = planted.plant(path, declared(seeds=seeds), analyses=["repeat"], law=strays, noise=0)
        runs = repeat._runs(Results.read(store), "transformer")
        intervals.append(repeat._fit(runs, planted.VOCAB).intervals["R_D_star"])
    assert intervals[0] == pytest.approx(intervals[1], rel=1e-3)


def test_intervals_say_that_one_set_was_drawn(section):
    assert "one drawn set" in section.measures["excess_at_4"].what
    assert any("not which tokens were drawn" in text for text in section.warnings)


def test_a_fixed_total_with_fewer_unique_tokens(tmp_path, no_law):
    """The paper's design: every run as long as the one fresh run of its size."""
    runs = []
    for unique in (2**20, 2**19, 2**18, 2**16):
        runs += declared(unique_tokens=unique, epochs=(2**20 // unique,), fresh=(), sizes=(4e4,))
    section = analyse("repeat", study_of(tmp_path, runs, noise=1e-4))
    assert section.measures["excess_at_4"].value == pytest.approx(0.01, abs=0.01)
    assert section.measures["worth_at_16"].value is None
    assert section.measures["gain_beyond_40"].value is None


def test_too_few_fresh_runs_have_no_law(tmp_path):
    runs = declared(sizes=(1e4,), seeds=(0,))
    section = analyse("repeat", study_of(tmp_path, runs))
    assert "of two sizes or more" in section.measures["R_D_star"].undecided_because
    assert section.conclusive and "lose their worth" not in section.finding


def test_without_fresh_runs_or_results(tmp_path, no_law):
    runs = declared(epochs=(2, 4), fresh=(), seeds=(0,))
    section = analyse("repeat", study_of(tmp_path / "alone", runs))
    assert not section.measures or section.measures["excess_at_4"].value is None
    pending = study_of(tmp_path / "none", runs, status=lambda index, run: "pending")
    assert analyse("repeat", pending).finding == "No run has ended well yet."

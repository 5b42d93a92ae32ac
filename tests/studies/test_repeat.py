"""The worth of repeated data: a planted decay comes back, with and without enough seeds."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from lmscale_experiments.repeat import SCALES

from lmscale import flops
from lmscale.laws.data_constrained import data_constrained_loss, effective
from lmscale.studies import Results, repeat
from tests.report import planted_store as planted
from tests.report.fixtures import throughout, without_law

#: Its laws take long to fit; the section of the report has quick tests.
pytestmark = pytest.mark.slow
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


def read(path, runs, *, law=law, noise=0.002, **options):
    return Results.read(
        planted.plant(path, runs, analyses=["repeat"], law=law, noise=noise, **options)
    )


def study_of(path, runs, **options):
    return repeat.study(read(path, runs, **options))


few_draws = throughout(repeat, "BOOTSTRAP", 100)


no_law = without_law(repeat, "data-constrained")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return study_of(tmp_path_factory.mktemp("repeat"), declared())


def test_the_decay_comes_back(found):
    star = found.estimates["R_D_star"]
    assert star.value == pytest.approx(TRUE["R_D_star"], rel=0.15)
    assert star.interval[0] < star.value < star.interval[1]


def test_draws_that_run_off_leave_the_interval_open_above(found):
    assert repeat.decay(found.fit, "R_D_star").interval == found.estimates["R_D_star"].interval
    edges = {"R_D_star": (11.0, math.exp(20))}
    ran_off = replace(found.fit, intervals={**found.fit.intervals, **edges})
    assert repeat.decay(ran_off, "R_D_star").interval == (11.0, math.inf)


def test_worth_is_read_off_the_fresh_runs_without_a_law(found):
    worth = found.estimates["worth_at_16"]
    truth = effective(1.0, 15.0, TRUE["R_D_star"]) / 16
    assert worth.value == pytest.approx(truth, abs=0.05)
    assert worth.interval[0] < worth.value < worth.interval[1]
    assert [row.epochs for row in found.epochs] == [2, 4, 8, 16, 32, 64]


def test_excess_and_gain_are_paired_by_seed(found):
    excess, gain = found.estimates["excess_at_4"], found.estimates["gain_beyond_40"]
    assert 0 < excess.interval[0] < excess.value < excess.interval[1] < 0.03
    assert gain.at == (32, 64)
    assert gain.interval[0] < gain.value < gain.interval[1]


def test_one_seed_has_no_intervals(tmp_path, no_law):
    excess = study_of(tmp_path, declared(seeds=(0,))).estimates["excess_at_4"]
    assert excess.value is not None and excess.interval is None
    assert "needs 3 seeds, not 1" in excess.undecided_because


def mixed(spec):
    """The largest sizes end lower than any of their fresh runs."""
    best = spec.model.d_model > 40
    return law(spec) - (0.2 if best and spec.n_tokens == 16 * 2**17 else 0.0)


def test_a_worth_that_fresh_runs_do_not_reach_decides_nothing(tmp_path, no_law):
    """Otherwise the sizes that repeat best drop out of the mean, and cap it at the longest run."""
    estimates = study_of(tmp_path, declared(fresh=(2, 4, 8)), law=mixed).estimates
    worth = estimates["worth_at_16"]
    assert worth.interval and "left out: not all seeds" in worth.undecided_because
    assert worth.n in (1, 2)
    # At 4 epochs every size has its fresh runs.
    assert not estimates["excess_at_4"].undecided_because


@pytest.mark.slow
def test_seeds_of_one_cell_are_one_point_of_the_law(tmp_path):
    """More seeds that stray alike tell no more about R_D*."""

    def strays(spec):
        own = np.random.default_rng([spec.model.d_model, spec.steps, spec.data.subset_tokens])
        return law(spec) * (1 + 0.004 * own.standard_normal())

    intervals = []
    for seeds in ((0,), (0, 1, 2, 3)):
        path = tmp_path / str(len(seeds))
        found = study_of(path, declared(seeds=seeds), law=strays, noise=0)
        intervals.append(found.fit.intervals["R_D_star"])
    assert intervals[0] == pytest.approx(intervals[1], rel=1e-3)


def test_a_fixed_total_with_fewer_unique_tokens(tmp_path, no_law):
    """The paper's design: every run as long as the one fresh run of its size."""
    runs = []
    for unique in (2**20, 2**19, 2**18, 2**16):
        runs += declared(unique_tokens=unique, epochs=(2**20 // unique,), fresh=(), sizes=(4e4,))
    estimates = study_of(tmp_path, runs, noise=1e-4).estimates
    assert estimates["excess_at_4"].value == pytest.approx(0.01, abs=0.01)
    assert estimates["worth_at_16"].value is None
    assert estimates["gain_beyond_40"].value is None


def test_too_few_fresh_runs_have_no_law(tmp_path):
    found = study_of(tmp_path, declared(sizes=(1e4,), seeds=(0,)))
    assert "of two sizes or more" in found.estimates["R_D_star"].undecided_because
    assert found.fits["data-constrained/chinchilla"].failure


def test_without_fresh_runs_or_results(tmp_path, no_law):
    runs = declared(epochs=(2, 4), fresh=(), seeds=(0,))
    assert study_of(tmp_path / "alone", runs).estimates["excess_at_4"].value is None
    none = study_of(tmp_path / "none", runs, status=lambda index, run: "pending")
    assert not none.fits
    for one in none.estimates.values():
        assert one.undecided_because == "no run has ended well"

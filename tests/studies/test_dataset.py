"""Loss over size and dataset: a planted law, its early stopping, and what cannot be told."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from lmscale_experiments.dataset_size import SCALES
from scipy.stats import binomtest

from lmscale import flops, laws
from lmscale.studies import Results, dataset
from lmscale.studies.estimate import Estimate
from lmscale.training.result import result
from lmscale.training.slot import falls_no_more
from tests.report import planted_store as planted
from tests.report.fixtures import throughout

CORPUS = SimpleNamespace(
    name="planted",
    fingerprint="0123456789ab",
    vocab_size=planted.VOCAB,
    n_tokens=lambda split: 30_000_000,
)
ND = {"alpha_N": 0.1, "N_c": 4e8, "alpha_D": 0.13, "D_c": 1.5e8}
S_C, ALPHA_S = 60.0, 0.8
STEPS = 8000


def loss_curve(spec, step):
    """Test loss after `step` updates: the curve of unlimited data, until the set is used up."""
    n = flops.n_params(spec.model, "kaplan")
    tokens = spec.data.subset_tokens or math.inf
    limit = laws.published("kaplan2020-nd").model(ND, params=n, tokens=np.inf)
    lowest = laws.published("kaplan2020-nd").model(ND, params=n, tokens=tokens)
    if tokens == math.inf:
        return limit + (S_C / step) ** ALPHA_S - (S_C / STEPS) ** ALPHA_S
    # Where the curve of unlimited data crosses the lowest loss, and half as long again.
    stop = 1.5 * S_C / (lowest - limit) ** (1 / ALPHA_S)
    rise = 0.05 * max(0.0, math.log(step / stop)) ** 2
    fall = (S_C / min(step, stop)) ** ALPHA_S - (S_C / stop) ** ALPHA_S
    return lowest + fall + rise


def plant(path, runs, noise=0.005):
    """A store of runs that followed `loss_curve` and were stopped as the loop stops them."""
    store = planted.plant(path, runs, analyses=["dataset"], status=lambda index, run: "pending")
    rng = np.random.default_rng(3)
    for run in runs:
        spec, folder = run.spec, store.folder(run)
        shift = noise * rng.standard_normal()
        warm = spec.schedule.warmup_steps
        records, losses = [], []
        for step in range(spec.eval_every, spec.steps + 1, spec.eval_every):
            losses.append(loss_curve(spec, step) + shift)
            place = {"step": step, "tokens": step * spec.batch_tokens, "flops": 1.0 * step}
            values = {"loss": losses[-1], "bits_per_byte": losses[-1] / 2.2, "by_position": []}
            lr = min(1.0, step / warm)
            record = {"loss": losses[-1] - 0.1 * step / spec.steps, "lr": lr, "steps_averaged": 1}
            records += [place | record, place | {"eval": {"valid": values}}]
            if spec.stopping and len(losses) - 1 - np.argmin(losses) >= spec.stopping.patience:
                break
        folder.append_metrics(records)
        assert falls_no_more(folder) or step == spec.steps
        folder.write_result(result(folder, "done", None, "cpu", step))
        folder.write_status("done", step=step, seconds=1.0, reason=None)
    return store


def declared(**fields):
    small = {"sizes": (2e4, 8e4, 3.2e5, 1.3e6), "divisors": (1, 32, 64, 128, 256, 512)}
    return replace(SCALES["cpu"], **(small | {"steps": STEPS, "evaluations": 100} | fields)).runs(
        CORPUS
    )


few_draws = throughout(dataset, "BOOTSTRAP", 100)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results.read(plant(tmp_path_factory.mktemp("dataset"), declared()))


@pytest.fixture(scope="module")
def found(results):
    return dataset.study(results)


@pytest.mark.slow
def test_the_joint_law_comes_back(found):
    fit = found.fits["L(N,D)/kaplan"]
    for name in ("alpha_N", "alpha_D"):
        assert fit.parameters[name] == pytest.approx(ND[name], rel=0.05)
    exponent = found.estimates["overfitting_exponent"]
    assert exponent.value == pytest.approx(ND["alpha_N"] / ND["alpha_D"], rel=0.05)
    low, high = exponent.interval
    assert low < exponent.value < high


@pytest.mark.slow
def test_the_rule_for_enough_data_is_judged_within_the_set_only(found):
    constant, power = dataset.RULE
    assert constant * found.largest**power > 3e7
    at_rule = found.estimates["overfitting_at_rule"]
    assert at_rule.value is None and "the rule asks for" in at_rule.undecided_because
    runs = found.runs
    at_rule = dataset.overfitting_at_rule(found.laws.nd, runs[runs["params"] < 1e5])
    assert 0 < at_rule.interval[0] < at_rule.value < at_rule.interval[1] < 0.03


@pytest.mark.slow
def test_runs_stop_above_the_bound(found):
    share = found.estimates["share_above_stopping_bound"]
    assert share.value > 0.9
    assert share.interval[0] > 0.7 and share.interval[1] == 1.0
    assert not share.undecided_because
    ns = found.fits["L(N,S)/kaplan"]
    assert ns.parameters["alpha_S"] == pytest.approx(ALPHA_S, rel=0.1)


@pytest.mark.slow
def test_the_data_exponent_needs_a_size_that_does_not_limit(found):
    # Part of the way to that of unlimited size.
    assert found.estimates["data_exponent"].value == pytest.approx(0.116, abs=0.01)
    smallest = found.runs["params"].min()
    exponent = dataset.data_exponent(found.laws, smallest)
    assert smallest < 2e4
    assert exponent.value is None and "depends more on its size" in exponent.undecided_because


@pytest.mark.slow
def test_short_epochs_are_left_out_of_the_joint_law(found):
    batch, smallest = found.runs["batch_tokens"].iloc[0], found.runs["dataset"].min()
    runs = found.runs.replace({"dataset": {smallest: 41 * batch}})
    assert set(runs[~dataset.enters_fit(runs)]["dataset"]) == {41 * batch}


@pytest.mark.slow
def test_few_runs_fit_nothing(tmp_path):
    one = declared(seeds=(0,), divisors=(1,), sizes=(2e4,))
    found = dataset.study(Results.read(plant(tmp_path / "one", one)))
    assert found.laws.nd.failure and len(found.fits) == 3
    assert all(estimate.value is None for estimate in found.estimates.values())


@pytest.mark.slow
def test_a_store_without_results_holds_nothing(tmp_path):
    one = declared(seeds=(0,), divisors=(1,), sizes=(2e4,))
    planted.plant(tmp_path, one, analyses=["dataset"], status=lambda index, run: "pending")
    found = dataset.study(Results.read(tmp_path))
    assert not len(found.runs) and not found.fits
    assert all(estimate.value is None for estimate in found.estimates.values())


@pytest.mark.slow
def test_seeds_of_a_cell_share_what_it_strays_from_the_law(results, found):
    """Three seeds without noise of their own leave the intervals as one seed has them."""
    runs = found.runs
    means = runs.groupby(["params", "dataset"])["loss"].transform("mean")
    rng = np.random.default_rng(0)
    cell = runs.groupby(["params", "dataset"]).ngroup().to_numpy()
    runs = runs.assign(loss=means * np.exp(0.01 * rng.standard_normal(cell.max() + 1)[cell]))
    width = []
    for seeds in ((0,), (0, 1, 2)):
        fits = dataset.fit_laws(results, runs[runs["seed"].isin(seeds)])
        ratio = Estimate.of_fit(fits.nd, "ratio", lambda p: p["alpha_N"] / p["alpha_D"])
        width.append([np.diff(ratio.interval)[0], np.diff(fits.d.intervals["alpha_D"])[0]])
    assert np.allclose(width[0], width[1], rtol=0.02)


def test_the_share_above_the_bound_is_of_cells_over_the_draws_of_the_laws():
    cells = pd.DataFrame({"step": np.full(20, 100.0)})
    known = dataset.Stops(cells, np.full(20, 50.0), np.full((20, 400), 50.0))
    exact = binomtest(20, 20).proportion_ci(0.95, method="exact")
    assert known.share_interval() == pytest.approx((exact.low, exact.high), abs=0.01)
    # A bound that may as well lie above every cell leaves nothing certain.
    drawn = np.tile(np.repeat([50.0, 200.0], 200), (20, 1))
    low, high = dataset.Stops(cells, np.full(20, 50.0), drawn).share_interval()
    assert low < 0.01 and high == 1.0


def test_a_cell_without_overfitting_is_no_violation():
    cells = pd.DataFrame({"step": np.full(5, 100.0)})
    bound = np.array([50.0, 50.0, 50.0, 50.0, np.nan])
    stops = dataset.Stops(cells, bound, np.tile(bound[:, None], 50))
    assert stops.judged == stops.kept == 4
    assert not stops.share(1200).undecided_because
    assert "runs of 40 at most" in stops.share(40).undecided_because
    assert stops.share_interval()[1] == 1.0


def test_a_bound_that_many_draws_lack_has_no_upper_end():
    cells = pd.DataFrame({"step": [100.0]})
    drawn = np.where(np.arange(400) < 300, 50.0, np.nan)[None]
    low, high = dataset.Stops(cells, np.array([50.0]), drawn).bound_interval()
    assert low == [50.0] and high > 1e300


SIZES, FULL = [24.0 * width**2 for width in (12, 24, 40)], 5e6


def overfitted(power, seeds=(0, 1, 2), noise=0.003):
    """Runs that overfit by 0.3 (2500 / D)^0.5 (N / N_smallest)^power; larger ones are better without limits."""
    rng, rows = np.random.default_rng(0), []
    for n in SIZES:
        for d in (FULL / divisor for divisor in (1, 128, 256, 512, 1024, 2048)):
            limit = (1e9 / n) ** 0.07
            loss = limit * (1 + 0.3 * (2500 / d) ** 0.5 * (n / SIZES[0]) ** power)
            rows += [(n, d, loss * np.exp(noise * rng.standard_normal()), seed) for seed in seeds]
    return pd.DataFrame(rows, columns=["params", "dataset", "loss", "seed"]).assign(
        batch_tokens=10.0
    )


@pytest.mark.parametrize(("power", "low", "high"), [(0.3, 0.12, 0.16), (-0.2, -0.06, -0.04)])
def test_whether_larger_models_overfit_more_is_read_from_the_losses(power, low, high):
    """The exponent of L(N, D) was positive for both."""
    more = dataset.more_overfitting(overfitted(power))
    assert low < more.interval[0] < more.value < more.interval[1] < high
    assert (more.n, more.seeds, more.at) == (5, 3, (SIZES[0], SIZES[-1]))


def test_sizes_that_overfit_alike_do_not_overfit_more():
    more = dataset.more_overfitting(overfitted(0.0))
    assert more.may_be(0.0) and np.diff(more.interval)[0] < 0.02


def test_more_overfitting_needs_seeds_and_subsets_that_both_sizes_have():
    runs = overfitted(0.3)
    of_seed = dataset.more_overfitting(runs[runs["seed"] == 0])
    assert of_seed.value > 0.1 and of_seed.undecided_because == "an interval needs 3 seeds, not 1"
    large = runs["params"] == SIZES[-1]
    for left_out in (large & (runs["dataset"] == FULL), ~large, large & (runs["dataset"] < FULL)):
        more = dataset.more_overfitting(runs[~left_out])
        assert more.value is None and more.undecided_because
    # Two seeds of one cell leave the other cells' third seed out.
    lost = large & (runs["dataset"] == FULL) & (runs["seed"] == 2)
    assert dataset.more_overfitting(runs[~lost]).seeds == 2

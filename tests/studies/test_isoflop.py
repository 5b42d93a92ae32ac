"""Profiles of planted laws, under every count."""

import pandas as pd
import pytest

from lmscale import flops, laws
from lmscale.studies.exponents import interval_of_difference, is_informative
from lmscale.studies.isoflop import approach_2, study
from lmscale.studies.restate import budget_spread, native_convention, restate
from tests.report import planted_store as planted
from tests.report.test_report_isoflop import study as read


def test_other_conventions_give_what_a_grid_made_in_them_would(tmp_path):
    """The same losses on a grid of equal kaplan FLOPs have this exponent; the old groups have not."""
    runs = planted.isoflop_runs(lstm=False, seeds=(0,))
    results = read(tmp_path, runs, noise=0.0)
    fit = study(results).fits["transformer/kaplan"]
    law, rows = planted.Law(), []
    for profile in fit.details["profiles"]:
        for model in {run.spec.model for run in runs}:
            tokens = profile.flops / flops.training_flops_per_token(model, "kaplan")
            n = flops.n_params(model, "standard")
            rows.append(
                {
                    "params": flops.n_params(model, "kaplan"),
                    "tokens": tokens,
                    "flops": profile.flops,
                    "budget": profile.flops,
                    "loss": law.E + law.A * n**-law.alpha + law.B * tokens**-law.beta,
                }
            )
    truth = laws.fit(pd.DataFrame(rows), "isoflop", bootstrap=0).parameters["a"]
    assert truth > 0.56
    assert fit.parameters["a"] == pytest.approx(truth, abs=0.006)
    table = results.usable
    grouped = table.assign(
        params=table["params_kaplan"],
        flops=table.groupby("budget")["flops_kaplan"].transform("mean"),
    )[["params", "tokens", "flops", "loss", "budget"]]
    naive = laws.fit(grouped.assign(budget=grouped["flops"]), "isoflop", bootstrap=0)
    assert abs(naive.parameters["a"] - truth) > 0.03


def test_the_count_in_which_the_budgets_were_set_is_found_and_left_alone(tmp_path):
    runs = read(tmp_path, planted.isoflop_runs(lstm=False, seeds=(0,))).usable
    assert native_convention(runs, flops.CONVENTIONS) == "standard"
    assert budget_spread(runs, "kaplan") > 1.3
    anchors = {b: int(g["loss"].idxmin()) for b, g in runs.groupby("budget")}
    view = restate(runs, "standard", anchors)
    assert view.moved == 0 and list(view.rows["loss"]) == list(runs["loss"])
    restated = restate(runs, "kaplan", anchors)
    assert restated.moved > 0
    assert (restated.rows.groupby("budget")["flops"].nunique() == 1).all()


def test_too_few_runs_to_restate_are_refused_in_words(tmp_path):
    runs = read(
        tmp_path, planted.isoflop_runs((1e12, 3e12), lstm=False, seeds=(0,), sizes=4)
    ).usable
    with pytest.raises(ValueError, match="8 runs, where 9 are needed"):
        restate(runs, "kaplan", {1e12: 0, 3e12: 4})


def test_the_planted_exponent_and_its_tokens_per_parameter_come_back(tmp_path):
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=5)
    results, law = read(tmp_path, runs, noise=0.002), planted.Law()
    found = study(results)
    # Studies that compare themselves with these profiles read the same fit.
    assert approach_2(results, "transformer") is found.fits["transformer/standard"]
    a = found.estimates["a"]
    assert a.may_be(law.exponent) and is_informative(a)
    assert (a.value, a.interval) == (
        found.estimates["a_standard"].value,
        found.estimates["a_standard"].interval,
    )
    # As much data as parameters: D_opt / N_opt does not change with C.
    assert found.estimates["tokens_per_param_exponent"].may_be(0)
    ratio = found.estimates["tokens_per_param"]
    best = law.best_size(ratio.at[0])
    assert ratio.interval[0] < ratio.at[0] / 6 / best**2 < ratio.interval[1]
    # Both counts of one seed's runs are read from the same draws of them.
    assert found.estimates["kaplan_minus_native"].may_be(0.086)
    assert approach_2(read(tmp_path / "again", runs, noise=0.002), "transformer").parameters == (
        found.fits["transformer/standard"].parameters
    )


def test_counts_of_the_same_runs_are_compared_on_the_same_draws(tmp_path):
    budgets = [1e12 * 2**i for i in range(6)]
    runs = planted.isoflop_runs(budgets, lstm=False, sizes=5)
    found = study(read(tmp_path, runs, noise=0.002)).estimates
    change = found["kaplan_minus_native"]
    low, high = interval_of_difference(
        *(x for name in ("a_kaplan", "a") for x in (found[name].value, found[name].interval))
    )
    assert change.interval[1] - change.interval[0] < 0.7 * (high - low)
    assert change.interval[0] < change.value < change.interval[1]
    assert not change.undecided_because and change.draws is not None


def test_profiles_without_a_minimum_inside_have_no_exponent(tmp_path):
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=5)
    found = study(read(tmp_path, runs, law=planted.Law(A=4000.0, alpha=0.4), noise=0.0))
    assert not found.fits["transformer/standard"].exponents
    assert "no interior minimum" in found.estimates["a"].undecided_because
    assert found.estimates["tokens_per_param_exponent"].value is None


def test_a_store_without_budgets_or_runs_holds_every_estimate_undecided(tmp_path):
    none = study(read(tmp_path / "a", planted.size_runs(seeds=(0,), layers=())))
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=5)
    pending = study(read(tmp_path / "b", runs, status=lambda index, run: "pending"))
    assert set(none.estimates) == set(pending.estimates) and len(none.estimates) == 8
    for found in (none, pending):
        assert all(e.value is None and e.undecided_because for e in found.estimates.values())
    assert "no run has ended well yet (20 pending)" in pending.estimates["a"].undecided_because

"""What IsoFLOP intervals hold beside noise: window, shape, scatter about the law, the loss ahead."""

import dataclasses

import numpy as np
import pytest

from lmscale.laws.frontier_loss import fit_loss
from lmscale.laws.isoflop import fit_isoflop
from lmscale.laws.profile_draws import (
    choose_windows,
    draw_minima,
    noise_of,
    shape_posterior,
    with_windows,
)
from lmscale.laws.profiles import in_window, parabola, points_of
from lmscale.laws.result import FitError, interval
from lmscale.laws.scatter import LOG_N_SCALE, between_posterior, tau_prior
from lmscale.laws.table import Table

from .planted_isoflop import (
    BENT,
    BESIROGLU,
    QUICKSTART_BUDGETS,
    QUICKSTART_SIZES,
    SMALL,
    UNEQUAL,
    Design,
    Surface,
)

BUDGETS = tuple(np.geomspace(1e19, 1e21, 5))


def ahead(result, flops):
    """Draws of ln N_opt and of the loss at a budget."""
    log_n = np.log(result.draws["k_N"]) + result.draws["a"] * np.log(flops)
    curve = result.details["frontier_loss"]["draws"]
    return log_n, curve["L_inf"] + (curve["C_c"] / flops) ** curve["alpha_C"]


# --- scatter about the law ----------------------------------------------------------------------


def test_two_points_leave_the_scatter_at_its_prior():
    x = np.array([0.0, 1.0])
    one = between_posterior(x, np.array([0.0, 5.0]), 0.01 * np.eye(2), 0.1)
    other = between_posterior(x, np.array([0.0, -3.0]), 4.0 * np.eye(2), 0.1)
    np.testing.assert_allclose(one[1], other[1])
    tau, weight = one
    assert weight[0] == pytest.approx(0.3) and tau[0] == 0
    # Half of the rest lies below the scale of the Cauchy distribution.
    assert weight[(tau > 0) & (tau < 0.1)].sum() / 0.7 == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("scatter", [0.0, 0.2])
def test_many_points_tell_the_scatter(scatter):
    rng = np.random.default_rng(0)
    x = np.linspace(0, 5, 60)
    y = 0.5 * x + rng.normal(size=60) * np.hypot(0.02, scatter)
    tau, weight = between_posterior(x, y, 0.02**2 * np.eye(60), 0.1)
    assert tau @ weight == pytest.approx(scatter, abs=0.03)


def test_scatter_widens_the_interval_to_what_it_does_to_the_exponent():
    """Minima that scatter by 0.15 about the law, where the noise of the runs gives 0.01."""
    design = Design(BESIROGLU, tuple(np.geomspace(1e19, 1e21, 8)), 7, 6, noise=1e-3)
    still = fit_isoflop(design.table(3), bootstrap=400)
    moved = fit_isoflop(dataclasses.replace(design, scatter=0.15).table(3), bootstrap=400)
    x = np.log(design.budgets)
    expected = 2 * 1.96 * 0.15 / np.sqrt(np.sum((x - x.mean()) ** 2))
    width = np.diff(moved.intervals["a"])[0]
    assert 0.6 * expected < width < 2.5 * expected
    assert np.diff(still.intervals["a"])[0] < 0.3 * expected
    assert still.details["scatter"]["log_n"] < 0.03 < moved.details["scatter"]["log_n"]
    assert any("scatter" in w and "include it" in w for w in moved.warnings)
    low, high = moved.intervals["a"]
    assert low < BESIROGLU.exponent < high
    # The tokens scatter the other way by as much.
    np.testing.assert_allclose(moved.draws["a"] + moved.draws["b"], 1, atol=1e-9)


@pytest.mark.parametrize(("n", "word"), [(2, "two"), (3, "three")])
def test_few_budgets_say_that_scatter_cannot_be_measured(n, word):
    table = Design(BESIROGLU, BUDGETS[:n], 7, 6, noise=1e-3).table(0)
    result = fit_isoflop(table, bootstrap=400)
    (warning,) = [w for w in result.warnings if "cannot show how the minima scatter" in w]
    assert warning.startswith(word) and "cover more than their level" in warning
    x, std = np.log(BUDGETS[:n]), result.details["frontier"]["log_std"]
    noise_alone = 3.92 * np.sqrt(np.mean(std**2) / np.sum((x - x.mean()) ** 2))
    assert np.diff(result.intervals["a"])[0] > 1.3 * noise_alone
    assert np.isnan(result.details["scatter"]["log_n"]) == (n == 2)


# --- window and shape ---------------------------------------------------------------------------


def test_the_interval_holds_what_other_windows_give():
    """A wide, skewed profile almost without noise: windows disagree, so the interval spans them."""
    table = Design(UNEQUAL, BUDGETS, 13, 32, noise=3e-4).table(0)
    result = fit_isoflop(table, bootstrap=1000)
    log_n, _ = ahead(result, BUDGETS[-1])
    low, high = interval(log_n, 0.95)
    answers = []
    for window in (2.0, 4.0, 8.0, None):
        p = fit_isoflop(table, bootstrap=0, window=window).parameters
        answers.append(np.log(p["k_N"]) + p["a"] * np.log(BUDGETS[-1]))
    assert np.ptp(answers) > 0.15
    assert low < min(answers) and max(answers) < high
    assert low < np.log(UNEQUAL.optimum(BUDGETS[-1])[0]) < high


def test_windows_that_differ_by_noise_alone_do_not_widen_the_interval():
    """Exact parabolas: no window is wrong, and the narrow ones are only noisier."""
    rng = np.random.default_rng(1)
    u = np.tile(np.linspace(-2.5, 2.5, 15), 6)
    flops = np.repeat(np.geomspace(1e18, 1e21, 6), 15)
    table = {
        "params": flops**0.5 * np.exp(u),
        "flops": flops,
        "loss": 3 + 0.08 * u**2 + 0.01 * rng.normal(size=len(u)),
    }
    result = fit_isoflop(table, window=None, bootstrap=1000)
    # Of the whole profile alone: sd of a minimum, then of a slope through six.
    minimum = 0.01 / np.sqrt(np.sum(u[:15] ** 2)) / 0.16
    x = np.log(np.unique(flops))
    expected = 2 * 1.96 * minimum / np.sqrt(np.sum((x - x.mean()) ** 2))
    assert np.diff(result.intervals["a"])[0] < 2.2 * expected


def test_draws_move_to_the_windows_in_their_shares():
    which = choose_windows(2, 4000, np.random.default_rng(0))
    assert np.bincount(which) / 4000 == pytest.approx([0.6, 0.2, 0.2], abs=0.03)
    shifts = [np.array([[1.0, 2.0], [0.1, 0.2]]), np.full((2, 2), -1.0)]
    at, loss = with_windows(np.zeros((2, 4000)), np.zeros((2, 4000)), shifts, which)
    # All budgets of a draw are read in one window.
    np.testing.assert_allclose(at, np.array([[0.0, 1.0, -1.0], [0.0, 2.0, -1.0]])[:, which])
    np.testing.assert_allclose(loss, np.array([[0.0, 0.1, -1.0], [0.0, 0.2, -1.0]])[:, which])


def reading(design):
    """Points, windows and parabolas of every budget, over all sizes."""
    runs = Table.read(design.table(0)).runs("params", "flops", "loss", "tokens")
    points = [points_of(runs, np.flatnonzero(runs["flops"] == c)) for c in design.budgets]
    used = [in_window(p, None) for p in points]
    return points, used, [parabola(p, u, 4) for p, u in zip(points, used, strict=True)]


def test_the_shape_is_open_where_noise_hides_it_and_measured_where_it_does_not():
    read = reading(Design(UNEQUAL, BUDGETS, 9, 8, noise=0.0))
    hidden = noise_of(*read, 1.0, "auto", "parabola")
    mean, covariance = shape_posterior(*read, hidden)
    np.testing.assert_allclose(mean, [0, 0.008], atol=1e-3)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), [0.04, 0.006], rtol=0.01)
    measured = noise_of(*read, 1e-4, "auto", "parabola")
    mean, covariance = shape_posterior(*read, measured)
    # rho = (beta - alpha) / 3, q = (alpha^2 - alpha beta + beta^2) / 12; the fifth order is left out.
    np.testing.assert_allclose(mean, [-0.25 / 3, 0.1875 / 12], rtol=0.15)
    assert np.all(np.sqrt(np.diag(covariance)) < [0.004, 0.0006])


@pytest.mark.parametrize("exponents", [{"alpha": 0.5, "beta": 0.25}, {"alpha": 0.25, "beta": 0.5}])
def test_the_shape_takes_the_bias_off_the_draws(exponents):
    """Without noise, the draws that are not plain lie at the true minimum."""
    surface = Surface.through(1e20, 2e9, 2.6, E=1.7, **exponents)
    points, used, fits = reading(Design(surface, BUDGETS, 7, 4, noise=0.0))
    noise = noise_of(points, used, fits, 0.0, "auto", "parabola")
    rng = np.random.default_rng(0)
    plain_draws = np.arange(1000) < 300
    at, _ = draw_minima(points, used, fits, noise, np.log(BUDGETS), plain_draws, rng)
    truth = np.log([surface.optimum(c)[0] for c in BUDGETS])[:, None]
    plain = np.array([fit.center + fit.minimum for fit in fits])[:, None]
    np.testing.assert_allclose(at[:, :300], np.tile(plain, 300), atol=1e-9)
    bias = np.abs(plain - truth)
    assert bias.mean() > 0.04
    assert np.abs(at[:, 300:] - truth).max() < 0.25 * bias.mean()


# --- minima outside -----------------------------------------------------------------------------


def test_a_minimum_just_outside_is_read_with_shared_curvature():
    """Grids that end a quarter below the optimum: every minimum is just outside."""
    design = Design(BESIROGLU, BUDGETS, 5, 4, off=0.2, noise=0.004)
    borrowed, errors = 0, []
    for seed in range(20):
        result = fit_isoflop(design.table(seed), bootstrap=0)
        profiles = [p for p in result.details["profiles"] if p.ok]
        outside = [p for p in profiles if not p.params[0] <= p.n_opt <= p.params[-1]]
        borrowed += len(outside)
        assert all("above the sizes" in p.reason for p in outside)
        assert sum("above the sizes that were run, read with" in w for w in result.warnings) == len(
            outside
        )
        errors += [np.log(p.n_opt / BESIROGLU.optimum(p.flops)[0]) for p in outside]
        for p in outside:
            assert p.curve(p.n_opt) == pytest.approx(p.loss_opt)
    assert borrowed >= 10
    assert np.abs(np.median(errors)) < 0.3


def test_a_minimum_far_outside_is_refused_in_words():
    table = Design(BESIROGLU, BUDGETS, 5, 4, off=0.04, noise=1e-4).table(0)
    result = fit_isoflop(table, bootstrap=20)
    assert result.exponents == {}
    assert {p.flag for p in result.details["profiles"]} == {"no interior minimum"}
    assert "its minimum lies above the sizes that were run" in result.warnings[0]


# --- repeated cells -----------------------------------------------------------------------------


def repeated(**columns):
    """Profiles of five sizes with every size run three times, 0.01 apart."""
    design = Design(BESIROGLU, BUDGETS, 5, 4, noise=0.001)
    table = {name: np.repeat(values, 3) for name, values in design.table(0).items()}
    table["loss"] = table["loss"] + np.tile([0.0, 0.01, 0.02], len(table["loss"]) // 3)
    return {**table, **{k: np.resize(v, len(table["loss"])) for k, v in columns.items()}}


def test_only_a_seed_label_makes_repeats_of_runs():
    # The label says so, or no column is there that could say otherwise.
    for table in (repeated(seed=["0", "1", "2"]), repeated()):
        result = fit_isoflop(table, bootstrap=50)
        assert result.interval_method.startswith("bootstrap over seeds")
    for table in (
        repeated(seed=["0", "1", "2"], batch=[1e5, 2e5, 4e5]),
        repeated(peak_lr=[1e-3, 2e-3, 4e-3]),
        # One seed, three learning rates.
        repeated(seed=["0"], peak_lr=[1e-3, 2e-3, 4e-3]),
    ):
        assert "seeds" not in fit_isoflop(table, bootstrap=50).interval_method
        with pytest.raises(FitError, match="told apart by a column seed"):
            fit_isoflop(table, resample="seeds", bootstrap=50)


# --- the loss ahead -----------------------------------------------------------------------------


def test_the_loss_along_the_frontier_is_exact_where_it_is_planted():
    x = np.log(np.geomspace(1e18, 1e22, 6))
    loss = 1.7 + (1e20 / np.exp(x)) ** 0.15
    curve = fit_loss(x, loss, np.zeros((6, 6)), 200, np.random.default_rng(0))
    assert curve.parameters["alpha_C"] == pytest.approx(0.15, rel=1e-3)
    assert curve.parameters["C_c"] == pytest.approx(1e20, rel=1e-2)
    assert curve.parameters["L_inf"] == pytest.approx(1.7, rel=1e-3)
    assert curve.scatter < 1e-4
    assert {name: d.shape for name, d in curve.draws.items()} == {
        "alpha_C": (200,),
        "C_c": (200,),
        "L_inf": (200,),
    }


@pytest.mark.parametrize("n", [2, 3])
def test_few_budgets_leave_the_irreducible_loss_open(n):
    x = np.log(np.geomspace(1e19, 1e20, n))
    loss = 1.7 + (1e20 / np.exp(x)) ** 0.15
    covariance = 0.005**2 * np.eye(n)
    curve = fit_loss(x, loss, covariance, 2000, np.random.default_rng(0))
    low, high = np.percentile(curve.draws["L_inf"], [2.5, 97.5])
    assert low < 0.2 and high > 0.8 * loss.min()
    assert np.all(curve.draws["alpha_C"] > 0) and np.all(curve.draws["L_inf"] < loss.min())
    assert np.isnan(curve.scatter) == (n == 2)
    # Farther ahead the same draws say less.
    widths = []
    for factor in (1, 10, 100):
        at = curve.draws["L_inf"] + (curve.draws["C_c"] / (1e20 * factor)) ** curve.draws["alpha_C"]
        low, high = np.percentile(at, [2.5, 97.5])
        assert low < 1.7 + factor**-0.15 < high
        widths.append(high - low)
    assert widths[0] < widths[1] < widths[2]


def test_details_carry_the_loss_and_both_scatters():
    result = fit_isoflop(Design(BESIROGLU, BUDGETS, 7, 6, noise=0.003).table(0), bootstrap=100)
    curve = result.details["frontier_loss"]
    assert set(curve["parameters"]) == set(curve["draws"]) == {"alpha_C", "C_c", "L_inf"}
    assert curve["covariance"].shape == (5, 5)
    assert all(values.shape == (100,) for values in curve["draws"].values())
    assert set(result.details["scatter"]) == {"log_n", "loss"}
    assert 0 < result.details["scatter"]["loss"] < 0.01
    # On file the values stay, and the thousands of draws do not.
    assert set(result.to_json()["details"]["frontier_loss"]) == {"parameters", "covariance"}
    without = fit_isoflop(Design(BESIROGLU, BUDGETS, 7, 6, noise=0.003).table(0), bootstrap=0)
    assert without.details["frontier_loss"]["parameters"]["alpha_C"] > 0
    assert without.intervals == {} and without.draws == {}


# --- coverage -----------------------------------------------------------------------------------

QUICK = {"surface": SMALL, "budgets": QUICKSTART_BUDGETS, "ladder": tuple(QUICKSTART_SIZES)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "design",
    [
        Design(BESIROGLU, tuple(np.geomspace(1e19, 1e21, 6)), 9, 8, noise=0.005),
        Design(BESIROGLU, tuple(np.geomspace(1e19, 1e21, 3)), 5, 4, noise=0.01),
        Design(BESIROGLU, BUDGETS, 5, 4, noise=0.015, uneven=0.3),
        Design(UNEQUAL, BUDGETS, 7, 4, off=3.0, noise=0.005),
        Design(BENT, tuple(np.geomspace(1e19, 1e21, 6)), 7, 6, noise=0.01),
        Design(**QUICK, noise=0.02),
        Design(**QUICK, noise=0.01, scatter=0.1),
    ],
    ids=["wide", "three budgets", "uneven", "off centre", "bent", "quickstart", "scatter"],
)
def test_intervals_cover_exponent_size_and_loss_ahead(design):
    """95% intervals of a, and of N_opt and loss at 10 and 100 times the largest budget.

    Where N_opt is no power law of C, the draws of one cannot hold it: there only the loss counts.
    """
    last = design.budgets[-1]
    first, final = (np.log(design.surface.optimum(c)[0]) for c in (design.budgets[0], last))
    truth = {"a": (final - first) / np.log(last / design.budgets[0])}
    for factor in (10, 100):
        n, loss = design.surface.optimum(factor * last)
        truth |= {f"N x{factor}": np.log(n), f"loss x{factor}": loss}
    inside = {name: [] for name in truth}
    for seed in range(60):
        result = fit_isoflop(design.table(seed), bootstrap=300, seed=seed)
        drawn = {"a": result.draws["a"]}
        for factor in (10, 100):
            drawn[f"N x{factor}"], drawn[f"loss x{factor}"] = ahead(result, factor * last)
        for name, values in drawn.items():
            low, high = interval(values, 0.95)
            inside[name].append(low <= truth[name] <= high)
    bent = design.surface.embedding > 0
    for name, hits in inside.items():
        if bent and not name.startswith("loss"):
            continue
        # Of 60 tables 52 or more with a probability of 98% where 95% is true.
        assert np.mean(hits) >= 0.86, name


@pytest.mark.slow
@pytest.mark.parametrize(("n", "points"), [(3, 5), (8, 7)])
def test_intervals_cover_their_level_over_the_scatter_that_they_allow_for(n, points):
    """Scatter and irreducible loss are drawn from the priors, so that few budgets cover 95% too:
    they hold more where minima do not scatter, and somewhat less where they do."""
    tau, log_weight = tau_prior(LOG_N_SCALE)
    tau, weight = tau[tau <= 0.5], np.exp(log_weight[tau <= 0.5])
    budgets, rng, inside = tuple(np.geomspace(1e19, 1e21, n)), np.random.default_rng(7), []
    for seed in range(200):
        floor = rng.uniform(0, 2.3)
        surface = Surface.through(1e20, 2e9, 2.6, E=floor, alpha=0.35, beta=0.37)
        scatter = float(rng.choice(tau, p=weight / weight.sum()))
        table = Design(surface, budgets, points, 4, noise=0.005, scatter=scatter).table(seed)
        result = fit_isoflop(table, bootstrap=200, seed=seed)
        if not result.draws:
            continue
        row = [_holds(result.draws["a"], surface.exponent)]
        for factor in (10, 100):
            flops = factor * budgets[-1]
            row.append(_holds(ahead(result, flops)[0], np.log(surface.optimum(flops)[0])))
        inside.append(row)
    share = np.mean(inside, axis=0)
    assert len(inside) > 195 and np.all((0.92 <= share) & (share <= 0.98)), share


def _holds(draws, truth):
    low, high = interval(draws, 0.95)
    return low <= truth <= high

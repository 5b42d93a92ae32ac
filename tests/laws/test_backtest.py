"""Laws asked for their own largest budgets, and what that does to intervals beyond them."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from lmscale import laws
from lmscale.laws.advise import too_far
from lmscale.laws.backtest import Line, back_test, widened
from lmscale.laws.chinchilla import chinchilla_loss, optimal_allocation
from lmscale.laws.result import FitError, FitResult

EPOCH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
BUDGETS = np.geomspace(1e18, 1e21, 5)


def minima(bend=0.0, noise=0.0, scatter=None, seed=0):
    """An IsoFLOP result with N_opt = 0.1 C^0.5, loss (1e22/C)^0.05, and a bend of ln N at the end."""
    x = np.log(BUDGETS)
    rng = np.random.default_rng(seed)
    log_n = math.log(0.1) + 0.5 * x + noise * rng.standard_normal(len(x))
    log_n[-1] += bend
    slope, intercept = np.polyfit(x, log_n, 1)
    loss = (1e22 / BUDGETS) ** 0.05
    columns = {
        "flops": BUDGETS, "n_opt": np.exp(log_n), "d_opt": BUDGETS / 6 / np.exp(log_n),
        "loss": loss,
    }  # fmt: skip
    profile = SimpleNamespace(ok=True, coefficients=(2.0, 0.0, 0.1))
    draws = {"a": np.full(9, slope), "k_N": np.full(9, math.exp(intercept))}
    draws |= {"b": 1 - draws["a"], "k_D": 1 / 6 / draws["k_N"]}
    details = {"frontier": columns, "profiles": (profile,) * 3}
    details["frontier_loss"] = {"covariance": 0.002**2 * np.eye(len(x))}
    if scatter is not None:
        details |= scatter
    parameters = {name: float(values[0]) for name, values in draws.items()}
    return FitResult(
        law="isoflop",
        parameters=parameters,
        draws=draws,
        interval_method="planted",
        ranges={"flops": (BUDGETS[0], BUDGETS[-1])},
        details=details,
    )


def width(interval):
    return math.log(interval[1] / interval[0])


def test_a_law_without_noise_foretells_its_largest_budgets():
    test = back_test(minima())
    assert np.max(np.abs(test.size_error)) < 1e-9
    assert test.drift("size") < 1e-6
    spacing = math.log(BUDGETS[1] / BUDGETS[0])
    assert sorted(set(np.round(test.distance / spacing).astype(int))) == [1, 2]


def test_a_law_that_bends_at_its_end_is_less_sure_the_farther_it_goes():
    straight, bent = minima(noise=0.01), minima(noise=0.01, bend=1.0)
    assert back_test(bent).drift("size") > 5 * back_test(straight).drift("size")
    advices = [laws.advise(bent, flops=BUDGETS[-1] * factor) for factor in (1, 3, 10)]
    widths = [width(advice.intervals["n_params"]) for advice in advices]
    assert widths[0] < widths[1] < widths[2]
    drift = back_test(bent).drift("size")
    part = advices[2].half_widths["n_params"]["back_test"]
    assert part == pytest.approx(2 * drift * math.log(10))
    assert advices[0].half_widths["n_params"]["back_test"] == 0.0
    assert "when left out" in advices[2].interval_method


def test_scatter_of_the_minima_is_in_the_interval_once():
    noisy = minima(noise=0.2, seed=3)
    line = Line.through(np.log(BUDGETS), np.log(noisy.details["frontier"]["n_opt"]))
    x = math.log(3e21)
    advice = laws.advise(noisy, flops=3e21)
    # Student's interval of a line through five points.
    mean, sxx = np.mean(line.x), np.sum((line.x - np.mean(line.x)) ** 2)
    expected = 3.182 * line.scatter * math.sqrt(1 / 5 + (x - mean) ** 2 / sxx)
    assert advice.half_widths["n_params"]["scatter"] == pytest.approx(expected, rel=1e-3)
    drawn = minima(noise=0.2, seed=3, scatter={"scatter": {"log_n": 0.2, "loss": 0.01}})
    assert "scatter" not in laws.advise(drawn, flops=3e21).half_widths["n_params"]


def test_a_size_off_the_best_costs_what_the_size_of_the_best_leaves_open():
    sure, unsure = minima(), minima(noise=0.3, seed=1)
    (narrow,) = laws.advise(sure, flops=3e21, factors=(0.5,)).off_optimum
    (wide,) = laws.advise(unsure, flops=3e21, factors=(0.5,)).off_optimum
    low, high = narrow.loss_interval
    assert low < narrow.loss < high
    assert wide.loss_interval[1] - wide.loss > 3 * (high - narrow.loss)


def surface(noise=0.0, bend=0.0, seed=0):
    rng = np.random.default_rng(seed)
    columns = {"params": [], "tokens": [], "loss": []}
    for c in BUDGETS:
        n = optimal_allocation(EPOCH, c).n_params * np.geomspace(1 / 4, 4, 5)
        loss = chinchilla_loss(EPOCH, params=n, tokens=c / (6 * n))
        columns["params"].extend(n)
        columns["tokens"].extend(c / (6 * n))
        columns["loss"].extend(loss * (1 + bend * (c == BUDGETS[-1])))
    columns["loss"] = np.array(columns["loss"]) * np.exp(noise * rng.normal(size=25))
    return laws.fit(columns, "parametric", starts="coarse", bootstrap=50)


@pytest.mark.slow
def test_a_surface_is_tested_on_the_largest_fifth_of_its_compute():
    good, bent = surface(0.001), surface(0.001, bend=0.03)
    assert back_test(good).distance == pytest.approx([math.log(10**0.75)])
    assert back_test(bent).drift("loss") > 5 * back_test(good).drift("loss")
    wide, narrow = (laws.advise(fit, flops=1e22).intervals["loss"] for fit in (bent, good))
    assert width(wide) > 2 * width(narrow)
    assert narrow[0] < optimal_allocation(EPOCH, 1e22).loss < narrow[1]


def test_what_cannot_be_tested_says_so():
    few = minima()
    few.details["frontier"] = {k: v[-2:] for k, v in few.details["frontier"].items()}
    with pytest.raises(FitError, match="2 budgets are too few"):
        back_test(few)
    warnings = laws.advise(few, flops=1e22).warnings
    assert any(w.startswith("not tested on budgets left out") for w in warnings)


def test_thirty_times_the_largest_budget_is_the_farthest():
    assert too_far(laws.advise(minima(), flops=29e21)) is None
    text = too_far(laws.advise(minima(), flops=31e21))
    assert "31 times" in text and "--extrapolate" in text


def test_independent_half_widths_add_in_quadrature():
    low, high = widened(1.0, (math.exp(-0.3), math.exp(0.4)), 0.3)
    assert math.log(high) == pytest.approx(0.5) and math.log(low) == pytest.approx(-(0.18**0.5))
    assert widened(2.0, None, 0.0) == (2.0, 2.0)

"""Data-constrained, over-training and critical-batch laws, on planted runs and published numbers."""

import numpy as np
import pytest

from lmscale import laws
from lmscale.laws.batch import noise_scale, steps_to_loss
from lmscale.laws.chinchilla import chinchilla_loss
from lmscale.laws.data_constrained import (
    MUENNIGHOFF,
    data_constrained_loss,
    effective,
    fed_params,
    fit_data_constrained,
)
from lmscale.laws.over_training import as_parametric, fit_over_training, over_training_loss

# --- Data-constrained (Muennighoff et al. 2023) -------------------------------------------------


def repeated(noise=0.0, seed=0, n=60):
    rng = np.random.default_rng(seed)
    unique = np.exp(rng.uniform(np.log(1e8), np.log(2e10), n))
    epochs = np.exp(rng.uniform(0, np.log(60), n))
    epochs[: n // 3] = 1.0
    params = fed_params(MUENNIGHOFF, unique) * np.exp(rng.uniform(-1, 3, n))
    table = {"params": params, "tokens": unique * epochs, "unique_tokens": unique}
    loss = data_constrained_loss(MUENNIGHOFF, **table)
    return {**table, "loss": loss * np.exp(noise * rng.normal(size=n))}


def test_what_epochs_are_worth():
    """PAPERS check 14: D'/U_D."""
    worth = effective(1.0, np.array([2, 4, 8, 16, 40, 100]) - 1.0, 15.387756)
    assert worth == pytest.approx([1.968, 3.726, 6.624, 10.582, 15.167, 16.363], abs=6e-4)


@pytest.mark.parametrize(
    ("n", "d", "u", "loss"),
    [
        (2.8e9, 55e9, 55e9, 2.3544),
        (2.8e9, 55e9, 13.75e9, 2.3778),
        (4.2e9, 84e9, 12e9, 2.3333),
        (8.7e9, 178e9, 44.5e9, 2.2070),
        (8.7e9, 178e9, 25e9, 2.2268),
    ],
)
def test_the_published_losses(n, d, u, loss):
    found = data_constrained_loss(MUENNIGHOFF, params=n, tokens=d, unique_tokens=u)
    assert found == pytest.approx(loss, abs=6e-5)


@pytest.mark.slow
def test_planted_decay_constants_come_back():
    result = laws.fit(repeated(), "data-constrained", base=MUENNIGHOFF, bootstrap=0)
    assert result.parameters["R_D_star"] == pytest.approx(15.387756, rel=1e-4)
    assert result.parameters["R_N_star"] == pytest.approx(5.309743, rel=1e-4)


@pytest.mark.slow
def test_the_base_is_fitted_to_the_runs_of_one_epoch():
    table = repeated()
    # At most the fed size in those runs, so that the base law is exact there.
    once = table["tokens"] == table["unique_tokens"]
    rng = np.random.default_rng(1)
    table["params"][once] = fed_params(MUENNIGHOFF, table["unique_tokens"][once]) * rng.uniform(
        0.05, 1, once.sum()
    )
    table["loss"] = data_constrained_loss(
        MUENNIGHOFF, **{k: table[k] for k in ("params", "tokens", "unique_tokens")}
    )
    result = laws.fit(table, "data-constrained", bootstrap=0)
    assert result.parameters["E"] == pytest.approx(MUENNIGHOFF["E"], rel=1e-3)
    assert result.parameters["R_D_star"] == pytest.approx(15.39, rel=0.02)


@pytest.mark.parametrize("wrong", [{"alpha": -0.01}, {"beta": 0.0}, {"A": -1.0}, {"B": np.nan}])
def test_a_base_law_that_does_not_fall_is_refused(wrong):
    """U_N of a negative exponent was a complex number."""
    says = f"the base law has {next(iter(wrong))} = "
    with pytest.raises(laws.FitError, match=says):
        laws.fit(repeated(), "data-constrained", base=MUENNIGHOFF | wrong, bootstrap=0)


@pytest.mark.slow
def test_what_is_wrong_with_the_base_fit_is_said(monkeypatch):
    """And a draw of it that does not fall gives no R*."""

    def fitted(runs, *, bootstrap, **_):
        draws = {name: np.full(bootstrap, value) for name, value in MUENNIGHOFF.items()}
        draws["alpha"][:5] = -0.01
        base = {name: MUENNIGHOFF[name] for name in ("E", "A", "B", "alpha", "beta")}
        return laws.FitResult(
            law="parametric", parameters=base, draws=draws, warnings=("E went to zero",)
        )

    monkeypatch.setattr("lmscale.laws.data_constrained.fit_parametric", fitted)
    result = laws.fit(repeated(0.005), "data-constrained", bootstrap=40, starts=2)
    assert "base law: E went to zero" in result.warnings
    assert "5 of 40 draws did not converge" in result.warnings
    lost = np.isnan(result.draws["R_D_star"])
    assert lost[:5].all() and not lost[5:].any()


def test_without_repetition_there_is_nothing_to_fit():
    table = repeated()
    table["unique_tokens"] = table["tokens"]
    with pytest.raises(laws.FitError, match="no run repeats its data"):
        laws.fit(table, "data-constrained", base=MUENNIGHOFF)


@pytest.mark.slow
def test_data_constrained_intervals_cover_the_truth():
    inside = []
    for seed in range(200):
        # Of 60 draws one and a half lie below an interval: too few to place its edge.
        result = fit_data_constrained(
            repeated(0.005, seed), base=MUENNIGHOFF, bootstrap=240, seed=seed, starts=4
        )
        low, high = result.intervals["R_D_star"]
        inside.append(low <= MUENNIGHOFF["R_D_star"] <= high)
    assert 0.90 <= np.mean(inside) <= 0.99


# --- Over-training (Gadre et al. 2024) ----------------------------------------------------------

GADRE = {"E": 1.51, "a": 141.0, "b": 190.0, "eta": 0.121}


def over_trained(noise=0.0, seed=0, n=40):
    rng = np.random.default_rng(seed)
    params = np.exp(rng.uniform(np.log(1e7), np.log(7e9), n))
    tokens = params * np.exp(rng.uniform(np.log(5), np.log(640), n))
    loss = over_training_loss(GADRE, params=params, tokens=tokens)
    return {"params": params, "tokens": tokens, "loss": loss + noise * rng.normal(size=n)}


def test_a_planted_over_training_law_comes_back():
    result = laws.fit(over_trained(), "over-training", bootstrap=0)
    assert result.parameters == pytest.approx(GADRE, rel=1e-6)
    # The same surface in the parametric form.
    table = over_trained()
    same = chinchilla_loss(as_parametric(GADRE), params=table["params"], tokens=table["tokens"])
    np.testing.assert_allclose(same, table["loss"], rtol=1e-12)


def test_five_runs_give_a_law_but_no_interval():
    table = {k: v[:5] for k, v in over_trained().items()}
    result = laws.fit(table, "over-training")
    assert result.intervals == {} and any("too few to bootstrap" in w for w in result.warnings)
    assert result.parameters == pytest.approx(GADRE, rel=1e-4)


@pytest.mark.slow
def test_over_training_intervals_cover_the_truth():
    inside = []
    for seed in range(200):
        result = fit_over_training(over_trained(0.01, seed), bootstrap=100, seed=seed)
        low, high = result.intervals["eta"]
        inside.append(low <= GADRE["eta"] <= high)
    assert 0.90 <= np.mean(inside) <= 0.99


# --- Critical batch -----------------------------------------------------------------------------


def hyperbolas(noise=0.0, seed=0, n=12):
    rng = np.random.default_rng(seed)
    rows = {"loss": [], "batch_tokens": [], "steps": []}
    for loss in (3.5, 4.0, 5.0, 6.0):
        critical = 2.1e8 / loss ** (1 / 0.21)
        for batch in np.geomspace(critical / 20, critical * 20, n):
            steps = 1e4 / loss * (1 + critical / batch) * np.exp(noise * rng.normal())
            for name, value in zip(rows, (loss, batch, steps), strict=True):
                rows[name].append(value)
    return rows


def test_planted_hyperbolas_give_the_critical_batch():
    result = laws.fit(hyperbolas(), "critical-batch", bootstrap=0)
    assert result.parameters == pytest.approx({"B_star": 2.1e8, "alpha_B": 0.21}, rel=1e-6)
    first = result.details["hyperbolas"][0]
    assert first["S_min"] == pytest.approx(1e4 / 3.5, rel=1e-6)
    assert first["E_min"] == pytest.approx(first["S_min"] * first["B_crit"])
    # (S/S_min - 1)(E/E_min - 1) = 1 at every point.
    s, e = first["steps"] / first["S_min"], first["steps"] * first["batch_tokens"] / first["E_min"]
    np.testing.assert_allclose((s - 1) * (e - 1), 1, rtol=1e-6)


@pytest.mark.slow
def test_critical_batch_intervals_cover_the_truth():
    inside = []
    for seed in range(200):
        result = laws.fit(hyperbolas(0.05, seed), "critical-batch", bootstrap=100, seed=seed)
        low, high = result.intervals["alpha_B"]
        inside.append(low <= 0.21 <= high)
    assert 0.90 <= np.mean(inside) <= 0.99


def test_targets_without_three_batches_are_left_out():
    table = hyperbolas()
    few = {k: v[:12] + v[12:14] for k, v in table.items()}
    result = laws.fit(few, "critical-batch", bootstrap=0)
    assert any("loss 4 left out: 2 batches" in w for w in result.warnings)
    assert result.parameters == {}


def test_noise_scale_is_unbiased_for_both_parts():
    """PAPERS check 13: synthetic gradients with known G and Sigma."""
    rng = np.random.default_rng(0)
    dimension, steps, small, big = 30, 20_000, 4, 64
    gradient = rng.normal(size=dimension)
    deviation = np.exp(rng.normal(size=dimension) / 2)

    def squared(batch):
        noise = rng.normal(size=(steps, dimension)) * deviation / np.sqrt(batch)
        return np.sum((gradient + noise) ** 2, axis=1)

    found = noise_scale(squared(small), squared(big), small, big)
    assert found.gradient_squared == pytest.approx(gradient @ gradient, rel=0.01)
    assert found.trace == pytest.approx(deviation @ deviation, rel=0.02)
    assert found.batch == pytest.approx((deviation @ deviation) / (gradient @ gradient), rel=0.02)
    moving = noise_scale(squared(small), squared(big), small, big, decay=0.999)
    assert moving.batch[-1] == pytest.approx(found.batch, rel=0.1)
    with pytest.raises(ValueError, match="small < big"):
        noise_scale([1.0], [1.0], 8, 4)


def test_steps_to_loss_interpolates_and_says_never():
    steps = np.array([10, 100, 1000])
    reached = steps_to_loss(steps, [5.0, 4.0, 3.0], [3.5, 4.0, 2.0, 6.0])
    assert reached[0] == pytest.approx(10**2.5) and reached[1] == pytest.approx(100)
    assert np.isnan(reached[2:]).all()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [(10, 3.63e3), (6, 4.14e4), (4, 2.85e5), (3, 1.12e6), (2.5, 2.67e6), (2.3, 3.98e6)],
)
def test_the_critical_batch_of_kaplan(loss, expected):
    assert laws.critical_batch(loss) == pytest.approx(expected, rel=3e-3)


def test_the_critical_batch_doubles_for_each_13_percent():
    ratio = laws.critical_batch(3.0 / 2**0.21) / laws.critical_batch(3.0)
    assert ratio == pytest.approx(2.0)

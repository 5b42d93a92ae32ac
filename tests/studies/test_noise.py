"""Noise between cells that share seeds, and Tukey's interval."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from lmscale.studies.cells import paired
from lmscale.studies.noise import additive_noise


def test_two_cells_have_the_interval_of_a_paired_t_test():
    losses = 3 + np.random.default_rng(0).normal(0, 0.1, (2, 6))
    low, high = ttest_rel(*losses).confidence_interval(0.95)
    noise = additive_noise(losses)
    assert noise.half_of_difference == pytest.approx((high - low) / 2)
    # Of two cells the largest difference is the only one.
    assert noise.half_of_largest(2) == pytest.approx(noise.half_of_difference, rel=1e-6)
    assert noise.half_of_largest(5) > noise.half_of_difference


def test_what_cells_or_seeds_share_is_no_noise():
    rng = np.random.default_rng(1)
    losses = rng.normal(0, 1, (5, 1)) + rng.normal(0, 1, 4) + 0.001 * rng.normal(0, 1, (5, 4))
    noise = additive_noise(losses)
    assert noise.std == pytest.approx(0.001, rel=0.5)
    assert (noise.freedom, noise.seeds) == (12, 4)


def test_cells_are_paired_on_the_seeds_that_all_of_them_have():
    runs = pd.DataFrame(
        {
            "cell": ["a", "a", "a", "b", "b"],
            "seed": [2, 0, 1, 0, 2],
            "loss": [3.2, 3.0, 3.1, 4.0, 4.2],
            "tokens": 100,
            "run": ["a2", "a0", "a1", "b0", "b2"],
        }
    )
    a, b = paired(runs, ["cell"])
    assert a.seeds == b.seeds == (0, 2)
    assert (a.losses, b.losses) == ((3.0, 3.2), (4.0, 4.2))
    assert (a.runs, b.runs) == (("a0", "a2"), ("b0", "b2"))
    assert (
        paired(runs[runs["cell"].eq("a") | runs["seed"].eq(7)].assign(seed=[0, 1, 2]), ["seed"])
        == []
    )
    assert paired(runs.head(0), ["cell"]) == []

"""Where a planned grid lies about the minima of a law known beforehand."""

import numpy as np
import pytest

from lmscale import laws
from lmscale.laws.centering import grid_centering
from lmscale.laws.isoflop import fit_isoflop
from lmscale.laws.result import FitError

from .planted_isoflop import BESIROGLU, Design

BUDGETS = tuple(np.geomspace(1e19, 1e21, 4))


def prior(bootstrap=200):
    return fit_isoflop(Design(BESIROGLU, BUDGETS, 7, 6, noise=0.003).table(0), bootstrap=bootstrap)


def grid(off, points=5, budgets=(3e21,)):
    return [(c, BESIROGLU.optimum(c)[0] * off * np.geomspace(1 / 4, 4, points)) for c in budgets]


def test_a_centred_grid_has_nothing_to_say():
    found = grid_centering(grid(1.0, budgets=(1e18, 1e20, 3e21)), prior())
    assert [c.well_centered for c in found] == [True] * 3
    assert all(c.below >= 2 and c.above >= 2 for c in found)
    for c in found:
        low, high = c.n_interval
        assert low < BESIROGLU.optimum(c.flops)[0] < high
        assert abs(c.offset) < 0.15


@pytest.mark.parametrize(
    ("off", "words"), [(5.0, "too large; train smaller"), (0.2, "too small; train larger")]
)
def test_an_off_centre_budget_is_named_with_how_far_and_what_would_be_right(off, words):
    (found,) = grid_centering(grid(off), prior())
    assert not found.well_centered
    assert np.exp(abs(found.offset)) == pytest.approx(5, rel=0.1)
    assert (found.below, found.above) == ((0, 5) if off > 1 else (5, 0))
    text = str(found)
    assert text.startswith("budget 3e+21: the prior's best size is ") and "\n" not in text
    assert words in text and "2 lie to either side" in text


def test_one_size_to_a_side_is_too_few():
    (found,) = grid_centering(grid(2.5), prior())
    assert (found.below, found.above, found.well_centered) == (1, 4, False)


def test_any_law_that_splits_compute_is_a_prior():
    (found,) = grid_centering(grid(1.0), "besiroglu2024")
    assert found.well_centered and found.n_opt == pytest.approx(
        BESIROGLU.optimum(3e21)[0], rel=0.02
    )
    without = grid_centering(grid(1.0), prior(bootstrap=0))[0]
    assert without.n_interval is None and without.well_centered


def test_a_law_without_a_best_size_is_refused():
    power = laws.fit({"params": [1e6, 1e7, 1e8, 1e9], "loss": [4, 3.5, 3, 2.6]}, "power")
    with pytest.raises(FitError, match="power"):
        grid_centering(grid(1.0), power)
    with pytest.raises(FitError, match="has no sizes"):
        grid_centering([(1e20, [])], prior())

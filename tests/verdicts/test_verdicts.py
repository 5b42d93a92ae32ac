"""Wrong verdicts are rare, and the counting would notice if they were not."""

import dataclasses

import numpy as np
import pytest

from lmscale.studies.estimate import Estimate
from tests.verdicts.count import MOST_WRONG, as_table, count
from tests.verdicts.kinds import KINDS

SEEDS = [kind for kind in KINDS if kind.claim.measure == "seeds/gap"]


@pytest.mark.parametrize("kind", SEEDS, ids=lambda kind: kind.name)
def test_means_over_three_seeds_are_rarely_judged_wrong(kind):
    counts = count(kind, 200)
    assert {one.holds for one in counts} == {True, False}
    assert all(one.share_wrong < MOST_WRONG for one in counts)
    # Far from the edges of the claim most are decided.
    far = counts[0].words.get("agrees", 0) + counts[-1].words.get("disagrees", 0)
    assert far > 150


def test_intervals_that_are_too_narrow_are_noticed():
    def narrow(truth, rng):
        value = truth + 0.01 * rng.standard_normal()
        return Estimate(name="gap", value=value, interval=(value - 0.002, value + 0.002), seeds=3)

    counts = count(dataclasses.replace(SEEDS[0], read=narrow), 200)
    assert max(one.share_wrong for one in counts) > 0.2
    assert "disagrees" in as_table(counts) and as_table(counts).count("\n") == 5


def test_a_number_is_wrong_only_where_it_is_off_by_more_than_its_width():
    (kind,) = [kind for kind in KINDS if kind.claim.is_number]
    assert kind.claim.width == pytest.approx(0.14)
    assert [kind.wrong(truth) for truth in (0.5, 0.6, 0.69)] == ["differs", "", "consistent"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [k for k in KINDS if k not in SEEDS], ids=lambda kind: kind.name)
def test_no_kind_of_claim_is_often_judged_wrong(kind):
    """With 12 draws of each truth, 4 wrong ones have a chance of 0.2% at 5%."""
    assert all(one.wrong < 4 for one in count(kind, 12))
    assert np.isfinite(kind.read(kind.truths[0], np.random.default_rng(0)).value)

"""The declaration of sample_efficiency: the runs of compute."""

from types import SimpleNamespace

import pytest
from lmscale_experiments import compute
from lmscale_experiments.sample_efficiency import SCALES

CORPUS = SimpleNamespace(name="text", fingerprint="0123456789ab", vocab_size=512)


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper"])
def test_its_runs_are_those_of_compute(scale):
    own, other = SCALES[scale].runs(CORPUS), compute.SCALES[scale].runs(CORPUS)
    assert [run.spec for run in own] == [run.spec for run in other]


def test_every_claim_names_a_measure_of_the_analyses():
    experiment = SCALES["cpu"]
    assert {c.measure.split("/")[0] for c in experiment.claims} <= set(experiment.analyses)

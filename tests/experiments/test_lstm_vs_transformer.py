import pytest

from lmscale.report.analyses import position, size
from lmscale.sweep import load_scales
from tests.fake_corpus import fake_corpus

SCALES = load_scales("lstm_vs_transformer")[2]


@pytest.mark.parametrize("scale, n_runs", [("cpu", 24), ("gpu", 48), ("paper", 41)])
def test_runs_resolve_and_differ(scale, n_runs):
    experiment = SCALES[scale]
    runs = experiment.runs(fake_corpus(experiment.vocab_size))
    assert len(runs) == len({run.spec.run_id for run in runs}) == n_runs


def test_every_claim_names_an_analysis_that_runs():
    experiment = SCALES["cpu"]
    names = {claim.measure.split("/")[0] for claim in experiment.claims}
    assert names == {size.NAME, position.NAME}
    assert names < set(experiment.analyses)

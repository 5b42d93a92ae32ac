import pytest

from lmscale.flops import n_params
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


def test_the_paper_scale_trains_as_the_paper():
    specs = [run.spec for run in SCALES["paper"].runs(fake_corpus(50_257))]
    for spec in specs:
        assert (spec.steps, spec.batch_tokens) == (250_000, 2**19)
        assert (spec.schedule.warmup_steps, spec.schedule.final_fraction) == (3000, 0.0)
    largest = max(specs, key=lambda spec: n_params(spec.model, "kaplan"))
    assert {spec.optimizer.name for spec in specs} == {"adam", "adafactor"}
    assert largest.optimizer.name == "adafactor"
    assert "lstm, 1 layer" in {
        run.labels["family"] for run in SCALES["gpu"].runs(fake_corpus(8192))
    }

"""The declaration of the repeated-data study: epochs, fresh runs of equal length, the paper's models."""

from types import SimpleNamespace

import pytest
from lmscale_experiments.repeat import SCALES, Repeat

from lmscale.flops import n_params

CORPUS = SimpleNamespace(
    name="none",
    fingerprint="0123456789ab",
    vocab_size=50_257,
    n_tokens=lambda split: 180_000_000_000,
)


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_every_repeated_run_has_a_fresh_one_or_says_so(scale):
    experiment = SCALES[scale]
    runs = experiment.runs(CORPUS)
    assert len({run.spec.run_id for run in runs}) == len(runs)
    cells = {
        (r.spec.model, r.spec.n_tokens, r.spec.data.subset_tokens, r.spec.seed): r for r in runs
    }
    for (model, tokens, unique, seed), run in cells.items():
        assert run.labels["epochs"] == tokens // unique
        assert unique in (experiment.unique_tokens, tokens)
        if tokens > unique and run.labels["epochs"] in experiment.fresh:
            assert (model, tokens, tokens, seed) in cells
    # What 16 epochs are worth, at most as many fresh tokens, can be read off the fresh runs.
    assert max(experiment.fresh) >= 16
    assert len(experiment.seeds) >= 3
    # The schedule ends with the run.
    assert all(run.spec.schedule.cycle_steps is None for run in runs)


def test_the_paper_scale_is_the_papers():
    runs = SCALES["paper"].runs(CORPUS)
    assert len(runs) == 3 * 8
    sizes = sorted({n_params(run.spec.model, "chinchilla") for run in runs})
    assert sizes == pytest.approx([2.8e9, 4.2e9, 8.7e9], rel=0.02)
    largest = [r.spec for r in runs if r.spec.model.n_layer == 42]
    unique = {spec.data.subset_tokens for spec in largest}
    assert min(unique) == pytest.approx(178e9 / 44) and max(unique) == pytest.approx(178e9)
    assert all(spec.n_tokens == pytest.approx(178e9, rel=1e-4) for spec in largest)
    spec = largest[0]
    assert spec.optimizer.peak_lr == 2e-4 and spec.optimizer.beta2 == 0.999
    assert (spec.optimizer.weight_decay, spec.model.dropout, spec.model.n_ctx) == (0.1, 0.1, 2048)
    assert spec.schedule.final_fraction == 0.1


def test_claims_name_the_analysis():
    names = {claim.measure.split("/")[0] for claim in Repeat.claims}
    assert names == {"repeat"} <= set(Repeat.analyses)

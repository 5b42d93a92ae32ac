"""The declaration of the dataset-size study: subsets, stopping, and the paper's grid."""

from types import SimpleNamespace

import pytest
from lmscale_experiments.dataset_size import SCALES, DatasetSize

from lmscale.flops import n_params

CORPUS = SimpleNamespace(
    name="none",
    fingerprint="0123456789ab",
    vocab_size=50_257,
    n_tokens=lambda split: 22_000_000_000,
)


@pytest.mark.parametrize("scale", SCALES)
def test_every_cell_is_one_run_a_seed(scale):
    experiment = SCALES[scale]
    runs = experiment.runs(CORPUS)
    models = {run.spec.model for run in runs}
    assert len(models) == (len(experiment.sizes) or 6)
    assert len(runs) == len(models) * len(experiment.divisors) * len(experiment.seeds)
    assert len({run.spec.run_id for run in runs}) == len(runs)
    for run in runs:
        assert run.spec.model.dropout == 0.1
        assert run.spec.stopping.patience >= 1
        assert run.spec.steps == experiment.steps
        divisor = run.labels["divisor"]
        subset = run.spec.data.subset_tokens
        assert subset == (None if divisor == 1 else 22_000_000_000 // divisor)


def test_the_paper_scale_is_the_papers():
    runs = SCALES["paper"].runs(CORPUS)
    sizes = sorted({n_params(run.spec.model, "kaplan") for run in runs})
    assert sizes == [393_216, 3_145_728, 25_165_824, 84_934_656, 301_989_888, 707_788_800]
    subsets = sorted({run.spec.data.subset_tokens or 22e9 for run in runs})
    assert [round(x, -6) for x in subsets] == pytest.approx(
        [21e6, 43e6, 86e6, 172e6, 344e6, 688e6, 1.375e9, 22e9], rel=0.03
    )
    spec = runs[0].spec
    assert (spec.batch_size, spec.model.n_ctx, spec.steps) == (512, 1024, 250_000)
    assert spec.schedule.warmup_steps == 3000 and spec.schedule.final_fraction == 0
    assert spec.optimizer.peak_lr == pytest.approx(0.003239 - 0.0001395 * 12.882, rel=1e-3)


def test_the_cpu_scale_compiles_few_programs():
    runs = SCALES["cpu"].runs(CORPUS)
    assert len({(run.spec.model, run.spec.batch_size) for run in runs}) <= 4


def test_claims_name_the_analysis():
    names = {claim.measure.split("/")[0] for claim in DatasetSize.claims}
    assert names == {"dataset"} <= set(DatasetSize.analyses)

"""Every model is trained with both contexts on equally many tokens a batch."""

import pytest
from lmscale_experiments.context import PAPER_SHAPES, SCALES

from lmscale import studies
from tests.experiments.fake_corpus import CORPUS


@pytest.mark.parametrize("scale", SCALES)
def test_the_contexts_differ_in_nothing_else(scale):
    experiment = SCALES[scale]
    specs = [run.spec for run in experiment.runs(CORPUS)]
    long = [spec for spec in specs if spec.model.n_ctx == experiment.n_ctx]
    short = [spec for spec in specs if spec.model.n_ctx == experiment.short_ctx]
    assert len(specs) == len({spec.hash for spec in specs}) == len(long) + len(short)
    for a, b in zip(long, short, strict=True):
        assert (a.batch_tokens, a.steps, a.seed) == (b.batch_tokens, b.steps, b.seed)
        assert a.model.d_model == b.model.d_model and a.optimizer == b.optimizer
    # Differences decide two of the claims.
    assert len(experiment.seeds) >= 3
    assert all(len(spec.eval_steps) == experiment.evaluations for spec in long)
    assert set(experiment.analyses) <= set(studies.names())


def test_the_paper_scale_is_the_papers():
    specs = [run.spec for run in SCALES["paper"].runs(CORPUS)]
    shapes = {(spec.model.n_layer, spec.model.d_model) for spec in specs}
    assert shapes == set(PAPER_SHAPES)
    assert {spec.model.n_ctx for spec in specs} == {8, 1024}
    assert {spec.batch_tokens for spec in specs} == {2**19}
    assert {spec.steps for spec in specs} == {250_000}
    assert {spec.schedule.warmup_steps for spec in specs} == {3000}

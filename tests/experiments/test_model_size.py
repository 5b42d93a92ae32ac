import pytest

from lmscale.flops import n_params
from lmscale.studies.papers import points
from lmscale.sweep import load_scales
from tests.fake_corpus import fake_corpus

SCALES = load_scales("model_size")[2]


@pytest.mark.parametrize("scale", SCALES)
def test_runs_resolve_and_differ(scale):
    experiment = SCALES[scale]
    runs = experiment.runs(fake_corpus(experiment.vocab_size))
    assert len({run.spec.run_id for run in runs}) == len(runs)
    assert len({run.spec.n_tokens for run in runs}) == 1


def test_the_small_scales_have_three_seeds_and_few_shapes():
    runs = SCALES["cpu"].runs(fake_corpus(512))
    assert len(runs) == 48
    assert len({run.spec.model for run in runs}) == 16
    assert len(SCALES["gpu"].runs(fake_corpus(8192))) == 60


def test_the_paper_scale_is_the_papers():
    runs = SCALES["paper"].runs(fake_corpus(50_257))
    paper = points("kaplan2020_fig6_nonembed")
    shapes = {(run.spec.model.n_layer, run.spec.model.d_model) for run in runs}
    assert shapes == set(zip(paper["n_layer"], paper["d_model"], strict=True))
    sizes = {n_params(run.spec.model, "kaplan") for run in runs}
    assert sizes == set(paper["N_nonembed"])
    spec = runs[0].spec
    assert spec.schedule.warmup_steps == 3000 and spec.schedule.final_fraction == 0
    large = [run.spec for run in runs if n_params(run.spec.model, "kaplan") > 1e9]
    assert {spec.optimizer.name for spec in large} == {"adafactor"} and len(large) == 2
    assert spec.batch_tokens == 2**19 and spec.steps == 250_000
    assert spec.optimizer.name == "adam"


def test_families_are_the_curves_of_the_figure():
    families = {run.labels["family"] for run in SCALES["paper"].runs(fake_corpus(50_257))}
    assert families == {
        "transformer, 1 layer",
        "transformer, 2 layers",
        "transformer, 3 layers",
        "transformer, 6 layers",
        "transformer, more than 6 layers",
    }

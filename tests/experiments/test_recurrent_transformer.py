import pytest

from lmscale.flops import n_params, training_flops_per_token
from lmscale.studies.papers import points
from lmscale.sweep import load_scales
from tests.fake_corpus import fake_corpus

SCALES = load_scales("recurrent_transformer")[2]


@pytest.mark.parametrize("scale", SCALES)
def test_runs_resolve_and_differ(scale):
    experiment = SCALES[scale]
    runs = experiment.runs(fake_corpus(experiment.vocab_size))
    assert len({run.spec.run_id for run in runs}) == len(runs)
    assert len({run.spec.n_tokens for run in runs}) == 1


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_every_reused_model_has_plain_ones_around_it_by_either_count(scale):
    experiment = SCALES[scale]
    runs = experiment.runs(fake_corpus(experiment.vocab_size))
    plain = [r.spec.model for r in runs if r.labels["family"] == "transformer"]
    for run in runs:
        if run.labels["reuse"] > 1:
            for count in (n_params, training_flops_per_token):
                sizes = [count(model, "kaplan") for model in plain]
                size = count(run.spec.model, "kaplan")
                assert min(sizes) <= size <= 1.02 * max(sizes)


def test_the_cpu_scale_has_eleven_models_three_rates_and_three_seeds():
    runs = SCALES["cpu"].runs(fake_corpus(512))
    assert len({run.spec.model for run in runs}) == 11
    assert {run.labels["lr_factor"] for run in runs} == {0.5, 1.0, 2.0}
    assert len(runs) == 99


@pytest.mark.parametrize("scale", SCALES)
def test_lstms_start_from_the_sound_initialisation(scale):
    runs = SCALES[scale].runs(fake_corpus(SCALES[scale].vocab_size))
    lstms = [run.spec.model for run in runs if run.spec.model.kind == "lstm"]
    assert lstms and {model.embed_std for model in lstms} == {None}


def test_the_paper_scale_has_the_papers_models():
    runs = SCALES["paper"].runs(fake_corpus(50_257))
    paper = points("kaplan2020_fig17")
    reused = [r.spec.model for r in runs if r.labels["reuse"] > 1]
    assert {(m.reuse, m.depth, m.d_model) for m in reused} == set(
        zip(paper["reuse"], paper["depth"], paper["d_model"], strict=True)
    )
    assert {n_params(m, "kaplan") for m in reused} == set(paper["n_params"])
    table = points("kaplan2020_fig7")
    lstms = [r.spec.model for r in runs if r.spec.model.kind == "lstm"]
    assert {n_params(m, "kaplan") for m in lstms} == set(
        table[table["family"] != "transformer"]["n_params"]
    )
    # Differences between models need three seeds.
    assert {r.spec.seed for r in runs} == {0, 1, 2}
    plain = [r for r in runs if r.labels["family"] == "transformer" and r.spec.seed == 0]
    assert len(plain) == (table["family"] == "transformer").sum()

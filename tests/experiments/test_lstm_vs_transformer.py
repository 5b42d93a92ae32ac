import dataclasses

import pytest

from lmscale import studies
from lmscale.flops import n_params
from lmscale.sweep import ExperimentError, load_scales, width_rule
from tests.fake_corpus import fake_corpus

SCALES = load_scales("lstm_vs_transformer")[2]


@pytest.mark.parametrize(("scale", "n_runs"), [("cpu", 72), ("gpu", 144), ("paper", 41)])
def test_runs_resolve_and_differ(scale, n_runs):
    experiment = SCALES[scale]
    runs = experiment.runs(fake_corpus(experiment.vocab_size))
    assert len(runs) == len({run.spec.run_id for run in runs}) == n_runs


def test_every_claim_names_an_analysis_that_runs():
    experiment = SCALES["cpu"]
    names = {claim.measure.split("/")[0] for claim in experiment.claims}
    assert names == {"size", "position"} <= set(studies.names())
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


def test_the_cpu_scale_searches_the_rate_of_each_architecture_about_its_own_rule():
    runs = SCALES["cpu"].runs(fake_corpus(512))
    for kind in ("lstm", "transformer"):
        own = [run for run in runs if run.spec.model.kind == kind]
        assert {run.labels["lr_factor"] for run in own} == {0.5, 1.0, 2.0}
        for run in own:
            rule = width_rule()(run.spec.model, 0, 0)
            assert run.spec.optimizer.peak_lr == pytest.approx(
                run.labels["lr_factor"] * rule, rel=1e-5
            )
    assert len({run.spec.n_tokens for run in runs}) == 1


def test_the_search_of_a_size_may_be_centred_elsewhere():
    experiment = dataclasses.replace(SCALES["cpu"], transformer_lr=(2.0, 2.0, 1.5, 1.0))
    centres = {
        (run.spec.model.kind, run.spec.model, round(run.spec.optimizer.peak_lr / rule, 3))
        for run in experiment.runs(fake_corpus(512))
        if run.labels["lr_factor"] == 1.0
        for rule in (width_rule()(run.spec.model, 0, 0),)
    }
    by_size = sorted(centres, key=lambda centre: n_params(centre[1], "kaplan"))
    assert [at for kind, _, at in by_size if kind == "transformer"] == [2.0, 2.0, 1.5, 1.0]
    assert [at for kind, _, at in by_size if kind == "lstm"] == [1.0] * 4
    with pytest.raises(ExperimentError, match="transformer_lr gives 2 values for 4 sizes"):
        dataclasses.replace(experiment, transformer_lr=(1.0, 2.0)).runs(fake_corpus(512))


@pytest.mark.parametrize("scale", SCALES)
def test_lstms_start_from_the_sound_initialisation(scale):
    runs = SCALES[scale].runs(fake_corpus(SCALES[scale].vocab_size))
    lstms = [run.spec.model for run in runs if run.spec.model.kind == "lstm"]
    assert {(m.embed_std, m.projection_gain) for m in lstms} == {(None, 2.0)}


def test_sizes_of_the_two_architectures_match_at_the_cpu_scale():
    sizes = {"lstm": set(), "transformer": set()}
    for run in SCALES["cpu"].runs(fake_corpus(512)):
        sizes[run.spec.model.kind].add(n_params(run.spec.model, "kaplan"))
    for ours, theirs in zip(*map(sorted, sizes.values()), strict=True):
        assert 1 / 1.25 < ours / theirs < 1.25


def test_embedding_widths_are_one_or_one_a_size():
    experiment = dataclasses.replace(SCALES["cpu"], d_embed=(32, 64))
    with pytest.raises(ExperimentError, match="d_embed gives 2 values for 4 sizes"):
        experiment.runs(fake_corpus(512))
    one = dataclasses.replace(SCALES["cpu"], d_embed=(32,))
    models = [run.spec.model for run in one.runs(fake_corpus(512))]
    assert {model.d_embed for model in models if model.kind == "lstm"} == {32}

import pytest

from lmscale.flops import n_params
from lmscale.studies.papers import points
from lmscale.sweep import load_scales
from tests.fake_corpus import fake_corpus

SCALES = load_scales("shape")[2]


def members(runs, panel):
    found = {}
    for run in runs:
        for item in run.labels["scans"].split("; "):
            name, series = item.split(":")
            if name == panel:
                found.setdefault(series, set()).add(run.spec.model)
    return found


@pytest.mark.parametrize("scale", SCALES)
def test_runs_resolve_and_differ(scale):
    experiment = SCALES[scale]
    runs = experiment.runs(fake_corpus(experiment.vocab_size))
    assert len({run.spec.run_id for run in runs}) == len(runs)
    assert len({run.spec.n_tokens for run in runs}) == 1


@pytest.mark.parametrize("scale", SCALES)
def test_a_scan_varies_one_ratio_at_one_size(scale):
    experiment = SCALES[scale]
    runs = experiment.runs(fake_corpus(experiment.vocab_size))
    for panel in ("aspect", "ff_ratio", "head_width"):
        for shapes in members(runs, panel).values():
            sizes = [n_params(model, "kaplan") for model in shapes]
            assert max(sizes) < 1.15 * min(sizes)
            assert panel == "ff_ratio" or all(m.d_ff == 4 * m.d_model for m in shapes)
            if panel == "head_width":
                assert len({(m.n_layer, m.d_model) for m in shapes}) == 1
                assert len({m.n_head for m in shapes}) == len(shapes)
            if panel == "aspect":
                ratios = [m.d_model / m.n_layer for m in shapes]
                assert max(ratios) > 40 * min(ratios)


def test_the_cpu_scale_has_nine_shapes_and_three_seeds():
    runs = SCALES["cpu"].runs(fake_corpus(512))
    assert len({run.spec.model for run in runs}) == 9
    assert len(runs) == 27


def test_the_paper_scale_has_the_papers_aspect_ratios_and_heads():
    runs = SCALES["paper"].runs(fake_corpus(50_257))
    paper = points("kaplan2020_fig5")
    aspect = members(runs, "aspect")
    for series, part in paper[paper["panel"] == "aspect"].groupby("series"):
        shapes = {(m.n_layer, m.d_model) for m in aspect[series]}
        assert shapes == set(zip(part["n_layer"], part["d_model"], strict=True))
    heads = members(runs, "head_width")
    for series, part in paper[paper["panel"] == "head_width"].groupby("series"):
        assert {m.d_model // m.n_head for m in heads[series]} == set(part["ratio"])
    ratios = {m.d_ff / m.d_model for m in members(runs, "ff_ratio")[""]}
    assert ratios == {0.5, 1, 2, 4, 8, 22, 40}
    assert len(members(runs, "standard")[""]) == 4
    # Differences between shapes need them.
    assert {run.spec.seed for run in runs} == {0, 1, 2}

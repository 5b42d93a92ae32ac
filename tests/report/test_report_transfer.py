"""The transfer analysis finds planted slopes and shifts between distributions."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
from lmscale_experiments import transfer

from lmscale import flops
from lmscale.report import analyse
from lmscale.report.claims import judge
from lmscale.studies.results import Results
from tests.report import planted_evaluations as planted

EXPERIMENT = dataclasses.replace(transfer.SCALES["cpu"], eval_corpora=("installed-prose", "books"))
transfer.evaluation_corpus = lambda name, training: SimpleNamespace(name=name, fingerprint="f" * 12)
SLOPES = {"prose": 1.0, "books": 0.5}


def evaluations(spec, shift=0.0):
    rng = np.random.default_rng(int(spec.hash, 16))
    found = {}
    for step in (*spec.eval_steps, spec.steps):
        own = 4.5 - 0.25 * math.log(flops.n_params(spec.model, "kaplan") / 3500)
        own += 1.2 * (1 - step / spec.steps) + 0.01 * rng.standard_normal()
        late = shift * (step < spec.steps)
        found[step] = {"valid": own} | {
            name: 1.0 + slope * own + late + 0.005 * rng.standard_normal()
            for name, slope in SLOPES.items()
        }
    return found


def read(path, planted_losses=evaluations, experiment=EXPERIMENT):
    runs = experiment.runs(planted.CORPUS)
    return Results.read(planted.plant(path, runs, planted_losses, experiment=experiment))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return read(tmp_path_factory.mktemp("transfer"))


def test_slopes_come_back(study):
    section = analyse("transfer", study)
    slopes = {row[0]: row[3] for row in section.grids[0].rows}
    for name, truth in SLOPES.items():
        low, high = (float(v) for v in slopes[name].split("(")[1].rstrip(")").split(" to "))
        assert low < truth < high and high - low < 0.1
    # The measure is that of the set which is farthest from a constant offset.
    assert "on books" in section.measures["slope"].what
    assert [judge(c, [section]).word for c in study.claims] == ["disagrees", "agrees"]
    assert section.charts and section.conclusive


def test_a_stage_that_matters_is_seen(tmp_path):
    study = read(tmp_path, lambda spec: evaluations(spec, shift=0.3))
    section = analyse("transfer", study)
    low, high = section.measures["stage_shift"].interval
    assert low < 0.3 < high
    assert judge(study.claims[1], [section]).word == "disagrees"


def test_one_seed_decides_nothing_about_the_stage(tmp_path):
    study = read(tmp_path, experiment=dataclasses.replace(EXPERIMENT, seeds=(0,)))
    section = analyse("transfer", study)
    assert section.measures["stage_shift"].interval is None
    assert "a slope needs 3 seeds, not 1" in section.measures["slope"].undecided_because
    assert judge(study.claims[1], [section]).word == "can't tell"


def test_sizes_are_what_a_slope_rests_on(tmp_path):
    """Local slopes of 1.2, 1.6 and 1.1, each known to a hair, do not make a slope known as well."""

    def bends(spec):
        found = evaluations(spec)
        for losses in found.values():
            losses["books"] += 0.05 * np.cos(2 * math.log(flops.n_params(spec.model, "kaplan")))
        return found

    measure = analyse("transfer", read(tmp_path, bends)).measures["slope"]
    low, high = measure.interval
    assert high - low > 0.2


def test_built_in_text_lies_too_far_from_the_training_text(study):
    def measured(*corpora):
        fields = study.experiment["fields"] | {"eval_corpora": corpora}
        experiment = study.experiment | {"fields": fields}
        return analyse("transfer", dataclasses.replace(study, experiment=experiment)).measures

    # Text of one's own decides, whatever stands beside it.
    assert "on books" in measured("installed-prose", "books")["slope"].what
    far = measured("installed-prose", "installed-books")["slope"]
    assert "of other kinds" in far.undecided_because and far.interval is not None


def test_nothing_to_compare_is_said(tmp_path):
    study = read(tmp_path, lambda spec: None)
    assert "No other text to compare with yet" in analyse("transfer", study).finding

"""Loss on other text: planted slopes and shifts between distributions come back."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
from lmscale_experiments import transfer as experiment_file

from lmscale import flops
from lmscale.studies import Results, transfer
from tests.report import planted_evaluations as planted

EXPERIMENT = dataclasses.replace(
    experiment_file.SCALES["cpu"], eval_corpora=("installed-prose", "books")
)
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
    """Results whose evaluation sets are named and never read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            experiment_file,
            "evaluation_corpus",
            lambda name, training: SimpleNamespace(name=name, fingerprint="f" * 12),
        )
        runs = experiment.runs(planted.CORPUS)
    return Results.read(planted.plant(path, runs, planted_losses, experiment=experiment))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return read(tmp_path_factory.mktemp("transfer"))


def test_slopes_come_back(results):
    found = transfer.study(results)
    for other in found.others:
        low, high = other.slope.interval
        assert low < SLOPES[other.name] < high and high - low < 0.1
    # The estimate is that of the set which is farthest from a constant offset, with a wider interval.
    slope, books = found.estimates["slope"], found.others[-1].slope
    assert slope.of == "books" and slope.value == books.value
    assert slope.interval[0] < books.interval[0] and slope.interval[1] > books.interval[1]


def test_a_stage_that_matters_is_seen(tmp_path):
    found = transfer.study(read(tmp_path, lambda spec: evaluations(spec, shift=0.3)))
    low, high = found.estimates["stage_shift"].interval
    assert low < 0.3 < high


def test_one_seed_decides_nothing_about_the_stage(tmp_path):
    found = transfer.study(read(tmp_path, experiment=dataclasses.replace(EXPERIMENT, seeds=(0,))))
    assert found.estimates["stage_shift"].interval is None
    assert "a slope needs 3 seeds, not 1" in found.estimates["slope"].undecided_because


def test_sizes_are_what_a_slope_rests_on(tmp_path):
    """Local slopes of 1.2, 1.6 and 1.1, each known to a hair, do not make a slope known as well."""

    def bends(spec):
        found = evaluations(spec)
        for losses in found.values():
            losses["books"] += 0.05 * np.cos(2 * math.log(flops.n_params(spec.model, "kaplan")))
        return found

    low, high = transfer.study(read(tmp_path, bends)).estimates["slope"].interval
    assert high - low > 0.2


def test_built_in_text_lies_too_far_from_the_training_text(results):
    def slope(*corpora):
        fields = results.experiment["fields"] | {"eval_corpora": corpora}
        experiment = results.experiment | {"fields": fields}
        found = transfer.study(dataclasses.replace(results, experiment=experiment))
        return found.estimates["slope"]

    # Text of one's own decides, whatever stands beside it.
    assert slope("installed-prose", "books").of == "books"
    far = slope("installed-prose", "installed-books")
    assert "of other kinds" in far.undecided_because and far.interval is not None


def test_two_sizes_make_no_slope(tmp_path):
    sizes = EXPERIMENT.sizes[:2]
    found = transfer.study(read(tmp_path, experiment=dataclasses.replace(EXPERIMENT, sizes=sizes)))
    assert found.estimates["slope"].value is None
    assert found.estimates["slope"].undecided_because == "2 sizes"

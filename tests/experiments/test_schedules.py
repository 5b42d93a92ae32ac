"""All schedules train in one program, with the cycles of the paper and their summed rates."""

import dataclasses
import json

import pytest
from lmscale_experiments.schedules import OVERSHOOTS, SCALES, summed_learning_rate

from lmscale.spec import SpecError
from lmscale.training.state import ProgramKey
from tests.experiments.fake_corpus import CORPUS


@pytest.mark.parametrize("scale", SCALES)
def test_one_program_and_every_schedule(scale):
    experiment = SCALES[scale]
    runs = experiment.runs(CORPUS)
    assert len({ProgramKey.of(run.spec) for run in runs}) == 1
    assert len(runs) == len({run.spec.hash for run in runs}) == 17 * len(experiment.seeds)
    cycles = {
        run.spec.schedule.cycle_steps / run.spec.steps
        for run in runs
        if run.labels["cycle"] not in (None, 1.0)
    }
    assert sorted(cycles) == pytest.approx(OVERSHOOTS)
    assert len({run.spec.optimizer.peak_lr for run in runs}) == 1
    json.dumps([run.labels for run in runs])


def test_the_summed_rate_is_that_of_the_steps():
    experiment = dataclasses.replace(SCALES["cpu"], warmup_steps=100, seeds=(0,))
    by_name = {run.labels["cell"]: run for run in experiment.runs(CORPUS)}
    constant, linear = by_name["constant"], by_name["linear to 0"]
    peak, steps = constant.spec.optimizer.peak_lr, experiment.steps
    assert constant.labels["summed_lr"] == pytest.approx(peak * (steps - 49.5), rel=1e-4)
    half = peak * ((steps - 100) / 2 + 50)
    assert linear.labels["summed_lr"] == pytest.approx(half, rel=0.01)
    assert summed_learning_rate(linear.spec) == linear.labels["summed_lr"]


def test_the_peak_can_follow_a_fitted_rule(tmp_path):
    fit = {"parameters": {"c": 0.5, "x": -0.5}, "ranges": {"params": [1e3, 1e5]}}
    (tmp_path / "fits.json").write_text(json.dumps({"learning_rate/transformer/kaplan": fit}))
    experiment = dataclasses.replace(SCALES["cpu"], lr_fit=str(tmp_path / "fits.json"))
    peak = experiment.runs(CORPUS)[0].spec.optimizer.peak_lr
    assert peak == pytest.approx(0.5 * 13824**-0.5, rel=1e-5)


@pytest.mark.parametrize("path", ["://", "nowhere://fits.json"])
def test_a_rule_that_cannot_be_reached_is_told_in_one_line(path):
    experiment = dataclasses.replace(SCALES["cpu"], lr_fit=path)
    with pytest.raises(SpecError, match="is not read in place"):
        experiment.runs(CORPUS)


def test_those_that_decay_do_so_at_the_end():
    for run in SCALES["cpu"].runs(CORPUS):
        schedule, steps = run.spec.schedule, run.spec.steps
        ends = (schedule.cycle_steps or steps) == steps and schedule.name in (
            *("cosine", "linear", "cooldown"),
        )
        assert run.labels["decays"] == (ends and schedule.warmup_steps > 0), run.labels["cell"]

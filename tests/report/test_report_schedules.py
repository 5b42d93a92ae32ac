"""The analysis of schedules finds planted differences, and their noise."""

import dataclasses

import numpy as np
import pytest
from lmscale_experiments.schedules import SCALES

from lmscale.report import Study, analyse
from lmscale.report.claims import judge
from tests.report import planted_evaluations as planted

EXPERIMENT = SCALES["cpu"]
NOISE = 0.003
#: Nats that a cosine costs beyond the run, per factor of two in its cycle.
OVERSHOOT = 0.06


def evaluations(spec):
    schedule = spec.schedule
    loss = 3.0 + 0.04 * np.random.default_rng(spec.seed).standard_normal()  # common to a seed
    loss += NOISE * np.random.default_rng(int(spec.hash, 16)).standard_normal()
    if schedule.name == "cosine" and (schedule.cycle_steps or 0) > spec.steps:
        loss += OVERSHOOT * np.log2(schedule.cycle_steps / spec.steps)
    if schedule.name in ("constant", "inverse_sqrt"):
        loss += 0.2
    if schedule.name == "linear" and not schedule.final_fraction:
        loss -= 0.02
    return {spec.steps: {"valid": loss}}


def read(path, experiment=EXPERIMENT, losses=evaluations):
    runs = experiment.runs(planted.CORPUS)
    return Study.read(planted.plant(path, runs, losses, experiment=experiment))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return read(tmp_path_factory.mktemp("schedules"))


@pytest.fixture(scope="module")
def section(study):
    return analyse("schedules", study)


@pytest.mark.parametrize(
    "name, truth",
    [
        ("overshoot", OVERSHOOT),
        ("overshoot_quarter", OVERSHOOT * np.log2(1.25)),
        ("zero_over_tenth", 0.0),
        ("cosine_over_linear", 0.02),
        ("cooldown_over_cosine", 0.0),
    ],
)
def test_planted_differences_come_back(section, name, truth):
    low, high = section.measures[name].interval
    assert low < truth < high
    # The seeds' common part, ten times as large, has gone.
    assert high - low < 8 * NOISE


def test_the_spread_is_that_of_schedules_which_decay(section):
    low, high = section.measures["spread"].interval
    assert low < 0.02 < high < 0.05
    assert "8 schedules with warmup" in section.finding


def test_verdicts(study, section):
    words = [judge(claim, [section]).word for claim in study.claims]
    assert words == ["agrees", "agrees", "can't tell", "can't tell", "agrees", "agrees"]


def test_a_single_seed_decides_nothing(tmp_path):
    study = read(tmp_path, dataclasses.replace(EXPERIMENT, seeds=(0,)))
    section = analyse("schedules", study)
    assert not section.conclusive
    assert {judge(c, [section]).word for c in study.claims} == {"can't tell"}


def test_a_lost_schedule_and_a_lost_seed_are_said(tmp_path):
    def losses(spec):
        lost = spec.schedule.name == "constant"
        lost |= spec.schedule.name == "inverse_sqrt" and spec.seed == 2
        return None if lost else evaluations(spec)

    section = analyse("schedules", read(tmp_path, losses=losses))
    assert "No run ended well under: constant." in section.warnings
    assert any("Compared on 2 seeds" in w for w in section.warnings)

"""What the page says of schedules whose differences and noise were planted."""

import dataclasses
import zlib

import numpy as np
import pytest
from lmscale_experiments.schedules import SCALES

from lmscale.report import analyse
from lmscale.report.claims import judge
from lmscale.studies.results import Results
from lmscale.wording import with_interval
from tests.report import planted_evaluations as planted

EXPERIMENT = SCALES["cpu"]
NOISE = 0.003
#: Nats that a cosine costs beyond the run, per factor of two in its cycle.
OVERSHOOT = 0.06


def evaluations(spec):
    schedule = spec.schedule
    loss = 3.0 + 0.04 * np.random.default_rng(spec.seed).standard_normal()  # common to a seed
    # By what is compared, and not by the run's hash, which a recipe's change changes.
    own = zlib.crc32(f"{spec.schedule} {spec.optimizer.peak_lr} {spec.seed}".encode())
    loss += NOISE * np.random.default_rng(own).standard_normal()
    if schedule.name == "cosine" and (schedule.cycle_steps or 0) > spec.steps:
        loss += OVERSHOOT * np.log2(schedule.cycle_steps / spec.steps)
    if schedule.name in ("constant", "inverse_sqrt"):
        loss += 0.2
    if schedule.name == "linear" and not schedule.final_fraction:
        loss -= 0.02
    return {spec.steps: {"valid": loss}}


def read(path, experiment=EXPERIMENT, losses=evaluations):
    runs = experiment.runs(planted.CORPUS)
    return Results.read(planted.plant(path, runs, losses, experiment=experiment))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return read(tmp_path_factory.mktemp("schedules"))


@pytest.fixture(scope="module")
def section(study):
    return analyse("schedules", study)


def test_the_finding_counts_the_schedules_which_decay(study, section):
    cells = study.table.drop_duplicates("cell").set_index("cell")
    large = cells["summed_lr"] >= 0.5 * cells["summed_lr"]["cosine to 0.1"]
    decaying = int((cells["decays"] & large).sum())
    assert f"{decaying} schedules with warmup" in section.finding


def test_verdicts(study, section):
    words = [judge(claim, [section]).word for claim in study.claims]
    assert words == [*("agrees", "agrees", "not decided", "not decided", "agrees", "agrees")]


def test_short_runs_do_not_decide_how_much_schedules_matter(study, section):
    """Those of the scale cpu are as long as counts, and a shorter one decides nothing."""
    assert judge(study.claims[0], [section]).word == "agrees"
    table = study.table.assign(steps=1000)
    short = analyse("schedules", dataclasses.replace(study, table=table))
    assert "the runs take 1,000 steps" in short.measures["spread"].undecided_because
    assert judge(study.claims[0], [short]).word == "not tested here"


def test_a_spread_that_depends_on_what_counts_as_a_large_rate_decides_nothing(study):
    """The paper asks for a large summed rate and names no number."""
    small = study.table["cell"] == "cosine, half the run"
    table = study.table.assign(
        steps=50_000,
        decays=study.table["decays"] | small,
        loss=study.table["loss"] + 0.2 * small,
    )
    section = analyse("schedules", dataclasses.replace(study, table=table))
    assert judge(study.claims[0], [section]).word == "not decided"
    first, *_, last = next(g for g in section.grids if "Tukey" in g.caption).rows
    assert first[3] == "cosine, half the run" != last[3]


def test_noise_is_that_of_one_pool_in_table_and_measure(section):
    """Schedules that decay are less noisy than others, so it matters whose noise a pair is given."""
    rows = {row[0]: row[2] for row in section.grids[0].rows}
    for name, measure in (("cosine, cycle 2x", "overshoot"), ("cosine to 0", "zero_over_tenth")):
        found = section.measures[measure]
        assert rows[name] == with_interval(found.value, found.interval)


def test_a_single_seed_decides_nothing(tmp_path):
    study = read(tmp_path, dataclasses.replace(EXPERIMENT, seeds=(0,)))
    section = analyse("schedules", study)
    assert not section.conclusive
    assert {judge(c, [section]).word for c in study.claims} <= {"not decided", "not tested here"}


def test_a_lost_schedule_and_a_lost_seed_are_said(tmp_path):
    def losses(spec):
        lost = spec.schedule.name == "constant"
        lost |= spec.schedule.name == "inverse_sqrt" and spec.seed > 1
        return None if lost else evaluations(spec)

    section = analyse("schedules", read(tmp_path, losses=losses))
    assert "No run ended well under: constant." in section.warnings
    assert any("Compared on 2 seeds" in w for w in section.warnings)

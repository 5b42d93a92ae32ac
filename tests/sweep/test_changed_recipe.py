"""`--recipe KEY=VALUE`: every run of an experiment with other constants, and what it does not go with."""

import dataclasses
import re

import pytest

from lmscale.data.unbuilt import UnbuiltCorpus
from lmscale.spec import ScheduleSpec
from lmscale.sweep.changed_recipe import KEYS, read_recipe
from lmscale.sweep.dropped import declared_runs
from lmscale.sweep.experiment import experiment_names, load_scales
from lmscale.sweep.fields import ExperimentError
from lmscale.sweep.store import StoreError
from tests.sweep.earlier import store_without_field

SMALL = dataclasses.replace(
    load_scales("isoflop")[2]["cpu"], budgets=(2e9, 1e10), sizes=(1536.0, 3456.0)
)
CORPUS = UnbuiltCorpus("installed-python-v512", 512)


def specs_of(experiment, *recipe, corpus=CORPUS):
    experiment = dataclasses.replace(experiment, recipe=recipe)
    return [run.spec for run in declared_runs("some", experiment, corpus)[0]]


def refused(experiment, *recipe):
    with pytest.raises(ExperimentError) as caught:
        specs_of(experiment, *recipe)
    return str(caught.value)


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_changes_all_of_its_runs_and_nothing_else_of_them(name):
    experiment = load_scales(name)[2]["cpu"]
    corpus = UnbuiltCorpus("installed-python-v512", experiment.vocab_size)
    before, after = (
        specs_of(experiment, *recipe, corpus=corpus) for recipe in ((), ("grad_clip=0.25",))
    )
    assert before
    pairs = list(zip(before, after, strict=True))
    renamed = {one.run_id: other.run_id for one, other in pairs}
    assert renamed.keys().isdisjoint(renamed.values())
    for one, other in pairs:
        start = one.start and dataclasses.replace(one.start, run=renamed[one.start.run])
        optimizer = dataclasses.replace(one.optimizer, grad_clip=0.25)
        assert other == dataclasses.replace(one, optimizer=optimizer, start=start)


def test_each_key_sets_its_field():
    found = specs_of(
        SMALL,
        *("peak_lr=0.004", "beta1=0.8", "beta2=0.99", "eps=1e-9", "weight_decay=0.1", "grad_clip=none"),
        *("schedule=cooldown", "warmup_fraction=0.1", "final_fraction=0.02", "cooldown_steps=10"),
        *("eval_every=20", "compute_dtype=bfloat16"),
    )  # fmt: skip
    for spec in found:
        optimizer = spec.optimizer
        assert (optimizer.name, optimizer.peak_lr, optimizer.eps) == ("adamw", 0.004, 1e-9)
        assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (0.8, 0.99, 0.1)
        assert optimizer.grad_clip is None
        assert spec.schedule == ScheduleSpec(
            name="cooldown",
            warmup_steps=round(0.1 * spec.steps),
            final_fraction=0.02,
            cooldown_steps=10,
        )
        assert (spec.eval_every, spec.compute_dtype) == (20, "bfloat16")
    assert {spec.schedule.warmup_steps for spec in specs_of(SMALL, "warmup_steps=7")} == {7}
    (momentum,) = {
        spec.optimizer.momentum
        for spec in specs_of(dataclasses.replace(SMALL, optimizer="muon"), "momentum=0.9")
    }
    assert momentum == 0.9


def test_a_schedule_of_another_shape_loses_what_belongs_to_the_old_one():
    reconcile = load_scales("reconcile")[2]["cpu"]
    assert any(spec.schedule.cycle_steps for spec in specs_of(reconcile))
    changed = specs_of(dataclasses.replace(SMALL), "schedule=constant")
    assert {(spec.schedule.name, spec.schedule.cycle_steps) for spec in changed} == {
        ("constant", None)
    }


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("weight_decay", "must be KEY=VALUE, such as weight_decay=0.1, not 'weight_decay'"),
        ("weight_decya=1", "has no key 'weight_decya': did you mean weight_decay?"),
        ("zzz=1", f"has no key 'zzz': there are {', '.join(KEYS)}"),
        ("peak_lr=fast", "takes a number for peak_lr, not 'fast'"),
        ("peak_lr=nan", "takes a number for peak_lr, not 'nan'"),
        ("warmup_steps=1.5", "takes a whole number for warmup_steps, not '1.5'"),
        ("warmup_fraction=2", "takes a share from 0 to 1 for warmup_fraction, not '2'"),
        ("weight_decay=none", "takes a number for weight_decay, not 'none'"),
    ],
)
def test_an_entry_that_is_none_is_told_when_the_fields_are_read(entry, says):
    with pytest.raises(ExperimentError, match=re.escape(f"IsoFLOP.recipe {says}")):
        dataclasses.replace(SMALL, recipe=(entry,))


def test_a_key_is_given_once():
    with pytest.raises(ValueError, match="has beta1 twice"):
        read_recipe(("beta1=0.8", "beta1=0.9"))
    with pytest.raises(ValueError, match="has warmup_steps and warmup_fraction"):
        read_recipe(("warmup_steps=3", "warmup_fraction=0.1"))


def test_a_value_that_a_run_cannot_have_is_told_with_the_option():
    assert refused(SMALL, "beta1=2") == (
        "--recipe beta1=2: OptimizerSpec.beta1 must be in [0, 1), not 2.0"
    )
    assert "must not exceed RunSpec.steps" in refused(SMALL, "warmup_steps=1e6")


def test_what_an_experiment_varies_is_not_set():
    rates = load_scales("learning_rate")[2]["cpu"]
    assert "it varies what is set here" in refused(rates, "peak_lr=0.01")
    schedules = load_scales("schedules")[2]["cpu"]
    assert "it varies what is set here" in refused(schedules, "schedule=linear")


def test_schedules_of_runs_that_go_on_from_others_stay():
    cooldown = load_scales("cooldown")[2]["cpu"]
    line = refused(cooldown, "schedule=linear", "warmup_fraction=0.1", "beta2=0.9")
    assert line.endswith("their schedules belong together: leave schedule and warmup_fraction out")


def test_runs_of_another_recipe_do_not_join_a_store(tmp_path, corpus):
    """Nor does an earlier version's store, whose declaration lacks the field, take them."""
    runs = declared_runs("isoflop", SMALL, corpus)[0]
    store = store_without_field(tmp_path / "store", "recipe", SMALL, corpus, runs)
    other = dataclasses.replace(SMALL, recipe=("weight_decay=0.1",))
    changed = declared_runs("isoflop", other, corpus)[0]
    with pytest.raises(StoreError, match=r"recipe: none there, weight_decay=0\.1 here"):
        store.declare("isoflop", "cpu", other, corpus, changed, "run", extend=True)

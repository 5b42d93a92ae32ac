"""Which runs start from which others."""

from lmscale.planner.devices import parse_devices
from lmscale.planner.lineage import ancestors, branch_steps
from lmscale.planner.packs import make_plan
from lmscale.spec import StartSpec
from lmscale.sweep.experiment import Run
from tests.training.specs import LSTM, run_spec


def chain() -> list[Run]:
    """A run, one that starts from it, and one that starts from that one."""
    runs = [Run(run_spec(steps=4), {})]
    for step in (4, 8):
        start = StartSpec(run=runs[-1].spec.run_id, step=step)
        runs.append(Run(run_spec(steps=step + 4, start=start), {}))
    return runs


def test_ancestors_and_the_steps_that_are_kept():
    first, second, third = runs = chain()
    by_id = {run.spec.run_id: run for run in runs}
    assert ancestors(third, by_id) == [second, first]
    assert ancestors(first, by_id) == []
    # A trunk that is no part of the experiment is not looked for.
    assert ancestors(third, {third.spec.run_id: third}) == []
    assert branch_steps(runs) == {first.spec.run_id: {4}, second.spec.run_id: {8}}
    # Of every third step those that a run makes itself, but for its last.
    assert branch_steps(runs, every=3) == {
        first.spec.run_id: {3, 4},
        second.spec.run_id: {6, 8},
        third.spec.run_id: {9},
    }


def test_a_pack_comes_after_the_packs_that_its_runs_start_from():
    small = Run(run_spec(model=LSTM, steps=4), {})
    start = StartSpec(run=small.spec.run_id, step=4)
    large = Run(run_spec(model=LSTM, batch_size=64, steps=400, start=start), {})
    packs = make_plan([large, small], parse_devices("h100:1")).packs
    assert [pack.runs for pack in packs] == [(small,), (large,)]

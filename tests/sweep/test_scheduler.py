"""Which run each worker takes next."""

import pytest

from lmscale.planner.devices import parse_devices
from lmscale.planner.packs import make_plan
from lmscale.progress import progress
from lmscale.sweep.experiment import Run
from lmscale.sweep.ownership import Claims
from lmscale.sweep.scheduler import PackQueue, Scheduler
from lmscale.sweep.store import Store
from lmscale.training.run_queue import RunQueue
from tests.training.specs import LSTM, run_spec

STEPS = 1_000_000


@pytest.fixture
def scheduler_of(tmp_path, corpus, request):
    """n_cores -> a scheduler with two packs of three runs; those of the first take longer."""

    def make(n_cores):
        specs = [
            run_spec(corpus, seed=seed, **fields)
            for seed in range(3)
            for fields in ({"steps": 2 * STEPS}, {"steps": STEPS, "model": LSTM})
        ]
        plan = make_plan([Run(spec, {}) for spec in specs], parse_devices(f"cpu:{n_cores}"))
        assert plan.workers == n_cores
        long, short = plan.packs
        assert long.flops > short.flops
        store = Store(tmp_path)
        queues = [RunQueue([store.folder(run) for run in pack.runs]) for pack in plan.packs]
        with progress("", plan.flops, silent=True) as bar:
            claims = Claims()
            request.addfinalizer(claims.close)
            return Scheduler(plan, queues, bar, lambda: False, claims)

    return make


def begin(seat, index):
    """Takes a run, and says that it trains."""
    folder = seat.take_run(index)
    seat.update(1.0, folder.path.name)
    return folder.spec


def test_long_runs_go_first_once_their_program_is_compiled(scheduler_of):
    scheduler = scheduler_of(2)
    one, two = scheduler.seat(), scheduler.seat()
    assert one.take() == 0
    first = one.take_run(0)
    # The other worker does not wait for the first to compile.
    assert two.take() == 1
    begin(two, 1)
    one.update(1.0, first.path.name)
    # After its first short run it goes where longer ones wait.
    assert two.take_run(1) is None
    two.leave(1)
    assert two.take() == 0
    assert begin(two, 0).steps == begin(one, 0).steps == 2 * STEPS
    # None are left, so both go on with the short ones, and neither waits for the other.
    for seat in (one, two):
        assert seat.take_run(0) is None
        seat.leave(0)
        assert seat.take() == 1
        assert begin(seat, 1).steps == STEPS
    for seat in (one, two):
        assert seat.take_run(1) is None
        seat.leave(1)
        assert seat.take() is None


def test_one_worker_ends_a_pack_before_it_begins_another(scheduler_of):
    seat = scheduler_of(1).seat()
    for pack in range(2):
        assert seat.take() == pack
        assert seat.following() == (1 if pack == 0 else None)
        for _ in range(3):
            begin(seat, pack)
        assert seat.take_run(pack) is None
        seat.leave(pack)
    assert seat.take() is None


def test_the_run_of_a_dead_worker_goes_back_once_and_a_second_death_marks_it(scheduler_of):
    scheduler = scheduler_of(2)
    first = scheduler.seat()
    assert first.take() == 0
    folder = first.take_run(0)
    first.update(5.0, folder.path.name)
    assert first.to_save() == 1 and scheduler.bar.done == 5.0
    first.close("was killed by SIGKILL", "out_of_memory")
    assert folder.status()["status"] == "preempted" and scheduler.bar.done == 0.0
    # What the dead one had still asked for has no effect.
    assert first.take() is None and first.take_run(0) is None
    first.put_back(0, [folder])
    assert [len(queue) for queue in scheduler.queues] == [3, 3] and scheduler.workers == [0, 0]
    second = scheduler.seat()
    assert second.take() == 0
    assert second.take_run(0).path == folder.path
    # It had got further, so it may go back again; then it dies twice at one place.
    folder.write_status("running", step=7, seconds=1.0)
    second.close("was killed by SIGKILL", "out_of_memory")
    third = scheduler.seat()
    assert third.take() == 0 and third.take_run(0).path == folder.path
    third.close("was killed by SIGKILL", "out_of_memory")
    status = folder.status()
    assert (status["status"], status["step"]) == ("out_of_memory", 7)
    assert "SIGKILL" in status["reason"] and "enough" in status["reason"]
    assert [len(queue) for queue in scheduler.queues] == [2, 3] and scheduler.workers == [0, 0]


def test_runs_of_others_are_left_to_them_and_taken_when_they_are_free(scheduler_of):
    scheduler = scheduler_of(1)
    mine, theirs = scheduler.seat(), Claims()
    folder = scheduler.queues[0].take()
    scheduler.queues[0].put_back([folder])
    folder.create()
    theirs.take(folder.path)
    assert mine.take() == 0
    taken = [mine.take_run(0), mine.take_run(0)]
    assert folder not in taken and mine.take_run(0) is None
    assert "1 run left to others" in scheduler.others_line()
    assert not PackQueue(mine, 0).holds(folder)
    mine.leave(0)
    for pack in scheduler.queues:
        pack.drain()
    assert not scheduler.regain()
    theirs.close()
    assert scheduler.regain() and scheduler.others_line() is None
    assert mine.take() == 0 and mine.take_run(0) is folder


def test_what_another_has_ended_is_not_trained_again(scheduler_of):
    scheduler = scheduler_of(1)
    seat = scheduler.seat()
    folder = scheduler.queues[0].take()
    scheduler.queues[0].put_back([folder])
    folder.create()
    folder.write_result({"status": "done"})
    folder.write_status("done", step=1, seconds=0.0)
    assert seat.take() == 0
    assert folder not in [seat.take_run(0), seat.take_run(0), seat.take_run(0)]
    assert scheduler.others_line() is None

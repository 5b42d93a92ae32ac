"""Workers: processes that train side by side, what they share, and how they end."""

import dataclasses
import functools
import os
import signal
import sys
import time

import jax
import pytest

from lmscale.planner.devices import parse_devices
from lmscale.planner.packs import make_plan
from lmscale.progress import progress
from lmscale.sweep.execute import execute
from lmscale.sweep.experiment import Run
from lmscale.sweep.store import Store
from lmscale.sweep.workers import WorkerError, run_workers
from lmscale.training.loop import Preempted
from tests.training.specs import LSTM, run_spec


class Shared:
    """Numbers to be drawn, and what was said of them."""

    METHODS = ("draw", "say")

    def __init__(self, numbers, stopped=lambda: False):
        self.numbers, self.said, self.closed = list(numbers), [], []
        self.stopped = stopped

    def seat(self):
        return Seat(self)


class Seat:
    """One worker's; what it had drawn goes back when it dies."""

    def __init__(self, shared):
        self.shared, self.mine = shared, []

    def draw(self):
        if not self.shared.numbers:
            return None
        self.mine.append(self.shared.numbers.pop())
        return self.mine[-1]

    def say(self, *words):
        self.shared.said.append(words)
        self.mine = []

    def has_runs(self):
        return bool(self.mine)

    def to_save(self):
        return 0

    def close(self, how=None, status=""):
        if how is not None:
            self.shared.closed.append((how, status))
            self.shared.numbers += self.mine


def square(shared, power):
    while (number := shared.draw()) is not None:
        shared.say(os.getpid(), jax.device_count(), number**power)
        time.sleep(0.1)


def be_killed_once(shared, folder, number):
    """The first that draws a 1 is killed."""
    while (drawn := shared.draw()) is not None:
        if drawn == 1 and not os.path.exists(f"{folder}/killed"):
            open(f"{folder}/killed", "w").close()
            os.kill(os.getpid(), number)
        time.sleep(0.05)
        shared.say(drawn)


def die_at_once(shared):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(shared):
    raise OSError("this disk is full")


def be_preempted(shared):
    if shared.draw() == 1:
        raise Preempted


def sleep(shared):
    shared.say("asleep")
    time.sleep(3600)


def tell_environment(shared):
    shared.say(os.environ.get("LMSCALE_TEST"), os.environ["NPROC"])


def stop_the_server(shared):
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(os.getppid(), number)
    time.sleep(0.5)
    shared.say("done")


def test_workers_share_the_work():
    shared = Shared(range(20))
    run_workers(2, square, shared, Shared.METHODS, 2)
    assert sorted(square for _, _, square in shared.said) == [n * n for n in range(20)]
    assert len({worker for worker, _, _ in shared.said} - {os.getpid()}) == 2
    assert {devices for _, devices, _ in shared.said} == {1}


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, "out_of_memory"), (signal.SIGSEGV, "failed")]
)
def test_a_dead_worker_is_replaced_and_its_work_goes_back(tmp_path, number, status):
    shared = Shared(range(6))
    run_workers(2, be_killed_once, shared, Shared.METHODS, str(tmp_path), number)
    assert sorted(shared.said) == [(n,) for n in range(6)]
    assert shared.closed == [(f"was killed by {number.name}", status)]


@pytest.mark.parametrize(
    ("work", "error", "words"),
    [
        (
            die_at_once,
            WorkerError,
            "died before they trained anything; the last was killed by SIGKILL",
        ),
        (fail, WorkerError, "ended with exit code 1 .OSError: this disk is full"),
        (be_preempted, Preempted, None),
    ],
)
def test_how_workers_end_is_heard_of(work, error, words):
    with pytest.raises(error, match=words):
        run_workers(2, work, Shared([0, 1]), Shared.METHODS)


def test_workers_with_nothing_to_save_are_ended_when_all_is_to_stop():
    shared = Shared(())
    shared.stopped = lambda: len(shared.said) == 2
    with pytest.raises(Preempted):
        run_workers(2, sleep, shared, Shared.METHODS)
    assert shared.closed == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker is its parent's own child")
@pytest.mark.slow
def test_workers_whose_server_was_killed_are_replaced(tmp_path):
    shared = Shared(range(4))
    run_workers(2, kill_the_server_once, shared, Shared.METHODS, str(tmp_path / "mark"))
    assert sorted(shared.said) == [(n,) for n in range(4)]
    assert shared.closed[0] == ("was killed with the process that had started it", "failed")


def kill_the_server_once(shared, mark):
    while (drawn := shared.draw()) is not None:
        if drawn == 3 and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(10)
        time.sleep(0.05)
        shared.say(drawn)


def test_workers_have_the_environment_of_now(monkeypatch):
    """What they are forked from is older."""
    shared = Shared(())
    run_workers(1, tell_environment, shared, Shared.METHODS)
    monkeypatch.setenv("LMSCALE_TEST", "new")
    run_workers(1, tell_environment, shared, Shared.METHODS)
    assert shared.said == [(None, "1"), ("new", "1")]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker is its parent's own child")
def test_a_signal_to_all_processes_does_not_end_what_workers_are_forked_from():
    shared = Shared(())
    run_workers(1, stop_the_server, shared, Shared.METHODS)
    run_workers(1, stop_the_server, shared, Shared.METHODS)
    assert shared.said == [("done",), ("done",)]


def same(corpus, name):
    return corpus


def train(path, corpus, specs, n_workers, stop=lambda: False):
    store = Store(path)
    runs = [Run(spec, {}) for spec in specs]
    for run in runs:
        store.folder(run).create()
    plan = dataclasses.replace(make_plan(runs, parse_devices("cpu:2")), workers=n_workers)
    with progress("training", plan.flops) as bar:
        execute(plan, store, functools.partial(same, corpus), bar, stop=stop)
    assert bar.done == pytest.approx(bar.total)
    return [store.folder(run).result() for run in runs]


@pytest.mark.slow
def test_workers_train_as_one_does(tmp_path, corpus):
    specs = [
        run_spec(corpus, seed=seed, **fields)
        for seed in range(2)
        for fields in ({}, {"model": LSTM}, {"optimizer": {"peak_lr": 1e30}})
    ]
    alone = train(tmp_path / "alone", corpus, specs, 1)
    together = train(tmp_path / "together", corpus, specs, 2)
    assert [r["status"] for r in alone] == ["done", "done", "diverged"] * 2
    for one, other in zip(alone, together, strict=True):
        assert one["status"] == other["status"]
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-5)


@pytest.mark.slow
def test_workers_stop_when_they_are_asked_to(tmp_path, corpus):
    """And go on later to the same result."""
    specs = [run_spec(corpus, seed=seed, eval_every=4) for seed in range(4)]
    whole = train(tmp_path / "whole", corpus, specs, 2)
    asked = iter([False] * 3)
    with pytest.raises(Preempted):
        train(tmp_path / "cut", corpus, specs, 2, stop=lambda: next(asked, True))
    ended = [Store(tmp_path / "cut").folder(Run(spec, {})).result() for spec in specs]
    assert None in ended
    again = train(tmp_path / "cut", corpus, specs, 2)
    for one, other in zip(whole, again, strict=True):
        assert one["losses"] == other["losses"]
        assert one["loss_by_position"] == other["loss_by_position"]

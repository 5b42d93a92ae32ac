"""Sweeps whose workers are killed, and several sweeps on one store: each run is trained once."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.end_to_end.conftest import EXPERIMENT
from tests.waiting import PATIENCE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPU cores"),
]
STEPS = 400
ARGUMENTS = ("run", EXPERIMENT, "--data", "tiny", "--steps", STEPS, "--checkpoint-seconds", "0.1")
#: `lmscale`, with worker processes however short the sweep is.
WITH_WORKERS = (
    "import lmscale.planner.packs as plan; plan.WORKER_SECONDS = 0.0; "
    "from lmscale.cli import entry_point; entry_point()"
)
SHARDS = ("0/1", "0/2", "1/2", "0/3", "1/3", "2/3")


@pytest.fixture
def sweep(environment):
    """Starts `lmscale run` with two workers; leaves none behind."""
    started = []

    def start(out, *options):
        command = [sys.executable, "-c", WITH_WORKERS, *ARGUMENTS, "--out", out, *options]
        process = subprocess.Popen(
            list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def undisturbed(environment, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    command = [sys.executable, "-m", "lmscale", *map(str, ARGUMENTS), "--out", str(out)]
    subprocess.run(command, env=environment, check=True, timeout=600)
    return out


def results(out):
    return {path.parent.name: path.read_bytes() for path in out.glob("runs/*/result.json")}


def children(process):
    try:
        with open(f"/proc/{process}/task/{process}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def workers(process):
    """The workers of a sweep: what its server has forked."""
    return [worker for child in children(process.pid) for worker in children(child)]


def assert_trained_once(out):
    for path in out.glob("runs/*/metrics.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        steps = [record["step"] for record in records if "loss" in record]
        assert steps == list(range(2, STEPS + 1, 2)), path
        assert [record["step"] for record in records if "eval" in record] == [STEPS], path
    assert not list(out.rglob("claim*"))


def test_killed_workers_are_replaced_and_no_bit_changes(sweep, undisturbed, tmp_path):
    # As the out-of-memory killer ends a process, and as a fault in a library does.
    rng, kills = random.Random(), []
    signals = (signal.SIGKILL, signal.SIGSEGV)
    process = sweep(tmp_path)
    while process.poll() is None:
        before = sum(p.stat().st_size for p in tmp_path.glob("runs/*/metrics.jsonl"))
        time.sleep(rng.uniform(0.2, 0.6))
        after = sum(p.stat().st_size for p in tmp_path.glob("runs/*/metrics.jsonl"))
        # At moments when training goes on, so that no run is hit twice at one place.
        if len(kills) < 4 and after > before and (found := workers(process)):
            kills.append(signals[len(kills) % 2])
            os.kill(rng.choice(found), kills[-1])
    error = process.communicate(timeout=PATIENCE)[1]
    assert kills
    if process.returncode == 1:
        # Twice at one place after all: marked, and trained at the next start.
        assert "two processes in a row" in error
        process = sweep(tmp_path)
        error += process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, error
    assert any(f"was killed by {number.name}" in error for number in kills)
    assert results(tmp_path) == results(undisturbed)
    assert_trained_once(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_with_a_dead_worker_still_stops_when_asked(sweep, tmp_path, number):
    process = sweep(tmp_path, "--steps", "100000")
    while not list(tmp_path.glob("runs/*/metrics.jsonl")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    os.kill(workers(process)[0], signal.SIGKILL)
    process.send_signal(number)
    error = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 42, error
    assert "stopping: the runs under way are saved" in error
    statuses = [json.loads(p.read_text())["status"] for p in tmp_path.glob("runs/*/status.json")]
    assert set(statuses) == {"preempted"}
    assert not list(tmp_path.rglob("claim*"))


def test_sweeps_on_one_store_train_every_run_once(sweep, lmscale, undisturbed, tmp_path):
    rng = random.Random()
    for count in (2, 3):
        out = tmp_path / str(count)
        shards = ["0/1", *(rng.choice(SHARDS) for _ in range(count - 1))]
        processes = [lmscale(*ARGUMENTS, "--out", out, "--shard", shard) for shard in shards]
        for process in processes:
            error = process.communicate(timeout=600)[1]
            assert process.returncode == 0, (shards, error)
        assert results(out) == results(undisturbed), shards
        assert_trained_once(out)


def test_runs_of_a_killed_sweep_are_taken_over_at_once(sweep, undisturbed, tmp_path):
    first = sweep(tmp_path)
    while not list(tmp_path.glob("runs/*/metrics.jsonl")):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.05)
    second = sweep(tmp_path)
    time.sleep(1)
    first.kill()
    error = second.communicate(timeout=600)[1]
    assert second.returncode == 0, error
    assert results(tmp_path) == results(undisturbed)
    assert_trained_once(tmp_path)

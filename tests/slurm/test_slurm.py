"""Experiments on a real Slurm: arrays, time limits, cancellation, groups."""

import contextlib
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_until

pytestmark = pytest.mark.slow


def results(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in out.glob("runs/*/result.json")}


def metrics(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in out.glob("runs/*/metrics.jsonl")}


def logs(out: Path) -> str:
    """All logs, for a failed test to show."""
    return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in out.glob("logs/*.log"))


def trainer(out: Path) -> int | None:
    """The process that trains into `out`."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if str(out) in words and "python" in Path(words[0]).name and "lmscale" in words:
            return int(folder.name)
    return None


def was_signalled(pid: int, number: int) -> bool:
    """Whether the process, which was stopped, has the signal waiting or is no longer stopped."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True
    masks = re.findall(r"^(?:SigPnd|ShdPnd):\s*(\w+)", status, re.MULTILINE)
    return "State:\tT" not in status or any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def test_an_array_of_four_tasks_finishes_twelve_runs(cluster, tmp_path):
    # A folder with a space, since Slurm and the shell each have their quoting.
    out = tmp_path / "twelve runs"
    seeds = ("--seeds", *range(6))
    job = cluster.submit(out, "--tasks", 4, "--", *seeds, "--steps", 200)
    assert cluster.finish(job) == ["COMPLETED"] * 4, logs(out)
    assert [json.loads(text)["status"] for text in results(out).values()] == ["done"] * 12
    assert len((out / "results.csv").read_text().splitlines()) == 13
    # Each task trained three of them.
    for task in range(4):
        text = (out / f"logs/{job}_{task}-0.log").read_text()
        assert ": 3 runs in " in text, text


def test_a_job_cut_at_its_time_limit_is_requeued_and_ends_with_the_same_bits(cluster, tmp_path):
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    runs = ("--", "--seeds", 0, "--steps", 2000, "--checkpoint-seconds", 3600)
    job = cluster.submit(cut, "--grace", 170, *runs)
    wait_until(lambda: metrics(cut) or cluster.states(job) == ["FAILED"])
    # Held still while Slurm comes to see that the time is over, however fast this machine trains.
    pid = trainer(cut)
    os.kill(pid, signal.SIGSTOP)
    assert len(results(cut)) < 2
    other = cluster.submit(whole, *runs)
    elapsed = cluster.call("squeue", "--noheader", f"--jobs={job}", "--format=%M")
    limit = int(elapsed.split(":")[0]) + 3
    cluster.call("scontrol", "update", f"JobId={job}_0", f"TimeLimit={limit}")
    wait_until(lambda: was_signalled(pid, signal.SIGTERM))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: "requeued after" in (cut / f"logs/{job}_0.log").read_text())
    steps = [json.loads(p.read_text())["step"] for p in cut.glob("runs/*/status.json")]
    assert 0 < sum(steps) < 4000
    cluster.call("scontrol", "update", f"JobId={job}_0", "TimeLimit=30")
    assert cluster.finish(other) == ["COMPLETED"], logs(whole)
    assert cluster.finish(job) == ["COMPLETED"], logs(cut)
    assert len(results(whole)) == 2
    assert results(cut) == results(whole)


def test_a_cancelled_and_resubmitted_array_redoes_nothing(cluster, tmp_path):
    submit = (tmp_path, "--tasks", 2, "--", "--seeds", *range(4), "--steps", 1000)
    first = cluster.submit(*submit)
    wait_until(lambda: results(tmp_path))
    cluster.call("scancel", first)
    assert "COMPLETED" not in cluster.finish(first), "it was to be cut"
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/result.json")}
    logged = metrics(tmp_path)
    assert 1 <= len(done) < 8
    second = cluster.submit(*submit)
    assert cluster.finish(second) == ["COMPLETED"] * 2, logs(tmp_path)
    assert len(results(tmp_path)) == 8
    assert {path: path.stat().st_mtime_ns for path in done} == done
    # What was half done went on from where it was.
    assert all(metrics(tmp_path)[run].startswith(text) for run, text in logged.items())


def test_two_groups_of_two_processes_train_their_runs_over_four_devices_each(cluster, tmp_path):
    groups, alone = tmp_path / "groups", tmp_path / "alone"
    runs = ("--", "--seeds", 0, "--steps", 400)
    # On a CPU the cores that a process may use are its devices.
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))
    two = ("--lmscale", f"taskset --cpu-list {cores} {sys.executable} -m lmscale")
    # All processes are on this machine, so the two groups must not take the same port.
    job = cluster.submit(groups, "--tasks", 2, "--nodes", 2, *two, *runs, "--mesh", "1,2,2")
    wait_until(lambda: metrics(groups) or "FAILED" in cluster.states(job))
    cluster.call("scontrol", "requeue", f"{job}_0")
    other = cluster.submit(alone, *two, *runs)
    assert cluster.finish(job) == ["COMPLETED"] * 2, logs(groups)
    assert cluster.finish(other) == ["COMPLETED"], logs(alone)
    ours, theirs = results(groups), results(alone)
    assert len(ours) == 2
    assert ours.keys() == theirs.keys()
    for run, text in ours.items():
        # Another mesh: equal to rounding, not to the bit.
        a, b = json.loads(text), json.loads(theirs[run])
        assert a["losses"]["valid"] == pytest.approx(b["losses"]["valid"], rel=1e-3)
    for task in range(2):
        assert "on 4 x cpu" in (groups / f"logs/{job}_{task}-0.log").read_text()
        assert (groups / f"logs/{job}_{task}-1.log").exists()

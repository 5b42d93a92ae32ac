"""Killed at any moment and started again, a sweep ends with the very same results."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.end_to_end.conftest import EXPERIMENT, catches
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow
ARGUMENTS = ("run", EXPERIMENT, "--data", "tiny", "--checkpoint-seconds", "0.01")


def results(out):
    return {path.parent.name: path.read_bytes() for path in out.glob("runs/*/result.json")}


def steps_logged(out):
    """Lines of all metrics so far: a measure of progress that needs no cooperation."""
    return sum(len(path.read_text().splitlines()) for path in out.glob("runs/*/metrics.jsonl"))


@pytest.fixture(scope="module")
def uninterrupted(environment, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    command = [sys.executable, "-m", "lmscale", *map(str, ARGUMENTS), "--out", str(out)]
    subprocess.run(command, env=environment, check=True, timeout=PATIENCE)
    return out


def test_a_sweep_leaves_the_files_of_the_contract(uninterrupted):
    assert (uninterrupted / "experiment.json").exists()
    assert (uninterrupted / "report.html").exists()
    assert len((uninterrupted / "results.csv").read_text().splitlines()) == 7
    for folder in (uninterrupted / "runs").iterdir():
        result = json.loads((folder / "result.json").read_text())
        assert result["status"] == "done"
        assert len(result["loss_by_position"]["valid"]) == 16
        assert [e["step"] for e in result["evaluations"]] == [500, 1000, 1200]
        windows = result["loss_by_window"]["valid"]
        assert len(windows["loss"]) == len(windows["document"]) == 1024 // 16
        mean = sum(windows["loss"]) / len(windows["loss"])
        assert mean == pytest.approx(result["losses"]["valid"], abs=1e-4)
        assert len(set(windows["document"])) > 1
        # It has learned: the loss of guessing is log 300 = 5.7.
        assert result["losses"]["valid"] < 4.5
        assert json.loads((folder / "status.json").read_text())["status"] == "done"
        assert any((folder / "checkpoints").iterdir())


def test_sigkill_at_random_moments_changes_no_bit(lmscale, finish, uninterrupted, tmp_path):
    rng, kills = random.Random(), 0
    for _ in range(20):
        before = steps_logged(tmp_path)
        process = lmscale(*ARGUMENTS, "--out", tmp_path)
        while process.poll() is None and steps_logged(tmp_path) <= before:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.4))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        if kills == 3:
            break
    code, _, err = finish(*ARGUMENTS, "--out", tmp_path)
    assert code == 0, err
    assert kills >= 1
    assert results(tmp_path) == results(uninterrupted)


def test_sigterm_saves_exits_42_and_resumes_to_the_same_bits(
    lmscale, finish, uninterrupted, tmp_path
):
    process = lmscale(*ARGUMENTS[:4], "--out", tmp_path)
    while steps_logged(tmp_path) == 0:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 42
    states = [json.loads(p.read_text()) for p in tmp_path.glob("runs/*/status.json")]
    assert {"preempted"} <= {state["status"] for state in states}
    assert finish(*ARGUMENTS, "--out", tmp_path)[0] == 0
    assert results(tmp_path) == results(uninterrupted)


def test_sigterm_in_start_up_exits_42_with_nothing_trained(lmscale, tmp_path):
    process = lmscale(*ARGUMENTS, "--out", tmp_path)
    while not catches(process, signal.SIGTERM):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 42, err
    assert steps_logged(tmp_path) == 0


def test_what_is_done_is_not_done_again(finish, uninterrupted):
    times = {p: p.stat().st_mtime_ns for p in uninterrupted.glob("runs/*/*.json*")}
    code, _, err = finish(*ARGUMENTS, "--out", uninterrupted)
    assert code == 0
    assert "at a time" not in err
    assert {p: p.stat().st_mtime_ns for p in uninterrupted.glob("runs/*/*.json*")} == times


def test_shards_share_the_work_and_give_the_same_results(finish, uninterrupted, tmp_path):
    for shard in ("0/2", "1/2"):
        assert len(results(tmp_path)) == (0 if shard == "0/2" else 3)
        assert finish(*ARGUMENTS, "--out", tmp_path, "--shard", shard)[0] == 0
    ours, theirs = results(tmp_path), results(uninterrupted)
    assert ours.keys() == theirs.keys()
    for name in ours:
        a, b = json.loads(ours[name]), json.loads(theirs[name])
        # Another pack: equal to rounding, not to the bit.
        assert a["losses"]["valid"] == pytest.approx(b["losses"]["valid"], rel=1e-3)


def test_a_diverged_run_is_a_result_and_its_pack_mates_do_not_notice(
    finish, uninterrupted, tmp_path
):
    arguments = ("run", EXPERIMENT, "--data", "tiny", "--out", tmp_path, "--lr-factor", "1", "1e30")
    code, _, err = finish(*arguments, "--seeds", "0")
    assert code == 0, err
    statuses = [json.loads(r)["status"] for r in results(tmp_path).values()]
    assert sorted(statuses) == ["diverged", "diverged", "done", "done"]
    for name, content in results(tmp_path).items():
        if name in results(uninterrupted):
            assert content == results(uninterrupted)[name]
    before = results(tmp_path)
    assert finish(*arguments, "--seeds", "0")[0] == 0
    assert results(tmp_path) == before

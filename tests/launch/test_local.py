"""The local launcher, with real processes: a stand-in for `lmscale`, and once the real one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lmscale.sweep.store import Store, StoreError
from tests.launch.stub import calls, environment, stub
from tests.waiting import PATIENCE, wait_until

CLONE = Path(__file__).parents[2]

#: Answers `status` with the number of starts as the step, so that each start has made progress.
STATUS = '[ "$1" = status ] && { echo "{\\"table\\": [{\\"step\\": $(wc -l <"$here/lmscale.calls")}]}"; exit; }\n'


@pytest.fixture
def launch(tmp_path):
    """Starts the launcher with `lmscale` being this script."""

    def start(script: str, *options: str) -> subprocess.Popen:
        stub(tmp_path, "lmscale", script)
        command = [sys.executable, "-m", "launch.local", "isoflop", "--out", str(tmp_path / "out")]
        return subprocess.Popen(
            [*command, "--device", "cpu", *options],
            cwd=CLONE,
            env=environment(tmp_path),
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finish(process: subprocess.Popen) -> tuple[int, str]:
    _, error = process.communicate(timeout=PATIENCE)
    return process.returncode, error


def runs(folder: Path) -> list[str]:
    return [call for call in calls(folder, "lmscale") if call.startswith("run ")]


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPU cores")


@two_cores
def test_every_device_gets_its_shard_and_its_core(launch, tmp_path):
    script = 'echo "$JAX_PLATFORMS $(taskset -cp $$)"'
    code, error = finish(launch(script, "--workers", "2", "--", "--seeds", "0", "1"))
    assert code == 0
    assert "workers: 2 done" in error
    tail = f"isoflop --out {tmp_path}/out --shard"
    assert sorted(runs(tmp_path)) == [f"run {tail} {i}/2 --seeds 0 1" for i in (0, 1)]
    logs = [(tmp_path / f"out/logs/local-{i}.log").read_text() for i in (0, 1)]
    assert all(log.startswith("cpu pid") for log in logs)
    assert len({log.split()[-1] for log in logs}) == 2


def test_a_stopped_worker_is_started_again(launch, tmp_path):
    code, error = finish(
        launch(STATUS + '[ $(grep -c ^run "$here/lmscale.calls") -ge 4 ] || exit 42', "--together")
    )
    assert code == 0, error
    assert len(runs(tmp_path)) == 4


def test_a_killed_worker_is_started_again(launch, tmp_path):
    code, error = finish(
        launch(
            STATUS + '[ $(grep -c ^run "$here/lmscale.calls") -ge 2 ] || kill -KILL $$',
            "--together",
        )
    )
    assert code == 0, error
    assert len(runs(tmp_path)) == 2


def test_without_progress_it_gives_up(launch, tmp_path):
    script = '[ "$1" = status ] && { echo "{\\"table\\": [{\\"step\\": 7}]}"; exit; }; exit 42'
    code, error = finish(launch(script, "--together", "--stuck-limit", "2"))
    assert code == 1
    assert "no progress in 2 restarts" in error
    assert len(runs(tmp_path)) == 3


def test_without_an_answer_nothing_is_said_about_progress(launch, tmp_path):
    script = (
        '[ "$1" = status ] && { echo "lmscale status: add --load FILE" >&2; exit 2; }\n'
        '[ $(grep -c ^run "$here/lmscale.calls") -ge 5 ] || exit 42'
    )
    code, error = finish(launch(script, "--together", "--stuck-limit", "2"))
    assert code == 0, error
    assert error.count("lmscale status: add --load FILE") == 4


def test_workers_that_end_before_there_is_a_store_make_no_progress(launch, tmp_path):
    with pytest.raises(StoreError) as refused:
        Store.open(tmp_path)
    script = f'[ "$1" = status ] && {{ echo "{refused.value}" >&2; exit 2; }}; kill -KILL $$'
    code, error = finish(launch(script, "--together", "--stuck-limit", "2"))
    assert code == 1
    assert "no progress in 2 restarts" in error


@two_cores
@pytest.mark.parametrize(("first", "second", "worst"), [(0, 1, 1), (1, 2, 2), (0, 2, 2)])
def test_its_code_is_the_worst_and_final_codes_are_not_retried(
    launch, tmp_path, first, second, worst
):
    script = f'echo "the reason"; case $* in *0/2*) exit {first} ;; *) exit {second} ;; esac'
    code, error = finish(launch(script, "--workers", "2"))
    assert code == worst
    assert "the reason" in error
    assert len(runs(tmp_path)) == 2


@two_cores
def test_a_group_shares_a_port_and_starts_again_together(launch, tmp_path):
    script = (
        STATUS + 'case $* in *,1) [ $(grep -c ,1$ "$here/lmscale.calls") -ge 2 ] || exit 42 ;; esac'
    )
    code, error = finish(launch(script, "--together", "--workers", "2"))
    assert code == 0, error
    words = [call.split()[-1] for call in runs(tmp_path)]
    assert sorted(word.split(",", 1)[1] for word in words) == ["2,0", "2,0", "2,1", "2,1"]
    ports = [word.split(",")[0] for word in words]
    assert len(set(ports[:2])) == len(set(ports[2:])) == 1


SLOW_TO_STOP = (
    "trap 'echo saved; exit 42' TERM; echo $$ >\"$here/pid\"; while :; do sleep 0.1; done"
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_it_stops_its_workers_and_says_42(launch, tmp_path, number):
    process = launch(SLOW_TO_STOP, "--together")
    wait_until((tmp_path / "pid").exists)
    process.send_signal(number)
    code, error = finish(process)
    assert code == 42
    assert "1 stopped, saved" in error
    assert "saved" in (tmp_path / "out/logs/local-0.log").read_text()
    assert len(runs(tmp_path)) == 1


def test_killed_it_leaves_no_worker_behind(launch, tmp_path):
    process = launch(SLOW_TO_STOP, "--together")
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    pid = int((tmp_path / "pid").read_text())
    process.kill()
    process.communicate(timeout=PATIENCE)
    wait_until(lambda: not alive(pid))
    assert "saved" in (tmp_path / "out/logs/local-0.log").read_text()


def test_a_command_that_is_not_there_is_said(launch):
    code, error = finish(launch("exit 0", "--lmscale", "no-such-command"))
    assert code == 2
    assert error == "launch.local: there is no command 'no-such-command'\n"


@pytest.mark.slow
@two_cores
def test_the_real_thing_is_stopped_and_finishes(corpus, tmp_path):
    from tests.quick_compile import xla_flags

    experiment = CLONE / "tests/end_to_end/tiny_experiment.py"
    command = [
        sys.executable,
        "-m",
        "launch.local",
        str(experiment),
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--data", "tiny", "--device", "cpu", "--workers", "2"]
    command += [
        "--lmscale",
        f"{sys.executable} -m lmscale",
        "--",
        "--seeds",
        "0",
        "1",
        "--steps",
        "300",
    ]
    settings = {
        **os.environ,
        "LMSCALE_DATA": str(corpus.path.parent),
        "LMSCALE_CACHE": str(tmp_path / "cache"),
        "XLA_FLAGS": xla_flags(),
    }
    process = subprocess.Popen(command, cwd=CLONE, env=settings, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(tmp_path.glob("out/runs/*/metrics.jsonl")))
    process.terminate()
    assert finish(process)[0] in (0, 42)
    done = subprocess.run(command, check=False, cwd=CLONE, env=settings, timeout=PATIENCE)
    assert done.returncode == 0
    results = list(tmp_path.glob("out/runs/*/result.json"))
    assert [json.loads(result.read_text())["status"] for result in results] == ["done"] * 4
    assert len((tmp_path / "out/results.csv").read_text().splitlines()) == 5

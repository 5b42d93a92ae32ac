"""The TPU script runs whole, against a stand-in for gcloud whose hosts are folders."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.stub import calls, environment, stub
from tests.waiting import PATIENCE, wait_until

CLONE = Path(__file__).parents[2]

GCLOUD = r"""
worker=all command= files=()
for word in "$@"; do
  case $word in
    --worker=*) worker=${word#--worker=} ;;
    --command=*) command=${word#--command=} ;;
    /*) files+=("$word") ;;
  esac
done
hosts="host-0 host-1"
[ "$worker" = all ] || hosts=host-$worker
case "$*" in
  *"queued-resources create"*)
    rm -rf "$here"/host-*
    mkdir "$here/host-0" "$here/host-1"
    echo ACTIVE >"$here/state" ;;
  *"queued-resources describe"*)
    cat "$here/state" 2>/dev/null || { echo "ERROR: NOT_FOUND: no such request" >&2; exit 1; } ;;
  *"queued-resources delete"*) rm "$here/state" ;;
  *)
    [ "$(cat "$here/state")" = ACTIVE ] || exit 255
    for host in $hosts; do
      if [[ $* == *"tpu-vm scp"* ]]; then
        cp "${files[@]}" "$here/$host/lmscale/" || exit 1
      else
        HOME=$here/$host HOST=$host bash -c "$command" || exit $?
      fi
    done ;;
esac
"""

#: Says how many steps are done; in a turn, who it is.
LMSCALE = r"""
[ "$1" = status ] && { echo "{\"table\": [{\"step\": STEPS}]}"; exit; }
echo "this is $HOST"
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def launch(tmp_path):
    """Runs the launcher; `lmscale` on the hosts is this script."""

    def start(script: str, steps: str = '$(wc -l <"$here/lmscale.calls")') -> subprocess.Popen:
        stub(tmp_path, "gcloud", GCLOUD)
        stub(tmp_path, "lmscale", LMSCALE.replace("STEPS", steps) + script)
        command = [sys.executable, "-m", "launch.tpu_pod", "isoflop", "--out", "gs://bucket/x"]
        command += ["--tpu", "v5litepod-8", "--spot", "--apply", "--poll", "1", "--setup", "true"]
        return subprocess.Popen(
            [*command, "--logs", str(tmp_path / "logs")],
            cwd=CLONE,
            env=environment(tmp_path),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # As at a terminal: what runs the tests in the background may ignore Ctrl-C, and a shell
            # cannot trap what was ignored when it began.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )

    return start


def count(folder: Path, words: str) -> int:
    return sum(words in call for call in calls(folder, "gcloud"))


def runs(folder: Path) -> int:
    return sum(call.startswith("run ") for call in calls(folder, "lmscale"))


def test_taken_away_and_stopped_it_goes_on_until_all_is_done(launch, tmp_path):
    process = launch(
        'case $(grep -c ^run "$here/lmscale.calls") in\n'
        # The first turn's slice is taken away, the second turn is stopped and saved.
        '  1 | 2) [ "$HOST" = host-1 ] && echo SUSPENDED >"$here/state"; sleep 2; exit 1 ;;\n'
        "  3 | 4) exit 42 ;;\n"
        "esac"
    )
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    assert count(tmp_path, "queued-resources create") == 2
    assert count(tmp_path, "queued-resources delete") == 2
    assert runs(tmp_path) == 6
    assert all("--distributed auto" in c for c in calls(tmp_path, "lmscale") if c[:4] == "run ")
    assert not (tmp_path / "state").exists()
    log = (tmp_path / "logs/turn-3.all.log").read_text()
    assert "this is host-0" in log
    assert "this is host-1" in log


@pytest.mark.parametrize("code", [1, 2])
def test_a_final_code_ends_it_and_the_slice_is_deleted(launch, tmp_path, code):
    process = launch(f"echo the reason; exit {code}")
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert runs(tmp_path) == 2
    assert "the reason" in (tmp_path / "logs/turn-1.0.log").read_text()
    assert not (tmp_path / "state").exists(), error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_it_lets_the_hosts_save_and_deletes_the_slice(launch, tmp_path, number):
    process = launch(
        "trap 'echo saved >>\"$here/saved\"; exit 42' TERM; while :; do sleep 0.1; done"
    )
    wait_until(lambda: runs(tmp_path) == 2)
    time.sleep(0.5)
    if number == signal.SIGINT:
        # A terminal's Ctrl-C goes to the script too.
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 42, error
    assert (tmp_path / "saved").read_text() == "saved\n" * 2
    assert not (tmp_path / "state").exists()


def test_without_progress_it_gives_up(launch, tmp_path):
    process = launch("exit 42", steps="7")
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "no progress in 3 turns" in error
    assert runs(tmp_path) == 6

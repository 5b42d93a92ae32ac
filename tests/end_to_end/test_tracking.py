"""`lmscale run --track`: beside real training, through a stop, and when the tracker fails."""

import json
import signal
import time

import pandas as pd
import pytest

from tests.end_to_end.conftest import EXPERIMENT
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow
HOOK = """
import json, pathlib

HERE = pathlib.Path(__file__).parent

def note(run, records):
    with open(HERE / "seen.jsonl", "a") as file:
        for record in records:
            file.write(json.dumps([run.name, record]) + chr(10))

def fail(run, records):
    raise OSError("no such server")
"""


def test_a_tracked_sweep_is_the_same_and_every_record_is_sent_once(lmscale, finish, tmp_path):
    hook = tmp_path / "hook.py"
    hook.write_text(HOOK)
    small = (EXPERIMENT, "--data", "tiny", "--steps", 2000, "--seeds", 0)
    code, _, said = finish("run", *small, "--out", tmp_path / "plain", "--track", f"{hook}:fail")
    assert code == 0, said
    assert said.count("has failed and stops, training goes on: OSError: no such server") == 1

    tracked = ("run", *small, "--out", tmp_path / "tracked", "--checkpoint-seconds", 1)
    process = lmscale(*tracked, "--track", f"{hook}:note")
    seen = tmp_path / "seen.jsonl"
    while not seen.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 42
    before = len(seen.read_text().splitlines())
    code, _, said = finish(*tracked, "--track", f"{hook}:note")
    assert code == 0, said
    got: dict[str, list] = {}
    for line in seen.read_text().splitlines():
        run, record = json.loads(line)
        got.setdefault(run, []).append(record)
    assert 0 < before < sum(map(len, got.values()))
    for folder in (tmp_path / "tracked" / "runs").iterdir():
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert without_speed(got[folder.name]) == without_speed(log)

    tables = [pd.read_csv(tmp_path / name / "results.csv") for name in ("plain", "tracked")]
    columns = ["run", "status", "loss", "train_loss", "tokens"]
    pd.testing.assert_frame_equal(tables[0][columns], tables[1][columns])


def without_speed(records):
    """What a resumed run repeats exactly; how quick it is differs."""
    return [{k: v for k, v in record.items() if k != "tokens_per_second"} for record in records]

"""A user's own architecture, from its file to its report, with a kill between."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.end_to_end.conftest import environment, finish, lmscale  # noqa: F401 (fixtures)

pytestmark = pytest.mark.slow
FILE = Path(__file__).parent / "convolution.py"
ARGUMENTS = ("run", FILE, "--data", "tiny", "--steps", "1000", "--seeds", "0")


def test_a_sweep_of_an_own_architecture_survives_a_kill_and_is_read(
    lmscale,  # noqa: F811
    finish,  # noqa: F811
    tmp_path,
):
    out = tmp_path / "own"
    process = lmscale(*ARGUMENTS, "--out", out, "--checkpoint-seconds", "0.01")
    while process.poll() is None and not list(out.glob("runs/*/checkpoints/*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, _, err = finish(*ARGUMENTS, "--out", out)
    assert code == 0, err
    results = [json.loads(path.read_text()) for path in out.glob("runs/*/result.json")]
    assert [result["status"] for result in results] == ["done"] * 3
    assert all(result["losses"]["valid"] < 5.5 for result in results)
    # Without its file a store of an unknown architecture is refused in a line that says how.
    for command in (["status", out], ["report", out], ["eval", out]):
        code, _, err = finish(*command)
        assert code == 2 and err.count("\n") == 1, err
        assert (
            "the architecture 'convolution'" in err and f"add --load {FILE} to the command" in err
        )
    for command in (["status", out], ["report", out], ["eval", out, "--tokens", "2048"]):
        code, _, err = finish(*command, "--load", FILE)
        assert code == 0, err
    page = (out / "report.html").read_text()
    assert "convolution" in page and "3 done" in finish("status", out, "--load", FILE)[1]

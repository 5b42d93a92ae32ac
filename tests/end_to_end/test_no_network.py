"""Nothing that lmscale does on one machine speaks to another, in any of its processes."""

import subprocess
import sys

import pytest

from tests.end_to_end.conftest import EXPERIMENT
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow

#: Python reads it at the start of every process, forked servers and spawned workers included.
WITNESS = """
import os, sys

def hear(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
            note(event, address)
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        note(event, args)

def note(event, what):
    with open(os.environ["WITNESS"], "a") as file:
        file.write(f"{event} {what}\\n")

sys.addaudithook(hear)
open(os.environ["WITNESS"] + ".began", "a").write("x")
"""


@pytest.fixture
def witnessed(environment, tmp_path):
    """Runs Python with these arguments under the witness: (exit code, what it heard, processes)."""
    (tmp_path / "witness").mkdir()
    (tmp_path / "witness" / "sitecustomize.py").write_text(WITNESS)
    settings = {"PYTHONPATH": str(tmp_path / "witness"), "WITNESS": str(tmp_path / "heard")}

    def run(*args):
        command = [sys.executable, *map(str, args)]
        done = subprocess.run(
            command, env=environment | settings, check=False, capture_output=True, timeout=PATIENCE
        )
        heard = tmp_path / "heard"
        began = (tmp_path / "heard.began").read_text()
        return done.returncode, heard.read_text() if heard.exists() else "", len(began)

    return run


def test_the_witness_hears(witnessed):
    code, heard, n_processes = witnessed("-c", "import socket; socket.getaddrinfo('a.invalid', 80)")
    assert code == 1
    assert "a.invalid" in heard
    assert n_processes == 1


def test_a_sweep_and_what_is_made_of_it_send_nothing(witnessed, tmp_path):
    out = tmp_path / "store"
    lmscale = ("-m", "lmscale")
    command = (*lmscale, "run", EXPERIMENT, "--data", "tiny", "--steps", "300", "--out", out)
    code, heard, n_processes = witnessed(*command, "--eval-tokens", "1024")
    assert (code, heard) == (0, "")
    # The command, what its workers are forked from, and the tracker of their resources.
    assert n_processes >= 2
    for words in (("status",), ("report",), ("eval", "--tokens", "512")):
        assert witnessed(*lmscale, words[0], out, *words[1:])[:2] == (0, "")

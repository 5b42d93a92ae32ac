"""Real processes, in an environment of the test's own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.quick_compile import xla_flags
from tests.waiting import PATIENCE

EXPERIMENT = Path(__file__).parent / "tiny_experiment.py"


@pytest.fixture(scope="session")
def environment(corpus, tmp_path_factory) -> dict[str, str]:
    """Two devices, quick compilation, and a cache that the processes share."""
    return {
        **os.environ,
        "LMSCALE_DATA": str(corpus.path.parent),
        "LMSCALE_CACHE": str(tmp_path_factory.mktemp("cache")),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(),
        # A machine that runs tests may be busy with others, or held still.
        "LMSCALE_HEARTBEAT": "100",
    }


def catches(process: subprocess.Popen, number: int) -> bool:
    """Whether a running process has a handler of its own for a signal (Linux)."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (number - 1) & 1)


@pytest.fixture
def lmscale(environment):
    """Starts `lmscale` with these arguments."""

    def start(*args) -> subprocess.Popen:
        command = [sys.executable, "-m", "lmscale", *map(str, args)]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


@pytest.fixture
def finish(lmscale):
    """Runs `lmscale` to its end: (exit code, standard output, standard error)."""

    def run(*args) -> tuple[int, str, str]:
        process = lmscale(*args)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err

    return run

"""A small real Slurm on this machine; see cluster.sh."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import EXPERIMENT, environment  # noqa: F401 (a fixture)
from tests.waiting import wait_until

CLONE = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("cluster.sh")
LMSCALE = f"{sys.executable} -m lmscale"


class Cluster:
    """Slurm's commands, and jobs through `launch.slurm`."""

    def __init__(self, settings: dict[str, str]):
        self.settings = settings

    def call(self, *command: object, check: bool = True) -> str:
        done = subprocess.run(
            [str(word) for word in command],
            env=self.settings,
            cwd=CLONE,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def submit(self, out: Path, *options: object) -> str:
        """The id of a job that trains the tiny experiment into `out`."""
        command = [sys.executable, "-m", "launch.slurm", EXPERIMENT, "--out", out, "--data", "tiny"]
        command += ["--lmscale", LMSCALE, "--time", "30"]
        return self.call(*command, *options).split()[1].rstrip(":")

    def states(self, job: str) -> list[str]:
        """Of the job's tasks: PENDING, RUNNING, COMPLETED, ..."""
        words = ("--noheader", "--array", "--states=all", "--format=%T")
        return self.call("squeue", *words, f"--jobs={job}").split()

    def finish(self, job: str) -> list[str]:
        """Waits for the job to end; its tasks' last states."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        wait_until(lambda: set(self.states(job)) <= ended, pause=0.2)
        return self.states(job)


@pytest.fixture(scope="module")
def cluster(environment, tmp_path_factory):  # noqa: F811
    installed = subprocess.run([SCRIPT, "install"], capture_output=True, text=True, check=False)
    if installed.returncode:
        reason = (installed.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"no Slurm can be installed here: {reason}")
    if os.geteuid() != 0:
        pytest.skip("starting Slurm needs root")
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([SCRIPT, "start", folder], check=True)
    try:
        yield Cluster({**environment, "SLURM_CONF": str(folder / "slurm.conf")})
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run([SCRIPT, "stop", folder], check=True)

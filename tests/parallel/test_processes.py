"""Several processes on one machine train as one, move, are killed and are kept apart."""

import json
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from lmscale.training.checkpoint import checkpoint_fault
from tests.end_to_end.conftest import EXPERIMENT, catches
from tests.parallel.checkpoint_worker import RUNS
from tests.parallel.group_worker import DISPATCH, train
from tests.quick_compile import quick_jit
from tests.training import damage
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
#: Relative, of losses: float32 sums in another order, over the steps of these runs.
TOLERANCE = 1e-5
MODELS = ("transformer", "lstm")
MESHES = ((2, 2, 1), (1, 4, 1), (1, 2, 2))
STEPS = 5 * DISPATCH
#: One run that moves, a part at every place: on a mesh, in this process (0) or in so many others.
JOURNEY = (((1, 4, 1), 2), ((1, 4, 1), 0), ((1, 1, 1), 0), ((1, 2, 1), 2))


class ProcessGroup:
    """Processes of one command that differ in their index alone."""

    def __init__(self, environment, port, count, devices, *command, indices=None):
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", *self.line(command, port, count, index)],
                cwd=ROOT,
                env={**environment, "JAX_NUM_CPU_DEVICES": str(devices)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in (range(count) if indices is None else indices)
        ]

    @staticmethod
    def line(command, port, count, index):
        if "--distributed" in command:
            return [*map(str, command)]
        if command[0] == "lmscale":
            return [*map(str, command), "--distributed", f"127.0.0.1:{port},{count},{index}"]
        return [command[0], f"127.0.0.1:{port}", str(count), str(index), command[1]]

    def finish(self) -> tuple[list[int], list[str]]:
        """Exit codes and standard errors."""
        errors = [process.communicate(timeout=PATIENCE)[1] for process in self.processes]
        return [process.returncode for process in self.processes], errors

    def wait_until(self, condition):
        while not condition():
            for process in self.processes:
                assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)


@pytest.fixture
def group(environment):
    """Starts groups and leaves none behind."""
    started = []

    def start(
        count, devices, *command, port=None, environment=environment, **options
    ) -> ProcessGroup:
        one = ProcessGroup(environment, port or free_port(), count, devices, *command, **options)
        started.append(one)
        return one

    yield start
    for process in (p for one in started for p in one.processes):
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def worker(*jobs):
    return "tests.parallel.group_worker", json.dumps(jobs)


def job(store, **fields):
    defaults = {"models": ["transformer"], "mesh": (1, 2, 1), "seeds": (0, 1), "steps": STEPS}
    return {"store": str(store), **defaults, **fields}


def curves(store) -> dict[str, np.ndarray]:
    """The recorded training losses of every run; no step is recorded twice."""
    found = {}
    for path in sorted(Path(store).glob("runs/*/metrics.jsonl")):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        steps = [r["step"] for r in records if "loss" in r]
        assert steps == sorted(set(steps))
        evaluated = [r["step"] for r in records if "eval" in r]
        assert len(set(evaluated)) == len(evaluated)
        found[path.parent.name] = np.array([r["loss"] for r in records if "loss" in r])
    return found


def statuses(store) -> list[str]:
    files = sorted(Path(store).glob("runs/*/status.json"))
    return [json.loads(file.read_text())["status"] for file in files]


@pytest.fixture(scope="module")
def journey(environment, tmp_path_factory):
    """Every mesh of 2 x 2 devices, one device alone, and a run that moves; {name: store}."""
    base = tmp_path_factory.mktemp("journey")
    stores = {name: base / str(name) for name in ("alone", "moved", "host", *MESHES)}

    def train_here(**fields):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "jit", quick_jit)
            train(**fields)

    train_here(**job(stores["alone"], models=MODELS, mesh=(1, 1, 1)))
    for number, (mesh, count) in enumerate(JOURNEY):
        stop_after = None if number == len(JOURNEY) - 1 else 1
        leg = job(stores["moved"], mesh=mesh, seeds=(0,), stop_after=stop_after)
        if count == 0:
            train_here(**leg)
            continue
        packed = [job(stores[mesh], models=MODELS, mesh=mesh) for mesh in MESHES]
        host = job(stores["host"], mesh=MESHES[0], on_host=True)
        jobs = [leg] if number else [leg, *packed, host]
        devices = int(np.prod(mesh)) // count
        codes, errors = ProcessGroup(
            environment, free_port(), count, devices, *worker(*jobs)
        ).finish()
        assert codes == [0, 0], errors
    return stores


def test_tokens_on_the_hosts_give_the_same_losses(journey):
    expected, got = curves(journey[MESHES[0]]), curves(journey["host"])
    assert len(got) == 2
    for name, losses in got.items():
        # Of two programs, whose float32 sums may be in another order.
        np.testing.assert_allclose(losses, expected[name], rtol=1e-6)


def test_each_process_saves_its_part(journey):
    for state in journey[(1, 4, 1)].glob("runs/*/checkpoints/*/state"):
        parts = [
            sum(file.stat().st_size for file in (state / f"ocdbt.process_{i}").rglob("*"))
            for i in range(2)
        ]
        assert max(parts) < 2 * min(parts)


@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: "x".join(map(str, mesh)))
def test_two_processes_of_two_devices_train_like_one(journey, mesh):
    expected, got = curves(journey["alone"]), curves(journey[mesh])
    assert len(expected) == 4
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=TOLERANCE)
        ours, theirs = (
            json.loads((journey[k] / "runs" / name / "result.json").read_text())
            for k in (mesh, "alone")
        )
        assert ours["losses"]["valid"] == pytest.approx(theirs["losses"]["valid"], rel=TOLERANCE)
        for by_position in zip(
            *(r["loss_by_position"]["valid"] for r in (ours, theirs)), strict=True
        ):
            assert by_position[0] == pytest.approx(by_position[1], rel=10 * TOLERANCE)


def test_a_run_moves_between_process_counts_and_meshes(journey):
    ((name, got),) = curves(journey["moved"]).items()
    assert len(got) == STEPS
    np.testing.assert_allclose(got, curves(journey["alone"])[name], rtol=TOLERANCE)
    assert statuses(journey["moved"]) == ["done"]


def command(out, *arguments):
    arguments = ("--data", "tiny", "--out", out, "--seeds", "0", "1", *arguments)
    return "lmscale", "run", EXPERIMENT, *arguments


def test_the_first_process_alone_writes_and_talks(group, tmp_path):
    codes, errors = group(2, 1, *command(tmp_path, "--steps", "40")).finish()
    assert codes == [0, 0], errors
    assert statuses(tmp_path) == ["done"] * 4
    assert all(len(curve) == 40 for curve in curves(tmp_path).values())
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 5
    assert (tmp_path / "report.html").exists()
    assert "4 done" in errors[0]
    assert "done" not in errors[1]


def test_sigterm_to_one_process_saves_in_all(group, tmp_path):
    pair = group(2, 1, *command(tmp_path, "--steps", "20000", "--mesh", "2,1,1"))
    pair.wait_until(lambda: any(len(curve) for curve in curves(tmp_path).values()))
    pair.processes[1].send_signal(signal.SIGTERM)
    codes, errors = pair.finish()
    assert codes == [42, 42], errors
    assert errors[0].count("preempted: every run is saved") == 1
    assert "preempted" not in errors[1]
    stopped = [json.loads(f.read_text()) for f in tmp_path.glob("runs/*/status.json")]
    assert [status["status"] for status in stopped] == ["preempted"] * 2
    (step,) = {status["step"] for status in stopped}
    assert len(list(tmp_path.glob(f"runs/*/checkpoints/{step}"))) == 2


def test_all_processes_leave_a_damaged_checkpoint_for_the_same_older_one(group, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    jobs = [job(whole), job(cut, stop_after=2), job(cut, stop_after=1)]
    codes, errors = group(2, 1, *worker(*jobs)).finish()
    assert codes == [0, 0], errors
    # One at a time: the second has not begun.
    first = min((cut / "runs").iterdir())
    steps = sorted(int(path.name) for path in (first / "checkpoints").iterdir())
    assert steps == [2 * DISPATCH, 3 * DISPATCH]
    # Written by the second process.
    newest = first / "checkpoints" / str(steps[1])
    files = sorted((newest / "state" / "ocdbt.process_1" / "d").iterdir())
    damage.flip(max(files, key=lambda file: file.stat().st_size), newest, random.Random(0))
    codes, errors = group(2, 1, *worker(job(cut))).finish()
    assert codes == [0, 0], errors
    for path in whole.glob("runs/*/result.json"):
        assert (cut / path.relative_to(whole)).read_bytes() == path.read_bytes()
    assert f"it goes on from step {steps[0]}" in (first / "damage.log").read_text()


@pytest.mark.parametrize("asked", [0, 1])
def test_sigterm_before_the_processes_have_met_ends_all(group, tmp_path, asked):
    pair = group(2, 1, *command(tmp_path, "--steps", "20000", "--mesh", "2,1,1"))
    pair.wait_until(lambda: catches(pair.processes[asked], signal.SIGTERM))
    pair.processes[asked].send_signal(signal.SIGTERM)
    codes, errors = pair.finish()
    assert codes == [42, 42], errors
    assert not any(len(curve) for curve in curves(tmp_path).values())


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_before_jax_would(group, environment, tmp_path, victim):
    environment = {**environment, "LMSCALE_HEARTBEAT": "10"}
    pair = group(2, 1, *worker(job(tmp_path, steps=1_000_000)), environment=environment)
    pair.wait_until(lambda: list(tmp_path.glob("runs/*/metrics.jsonl")))
    pair.processes[victim].send_signal(signal.SIGKILL)
    codes, errors = pair.finish()
    assert codes[1 - victim] == 42, errors
    assert "lost another process" in errors[1 - victim]
    assert "failed" not in statuses(tmp_path)


def test_a_second_group_on_an_occupied_port_is_refused_and_harms_nothing(group, tmp_path):
    port, running = free_port(), tmp_path / "a"
    options = ("--steps", "200000", "--mesh", "2,1,1")
    first = group(2, 1, *command(running, *options), port=port)

    def logged():
        return sum(len(path.read_text()) for path in running.glob("runs/*/metrics.jsonl"))

    first.wait_until(logged)
    for indices in ([1], [0, 1], [1, 0]):
        # The last is the same command, started twice.
        out = running if indices == [1, 0] else tmp_path / "b"
        codes, errors = group(2, 1, *command(out, *options), port=port, indices=indices).finish()
        assert codes == [42] * len(indices), errors
        assert all(f"port {port} is taken" in error for error in errors)
    before = logged()
    first.wait_until(lambda: logged() > before)
    first.processes[0].send_signal(signal.SIGTERM)
    codes, errors = first.finish()
    assert codes == [42, 42], errors
    assert errors[0].count("preempted: every run is saved") == 1


def test_a_second_group_that_jax_sends_to_the_same_port_is_refused_too(
    group, environment, tmp_path
):
    """As two srun of one Slurm job do, whose port JAX makes of the job's number."""
    port, running = free_port(), tmp_path / "a"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    slurm |= {"JAX_COORDINATOR_PORT": str(port)}

    def start(out, index):
        own = {**slurm, "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}
        one = environment | own
        steps = ("--steps", "200000", "--mesh", "2,1,1")
        return group(1, 1, *command(out, *steps, "--distributed", "auto"), environment=one)

    first = [start(running, index) for index in (0, 1)]

    def logged():
        return sum(len(path.read_text()) for path in running.glob("runs/*/metrics.jsonl"))

    for one in first:
        one.wait_until(logged)
    second = [start(tmp_path / "b", index) for index in (0, 1)]
    for one in second:
        codes, errors = one.finish()
        assert codes == [42] and f"port {port} is taken" in errors[0], errors
    before = logged()
    for one in first:
        one.wait_until(lambda: logged() > before)
    first[0].processes[0].send_signal(signal.SIGTERM)
    ends = [one.finish() for one in first]
    assert [codes for codes, _ in ends] == [[42], [42]], "\n".join(
        e for _, errors in ends for e in errors
    )


def test_a_run_is_sealed_when_every_process_has_written_it(group, tmp_path):
    """Not when every process has written some run, where several are saved at once."""
    codes, errors = group(2, 1, "tests.parallel.checkpoint_worker", str(tmp_path)).finish()
    assert codes == [0, 0], errors
    assert not list(tmp_path.glob("* was sealed without *"))
    assert len(list(tmp_path.glob("* is written by *"))) == 4
    for run in RUNS:
        assert checkpoint_fault(tmp_path / run / "checkpoints", run, 1) is None


def test_groups_that_come_to_one_port_at_once_are_kept_apart(group, tmp_path):
    port = free_port()
    theirs = group(2, 1, *worker(job(tmp_path / "b")), port=port, indices=[1])
    ours = group(2, 1, *worker(job(tmp_path / "a")), port=port)
    codes, errors = theirs.finish()
    assert codes == [42] and f"port {port} is taken" in errors[0]
    assert ours.finish()[0] == [0, 0]
    assert set(statuses(tmp_path / "a")) == {"done"}


def test_a_failure_is_dealt_with_together_or_ends_all(group, environment, tmp_path):
    environment = {**environment, "LMSCALE_HEARTBEAT": "10"}
    stores = [tmp_path / name for name in ("all", "none", "one")]
    failing = ([0, 1], [], [1])
    jobs = [job(store, fail=fail) for store, fail in zip(stores, failing, strict=True)]
    codes, errors = group(2, 1, *worker(*jobs), environment=environment).finish()
    assert codes == [1, 1], errors
    assert [set(statuses(store)) for store in stores] == [{"failed"}, {"done"}, {"failed"}]
    for path in stores[2].glob("runs/*/status.json"):
        assert json.loads(path.read_text())["reason"] == "OSError: this disk is full"

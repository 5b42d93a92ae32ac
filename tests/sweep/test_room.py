"""A disk that is full, read-only or too small: one line, exit 1, and what was there stays sound."""

import contextlib
import errno
import os
import subprocess

import pytest

from lmscale import files, flops
from lmscale.cli import main
from lmscale.files import DiskError, disk_fault
from lmscale.planner.devices import local_devices
from lmscale.planner.packs import make_plan
from lmscale.progress import progress
from lmscale.sweep import room
from lmscale.sweep.execute import execute
from lmscale.sweep.experiment import Run
from lmscale.sweep.room import bytes_to_write, check_room, state_bytes
from lmscale.sweep.store import Store, StoreError
from lmscale.training.state import ProgramKey
from tests.training.specs import TRANSFORMER, run_spec

pytestmark = pytest.mark.usefixtures("compile_quickly")


def plan_of(*specs):
    return make_plan([Run(spec, {}) for spec in specs], local_devices(), n_slots=1)


def train(path, corpus, plan):
    with progress("training", plan.flops) as bar:
        execute(plan, Store(path), lambda name: corpus, bar, checkpoint_seconds=0.0)


def test_the_states_of_a_plan_are_counted(tmp_path, corpus):
    """Parameters, two moments and three counters of Adam, two checkpoints of each run and one under way."""
    spec = run_spec()
    n = flops.n_params(TRANSFORMER, "exact")
    state = state_bytes(ProgramKey.of(spec))
    assert 12 * n <= state <= 12 * n + 64
    need = bytes_to_write(plan_of(spec, run_spec(seed=1)), Store(tmp_path))
    small = 2 * room._SMALL_FILES + 5 * room._STATE_OVERHEAD
    assert need == pytest.approx(1.02 * (5 * state + small), rel=1e-6)
    # Of 12 steps 5 and 10 are kept beside them.
    more = bytes_to_write(plan_of(spec), Store(tmp_path), 5) - bytes_to_write(
        plan_of(spec), Store(tmp_path)
    )
    assert more == pytest.approx(1.02 * 2 * (state + room._STATE_OVERHEAD), rel=1e-4)


@pytest.mark.slow
def test_what_is_there_need_not_be_written(tmp_path, corpus):
    plan = plan_of(run_spec(corpus))
    assert bytes_to_write(plan, Store(tmp_path)) > 0
    train(tmp_path, corpus, plan)
    assert bytes_to_write(plan, Store(tmp_path)) == 0


def test_too_little_room_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_disk", lambda path: (10**12, 100_000))
    with pytest.raises(
        DiskError, match=r"has 100 kB left on its disk, and these 1 runs will write"
    ):
        check_room(plan_of(run_spec()), Store(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(room, "_disk", lambda path: (10**12, 10**12))
    check_room(plan_of(run_spec()), Store(tmp_path / "out"))
    monkeypatch.setattr("lmscale.sweep.store.unreachable", lambda path: None)
    monkeypatch.setattr(room, "_disk", lambda path: 0)
    check_room(plan_of(run_spec()), Store("gs://bucket/out"))


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_a_store_where_no_files_are_kept_is_bad_usage():
    with pytest.raises(StoreError, match="/proc/x lies where no files can be kept: give another"):
        check_room(plan_of(run_spec()), Store("/proc/x"))


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO]
)
@pytest.mark.slow
def test_a_disk_that_fails_ends_training_with_a_line(tmp_path, corpus, monkeypatch, number):
    """The run that was trained is failed, the next is pending, the one that has ended stays."""
    specs = [run_spec(corpus, seed=seed) for seed in range(3)]
    train(tmp_path, corpus, plan_of(specs[0]))
    real = files.append

    def append(path, text):
        if specs[1].run_id in str(path) and '"step": 7' in text:
            raise OSError(number, os.strerror(number), str(path))
        real(path, text)

    monkeypatch.setattr("lmscale.training.metrics_log.append", append)
    with pytest.raises(DiskError) as caught:
        train(tmp_path, corpus, plan_of(*specs))
    path = tmp_path / "runs" / specs[1].run_id / "metrics.jsonl"
    assert str(caught.value) == f"{path}: {os.strerror(number)}"
    states = [Store(tmp_path).folder(Run(spec, {})).status() for spec in specs]
    assert [state["status"] for state in states] == ["done", "failed", "pending"]
    assert states[1]["reason"] == str(caught.value)
    # Once there is room again, the same command goes on.
    monkeypatch.undo()
    train(tmp_path, corpus, plan_of(*specs))
    assert all(Store(tmp_path).folder(Run(spec, {})).result() for spec in specs)


def test_a_full_disk_is_not_taken_for_full_memory():
    """TensorStore words both alike."""
    error = ValueError(
        'RESOURCE_EXHAUSTED: Error writing "opt.1.count/0" in OCDBT database at local file '
        '"/out/runs/x/checkpoints/9/ocdbt.process_0/": Failed to write 4751 bytes to file 18: '
        "No space left on device [os_error_code='28']"
    )
    fault = "/out/runs/x/checkpoints/9/ocdbt.process_0: No space left on device"
    assert disk_fault(error, "/out") == fault
    memory = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
    assert disk_fault(memory, "/out") is None
    assert disk_fault(FileNotFoundError(2, "No such file or directory", "x"), "/out") is None


def test_a_fault_of_the_disk_names_a_path_also_where_the_error_names_none():
    """Orbax writes some files in threads whose errors have none."""
    for error in (
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        ValueError("No space left on device"),
    ):
        assert disk_fault(error, "/out").split(": ")[0] == "/out"


def test_an_output_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["status", str(tmp_path / "file" / "store")]) in (1, 2)
    err = capsys.readouterr().err.strip()
    assert str(tmp_path / "file" / "store") in err and "\n" not in err


@contextlib.contextmanager
def small_disk(path, size):
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError:
        pytest.skip("no mount on this machine")
    if done.returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.slow
# Which write fails first depends on the size: a claim, a checkpoint, metrics, a result.
@pytest.mark.parametrize("size", range(60, 640, 48))
def test_a_disk_that_fills_up_while_training(tmp_path, corpus, size):
    """A real one: the error comes from TensorStore's threads, from Orbax's, or from a write of ours."""
    specs = [run_spec(corpus, seed=seed) for seed in range(2)]
    with small_disk(tmp_path / "disk", f"{size}k"):
        with pytest.raises(DiskError) as caught:
            train(tmp_path / "disk" / "out", corpus, plan_of(*specs))
        assert str(caught.value).endswith("No space left on device")
        assert str(tmp_path / "disk") in str(caught.value)
        states = [Store(tmp_path / "disk" / "out").folder(Run(s, {})).state() for s in specs]
        assert all(result is None or result["status"] == "done" for _, result in states)

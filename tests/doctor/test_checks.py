"""Every check of `lmscale doctor`: what it says where all is well, and where a fault is planted."""

import dataclasses
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmscale import compat
from lmscale.bench import peak
from lmscale.doctor import (
    CHECKS,
    Check,
    Finding,
    Place,
    kernels,
    machine,
    run_checks,
    speed,
    training,
    verdict,
)
from lmscale.models import attention as models_attention
from lmscale.planner import devices as planner_devices
from lmscale.planner.devices import parse_devices

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "out", tmp_path)


def run_one(function, place, needed=True):
    (result,) = run_checks([Check("it", function, needed=needed)], place)
    return result


def test_the_table_names_each_check_once_and_gives_each_a_text():
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert all(check.run.__doc__ for check in CHECKS)
    assert {check.name for check in CHECKS if check.needed} >= {"devices", "attention", "resume"}


def test_a_check_that_crashes_costs_itself_alone(place):
    def crashes(place):
        raise ValueError("first line\nsecond line")

    def works(place):
        return Finding("ok", "fine")

    checks = [Check("bad", crashes), Check("good", works), Check("worse", crashes, needed=True)]
    bad, good, worse = run_checks(checks, place)
    assert (bad.finding.status, good.finding.status) == ("failed", "ok")
    assert bad.finding.text == "ValueError: first line"
    assert bad.finding.facts["traceback"]
    assert not bad.fatal and worse.fatal
    assert verdict([bad, good]) == "lmscale works here; could not be checked: bad."
    assert "until this is mended: worse" in verdict([bad, good, worse])
    assert verdict([good]) == "lmscale works here."


def test_a_warning_is_part_of_the_finding(place):
    result = run_one(lambda place: Finding("warning", "slow", "mend it"), place)
    assert not result.fatal
    assert verdict([result]) == "lmscale works here; read the remedies of: it."
    assert result.to_json()["remedy"] == "mend it"


# --- The machine ---------------------------------------------------------------------------------


def test_versions(place, monkeypatch):
    found = machine.versions(place)
    assert found.status == "ok" and found.facts["jax"] == jax.__version__
    monkeypatch.setitem(machine.NEEDED, "jax", "99.0")
    monkeypatch.setitem(machine.NEEDED, "no-such-package", "1.0")
    found = machine.versions(place)
    assert found.status == "failed"
    assert "no-such-package is missing" in found.text and "(needs 99.0) is old" in found.text


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("XLA_FLAGS", "--xla_nonsense=1", "Unknown flag in XLA_FLAGS: --xla_nonsense=1"),
        ("JAX_DEBUG_NANS", "banana", "invalid truth value 'banana'"),
    ],
)
def test_a_variable_that_keeps_jax_from_starting_is_named(place, monkeypatch, name, value, says):
    monkeypatch.setenv(name, value)
    never = Check("never", lambda place: pytest.fail("jax does not start"))
    (result,) = run_checks([Check("start", machine.start, needed=True, first=True), never], place)
    assert result.fatal and says in result.finding.text
    assert result.finding.text.startswith("jax does not start: ")
    assert f"{name}={value}" in result.finding.remedy


def test_extras(place, monkeypatch):
    monkeypatch.setattr(machine, "EXTRAS", {"json": ("x", "a"), "no_such.module": ("y", "b")})
    found = machine.extras(place)
    assert found.facts["installed"] == {"json": True, "no_such.module": False}
    assert found.remedy == "no_such.module for y: pip install 'lmscale[b]'"


def test_devices(place, monkeypatch):
    monkeypatch.setattr(machine, "nvidia_gpu_present", lambda: False)
    found = machine.devices(place)
    assert (found.status, found.facts["count"]) == ("ok", len(jax.devices()))
    monkeypatch.setattr(machine, "nvidia_gpu_present", lambda: True)
    found = machine.devices(place)
    assert found.status == "warning" and "cuda13" in found.remedy

    def no_devices():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", no_devices)
    assert run_one(machine.devices, place).fatal


def a_gpu(monkeypatch, **fields):
    """Lets the planner and the checks take this machine's device for an H100."""
    here = dataclasses.replace(parse_devices("h100"), **fields)
    monkeypatch.setattr(planner_devices, "local_devices", lambda: here)
    return here


def test_memory(place, monkeypatch):
    assert machine.memory(place).status == "ok"
    a_gpu(monkeypatch, memory=0.75 * 80e9)
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="gpu")])
    found = machine.memory(place)
    assert found.status == "warning" and "allocates 75% of this GPU" in found.remedy
    a_gpu(monkeypatch, memory=0.9 * 80e9)
    assert machine.memory(place).status == "ok"


def test_processes(place):
    environment = {"SLURM_NTASKS": "8", "JAX_PLATFORMS": "cpu", "HOME": "/", "LMSCALE_API_KEY": "x"}
    found = machine.processes(place, environment)
    assert "8 processes" in found.remedy
    assert found.facts["variables"] == {
        "SLURM_NTASKS": "8",
        "JAX_PLATFORMS": "cpu",
        "LMSCALE_API_KEY": "(hidden)",
    }
    assert machine.processes(place, {}).text == "no variables set"
    assert machine.processes(place, {"SLURM_NTASKS": "1"}).remedy is None


def test_folders(place, tmp_path, monkeypatch):
    monkeypatch.setenv("LMSCALE_CACHE", str(tmp_path / "cache"))
    for check in (machine.cache, machine.output):
        assert check(place).status == "ok"
    assert not place.out.exists()
    monkeypatch.setattr(machine, "ROOM", 1e18)
    assert machine.output(place).status == "warning"

    def refuses(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(machine.tempfile, "NamedTemporaryFile", refuses)
    found = machine.output(place)
    assert (
        found.status == "failed"
        and "Read-only file system" in found.text
        and "--out" in found.remedy
    )
    found = machine.cache(place)
    assert found.status == "warning" and "LMSCALE_CACHE" in found.remedy


def test_remote_folders(place, tmp_path, monkeypatch):
    """`epath` is given a folder of this machine in the place of a bucket."""
    assert "not read in place" in machine.output(dataclasses.replace(place, out="hf://a/b")).text
    monkeypatch.setattr(machine, "unreachable", lambda folder: None)
    where = dataclasses.replace(place, out="gs://bucket/results")
    monkeypatch.setattr("etils.epath.Path", lambda folder: tmp_path)
    found = machine.output(where)
    assert (found.status, found.facts["folder"]) == ("ok", "gs://bucket/results")
    assert not list(tmp_path.glob("lmscale-doctor-*"))
    monkeypatch.setattr("etils.epath.Path", lambda folder: tmp_path / "missing")
    found = machine.output(where)
    assert found.status == "failed" and "No such file" in found.text and "--out" in found.remedy


# --- Kernels -------------------------------------------------------------------------------------


def test_precision(place, monkeypatch):
    assert kernels.precision(place).facts["float32"]

    def tf32(a, b):
        # Ten bits of a factor are kept.
        rounded = [x - jnp.remainder(x, 2.0**-11) for x in (a, b)]
        return rounded[0] @ rounded[1]

    monkeypatch.setattr(jnp, "matmul", tf32)
    found = kernels.precision(place)
    assert found.status == "ok" and "TF32" in found.text and "highest" in found.remedy
    assert not found.facts["float32"]
    monkeypatch.setattr(jnp, "matmul", lambda a, b: a @ b * 1.1)
    assert kernels.precision(place).status == "failed"


def test_the_fused_head(place, monkeypatch):
    found = kernels.head(place)
    assert (found.status, found.facts) == ("ok", {})
    assert "needs an NVIDIA GPU" in found.text
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="gpu")])

    def says(monkeypatch, *numbers):
        monkeypatch.setattr(kernels, "head_against_plain", lambda width: numbers)
        return kernels.head(place)

    assert says(monkeypatch, 0.001, 1.0, 2.0).status == "ok"
    assert "2 times as fast at width 64" in says(monkeypatch, 0.001, 1.0, 2.0).text
    assert says(monkeypatch, 0.001, 2.0, 1.0).status == "warning"
    assert says(monkeypatch, 0.5, 1.0, 2.0).status == "failed"
    assert says(monkeypatch, float("nan"), 1.0, 2.0).status == "failed"
    monkeypatch.setattr(kernels, "head_against_plain", lambda width: 1 / 0)
    assert "division by zero" in kernels.head(place).text


def test_the_fused_head_is_compared_with_float32():
    error, *seconds = kernels.head_against_plain(
        16, runs=2, n_tokens=64, n_vocab=200, interpret=True
    )
    assert 0 < error < kernels.TOLERANCE["bfloat16"]
    assert min(seconds) > 0


def test_the_lstm_kernels(place, monkeypatch):
    found = kernels.lstm(place)
    assert (found.status, found.facts) == ("ok", {})
    assert "need an NVIDIA GPU" in found.text
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="gpu")])

    def says(*numbers):
        monkeypatch.setattr(kernels, "lstm_against_scan", lambda width: numbers)
        return kernels.lstm(place)

    quick = says(0.001, 1.0, 8.0)
    assert quick.status == "ok" and "8 times as fast at 64 hidden units" in quick.text
    assert "LMSCALE_LSTM=kernel in the environment" in quick.remedy
    assert quick.facts["128"] == {"error": 0.001, "kernel_seconds": 1.0, "scan_seconds": 8.0}
    slow, wrong = says(0.001, 2.0, 1.0), says(0.5, 1.0, 8.0)
    assert (slow.status, slow.remedy) == ("ok", "leave LMSCALE_LSTM unset")
    assert wrong.status == "warning" and "leave LMSCALE_LSTM unset" in wrong.remedy
    monkeypatch.setenv("LMSCALE_LSTM", "kernel")
    assert says(0.001, 1.0, 8.0).remedy is None
    slow, wrong = says(0.001, 2.0, 1.0), says(float("nan"), 1.0, 8.0)
    assert (slow.status, slow.remedy) == ("warning", "unset LMSCALE_LSTM")
    assert wrong.status == "failed" and "unset LMSCALE_LSTM" in wrong.remedy
    monkeypatch.setattr(kernels, "lstm_against_scan", lambda width: 1 / 0)
    assert "division by zero" in kernels.lstm(place).text
    monkeypatch.setenv("LMSCALE_LSTM", "fast")
    refused = kernels.lstm(place)
    assert refused.status == "failed" and "scan or kernel, not 'fast'" in refused.text


@pytest.mark.slow
def test_the_lstm_kernels_are_compared_with_float32():
    error, *seconds = kernels.lstm_against_scan(16, runs=1, n_time=8, n_batch=4, interpret=True)
    assert 0 < error < kernels.TOLERANCE["bfloat16"]
    assert min(seconds) > 0


@pytest.mark.slow
def test_attention(place, monkeypatch):
    monkeypatch.setattr(kernels, "WIDTHS", (12,))
    found = kernels.attention(place)
    assert found.status == "ok", found
    assert "cudnn needs an NVIDIA GPU" in found.text and found.facts["used"] == "xla"
    real = models_attention.causal_attention
    monkeypatch.setattr(models_attention, "causal_attention", lambda *a: 1.1 * real(*a))
    found = kernels.attention(place)
    assert found.status == "failed" and "is off by" in found.text

    def missing(*args):
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(models_attention, "causal_attention", missing)
    found = kernels.attention(place)
    assert found.status == "failed" and "cuDNN is not detected." in found.text


# --- Speed ---------------------------------------------------------------------------------------


def test_matmul(place, monkeypatch):
    monkeypatch.setattr(peak, "matmul_peak", lambda dtype, seconds: 700e12)
    assert "700 TFLOP/s in float32 a core" in speed.matmul(place).text
    a_gpu(monkeypatch)
    found = speed.matmul(place)
    assert found.status == "ok" and "71% of a h100's data sheet" in found.text
    monkeypatch.setattr(peak, "matmul_peak", lambda dtype, seconds: 200e12)
    found = speed.matmul(place)
    assert found.status == "warning" and "nvidia-smi" in found.remedy


def test_bandwidth_and_launch(place, monkeypatch):
    found = speed.bandwidth(place)
    assert found.status == "ok" and found.facts["bytes_per_second"] > 0
    found = speed.launch(place)
    assert found.facts["microseconds"] > 0
    monkeypatch.setattr(speed, "SLOW_LAUNCH", 0.0)
    assert speed.launch(place).status == "warning"
    assert speed._judged("it", 0.2, {}).status == "warning"
    assert speed._judged("it", 0.7, {}).status == "ok"


def test_the_matmul_peak_is_that_of_random_numbers(monkeypatch):
    """Constant matrices flatter a GPU."""
    seen = []
    real = jax.device_put

    def put(x, device):
        seen.append(np.asarray(x))
        return real(x, device)

    monkeypatch.setattr(jax, "device_put", put)
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)
    assert peak.matmul_peak("float32", seconds=0.01) > 0
    assert all(len(np.unique(x)) > x.size / 2 for x in seen) and seen


# --- Training ------------------------------------------------------------------------------------


def test_determinism(place, monkeypatch):
    monkeypatch.setattr(training, "_state_digest", lambda: "same")
    assert training.determinism(place).status == "ok"
    digests = iter("ab")
    monkeypatch.setattr(training, "_state_digest", lambda: next(digests))
    found = training.determinism(place)
    assert found.status == "warning" and not found.facts["same_bits"]


def planted(monkeypatch, losses, stops=2):
    """Runs that were trained with these losses: left alone, and stopped some times."""
    ended = iter([True, *[False] * stops, True])
    monkeypatch.setattr(training, "train", lambda folder, dispatches=None: next(ended))

    def results(folder):
        loss = losses[folder.name]
        metrics = [] if loss is None else [{"step": 1, "loss": loss, "grad_norm": 1.0}]
        return {"result.json": b"", "metrics": metrics}

    monkeypatch.setattr(training, "results", results)


@pytest.mark.parametrize(
    ("alone", "stopped", "stops", "status"),
    [
        (2.0, 2.0, 2, "ok"),
        (2.0, 2.001, 2, "warning"),
        (2.0, 3.0, 2, "failed"),
        (2.0, 2.0, 0, "failed"),
        (None, None, 2, "failed"),
    ],
)
def test_resume(place, monkeypatch, alone, stopped, stops, status):
    planted(monkeypatch, {"alone": alone, "stopped": stopped}, stops)
    assert training.resume(place).status == status


@pytest.mark.slow
def test_a_run_that_resumes_from_another_state_is_noticed(place, monkeypatch):
    from lmscale.training import checkpoint

    real = checkpoint.Checkpoints.restore

    def restore(self, step, like):
        state, *rest = real(self, step, like)
        params = jax.tree.map(lambda x: x * 1.5, state["params"])
        return ({**state, "params": params}, *rest)

    monkeypatch.setattr(checkpoint.Checkpoints, "restore", restore)
    assert training.resume(place).status in ("warning", "failed")


@pytest.mark.slow
def test_tiny_runs_are_the_same_twice_and_when_resumed(place):
    assert training.determinism(place).status == "ok"
    found = training.resume(place)
    assert found.status == "ok" and found.facts["stops"] >= 2


def test_gpus_are_looked_for_where_the_system_shows_them(monkeypatch):
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/nvidia0")
    assert compat.nvidia_gpu_present()
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    assert not compat.nvidia_gpu_present()

"""Each fragile interface of a dependency is still as `lmscale.compat` uses it.

A test that fails here after an upgrade names the function to mend.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib.xla_client
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax._src import compiler as jax_compiler
from jax._src import config as jax_config

from lmscale import compat
from lmscale.parallel.mesh import make_mesh
from lmscale.training import compiler
from tests.parallel.test_processes import free_port
from tests.waiting import PATIENCE, wait_until

ROOT = Path(__file__).parents[1]
linux = pytest.mark.skipif(sys.platform != "linux", reason="signals of Linux")


def run(code: str, **options) -> subprocess.CompletedProcess:
    """Python code in a process of its own."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, text=True, timeout=PATIENCE, check=False, **options)


def test_compat_is_imported_without_jax_and_without_ours():
    code = "import sys, lmscale.compat; print([m for m in sys.modules if m in ('jax', 'optax')])"
    assert run(code, stdout=subprocess.PIPE).stdout == "[]\n"
    code = "import sys, lmscale.compat; print(sorted(m for m in sys.modules if 'lmscale.' in m))"
    assert run(code, stdout=subprocess.PIPE).stdout == "['lmscale.compat']\n"


# --- Errors by their text -----------------------------------------------------------------------


def test_jax_says_that_memory_ran_out():
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jax.block_until_ready(jax.jit(lambda: jnp.ones(1 << 46) + 1)())
    assert compat.is_out_of_memory(str(error.value))
    assert not compat.is_out_of_memory("INTERNAL: no kernel")


def test_what_keeps_jax_from_starting_is_known_by_where_it_is_raised(monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", "banana")
    with pytest.raises(ValueError, match="banana") as setting:
        jax_config.bool_env("JAX_ENABLE_X64", False)
    assert compat.keeps_jax_from_starting(setting.value) == (
        "invalid truth value 'banana' for environment 'JAX_ENABLE_X64'"
    )
    assert "JAX_ENABLE_X64=banana" in compat.jax_variables()
    with pytest.raises(RuntimeError) as platform:
        jax.devices("banana")
    assert "banana" in compat.keeps_jax_from_starting(platform.value)
    # Errors of programs are faults of lmscale.
    with pytest.raises(TypeError) as ours:
        jnp.ones(2) @ jnp.ones(3)
    assert compat.keeps_jax_from_starting(ours.value) is None
    assert compat.keeps_jax_from_starting(ValueError("never raised")) is None


@pytest.mark.parametrize(
    ("message", "n_bytes"),
    [
        (
            "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (56.73G) exceeds HBM.",
            56.73 * 2**30,
        ),
        ("RESOURCE_EXHAUSTED: Used 17.10G of 15.75G hbm.", 17.10 * 2**30),
        ("RESOURCE_EXHAUSTED: something else", math.inf),
        ("INTERNAL: broken", None),
    ],
)
def test_a_compiler_says_how_much_memory_it_needs(message, n_bytes):
    expected = None if n_bytes is None else pytest.approx(n_bytes)
    assert compat.needed_bytes(message) == expected


def test_jax_warns_of_its_cache_in_these_words(monkeypatch):
    source = inspect.getsource(jax_compiler)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        compat.quiet_compilation_cache()
        for verb in ("reading", "writing"):
            words = f"Error {verb} persistent compilation cache entry"
            assert words in source
            warnings.warn(f"{words} for 'jit_x': OSError", stacklevel=1)
        warnings.warn("another", stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["another"]


# --- The distributed runtime --------------------------------------------------------------------

_GROUP = """
import jax, json, sys
from lmscale import compat
jax.distributed.initialize(sys.argv[1], 1, 0, cluster_detection_method="deactivate",
                           heartbeat_timeout_seconds=100)
client, index, count = compat.distributed_state()
client.key_value_set("x/0", "a")
client.wait_at_barrier("barrier", 1000)
found = {
    "place": [index, count],
    "list": [list(pair) for pair in client.key_value_dir_get("x")],
    "get": client.blocking_key_value_get("x/0", 1000),
    "count": client.key_value_increment("n", 1),
    "preempted": compat.reached_preemption_sync_point(1),
}
client.key_value_delete("x/0")
found["left"] = client.key_value_dir_get("x")
try:
    client.blocking_key_value_get("nothing", 100)
except jax.errors.JaxRuntimeError as error:
    found["timeout"] = compat.is_timeout(error)
print(json.dumps(found))
jax.distributed.shutdown()
"""


def test_jax_finds_the_processes_of_an_srun(monkeypatch):
    slurm = {"JOB_ID": "7", "STEP_NODELIST": "node[3-9],x", "NTASKS": "8", "PROCID": "5"}
    for name, value in (slurm | {"LOCALID": "1"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert compat.find_processes(None, 1) == ("node3:61447", 8, 5, [1])
    assert compat.find_processes([0], 1) == ("node3:61447", 8, 5, [0])
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0,1")
    assert compat.find_processes(None, 1)[3] is None
    for name in slurm:
        monkeypatch.delenv(f"SLURM_{name}")
    assert compat.find_processes(None, 1)[:3] == (None, None, None)


def test_a_process_group_has_a_key_value_store_and_a_preemption_service():
    command = [sys.executable, "-c", _GROUP, f"127.0.0.1:{free_port()}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "place": [0, 1],
        "list": [["x/0", "a"]],
        "get": "a",
        "count": 1,
        "preempted": False,
        "left": [],
        "timeout": True,
    }
    assert not compat.is_timeout(RuntimeError("INTERNAL: broken"))


# --- Signals ------------------------------------------------------------------------------------


@linux
def test_an_abort_becomes_an_exit_code():
    code = (
        "import os, threading\n"
        "from lmscale import compat\n"
        "compat.exit_on_abort(b'lost\\n', lambda: 42)\n"
        "threading.Thread(target=os.abort).start()\n"
    )
    done = run(code, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (42, "lost\n")


@linux
def test_a_child_dies_with_its_parent():
    code = (
        "import os, signal, time\n"
        "from lmscale import compat\n"
        "reader, writer = os.pipe()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    compat.die_with_parent()\n"
        "    os.write(writer, b'.')\n"
        "    time.sleep(3600)\n"
        "os.read(reader, 1)\n"
        "print(child, flush=True)\n"
        "os._exit(0)\n"
    )
    child = int(run(code, stdout=subprocess.PIPE).stdout)
    wait_until(lambda: not _is_running(child))


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- Devices and compilers ----------------------------------------------------------------------


def test_devices_are_laid_out_in_a_mesh():
    devices = jax.devices()
    mesh = compat.device_mesh((2, 2, 2), devices)
    assert mesh.shape == (2, 2, 2) and set(mesh.flat) == set(devices)
    assert make_mesh(2, 2, 2).shape == {"run": 2, "data": 2, "model": 2}


class Chip:
    """A device of a slice."""

    platform, device_kind, process_index = "gpu", "chip", 0

    def __init__(self, number: int):
        self.id, self.slice_index = number, number // 4


def test_the_axes_of_several_slices_are_laid_out_by_slice():
    chips = [Chip(i) for i in range(8)]
    mesh = compat.hybrid_device_mesh((1, 2, 2), (1, 2, 1), chips)
    assert mesh.shape == (1, 4, 2)
    assert {chip.slice_index for chip in mesh[0, :2].flat} == {0}
    assert {chip.slice_index for chip in mesh[0, 2:].flat} == {1}


def test_absent_devices_are_asked_for_by_platform(monkeypatch):
    from jax.experimental import topologies

    given = inspect.signature(topologies.get_topology_desc)
    given.bind(platform="tpu", topology_name="v5e:2x2", chips_per_host_bounds=(1, 1, 1))
    asked = {}

    def describe(**options):
        asked.update(options)
        return type("Topology", (), {"devices": iter("ab")})

    monkeypatch.setattr(topologies, "get_topology_desc", describe)
    assert compat.topology_devices("tpu", topology_name="v5e:1x2") == ["a", "b"]
    assert asked == {"platform": "tpu", "topology_name": "v5e:1x2"}


def test_a_device_says_how_much_memory_programs_can_use():
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 10, "bytes_in_use": 1}

    assert compat.memory_limit(Device()) == 10
    # On an accelerator it must be there; a CPU does not say.
    (device, *_) = jax.local_devices()
    assert (compat.memory_limit(device) is None) == (device.platform == "cpu")


def test_compiler_options_are_tried():
    wanted = {"xla_backend_optimization_level": 0, "xla_no_such_option": 1}
    assert compat.known_compiler_options(wanted) == {"xla_backend_optimization_level": 0}
    # One that is gone costs speed: look for its successor.
    assert len(compiler.cpu_options()) == 1
    assert len(compiler.quick_options()) == 2
    assert compiler.gpu_options() == {"xla_gpu_exclude_nondeterministic_ops": True}


def test_each_platform_has_its_compiler_options():
    assert compiler.compiler_options("cpu") == (compiler.cpu_options(), compiler.quick_options())
    # Results must be the same bits each time, also of the programs that make and move a state.
    assert compiler.compiler_options("gpu") == (compiler.gpu_options(), compiler.gpu_options())
    assert compiler.compiler_options("tpu") == (None, None)


@pytest.mark.parametrize(
    "chosen", [None, "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"]
)
def test_a_gpus_memory_is_allocated_unless_the_user_says_how_much(monkeypatch, chosen):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        # Set first, so that what the function sets is taken back as well.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    if chosen:
        monkeypatch.setenv(chosen, "0.5")
    compat.allocate_most_of_a_gpu()
    found = {n: v for n, v in os.environ.items() if n.endswith("CLIENT_MEM_FRACTION")}
    assert found == ({chosen: "0.5"} if chosen else {"XLA_CLIENT_MEM_FRACTION": "0.9"})
    # The names are those that jaxlib reads.
    source = inspect.getsource(jaxlib.xla_client.generate_pjrt_gpu_plugin_options)
    assert all(name in source for name in found)


def test_the_splash_kernel_is_made_for_heads_and_context():
    kernel = compat.splash_attention(2, 256, 128)
    one = jax.ShapeDtypeStruct((2, 256, 64), jnp.float32)
    for documents in ((), (jax.ShapeDtypeStruct((256,), jnp.int32),)):
        out = jax.eval_shape(kernel, one, one, one, *documents)
        assert (out.shape, out.dtype) == (one.shape, jnp.float32)


# --- optax --------------------------------------------------------------------------------------


def test_a_kernel_reads_zeros_and_writes_nothing_beyond_a_mask():
    def kernel(x_ref, y_ref, total_ref):
        mask = jnp.arange(4) < 3
        x = compat.load_tile(x_ref.at[:], mask)
        total_ref[...] = x + 1
        compat.store_tile(y_ref.at[:], x + 1, mask)

    shape = jax.ShapeDtypeStruct((4,), jnp.float32)
    call = compat.pallas().pallas_call(
        kernel,
        out_shape=(shape, shape),
        input_output_aliases={0: 0},
        compiler_params=compat.triton_params(warps=1, stages=1),
        interpret=True,
    )
    written, read = call(jnp.arange(4, 8, dtype=jnp.float32))
    np.testing.assert_array_equal(read, [5, 6, 7, 1])
    np.testing.assert_array_equal(written, [5, 6, 7, 7])


@pytest.mark.slow
def test_optax_makes_a_matrix_update_nearly_orthogonal():
    params = {"stack": jnp.zeros((3, 8, 4))}
    muon = compat.orthogonalized_momentum(
        jnp.float32(0.9), lambda params: {"stack": compat.matrix_dimensions((1,), (2,))}
    )
    grads = {"stack": jax.random.normal(jax.random.key(0), (3, 8, 4))}
    updates, _ = muon.update(grads, muon.init(params), params)
    singular = np.linalg.svd(np.asarray(updates["stack"]), compute_uv=False)
    # Newton-Schulz brings all singular values near a common one.
    assert (singular.max(axis=1) / singular.min(axis=1) < 2).all()
    assert isinstance(muon, optax.GradientTransformation)


# --- Orbax --------------------------------------------------------------------------------------


def test_orbax_writes_what_the_digests_expect(tmp_path):
    written = []

    def note() -> None:
        folders = [tmp_path / "3", *tmp_path.glob(compat.unfinished_checkpoints(3))]
        written.append([folder.name for folder in folders if folder.exists()])

    manager = compat.checkpoint_manager(tmp_path, "a run", max_to_keep=1, on_written=note)
    for step in (2, 3):
        args = ocp.args.Composite(state=ocp.args.StandardSave({"x": jnp.zeros(3)}))
        manager.save(step, args=args, force=True)
        manager.wait_until_finished()
    # Before the folder has its final name: a checkpoint never lacks what is written then.
    assert written[0] == [] and len(written[1]) == 1
    assert written[1][0] != "3"
    metadata = json.loads((tmp_path / "3" / compat.CHECKPOINT_METADATA).read_text())
    assert compat.COMMIT_TIME in metadata
    assert metadata[compat.ITEM_HANDLERS]
    assert compat.checkpoint_steps(tmp_path) == [3]
    assert list(compat.checkpoint_steps(tmp_path / "none")) == []
    manager.close()


def test_orbax_keeps_checkpoints_on_s3(monkeypatch):
    import tensorstore
    from etils import epath
    from orbax.checkpoint._src.path import atomicity, atomicity_defaults
    from orbax.checkpoint._src.serialization import tensorstore_utils

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    compat.checkpoint_steps("/nothing")
    before = tensorstore_utils.build_kvstore_tspec("/a/b", "x")
    compat._reach_s3()
    for options in ({"use_ocdbt": True}, {"use_ocdbt": False}):
        spec = tensorstore_utils.build_kvstore_tspec("s3://bucket/a/b", **options)
        base = tensorstore.KvStore.Spec(spec).to_json()
        base = base.get("base", base)
        assert (base["driver"], base["bucket"]) == ("s3", "bucket")
        assert base["path"].rstrip("/") == "a/b"
        assert (base["endpoint"], base["aws_region"]) == ("http://127.0.0.1:9", "eu-west-1")
    assert tensorstore_utils.build_kvstore_tspec("/a/b", "x") == before
    for chosen in (
        atomicity_defaults.get_default_temporary_path_class,
        atomicity_defaults.get_item_default_temporary_path_class,
    ):
        assert chosen(epath.Path("s3://bucket/a")) is atomicity.CommitFileTemporaryPath
        assert chosen(epath.Path("/a")) is atomicity.AtomicRenameTemporaryPath


def test_orbax_does_not_ask_jax_whether_to_stop():
    assert ocp.CheckpointManager.reached_preemption
    manager = compat._manager_class()
    assert manager.reached_preemption(object.__new__(manager), 1) is False
    # It asks there only.
    source = inspect.getsource(inspect.getmodule(ocp.CheckpointManager))
    assert source.count("utils.reached_preemption(") == 1


def test_orbaxs_own_log_of_an_error_is_dropped_and_no_other(caplog):
    compat.quiet_orbax_errors()
    module = inspect.getmodule(ocp.CheckpointManager)
    assert "from absl import logging" in inspect.getsource(module)
    logger = logging.getLogger("absl")
    error = (OSError, OSError("this disk is full"), None)

    def is_shown(path: str, exc_info) -> bool:
        record = logging.LogRecord("absl", logging.ERROR, path, 1, "failed", (), exc_info)
        return bool(logger.filter(record))

    assert not is_shown(module.__file__, error)
    assert is_shown(module.__file__, None)
    assert is_shown(os.__file__, error)


# --- matplotlib ---------------------------------------------------------------------------------


def test_an_axis_takes_a_log_scale():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    compat.set_log_scale(axes.yaxis)
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")


def test_cuda_is_not_looked_for_where_there_is_no_gpu(monkeypatch):
    name = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"
    for present, expected in ((True, None), (False, "1")):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(compat, "nvidia_gpu_present", lambda present=present: present)
        compat.skip_cuda_check_without_gpu()
        assert compat.os.environ.get(name) == expected


@pytest.mark.parametrize(("columns", "shape"), [(3, (3, 2)), (1, (1, 6)), (6, (6, 1))])
def test_a_drawn_legend_is_broken_into_columns(columns, shape):
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    lines = [axes.plot([], [])[0] for _ in range(6)]
    legend = figure.legend(lines, list("abcdef"), loc="upper center", ncols=4)
    figure.draw_without_rendering()
    compat.set_legend_columns(legend, columns)
    figure.draw_without_rendering()
    places = [text.get_window_extent() for text in legend.get_texts()]
    found = len({round(p.x0) for p in places}), len({round(p.y0, -1) for p in places})
    assert found == shape and [text.get_text() for text in legend.get_texts()] == list("abcdef")

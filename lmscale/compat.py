"""Every use of a private or fragile interface of our dependencies, one small function each.

An interface is here when a minor release may change it without notice: a private module, a name in an
`experimental` or `contrib` package, the text of an error, the name of a file or of a compiler option.
Each function says what breaks when it changes; `tests/test_compat.py` fails then. All were checked
with jax and jaxlib 0.10.2, optax 0.2.8, orbax-checkpoint 0.12.8 and matplotlib 3.11.2.

This module imports nothing of ours, and the dependencies only where a function needs them: commands
that don't train must not import jax.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax
    import numpy as np
    import optax
    import orbax.checkpoint as ocp

#: Variables of jax and XLA that lmscale sets itself.
OWN_VARIABLES = ("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "XLA_CLIENT_MEM_FRACTION")

# --- Errors of XLA and JAX, known by their text or place ----------------------------------------


def is_out_of_memory(message: str) -> bool:
    """Whether an error of JAX, or of a compiler, says that memory ran out.

    XLA's status codes are part of the text of `JaxRuntimeError`. Without this one a pack that does not
    fit counts as failed, and is not tried again with less memory.
    """
    return "RESOURCE_EXHAUSTED" in message


def keeps_jax_from_starting(error: BaseException) -> str | None:
    """Why jax does not start, in its words, if this error comes from its settings or its search for devices.

    Such errors are raised in the private modules `jax._src.config` and `jax._src.xla_bridge`. When these
    are renamed, a wrong JAX_ variable ends a command with a traceback again.

    Returns:
      None where the error comes from elsewhere.
    """
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    where = at.tb_frame.f_globals.get("__name__") if at is not None else None
    if where not in ("jax._src.config", "jax._src.xla_bridge"):
        return None
    if isinstance(error, AssertionError):
        # What jax raises where a platform that was asked for has no devices.
        return f"no devices of JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
    return " ".join(str(error).split())


def jax_variables() -> list[str]:
    """NAME=value of the environment variables of a user that can keep jax from starting."""
    return [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if re.match(r"(JAX|XLA|LIBTPU)_", name) and name not in OWN_VARIABLES
    ]


def needed_bytes(message: str) -> float | None:
    """Bytes that a compiler says it lacks room for.

    It reads sentences of the TPU and GPU compilers, such as "(56.73G) exceeds" and "Used 17.10G of".
    When they change, plans that do not fit are planned again without knowing by how much.

    Returns:
      Infinity where the compiler does not say how many; None where the error is another.
    """
    if not is_out_of_memory(message):
        return None
    found = re.search(r"\(?([\d.]+)([KMGT])\)? exceeds", message)
    found = found or re.search(r"Used ([\d.]+)([KMGT]) of", message)
    if not found:
        return math.inf
    return float(found[1]) * 1024.0 ** ("KMGT".index(found[2]) + 1)


def is_timeout(error: Exception) -> bool:
    """Whether an error of the distributed client says that a wait took too long.

    Without it a process that waits for the others ends instead of looking for their failures.
    """
    return "DEADLINE_EXCEEDED" in str(error)


def quiet_compilation_cache() -> None:
    """Keeps JAX from warning of each program that its persistent cache cannot read or write.

    The warnings are known by their text. When it changes they are shown, which harms nothing.
    """
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")


# --- JAX's distributed runtime ------------------------------------------------------------------


def find_processes(
    devices: Sequence[int] | None, seconds: int
) -> tuple[str | None, int | None, int | None, list[int] | None]:
    """What `jax.distributed.initialize` would find by itself, from `jax._src.clusters`.

    Without it processes cannot meet before JAX where the user does not name them, and a second job
    on their port ends the first.

    Args:
      devices: numbers of this process's devices, where they are known.
      seconds: to wait for the main process's host, where its name is not known yet.

    Returns:
      HOST:PORT of the main process, how many processes there are, the number of this one, and the
      numbers of its devices; None for what is not found, or is JAX's to say.
    """
    from jax._src import clusters

    address, count, index, found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        coordinator_address=os.environ.get("JAX_COORDINATOR_ADDRESS"),
        num_processes=None,
        process_id=None,
        local_device_ids=devices,
        cluster_detection_method=None,
        initialization_timeout=seconds,
    )
    # JAX reads that variable itself, and prefers it.
    if found is None or "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return address, count, index, None
    return address, count, index, list(found)


def distributed_state() -> tuple[Any, int, int]:
    """The state after `jax.distributed.initialize`, from `jax._src.distributed.global_state`.

    The client's methods are private as well: key_value_set, key_value_delete, key_value_increment,
    key_value_dir_get, blocking_key_value_get, wait_at_barrier. Without them no two processes train
    together.
    """
    import jax

    state = jax._src.distributed.global_state
    return state.client, state.process_id, state.num_processes


def reached_preemption_sync_point(count: int) -> bool:
    """Whether SIGTERM has come to any process, in all of them at the same `count`.

    From `jax.experimental.multihost_utils`. Without it processes that train together are not saved
    together when the scheduler stops one of them.
    """
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(count)


# --- Signals, below Python ----------------------------------------------------------------------

#: Handlers in C, which must live as long as the process.
_HANDLERS: list[Any] = []


def exit_on_abort(message: bytes, code: Callable[[], int]) -> None:
    """Turns JAX's abort at the loss of a process into an exit with a message.

    The abort comes from a thread of JAX's in C, so that neither an exception nor Python's own signal
    handlers can catch it. Should JAX end the process otherwise, the exit code is no longer ours.

    Args:
      message: is written to standard error.
      code: returns the exit code; called in that thread.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(number: int) -> None:
        os.write(2, message)
        os._exit(code())

    _HANDLERS.append(aborted)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), aborted)


def die_with_parent() -> None:
    """Has this process killed when its parent ends (Linux; elsewhere nothing happens).

    `prctl(PR_SET_DEATHSIG)`, which Python does not offer. Without it a worker that is halted or deep
    in a computation outlives its parent, while another process trains its run.
    """
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


# --- Devices and compilers ----------------------------------------------------------------------


def device_mesh(shape: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices in an array that follows their physical topology, by `jax.experimental.mesh_utils`.

    Without it a mesh on a TPU takes the devices in order, and its collectives take longer.

    Raises:
      NotImplementedError, ValueError: when the shape is no product of the physical axes.
    """
    from jax.experimental import mesh_utils

    return mesh_utils.create_device_mesh(tuple(shape), devices=devices)


def hybrid_device_mesh(
    inside: Sequence[int], across: Sequence[int], devices: Sequence[jax.Device]
) -> np.ndarray:
    """`device_mesh` of several TPU slices: the mesh of each, and how many slices each axis spans."""
    from jax.experimental import mesh_utils

    return mesh_utils.create_hybrid_device_mesh(tuple(inside), tuple(across), devices=devices)


def topology_devices(platform: str, **description: Any) -> list[Any]:
    """Stand-ins for devices that are not here, by `jax.experimental.topologies`.

    Without it `lmscale plan --compile` cannot compile.

    Args:
      platform: "tpu" or "cuda".
      description: what the platform's compiler needs, such as `topology_name` of a slice.
    """
    from jax.experimental import topologies

    return list(topologies.get_topology_desc(platform=platform, **description).devices)


def compile_for_capability(capability: tuple[int, int]) -> None:
    """Has jax's cuDNN attention check shapes for a GPU that is not here, in this process.

    It asks the first GPU of the process for its compute capability, and takes a machine without one
    for an old GPU. From `jax._src.cudnn.fused_attention_stablehlo`. Without it heads wider than 128
    cannot be compiled ahead.

    Args:
      capability: major, minor.
    """
    from jax._src.cudnn import fused_attention_stablehlo as attention

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(".")))

    attention.check_compute_capability = lambda least: capability >= numbers(least)
    attention.is_cuda_compute_capability_equal = lambda other: capability == numbers(other)


def skip_cuda_check_without_gpu() -> None:
    """Keeps jax's CUDA plugin from looking for CUDA's libraries on a machine without an NVIDIA GPU.

    It is installed there to compile for GPUs elsewhere, and would log a traceback in every process. By an
    environment variable of the plugin; should it go, the traceback comes back. `lmscale doctor` says
    where there is a GPU without these libraries.
    """
    if not nvidia_gpu_present():
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def nvidia_gpu_present() -> bool:
    """Whether the operating system shows an NVIDIA GPU, whatever jax makes of it."""
    return any(map(os.path.exists, ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")))


#: Share of a GPU's memory that jax allocates at its start, unless the user says another.
GPU_MEMORY_SHARE = 0.9


def allocate_most_of_a_gpu() -> None:
    """Has jax allocate `GPU_MEMORY_SHARE` of a GPU, in place of its 75%. It must not have started yet.

    By the variable that jaxlib reads; it refuses to start where its older name is set as well. Should the
    name change, plans get less memory (`lmscale doctor` says so).
    """
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    if not any(name in os.environ for name in names):
        os.environ[names[0]] = str(GPU_MEMORY_SHARE)


def memory_limit(device: jax.Device) -> float | None:
    """Bytes of a device that programs can use; None where it does not say, as a CPU.

    The name of the number is the allocator's. Without it plans assume the data sheet's memory, and
    training tokens lie on the devices whether they fit or not.
    """
    return (device.memory_stats() or {}).get("bytes_limit")


def known_compiler_options(wanted: dict[str, Any]) -> dict[str, Any]:
    """The options that this version of XLA has. Their names come and go, so each is tried.

    An option that is gone costs speed: `lmscale.training.compiler` says how much each saves.
    """
    from jax import jit
    from jax.errors import JaxRuntimeError

    known, lowered = {}, jit(lambda x: x).lower(0)
    for name, value in wanted.items():
        try:
            lowered.compile(compiler_options={name: value})
        except JaxRuntimeError:
            continue
        known[name] = value
    return known


def splash_attention(n_head: int, n_time: int, block: int) -> Callable[..., jax.Array]:
    """The TPU's flash attention kernel, causal, from `jax.experimental.pallas`.

    Without it attention on a TPU computes all scores.

    Args:
      n_head: heads.
      n_time: context; a multiple of `block`.
      block: tokens that the kernel computes at a time.

    Returns:
      (query, key, value) [n_head, n_time, d_head] -> [n_head, n_time, d_head]; it does not scale. A fourth
      argument, int32 [n_time], numbers the documents: a position then sees its own only.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    blocks: dict[str, Any] = {f"block_{name}": block for name in names}
    sizes = splash_attention_kernel.BlockSizes(**blocks)
    mask = splash_attention_mask.CausalMask((n_time, n_time))
    kernel = splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([mask] * n_head), block_sizes=sizes
    )

    def attend(
        query: jax.Array, key: jax.Array, value: jax.Array, documents: jax.Array | None = None
    ) -> jax.Array:
        if documents is None:
            return kernel(query, key, value)
        ids = splash_attention_kernel.SegmentIds(q=documents, kv=documents)
        return kernel(query, key, value, ids)

    return attend


def pallas() -> Any:
    """`jax.experimental.pallas`, in which kernels are written.

    Of it we use BlockSpec, pallas_call, program_id and ds. Without it GPUs write all logits to memory, and
    launch every time step of an LSTM.
    """
    from jax.experimental import pallas

    return pallas


def triton_params(*, warps: int, stages: int) -> Any:
    """How Pallas compiles a kernel for a GPU: by Triton, from `jax.experimental.pallas.triton`.

    Args:
      warps: of 32 threads, that share a block.
      stages: tiles of a loop that are loaded ahead.
    """
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=warps, num_stages=stages)


def load_tile(ref: Any, mask: jax.Array) -> jax.Array:
    """What a kernel for a GPU reads where `mask` is true, and zeros elsewhere, by `jax.experimental.pallas.triton`."""
    from jax.experimental.pallas import triton

    return triton.load(ref, mask=mask, other=0.0)


def store_tile(ref: Any, values: jax.Array, mask: jax.Array) -> None:
    """Has a kernel for a GPU write where `mask` is true, by `jax.experimental.pallas.triton`."""
    from jax.experimental.pallas import triton

    triton.store(ref, values, mask=mask)


# --- optax --------------------------------------------------------------------------------------


def orthogonalized_momentum(
    beta: jax.Array, matrices: Callable[[Any], Any]
) -> optax.GradientTransformation:
    """Momentum with Newton-Schulz steps, by `optax.contrib.scale_by_muon`. Without it: no Muon.

    Args:
      beta: decay of the momentum.
      matrices: parameters -> `matrix_dimensions` of each.
    """
    from optax import contrib

    return contrib.scale_by_muon(beta=beta, weight_dimension_numbers=matrices)


def matrix_dimensions(d_in: Sequence[int], d_out: Sequence[int]) -> Any:
    """Which axes of an array are the rows and the columns of a matrix, for Muon."""
    from optax import contrib

    return contrib.MuonDimensionNumbers(tuple(d_in), tuple(d_out))


# --- Orbax --------------------------------------------------------------------------------------

#: Files that Orbax writes again when all else is done: with the time of that, and as a mark.
CHECKPOINT_METADATA, CHECKPOINT_MARK = "_CHECKPOINT_METADATA", "commit_success.txt"
#: The key in that metadata which holds the time.
COMMIT_TIME = "commit_timestamp_nsecs"
#: The last key but the time that a thread of Orbax fills in; null in what it writes first. When the key
#: is gone, `lmscale.training.checkpoint` waits some seconds for it at every save.
ITEM_HANDLERS = "item_handlers"


def unfinished_checkpoints(step: int) -> str:
    """A glob pattern of the folders in which Orbax writes a step before it renames them.

    When the names change, checkpoints have no digests and their damage is not noticed.
    """
    return f"{step}.orbax-checkpoint-tmp*"


#: Keys of TensorStore's s3 driver -> variables of Amazon's tools that say the same, first ones first.
_S3_VARIABLES = {
    "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "aws_region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
}
#: Variables of Amazon's tools -> the files that they look for otherwise.
_S3_FILES = {
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
}


def _reach(folder: Any) -> None:
    if str(folder).startswith("s3://"):
        _reach_s3()


@functools.cache
def _reach_s3() -> None:
    """Lets Orbax keep checkpoints on s3://, as it does on gs://.

    TensorStore can write there; what Orbax lacks is the address, and that a folder is complete when its
    mark is there, as a rename copies every object. Should these functions change, saving to s3:// ends
    with "Checkpoint path should be absolute".
    """
    # Amazon's library in TensorStore logs an error at every use for each of these files that is not there.
    for variable, name in _S3_FILES.items():
        if variable not in os.environ and not os.path.exists(os.path.expanduser(name)):
            os.environ[variable] = os.devnull
    from orbax.checkpoint._src.path import atomicity, atomicity_defaults
    from orbax.checkpoint._src.serialization import tensorstore_utils

    build = tensorstore_utils.build_kvstore_tspec

    def build_kvstore_tspec(directory: str, *args: Any, **options: Any) -> dict[str, Any]:
        if not str(directory).startswith("s3://"):
            return build(directory, *args, **options)
        spec = build(f"gs://{str(directory)[len('s3://') :]}", *args, **options)
        _address_s3(spec)
        return spec

    tensorstore_utils.build_kvstore_tspec = build_kvstore_tspec
    for name in ("get_default_temporary_path_class", "get_item_default_temporary_path_class"):
        default = getattr(atomicity_defaults, name)

        def chosen(path: Any, default: Any = default, **options: Any) -> Any:
            if str(path).startswith("s3://"):
                return atomicity.CommitFileTemporaryPath
            return default(path, **options)

        setattr(atomicity_defaults, name, chosen)


def _address_s3(spec: dict[str, Any]) -> None:
    """Turns what a TensorStore spec says of Google's store into the same of Amazon's, in place.

    TensorStore reads credentials where Amazon's own tools do, but neither the region nor the endpoint of
    another store that speaks S3.
    """
    if str(spec.get("driver", "")).startswith("gcs"):
        spec["driver"] = "s3"
        for key, variables in _S3_VARIABLES.items():
            if value := next(filter(None, map(os.environ.get, variables)), None):
                spec[key] = value
    for value in spec.values():
        if isinstance(value, dict):
            _address_s3(value)


def checkpoint_steps(folder: Any) -> list[int]:
    """The steps of all complete checkpoints of a folder that need not exist."""
    import orbax.checkpoint as ocp

    _reach(folder)
    return ocp.utils.checkpoint_steps(folder)


def checkpoint_manager(
    folder: Any,
    name: str,
    *,
    max_to_keep: int | None,
    on_written: Callable[[], None],
    read_only: bool = False,
) -> ocp.CheckpointManager:
    """Orbax's manager of a folder of checkpoints, which saves in the background.

    Args:
      folder: is created, unless `read_only`.
      name: sets it apart from the other managers of these processes, and is the same in all of them. Without
        it the managers of two runs that are saved at once share their barriers: a process that has written one run
        would count as having written the other, whose checkpoint gets its final name half written.
      max_to_keep: newest checkpoints that are kept; all when None.
      on_written: called for each checkpoint before its folder gets its final name: by the first
        process, when all have written, in the thread that waits for the save.
      read_only: leaves unfinished checkpoints alone, which are deleted otherwise. (Orbax's own
        `read_only` logs warnings.)
    """
    import orbax.checkpoint as ocp

    _reach(folder)
    return _manager_class()(
        folder,
        options=ocp.CheckpointManagerOptions(
            max_to_keep=max_to_keep,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            async_options=ocp.AsyncOptions(post_finalization_callback=on_written),
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=name
            ),
        ),
    )


@functools.cache
def _manager_class() -> type[ocp.CheckpointManager]:
    import orbax.checkpoint as ocp

    class Manager(ocp.CheckpointManager):
        def reached_preemption(self, step: int) -> bool:
            """No: only our loop asks JAX. The count of such questions must agree in all processes.

            When Orbax asks by another method, processes that train together wait for each other for
            ever.
            """
            return False

    return Manager


class _OrbaxErrors(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and "orbax" in record.pathname)


@functools.cache
def quiet_orbax_errors() -> None:
    """Keeps Orbax from logging errors of its threads, which it raises again at the next wait.

    Orbax logs through absl's logger. Should that change, a full disk shows a traceback before our
    line.
    """
    logging.getLogger("absl").addFilter(_OrbaxErrors())


# --- matplotlib ---------------------------------------------------------------------------------


def set_log_scale(axis: Any) -> None:
    """Gives a matplotlib axis a log scale, whichever of x and y it is.

    By a private method: the public ones belong to the axes and name x or y.
    """
    axis._set_axes_scale("log")


def set_legend_columns(legend: Any, columns: int) -> None:
    """Breaks a drawn legend of matplotlib into so many columns.

    `Legend.set_ncols` does that for a legend that is not drawn yet, and nothing for another one; the boxes of
    a legend's entries are private. When they change, legends of figures for papers are cut off.
    """
    from matplotlib.offsetbox import VPacker

    box = legend._legend_handle_box
    old = box.get_children()
    items = [item for column in old for item in column.get_children()]
    rows = math.ceil(len(items) / columns)
    packed = []
    for first in range(0, len(items), rows):
        column = VPacker(
            pad=0, sep=old[0].sep, align=old[0].align, children=items[first : first + rows]
        )
        column.set_figure(legend.get_figure())
        column.axes = legend.axes
        packed.append(column)
    box._children = packed

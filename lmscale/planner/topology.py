"""Stand-ins for devices that are not here, for a compiler to compile for.

The TPU compiler (libtpu) and XLA's compiler for NVIDIA GPUs compile for any number of chips on a
machine that has none. The first needs the shape of the slice, the second a description of the GPU.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from typing import Any

from lmscale.compat import topology_devices

#: Packages that compile for a platform, any of them, and the extra of lmscale that brings one.
COMPILERS = {
    "tpu": (("libtpu",), "tpu"),
    "gpu": (("jax-cuda13-plugin", "jax-cuda12-plugin"), "cuda13-aot"),
}
#: Environment of a process that compiles for devices it does not have: it must not look for devices
#: or ask a cloud's metadata server for them, and several such processes may run at a time.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}
#: Number of a slice's dimensions -> the shapes that it may have. Larger slices of three dimensions are
#: made of cubes of 4 x 4 x 4.
_SHAPES = {
    2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4"),
}
_DIMENSIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}
#: What XLA must know of a GPU, from NVIDIA's data sheets and CUDA's tables of compute capabilities:
#: multiprocessors, 32-bit units in each, kB of shared memory in each and for the largest block, MB of
#: the level-2 cache, GHz, bytes/s and GB of the memory, compute capability.
_GPUS = {
    "a100": (108, 64, 164, 163, 40, 1.41, 2039e9, 80, "8"),
    "h100": (132, 128, 228, 227, 50, 1.98, 3352e9, 80, "9"),
    "h200": (132, 128, 228, 227, 50, 1.98, 4800e9, 141, "9"),
    "b200": (148, 128, 228, 227, 126, 1.965, 7672e9, 180, "10"),
}


class TopologyError(ValueError):
    """Devices that cannot be compiled for; the message is one line."""


def compiler(platform: str) -> str | None:
    """The installed compiler for a platform, with its version, or None.

    For GPUs it needs cuDNN as well, which holds the attention kernels.
    """
    if platform == "gpu" and not _installed("nvidia.cudnn"):
        return None
    for package in COMPILERS[platform][0]:
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def topology_name(kind: str, platform: str, count: int, linked: int) -> tuple[str, int]:
    """The shape of a TPU slice or of GPU hosts, as the compiler writes it, and the number of slices.

    Args:
      kind: see `lmscale.planner.devices.KINDS`.
      platform: "tpu" or "gpu".
      count: devices in all.
      linked: chips of the largest slice, GPUs of a host.

    Returns:
      Such as ("v5e:16x16", 1), or for GPUs partitions x hosts x GPUs, ("1x8x8", 1).

    Raises:
      TopologyError: when no slices or hosts have so many.
    """
    if platform == "gpu":
        if count > linked and count % linked:
            raise TopologyError(f"hosts have {linked} GPUs each, so not {count} in all")
        return f"1x{max(1, count // linked)}x{min(count, linked)}", 1
    n_slices = max(1, count // linked)
    shape = _slice_shape(_DIMENSIONS[kind], count // n_slices)
    if shape is None or count % n_slices:
        sizes = [math.prod(map(int, s.split("x"))) for s in _SHAPES[_DIMENSIONS[kind]]]
        cubes = ", or a multiple of 64" if _DIMENSIONS[kind] == 3 else f", or slices of {linked}"
        raise TopologyError(
            f"a slice of {kind} has {', '.join(map(str, sizes))} chips{cubes}, not {count}"
        )
    return f"{kind}:{shape}", n_slices


def _slice_shape(dimensions: int, count: int) -> str | None:
    for shape in _SHAPES[dimensions]:
        if math.prod(map(int, shape.split("x"))) == count:
            return shape
    if dimensions == 2 or count % 64:
        return None
    # The most compact block of cubes.
    cubes = count // 64
    blocks = [
        (a, b, cubes // (a * b))
        for a in range(1, cubes + 1)
        for b in range(a, cubes // a + 1)
        if cubes % (a * b) == 0 and b <= cubes // (a * b)
    ]
    best = min(blocks, key=lambda block: max(block) - min(block))
    return "x".join(str(4 * side) for side in best)


def absent_devices(kind: str, platform: str, count: int, linked: int) -> list[Any]:
    """Stand-ins for devices, to make a mesh of and compile for; the arguments of `topology_name`.

    Raises:
      TopologyError: when there are no such devices.
    """
    name, n_slices = topology_name(kind, platform, count, linked)
    if platform == "gpu":
        return topology_devices("cuda", target_config=gpu_target(kind), topology=name)
    sides = [int(side) for side in name.partition(":")[2].split("x")]
    options: dict[str, Any] = {}
    if kind == "v4":
        # The two cores of a v4 chip work as one device.
        options["chip_config_name"] = "megacore"
    if n_slices > 1:
        options["num_slices"] = n_slices
    if math.prod(sides) < 4:
        options["chips_per_host_bounds"] = (1, 1, 1)
    return topology_devices("tpu", topology_name=name, **options)


def gpu_capability(kind: str) -> tuple[int, int]:
    """The compute capability of a kind of GPU: major, minor."""
    return int(_GPUS[kind][-1]), 0


def gpu_target(kind: str) -> str:
    """The description of a GPU that XLA compiles for: a `GpuTargetConfigProto` as text."""
    units, fpus, shared, block, cache, clock, bandwidth, memory, capability = _GPUS[kind]
    features = "NONE" if capability == "8" else "ACCELERATED_FEATURES"
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_core": shared * 1024,
        "shared_memory_per_block_optin": block * 1024,
        "threads_per_core_limit": 2048,
        "core_count": units,
        "fpus_per_core": fpus,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
        "memory_bandwidth": int(bandwidth),
        "l2_cache_size": cache * 2**20,
        "clock_rate_ghz": clock,
        "device_memory_size": memory * 10**9,
        "device_vendor": '"NVIDIA Corporation"',
        "runtime_version": '"13.0.0"',
        "driver_version": '"13.0.0"',
        "dnn_version": '"9.10.0"',
    }
    lines = [f"  {name}: {value}" for name, value in fields.items()]
    return "\n".join(
        [
            "gpu_device_info {",
            *lines,
            f"  cuda_compute_capability {{ major: {capability} feature_extension: {features} }}",
            "}",
            'platform_name: "CUDA"',
            "dnn_version_info { major: 9 minor: 10 patch: 0 }",
            f'device_description_str: "NVIDIA {kind.upper()}"',
        ]
    )

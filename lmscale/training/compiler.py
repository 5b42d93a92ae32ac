"""Options of XLA's compiler: how machine code is made, not what is computed."""

from __future__ import annotations

import functools
from typing import Any

from lmscale.compat import known_compiler_options


@functools.cache
def cpu_options() -> dict[str, Any]:
    """For programs that run for long.

    XLA has two libraries for matrix products of this size, YNNPACK and Eigen, and prefers the former
    for products and for sums along rows. At the sizes of small models the latter is quicker at
    products.
    """
    return known_compiler_options(
        {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    )


@functools.cache
def gpu_options() -> dict[str, Any]:
    """For all programs on GPUs: sums whose order varies from call to call are computed in another way.

    Without this option a GPU may add with atomic operations, in whatever order they come, and a run that
    is resumed, or trained twice, differs in its last bits. Where it finds a scatter that adds floats, XLA
    sorts every number of it, which takes longer than a training step; `lmscale.models.lookup` is the way
    around that. Kernels are still chosen by timing them; the choice is kept with the compiled programs
    in the cache folder.
    """
    return known_compiler_options({"xla_gpu_exclude_nondeterministic_ops": True})


def compiler_options(platform: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The options of a platform for programs that run for long, and for those that run once."""
    if platform == "cpu":
        return cpu_options(), quick_options()
    if platform in ("gpu", "cuda"):
        return gpu_options(), gpu_options()
    return None, None


@functools.cache
def quick_options() -> dict[str, Any]:
    """For programs that run once or twice: a tenth of the time of a full compilation."""
    return known_compiler_options(
        {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    )

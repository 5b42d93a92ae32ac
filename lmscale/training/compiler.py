"""Options of XLA's compiler for CPUs: how machine code is made, not what is computed."""

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
def quick_options() -> dict[str, Any]:
    """For programs that run once or twice: a tenth of the time of a full compilation."""
    return known_compiler_options(
        {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    )

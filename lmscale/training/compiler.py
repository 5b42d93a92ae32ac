"""Options of XLA's compiler for CPUs: how machine code is made, not what is computed."""

from __future__ import annotations

import functools
from typing import Any

from jax import jit
from jax.errors import JaxRuntimeError


@functools.cache
def cpu_options() -> dict[str, Any]:
    """For programs that run for long.

    XLA has two libraries for matrix products of this size, YNNPACK and Eigen, and prefers the former
    for products and for sums along rows. At the sizes of small models the latter is quicker at
    products.
    """
    return _known({"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"})


@functools.cache
def quick_options() -> dict[str, Any]:
    """For programs that run once or twice: a tenth of the time of a full compilation."""
    return _known({"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False})


def _known(wanted: dict[str, Any]) -> dict[str, Any]:
    """Those that this version of XLA has. Names come and go, so each is tried."""
    known = {}
    for name, value in wanted.items():
        try:
            jit(lambda x: x, compiler_options={name: value}).lower(0).compile()
        except JaxRuntimeError:
            continue
        known[name] = value
    return known

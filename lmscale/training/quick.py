"""Compilation that is quick rather than good, for programs that run once or twice."""

from __future__ import annotations

import functools
from typing import Any

from jax import jit
from jax.errors import JaxRuntimeError


@functools.cache
def quick_options() -> dict[str, Any]:
    """Compiler options of a CPU that change how machine code is made, not what is computed.

    A tenth of the time of a full compilation. Names come and go between versions of XLA, so each is
    tried.
    """
    wanted = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    known = {}
    for name, value in wanted.items():
        try:
            jit(lambda x: x, compiler_options={name: value}).lower(0).compile()
        except JaxRuntimeError:
            continue
        known[name] = value
    return known

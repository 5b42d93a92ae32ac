"""Compilation that is quick rather than good: most of the time of these tests is XLA's."""

from __future__ import annotations

import functools

import jax


@functools.cache
def quick_to_compile() -> dict:
    """Compiler options for programs that run once: three to five times less time in XLA.

    They change how machine code is made, not what is computed. Names come and go between versions
    of XLA, so each is tried.
    """
    wanted = {
        "xla_backend_optimization_level": 0,
        "xla_cpu_parallel_codegen_split_count": 1,
        "xla_cpu_use_fusion_emitters": False,
    }
    known = {}
    for name, value in wanted.items():
        try:
            _jit(lambda x: x, compiler_options={name: value})(0)
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


_jit = jax.jit


def quick_jit(function, **options):
    """`jax.jit` with `quick_to_compile`."""
    return _jit(function, **options, compiler_options=quick_to_compile())


def xla_flags() -> str:
    """The same for a whole process, as XLA_FLAGS."""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in quick_to_compile().items())

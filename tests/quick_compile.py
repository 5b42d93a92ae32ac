"""Compilation that is quick rather than good: most of the time of these tests is XLA's."""

from __future__ import annotations

import jax

from lmscale.training.compiler import quick_options

_jit = jax.jit


def quick_jit(function, **options):
    """`jax.jit` with `quick_options`."""
    return _jit(function, **options | {"compiler_options": quick_options()})


def xla_flags() -> str:
    """The same for a whole process, as XLA_FLAGS."""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in quick_options().items())

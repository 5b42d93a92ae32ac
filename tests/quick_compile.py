"""Compilation that is quick rather than good: most of the time of these tests is XLA's."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import jax

from lmscale.training.compiler import quick_options

_jit = jax.jit


@functools.cache
def _options() -> dict[str, Any]:
    """`quick_options`, found by compiling with jax's own jit: `quick_jit` may have taken its place."""
    with mock.patch.object(jax, "jit", _jit):
        return quick_options()


def quick_jit(function, **options):
    """`jax.jit` with `quick_options`."""
    return _jit(function, **options | {"compiler_options": _options()})


def xla_flags() -> str:
    """The same for a whole process, as XLA_FLAGS."""
    return " ".join(f"--{name}={str(value).lower()}" for name, value in _options().items())

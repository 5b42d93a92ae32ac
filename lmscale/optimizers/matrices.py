"""How a parameter array is a number of matrices, for optimizers that are defined on matrices.

A model's layers are stacked in its parameters, and kernels keep axes for heads and gates. Adafactor
and Muon are defined on matrices: one [d_in, d_out] for each kernel of each layer, so the axes are
named here.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax

from lmscale.parallel.partition import path_name

#: (pattern searched at the end of a parameter's path, leading axes that number arrays of their own,
#: following axes of d_in). The axes that remain are d_out. First match wins; what matches nothing
#: is one vector. Fused kernels are one matrix, as GPT-2's queries, keys and values in `transformers`
#: and an LSTM's gates in torch are: [d_model, 3 d_attn] and [d_in, 4 d_hidden].
SHAPES: tuple[tuple[str, int, int], ...] = (
    # [n_head, d_head, d_model].
    (r"attention/out/kernel$", 0, 2),
    # [3, n_head, d_head], three vectors: softmax does not see the bias of the keys, so its gradient is
    # rounding noise, which would decide how far the other two are clipped.
    (r"qkv/bias$", 1, 0),
    (r"(^|/)(kernel|input_kernel|recurrent_kernel|embedding|position)$", 0, 1),
)


class Axes(NamedTuple):
    """A parameter's axes: those that number its arrays (layers first), d_in and d_out.

    A vector has neither d_in nor d_out.
    """

    own: tuple[int, ...]
    d_in: tuple[int, ...]
    d_out: tuple[int, ...]


def matrix_axes(path: tuple[Any, ...], x: jax.Array, stacks: tuple[str, ...]) -> Axes:
    """The axes of a parameter, by its path.

    Args:
      path: of the parameter in its tree.
      x: the parameter, or anything of its shape.
      stacks: names of the entries that hold stacked layers (`ModelSpec.STACKS`).
    """
    name = path_name(path)
    n_own, n_in = next((ns for pattern, *ns in SHAPES if re.search(pattern, name)), (0, 0))
    n_own += name.split("/", 1)[0] in stacks
    own, inner = tuple(range(n_own)), tuple(range(n_own, x.ndim))
    return Axes(own, inner[:n_in], inner[n_in:] if n_in else ())

"""An architecture held to its protocol by shapes alone, before a run of it is planned.

For files of a user's own: those of lmscale are held to it by `tests/architectures/test_contract.py`, which
can be given a user's file too and also runs the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lmscale import flops
from lmscale.architectures import Array, ModelSpec
from lmscale.parallel.partition import path_name
from lmscale.serialize import SpecError
from lmscale.user_files import told_by

__all__ = ["array_shapes", "check_model", "ignored_rules"]

#: Sequences of the batch whose shapes are traced.
_BATCH = 2


def check_model(model: ModelSpec) -> list[str]:
    """Traces a model and compares it with what its class says of it.

    Returns:
      A line for each number that a law would read wrongly.

    Raises:
      SpecError: it cannot be built, its logits are not float32 [batch, time, vocab], or an array has no
        rule that fits it.
    """
    name = type(model).__name__

    def error(line: str) -> SpecError:
        return SpecError(f"the architecture {name} cannot be trained: {line}")

    with told_by(error, type(model)):
        shapes = array_shapes(model)
        _check_logits(model)
        for path, shape in shapes.items():
            # It raises where there is no rule.
            model.decays(path)
            _check_axes(model, path, shape)
        for rule in ignored_rules(model, shapes):
            raise SpecError(
                f"{name}.ARRAYS: the rule {rule.pattern!r} with decays={rule.decays} is never used, because "
                "an earlier one matches all that it matches: put it first"
            )
        counted = flops.n_params(model, "exact")
    stored = sum(map(math.prod, shapes.values()))
    if counted == stored:
        return []
    return [
        f"{name}.operations() counts {counted:,} parameters, and {model.label} has {stored:,}: every law "
        "reads N and C as they are counted"
    ]


def array_shapes(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters by path."""
    built = nnx.eval_shape(lambda: _built(model))
    params = nnx.to_pure_dict(nnx.split(built)[1])
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {path_name(path): x.shape for path, x in leaves}


def ignored_rules(model: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> list[Array]:
    """The rules that match some arrays but decide about none, where they would decide otherwise.

    Args:
      shapes: of all arrays, by path.
    """
    found = []
    for rule in model.ARRAYS:
        mine = [path for path in shapes if re.search(rule.pattern, path)]
        if mine and all(model.decays(path) != rule.decays for path in mine):
            found.append(rule)
    return found


def _built(model: ModelSpec) -> nnx.Module:
    rngs = nnx.Rngs(params=0)
    return model.module(rngs, dtype="float32", unroll=False, attention="xla", remat=False)


def _check_logits(model: ModelSpec) -> None:
    def traced(tokens: jax.Array) -> dict[str, jax.Array]:
        built: Any = _built(model)
        hidden = built.hidden(tokens, dropout_key=None)
        return {"module(tokens)": built(tokens), "logits(hidden(tokens))": built.logits(hidden)}

    tokens = jax.ShapeDtypeStruct((_BATCH, model.n_ctx), jnp.int32)
    wanted = (_BATCH, model.n_ctx, model.vocab_size)
    for how, logits in nnx.eval_shape(traced, tokens).items():
        shape, dtype = getattr(logits, "shape", None), getattr(logits, "dtype", None)
        if shape != wanted or dtype != jnp.float32:
            raise SpecError(
                f"{type(model).__name__}: {how} gives {dtype} {list(shape or ())}, and must give logits "
                f"float32 [batch, time, vocab], here {list(wanted)}"
            )


def _check_axes(model: ModelSpec, path: str, shape: tuple[int, ...]) -> None:
    """Raises a `SpecError` where the rules for an array are for another number of dimensions."""
    rules = [rule for rule in model.ARRAYS if re.search(rule.pattern, path)]
    if rules[0].axes is None or any(rule.axes and len(rule.axes) == len(shape) for rule in rules):
        return
    raise SpecError(
        f"{type(model).__name__}.ARRAYS has {len(rules[0].axes)} axes for the parameter {path}, whose shape is "
        f"{list(shape)}: give one for each of its {len(shape)} dimensions (that of stacked layers is the first)"
    )

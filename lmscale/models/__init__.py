"""The models of the two papers as plain Flax NNX modules; sharding lives elsewhere (a table)."""

from __future__ import annotations

from flax import nnx

from lmscale.models.lstm import LSTM
from lmscale.models.transformer import Transformer
from lmscale.spec import LSTMSpec, ModelSpec, TransformerSpec

__all__ = ["LSTM", "Transformer", "build_model"]


def build_model(
    spec: ModelSpec,
    rngs: nnx.Rngs,
    *,
    dtype: str = "float32",
    unroll: bool = False,
    attention: str = "xla",
    remat: bool = False,
) -> Transformer | LSTM:
    """The model that `spec` describes, freshly initialised from `rngs` (stream `params`).

    Both kinds map token ids int32 [batch, time] to float32 logits [batch, time, vocab], in two steps
    for those who need them apart: `logits(hidden(tokens))`.

    Args:
      spec: shape of the model.
      rngs: source of the initial parameters, which are always float32.
      dtype: of activations and matmuls, "float32" or "bfloat16".
      unroll: unroll the layers instead of scanning over them; the same numbers, slower to compile.
      attention: "xla", "cudnn" or "splash" (Transformer only).
      remat: keep only the inputs of the blocks for the backward pass and compute the rest again
        (Transformer only).
    """
    if isinstance(spec, TransformerSpec):
        return Transformer(spec, rngs, dtype=dtype, unroll=unroll, attention=attention, remat=remat)
    if isinstance(spec, LSTMSpec):
        return LSTM(spec, rngs, dtype=dtype, unroll=unroll)
    raise TypeError(f"a model is a TransformerSpec or an LSTMSpec, not {type(spec).__name__}")

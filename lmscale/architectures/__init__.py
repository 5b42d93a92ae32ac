"""The architectures: one class for each, with all that is known of it (`lmscale.architectures.base`)."""

from lmscale.architectures.base import ModelSpec, architecture, kinds, register
from lmscale.architectures.llama import LlamaSpec
from lmscale.architectures.lstm import LSTM_INIT, LSTMSpec, lstm_shape
from lmscale.architectures.parts import (
    Activations,
    Array,
    Ladder,
    Operation,
)
from lmscale.architectures.transformer import (
    TransformerSpec,
    chinchilla_shapes,
    init_by_width,
    transformer_ladder,
    transformer_shape,
)

__all__ = [
    "LSTM_INIT",
    "Activations",
    "Array",
    "LSTMSpec",
    "Ladder",
    "LlamaSpec",
    "ModelSpec",
    "Operation",
    "TransformerSpec",
    "architecture",
    "chinchilla_shapes",
    "init_by_width",
    "kinds",
    "lstm_shape",
    "register",
    "transformer_ladder",
    "transformer_shape",
]

"""The LSTM of Kaplan et al. 2020, Fig. 7, and its shapes by size.

The model itself is in `lmscale.models.lstm`, so that commands that do not train need no jax.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, Unpack

from lmscale.architectures.base import ModelSpec, register, shared_fields
from lmscale.architectures.parts import (
    ADD,
    CROSS_ENTROPY,
    SHARED_ARRAYS,
    Activations,
    Array,
    GpuCosts,
    Ladder,
    Operation,
    SizeOptions,
    elementwise,
    matmul,
    output_head,
)
from lmscale.serialize import require, require_positive
from lmscale.terminal import plural

if TYPE_CHECKING:
    from flax import nnx

#: The initialisation with which LSTMs train best, as fields of `LSTMSpec`. It was measured at d_hidden
#: 20 to 124 and d_embed 32 to 96. The defaults of the spec are those of older runs.
LSTM_INIT: dict[str, Any] = {"embed_std": None, "projection_gain": 2.0}
#: Width of the embedding in Kaplan et al. 2020.
KAPLAN_EMBED = 512
#: Up to this d_hidden the best learning rate of short runs was measured not to depend on the width.
FLAT_WIDTH = 256
#: FLOPs per hidden unit of gates and cell, forward and backward.
GATES = (20, 20)

#: Seconds of a time step within a kernel. Estimated from data sheets: the weights of 128 hidden units pass
#: from shared memory to the matrix units in 0.6 us, and a step waits for memory and barriers besides.
KERNEL_STEP_SECONDS = 1.5e-6


@register
@dataclass(frozen=True, kw_only=True)
class LSTMSpec(ModelSpec):
    """The LSTM of Kaplan et al. 2020, Fig. 7, as recovered from its parameter counts.

    An embedding of width `d_embed`, `n_layer` LSTM layers of width `d_hidden` with two bias vectors
    each (as in cuDNN), a linear projection with bias back to `d_embed`, and an output matrix that is
    tied to the embedding. Without `projection` the input of the head is the hidden state, so a tied
    head then needs d_hidden = d_embed.
    """

    kind = "lstm"

    d_hidden: int
    d_embed: int = KAPLAN_EMBED
    projection: bool = True
    #: Standard deviation of the initial embedding and of an untied head. None is the better choice,
    #: 1 / sqrt(width): the inputs of the first layer then have unit variance, and the logits of a tied
    #: head have the size of its inputs. 0.02 is the value of runs before there was a choice; at widths
    #: below 100 it costs 0.1 to 0.3 nats.
    embed_std: float | None = 0.02
    #: Standard deviation of the initial projection, in units of 1 / sqrt(d_hidden). Hidden states
    #: are small at first (about 0.2), so a gain of 2 trains better than 1.
    projection_gain: float = 1.0

    MASKS_DOCUMENTS = True
    NON_EMBEDDING = ("lstm_input", "lstm_recurrent", "projection", "bias")
    MATMULS = ("lstm_input", "lstm_recurrent", "projection")
    SHAPE_FIELDS = ("n_layer", "d_hidden")
    # The first layer has inputs of width d_embed, so only the others are stacked.
    STACKS = ("rest",)
    ARRAYS = (
        *SHARED_ARRAYS,
        # [d_in, 4, d_hidden].
        Array(r"first/(input|recurrent)_kernel$", ("data", None, "model"), decays=True),
        Array(r"first/(input|recurrent)_bias$", (None, "model"), decays=False),
        Array(r"rest/(\d+/)?(input|recurrent)_kernel$", (None, "data", None, "model"), decays=True),
        Array(r"rest/(\d+/)?(input|recurrent)_bias$", (None, None, "model"), decays=False),
        Array(r"projection/kernel$", ("model", "data"), decays=True),
        Array(r"projection/bias$", None, decays=False),
    )
    # The scan over time saves what its backward pass needs. Its cost depends on the number of steps
    # and hardly on the number of rows, so a CPU takes the whole batch at once.
    REMAT = False
    CPU_MICRO_BATCHES = False
    REDUCTIONS = 2
    REDUCED_EVERY_TOKEN = True
    # Of the depths tried on short runs one layer is the strongest at each size (RESULTS.md).
    DEPTH_BY_SIZE = False

    def _check(self) -> None:
        super()._check()
        require_positive(self, "d_hidden", "d_embed")
        require(
            self.embed_std is None or self.embed_std > 0,
            f"LSTMSpec.embed_std must be positive or null, not {self.embed_std!r}",
        )
        require(
            self.projection_gain > 0,
            f"LSTMSpec.projection_gain must be positive, not {self.projection_gain!r}",
        )
        require(
            self.projection or self.projection_gain == 1.0,
            "LSTMSpec.projection_gain scales the projection, so it needs projection",
        )
        require(
            self.projection or not self.tied_head or self.d_hidden == self.d_embed,
            f"a tied head without projection needs d_hidden = d_embed, not {self.d_hidden} and "
            f"{self.d_embed}",
        )

    @property
    def width(self) -> int:
        return self.d_hidden

    @property
    def recurrent_width(self) -> int:
        return self.d_hidden

    @property
    def shape(self) -> str:
        return f"{plural(self.n_layer, 'layer')}, d_hidden {self.d_hidden}"

    @property
    def head_width(self) -> int:
        return self.d_embed if self.projection else self.d_hidden

    @property
    def embed_width(self) -> int:
        return self.d_embed

    def module(
        self,
        rngs: nnx.Rngs,
        *,
        dtype: str = "float32",
        unroll: bool = False,
        attention: str = "xla",
        remat: bool = False,
    ) -> nnx.Module:
        from lmscale.models.lstm import LSTM

        # There is no attention, and `REMAT` is off.
        del attention, remat
        return LSTM(self, rngs, dtype=dtype, unroll=unroll)

    def operations(self) -> dict[str, Operation]:
        e, h, n = self.d_embed, self.d_hidden, self.n_layer
        projected = e if self.projection else 0
        return {
            # Scaled by sqrt(d_embed) after the lookup. Backward, also added to the row of the token.
            "embedding": Operation(self.vocab_size * e, float(e), 2.0 * e),
            # One matmul projects the inputs of all time steps; the recurrent one runs at every step.
            "lstm_input": matmul(4 * h * (e + (n - 1) * h)),
            "lstm_recurrent": matmul(n * 4 * h * h),
            "lstm_gates": elementwise((GATES, n * h)),
            "projection": matmul(h * projected),
            # A layer stores two vectors, but adds only their sum.
            "bias": elementwise((ADD, n * 4 * h + projected), params=n * 8 * h + projected),
            "head": output_head(self),
            "loss": elementwise((CROSS_ENTROPY, self.vocab_size)),
        }

    def activations(self, number_bytes: int, platform: str, attention: str) -> Activations:
        del attention
        width, h = number_bytes, self.d_hidden
        # Input, four gates, hidden state and tanh of the cell; and the cell in float32.
        forward = (7 * width + 4) * h
        # Derivatives of the gates, and the hidden states of the previous steps.
        backward = 5 * width * h
        if platform == "gpu":
            # These are then needed while the logits are still in memory.
            forward, backward = forward + backward, 0
        return Activations(
            input=width * h,
            whole=0,
            split=forward,
            backward=backward,
            # Fitted to the compiled CPU programs of 14 shapes; TPU programs need none.
            ends=width * (6.5 * h + 1.2 * self.d_embed) if platform == "cpu" else 0,
            layer_params=4 * h * (h + max(h, self.d_embed)),
        )

    def gpu_costs(self, unrolled: bool) -> GpuCosts:
        del unrolled
        # A time step is 5 kernels forward and 6 backward, and reads the recurrent kernel in both.
        return GpuCosts(
            kernels=11 * self.n_ctx + 10,
            passes=14.5,
            derivatives=4,
            weights=2 * self.n_ctx * 4 * self.d_hidden**2,
        )

    def recurrent_kernel_costs(self, number_bytes: int) -> tuple[Activations, GpuCosts]:
        # Saved are the input, four gates, the hidden state, and the cell in float32.
        kept = dataclasses.replace(
            self.activations(number_bytes, "gpu", "xla"),
            split=(6 * number_bytes + 4) * self.d_hidden,
            backward=0,
        )
        serial = 2 * self.n_ctx * KERNEL_STEP_SECONDS
        # The embedding's gradient moves as much as 2.5 passes of a layer.
        passes = 8 + 2.5 / self.n_layer
        return kept, GpuCosts(kernels=5, passes=passes, derivatives=8, serial=serial)

    @classmethod
    def of_shape(cls, n_layer: int, width: int, *, n_ctx: int, vocab_size: int) -> LSTMSpec:
        return cls(
            n_layer=n_layer, d_hidden=width, d_embed=width, n_ctx=n_ctx, vocab_size=vocab_size
        )

    @classmethod
    def of_size(cls, n_params: float, **options: Unpack[SizeOptions]) -> LSTMSpec:
        """One layer by default, an embedding as wide as the layer up to 512, and `LSTM_INIT`."""
        options.pop("init_std", None)
        return lstm_shape(n_params, d_embed=None, **options, **LSTM_INIT)

    @classmethod
    def ladders(cls, models: Sequence[Self]) -> list[Ladder]:
        first = models[0]
        if len({model.n_layer for model in models}) > 1:
            return []
        fields = {name: getattr(first, name) for name in ("d_embed", "projection", "tied_head")}
        rule = functools.partial(
            lstm_shape, n_layer=first.n_layer, **fields, **shared_fields(models)
        )
        return [Ladder(rule, f"LSTMs of {first.n_layer} layer{'s' * (first.n_layer > 1)}")]

    def scaled(self, factor: float) -> LSTMSpec:
        target = self.n_non_embedding() * factor
        like = lstm_shape(
            target,
            n_layer=self.n_layer,
            d_embed=self.d_embed,
            projection=self.projection,
            # With a tied head and no projection d_hidden would have to equal d_embed.
            tied_head=self.tied_head and self.projection,
            **shared_fields([self]),
        )
        tied = self.tied_head and not self.projection
        d_embed = like.d_hidden if tied else self.d_embed
        return dataclasses.replace(self, d_hidden=like.d_hidden, d_embed=d_embed)

    def short_run_lr(self, base: float | None = None) -> float:
        del base
        return 0.0095 * math.sqrt(min(1.0, FLAT_WIDTH / self.d_hidden))


def lstm_shape(
    n_params: float,
    *,
    n_ctx: int,
    vocab_size: int,
    n_layer: int | None = None,
    d_embed: int | None = KAPLAN_EMBED,
    **fields: Any,
) -> LSTMSpec:
    """The LSTM of `n_layer` layers whose non-embedding count is closest to `n_params`.

    Args:
      n_params: the target.
      n_ctx, vocab_size: of the model.
      n_layer: None is one layer.
      d_embed: width of the embedding; None is the width of the layers, up to Kaplan's 512.
      fields: other fields of `LSTMSpec`.
    """

    def shape(d_hidden: int) -> LSTMSpec:
        return LSTMSpec(
            n_layer=1 if n_layer is None else n_layer,
            d_hidden=d_hidden,
            d_embed=min(KAPLAN_EMBED, d_hidden) if d_embed is None else d_embed,
            n_ctx=n_ctx,
            vocab_size=vocab_size,
            **fields,
        )

    low, high = 1, 2
    while shape(high).n_non_embedding() < n_params:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if shape(middle).n_non_embedding() < n_params:
            low = middle
        else:
            high = middle
    # Multiples that suit vector units, where the model is large enough to have the choice.
    multiple = 4 if high < 128 else 8 if high < 512 else 64
    below, above = (max(multiple, x // multiple * multiple) for x in (high, high + multiple))
    return min(
        (shape(below), shape(above)),
        key=lambda m: abs(math.log(m.n_non_embedding() / n_params)),
    )

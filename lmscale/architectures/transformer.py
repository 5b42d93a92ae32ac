"""The Transformer of Kaplan et al. 2020 and its recurrent form; shapes by size; Chinchilla's shapes.

The model itself is in `lmscale.models.transformer`, so that commands that do not train need no jax.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

from lmscale.architectures.base import ModelSpec, register, shared_fields
from lmscale.architectures.chinchilla_table import CHINCHILLA_SHAPES
from lmscale.architectures.heads import nearest_heads, usual_head_width
from lmscale.architectures.hugging_face import HuggingFace, Renamed, require_values, rotary_of
from lmscale.architectures.parts import (
    ACTIVATION,
    ADD,
    CROSS_ENTROPY,
    LAYER_NORM,
    ROTATION,
    SCALE,
    SHARED_ARRAYS,
    SOFTMAX,
    Activations,
    Array,
    Ladder,
    Operation,
    SizeOptions,
    elementwise,
    matmul,
    output_head,
)
from lmscale.serialize import DERIVED, Derived, SpecError, require, require_positive
from lmscale.terminal import plural

if TYPE_CHECKING:
    from flax import nnx


#: Base of the rotary positions' wavelengths (Su et al. 2021).
ROPE_THETA = 10_000.0
#: Our activation functions by the names of transformers.
_THEIR_ACTIVATION = {"gelu": "gelu_new", "relu": "relu"}


@register
@dataclass(frozen=True, kw_only=True)
class TransformerSpec(ModelSpec):
    """A decoder-only Transformer in the parameters of Kaplan et al. 2020, Table 1.

    `d_ff` defaults to 4 d_model, `d_attn` (width of queries, of keys and of values, all heads
    together) to d_model, and `n_head` to heads of about 64. With `reuse` > 1 the `n_layer` blocks are
    applied `reuse` times each. This is the recurrent (Universal) Transformer of Kaplan's Fig. 17; its
    effective depth is n_layer * reuse.

    Defaults are filled in when a spec is made. So `dataclasses.replace(spec, d_model=...)` keeps the
    old d_ff, d_attn and n_head; replace them by `DERIVED` to get the defaults again.
    """

    kind = "transformer"

    d_model: int
    n_head: Derived[int] = DERIVED
    d_ff: Derived[int] = DERIVED
    d_attn: Derived[int] = DERIVED
    #: How often each block is applied; 1 is the plain Transformer.
    reuse: int = 1
    #: "stack" repeats the whole stack (ABAB), "layer" each block in place (AABB).
    reuse_order: Literal["stack", "layer"] = "stack"
    #: "sinusoidal" adds the Universal Transformer's position-and-step signal before every step.
    step_signal: Literal["none", "sinusoidal"] = "none"
    norm: Literal["pre", "post"] = "pre"
    activation: Literal["gelu", "relu"] = "gelu"
    bias: bool = True
    #: "learned" adds a vector for each place in the window, as GPT-2 does. "rotary" turns queries and keys
    #: instead (Su et al. 2021): attention to the token before need not be learnt for every place, which
    #: takes small models a million tokens and more.
    positions: Literal["learned", "rotary"] = "learned"
    #: Standard deviation of the initial weights; 0.02 is that of GPT-2, whose width is 768. Much
    #: narrower models need more, about 0.5 / sqrt(d_model): otherwise attention stays uniform for long.
    init_std: float = 0.02

    MASKS_DOCUMENTS = True
    NON_EMBEDDING = ("qkv", "attention_out", "feed_forward")
    MATMULS = ("qkv", "attention_scores", "attention_out", "feed_forward")
    SHAPE_FIELDS = ("n_layer", "d_model", "n_head", "d_ff", "d_attn")
    ARRAYS = (
        *SHARED_ARRAYS,
        Array(r"(^|/)position$", (None, "data"), decays=False),
        Array(r"norm_\w+/(scale|bias)$", None, decays=False),
        # [layer, d_model, 3, n_head, d_head] and [layer, n_head, d_head, d_model].
        Array(r"qkv/kernel$", (None, "data", None, "model", None), decays=True),
        Array(r"qkv/bias$", (None, None, "model", None), decays=False),
        Array(r"attention/out/kernel$", (None, "model", None, "data"), decays=True),
        Array(r"up/kernel$", (None, "data", "model"), decays=True),
        Array(r"up/bias$", (None, "model"), decays=False),
        Array(r"down/kernel$", (None, "model", "data"), decays=True),
        Array(r"(attention/out|down)/bias$", None, decays=False),
    )

    def _check(self) -> None:
        require_positive(self, "d_model")
        if self.d_attn is None:
            object.__setattr__(self, "d_attn", self.d_model)
        require_positive(self, "d_attn")
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        if self.n_head is None:
            heads = max(1, round(self.d_attn / 64))
            while self.d_attn % heads:
                heads -= 1
            object.__setattr__(self, "n_head", heads)
        super()._check()
        require_positive(self, "d_model", "n_head", "d_ff", "d_attn", "reuse")
        require(
            self.init_std > 0, f"TransformerSpec.init_std must be positive, not {self.init_std!r}"
        )
        require(
            self.d_attn % self.n_head == 0,
            f"TransformerSpec.d_attn ({self.d_attn}) must be a multiple of n_head ({self.n_head})",
        )

    @property
    def width(self) -> int:
        return self.d_model

    @property
    def attention_width(self) -> int:
        return self.d_attn // self.n_head

    @property
    def depth(self) -> int:
        """Blocks that a token passes through: n_layer * reuse."""
        return self.n_layer * self.reuse

    @property
    def label(self) -> str:
        reuse = f"x{self.reuse}" if self.reuse > 1 else ""
        return f"transformer-{self.n_layer}{reuse}x{self.d_model}"

    @property
    def shape(self) -> str:
        layers = plural(self.n_layer, "layer") + (f" x {self.reuse}" if self.reuse > 1 else "")
        return f"{layers}, d_model {self.d_model}, {plural(self.n_head, 'head')}"

    def module(self, rngs: nnx.Rngs, **options: Any) -> nnx.Module:
        from lmscale.models.transformer import Transformer

        return Transformer(self, rngs, **options)

    def hugging_face(self) -> HuggingFace:
        """`GPT2LMHeadModel`, or with rotary positions `GPTNeoXForCausalLM`, which have this block.

        Without biases there, they are zero.
        """
        rotary = self.positions == "rotary"
        reasons = {
            "recurrence (reuse > 1)": self.reuse > 1,
            "step signals": self.step_signal != "none",
            "post-normalisation": self.norm != "pre",
            f"attention of another width ({self.d_attn}) than d_model ({self.d_model})": self.d_attn
            != self.d_model,
            f"rotation of heads of an odd width ({self.attention_width})": rotary
            and self.attention_width % 2 == 1,
        }
        form = self._gpt_neox() if rotary else self._gpt2()
        if why := [reason for reason, holds in reasons.items() if holds]:
            (name,) = form.config["architectures"]
            raise SpecError(f"{name} of transformers has no {', no '.join(why)}")
        return form

    def _gpt2(self) -> HuggingFace:
        config = {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": self.vocab_size,
            "n_positions": self.n_ctx,
            "n_embd": self.d_model,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_inner": self.d_ff,
            "activation_function": _THEIR_ACTIVATION[self.activation],
            "embd_pdrop": self.dropout,
            "resid_pdrop": self.dropout,
            "attn_pdrop": 0.0,
            "layer_norm_epsilon": 1e-5,
            "initializer_range": self.init_std,
            "tie_word_embeddings": self.tied_head,
        }
        layer, d, f = "transformer.h.{layer}", self.d_model, self.d_ff
        arrays = [
            Renamed("embed.embedding", "transformer.wte.weight"),
            Renamed("position", "transformer.wpe.weight"),
            Renamed("norm_final.scale", "transformer.ln_f.weight"),
            Renamed("blocks.norm_attention.scale", f"{layer}.ln_1.weight"),
            Renamed("blocks.norm_feed_forward.scale", f"{layer}.ln_2.weight"),
            Renamed("blocks.attention.qkv.kernel", f"{layer}.attn.c_attn.weight", 1),
            Renamed("blocks.attention.out.kernel", f"{layer}.attn.c_proj.weight", 2),
            Renamed("blocks.feed_forward.up.kernel", f"{layer}.mlp.c_fc.weight", 1),
            Renamed("blocks.feed_forward.down.kernel", f"{layer}.mlp.c_proj.weight", 1),
        ]
        biases = (
            (Renamed("norm_final.bias", "transformer.ln_f.bias"), d),
            (Renamed("blocks.norm_attention.bias", f"{layer}.ln_1.bias"), d),
            (Renamed("blocks.norm_feed_forward.bias", f"{layer}.ln_2.bias"), d),
            (Renamed("blocks.attention.qkv.bias", f"{layer}.attn.c_attn.bias"), 3 * d),
            (Renamed("blocks.attention.out.bias", f"{layer}.attn.c_proj.bias"), d),
            (Renamed("blocks.feed_forward.up.bias", f"{layer}.mlp.c_fc.bias"), f),
            (Renamed("blocks.feed_forward.down.bias", f"{layer}.mlp.c_proj.bias"), d),
        )
        return self._form(config, arrays, biases)

    def _gpt_neox(self) -> HuggingFace:
        config = {
            "architectures": ["GPTNeoXForCausalLM"],
            "model_type": "gpt_neox",
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.n_ctx,
            "hidden_size": self.d_model,
            "num_hidden_layers": self.n_layer,
            "num_attention_heads": self.n_head,
            "intermediate_size": self.d_ff,
            "hidden_act": _THEIR_ACTIVATION[self.activation],
            "hidden_dropout": self.dropout,
            "attention_dropout": 0.0,
            "layer_norm_eps": 1e-5,
            "initializer_range": self.init_std,
            "tie_word_embeddings": self.tied_head,
            "use_parallel_residual": False,
            # Versions before 5 read the first two, later ones the third.
            "rotary_pct": 1.0,
            "rotary_emb_base": ROPE_THETA,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": ROPE_THETA,
                "partial_rotary_factor": 1.0,
            },
        }
        layer, d, f = "gpt_neox.layers.{layer}", self.d_model, self.d_ff
        qkv = f"{layer}.attention.query_key_value"
        arrays = [
            Renamed("embed.embedding", "gpt_neox.embed_in.weight"),
            Renamed("norm_final.scale", "gpt_neox.final_layer_norm.weight"),
            Renamed("blocks.norm_attention.scale", f"{layer}.input_layernorm.weight"),
            Renamed("blocks.norm_feed_forward.scale", f"{layer}.post_attention_layernorm.weight"),
            # [d_model, 3, n_head, d_head]; theirs has query, key and value of one head side by side.
            Renamed("blocks.attention.qkv.kernel", f"{qkv}.weight", 1, True, (1, 2)),
            Renamed("blocks.attention.out.kernel", f"{layer}.attention.dense.weight", 2, True),
            Renamed("blocks.feed_forward.up.kernel", f"{layer}.mlp.dense_h_to_4h.weight", 1, True),
            Renamed(
                "blocks.feed_forward.down.kernel", f"{layer}.mlp.dense_4h_to_h.weight", 1, True
            ),
        ]
        biases = (
            (Renamed("norm_final.bias", "gpt_neox.final_layer_norm.bias"), d),
            (Renamed("blocks.norm_attention.bias", f"{layer}.input_layernorm.bias"), d),
            (Renamed("blocks.norm_feed_forward.bias", f"{layer}.post_attention_layernorm.bias"), d),
            (Renamed("blocks.attention.qkv.bias", f"{qkv}.bias", swapped=(0, 1)), 3 * d),
            (Renamed("blocks.attention.out.bias", f"{layer}.attention.dense.bias"), d),
            (Renamed("blocks.feed_forward.up.bias", f"{layer}.mlp.dense_h_to_4h.bias"), f),
            (Renamed("blocks.feed_forward.down.bias", f"{layer}.mlp.dense_4h_to_h.bias"), d),
        )
        return self._form(config, arrays, biases)

    def _form(
        self,
        config: dict[str, Any],
        arrays: list[Renamed],
        biases: Sequence[tuple[Renamed, int]],
    ) -> HuggingFace:
        """The head and the biases (with their widths) added, as far as the model has them."""
        if not self.tied_head:
            arrays = [*arrays, Renamed("head.kernel", "lm_head.weight", 1, transposed=True)]
        if self.bias:
            return HuggingFace(config, (*arrays, *(bias for bias, _ in biases)))
        zeros = {
            bias.theirs.format(layer=k): (width,)
            for bias, width in biases
            for k in range(self.n_layer)
        }
        return HuggingFace(config, tuple(arrays), zeros)

    @classmethod
    def of_hugging_face(cls, config: dict[str, Any]) -> TransformerSpec | None:
        if config.get("model_type") == "gpt_neox":
            return cls._of_gpt_neox(config)
        if config.get("model_type") != "gpt2":
            return None
        own = {
            "layer_norm_epsilon": 1e-5,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        }
        require_values(config, own)
        return cls(
            n_layer=config["n_layer"],
            n_ctx=config["n_positions"],
            vocab_size=config["vocab_size"],
            d_model=config["n_embd"],
            n_head=config["n_head"],
            d_ff=config.get("n_inner") or 4 * config["n_embd"],
            activation=_our_activation(config.get("activation_function", "gelu_new")),
            tied_head=config.get("tie_word_embeddings", True),
        )

    @classmethod
    def _of_gpt_neox(cls, config: dict[str, Any]) -> TransformerSpec:
        rope = rotary_of(config)
        # With their defaults, where those are not ours.
        found = {
            "use_parallel_residual": True,
            **config,
            "rotary_pct": rope.get("partial_rotary_factor", config.get("rotary_pct", 0.25)),
            "rotary_emb_base": rope.get("rope_theta", config.get("rotary_emb_base", ROPE_THETA)),
        }
        own = {
            "layer_norm_eps": 1e-5,
            "attention_bias": True,
            "use_parallel_residual": False,
            "rotary_pct": 1.0,
            "rotary_emb_base": ROPE_THETA,
        }
        require_values(found, own)
        return cls(
            n_layer=config["num_hidden_layers"],
            n_ctx=config["max_position_embeddings"],
            vocab_size=config["vocab_size"],
            d_model=config["hidden_size"],
            n_head=config["num_attention_heads"],
            d_ff=config["intermediate_size"],
            activation=_our_activation(config.get("hidden_act", "gelu")),
            tied_head=config.get("tie_word_embeddings", False),
            positions="rotary",
        )

    def operations(self) -> dict[str, Operation]:
        d, a, f = self.d_model, self.d_attn, self.d_ff
        n, c, depth = self.n_layer, self.n_ctx, self.depth
        # A pre-norm stack ends with a norm of its own; the output of a post-norm stack is normalised.
        n_final = 1 if self.norm == "pre" else 0
        # Biases of a block: two norms, query/key/value, attention output, and the two feed-forward layers.
        block_biases, final_biases = (
            (2 * d + 3 * a + d + f + d, n_final * d) if self.bias else (0, 0)
        )
        # The signal is added before each pass of the stack, or before each application of a layer.
        n_signals = {"stack": self.reuse, "layer": depth}[self.reuse_order]
        if self.step_signal == "none":
            n_signals = 0
        n_learned, rotation = 1, {}
        if self.positions == "rotary":
            n_learned, rotation = 0, {"rotation": elementwise((ROTATION, depth * 2 * a))}
        return {
            # Forward, the lookup is a copy. Backward, the gradient of a token is added to its row.
            "embedding": Operation(self.vocab_size * d, 0.0, float(d)),
            # The signal has no parameters, so only the learned positions accumulate gradients.
            "position": Operation(
                n_learned * c * d, float((n_learned + n_signals) * d), float(n_learned * d)
            ),
            "norm": elementwise(
                (LAYER_NORM, (2 * depth + n_final) * d), params=(2 * n + n_final) * d
            ),
            "qkv": matmul(n * d * 3 * a, uses=self.reuse),
            # QK^T and the weighted sum of the values.
            "attention_scores": Operation(0, 4.0 * depth * c * a, 8.0 * depth * c * a),
            "softmax": elementwise((SOFTMAX, depth * self.n_head * c), (SCALE, depth * a)),
            "attention_out": matmul(n * a * d, uses=self.reuse),
            "feed_forward": matmul(n * 2 * d * f, uses=self.reuse),
            "activation": elementwise((ACTIVATION[self.activation], depth * f)),
            "residual": elementwise((ADD, 2 * depth * d)),
            "bias": elementwise(
                (ADD, depth * block_biases + final_biases), params=n * block_biases + final_biases
            ),
            "head": output_head(self),
            "loss": elementwise((CROSS_ENTROPY, self.vocab_size)),
            **rotation,
        }

    def softmax_flops(self) -> float:
        return 3.0 * self.depth * self.n_head * self.n_ctx

    def activations(self, number_bytes: int, platform: str, attention: str) -> Activations:
        width, d, a, f = number_bytes, self.d_model, self.d_attn, self.d_ff
        gpu = platform == "gpu"
        # Queries, keys, values and the attention output. The flash kernels pad heads.
        multiple = {"splash": 128, "cudnn": 8}.get(attention, 1)
        heads = 4 * self.n_head * multiple * math.ceil(self.attention_width / multiple)
        # The scores in float32, and the softmax weights.
        scores = (4 + width) * self.n_head * self.n_ctx if attention == "xla" else 0
        return Activations(
            input=width * d,
            # Inputs and outputs of the two norms, and their inputs in float32.
            whole=(4 * width + (0 if gpu else 2 * 4)) * d,
            # Before and after the activation function.
            split=(heads + 2 * f) * width + scores,
            layer_params=d * (4 * a + 2 * f),
        )

    def splits_over(self, n_devices: int) -> bool:
        return self.n_head % n_devices == 0 and self.d_ff % n_devices == 0

    @classmethod
    def of_shape(cls, n_layer: int, width: int, *, n_ctx: int, vocab_size: int) -> TransformerSpec:
        return cls(n_layer=n_layer, d_model=width, n_ctx=n_ctx, vocab_size=vocab_size)

    @classmethod
    def of_size(cls, n_params: float, **options: Unpack[SizeOptions]) -> TransformerSpec:
        options.setdefault("init_std", None)
        return transformer_shape(n_params, **options)

    @classmethod
    def ladders(cls, models: Sequence[Self]) -> list[Ladder]:
        found, shared = super().ladders(models), shared_fields(models)
        depths = {model.n_layer for model in models}
        if len(depths) == 1:
            (depth,) = depths
            layers = f"{depth} layer{'s' * (depth > 1)}"
            fixed = functools.partial(cls.of_size, n_layer=depth, **shared)
            found.insert(0, Ladder(fixed, f"{layers} at every size"))
        table = chinchilla_shapes(**shared)

        def from_table(n_params: float) -> TransformerSpec:
            return min(table, key=lambda m: abs(math.log(m.n_non_embedding() / n_params)))

        return [*found, Ladder(from_table, "shapes of Hoffmann et al. 2022, Table A9")]

    def with_head_multiple(self, multiple: int) -> TransformerSpec:
        if self.attention_width % multiple == 0:
            return self
        shape = nearest_shape(self.d_model, self.init_std, multiple)
        return dataclasses.replace(self, **shape, d_attn=DERIVED)

    def scaled(self, factor: float) -> TransformerSpec:
        d_head = self.d_attn // self.n_head
        n_head = max(1, round(self.n_head * factor**0.5))
        ratio = n_head / self.n_head
        return dataclasses.replace(
            self,
            d_model=max(1, round(self.d_model * ratio)),
            d_ff=max(1, round(self.d_ff * ratio)),
            d_attn=n_head * d_head,
            n_head=n_head,
        )


def _our_activation(theirs: str) -> Literal["gelu", "relu"]:
    known: dict[str, Literal["gelu", "relu"]] = {
        "gelu_new": "gelu",
        "gelu_pytorch_tanh": "gelu",
        "relu": "relu",
    }
    require(theirs in known, f"activation_function {theirs!r} is not had here")
    return known[theirs]


def aspect_ratio(n_params: float) -> float:
    """d_model / n_layer for a size.

    The loss is flat around the best ratio (Kaplan et al. 2020, Fig. 5: within 1% from 12 to 128 at
    50M parameters). Below 1M a ratio near 64 would leave fewer than two layers, so the ratio falls
    with the fourth root of the size there. Above 1B it rises as in Chinchilla's models (5120 / 47 at
    16B).
    """
    if n_params < 2.5e6:
        return max(8.0, 64 * (n_params / 2.5e6) ** 0.25)
    return 64 * max(1.0, n_params / 1e9) ** 0.2


def init_by_width(d_model: int) -> float:
    """Standard deviation of a Transformer's initial weights: 0.5 / sqrt(d_model), at least GPT-2's 0.02.

    The two are equal at a width of 625. See `TransformerSpec.init_std`.
    """
    return float(f"{max(0.02, 0.5 / math.sqrt(d_model)):.3g}")


def nearest_shape(d_model: int, init_std: float, multiple: int) -> dict[str, Any]:
    """Fields of the nearest standard shape whose heads are a multiple of `multiple` wide (`nearest_heads`).

    An initialisation by width stays one; d_ff is the standard one.
    """
    width, n_head = nearest_heads(d_model, multiple)
    if init_std == init_by_width(d_model):
        init_std = init_by_width(width)
    return {"d_model": width, "n_head": n_head, "d_ff": DERIVED, "init_std": init_std}


def transformer_shape(
    n_params: float,
    *,
    n_ctx: int,
    vocab_size: int,
    n_layer: int | None = None,
    init_std: float | None = 0.02,
    **fields: Any,
) -> TransformerSpec:
    """The standard shape (d_ff = 4 d_model) closest to `n_params` non-embedding parameters.

    Widths are multiples of 4 below 32, of 8 below 128, of 16 below 256, and of 64 from there on. Heads
    are 16 wide in the smallest models, and 64 wide from a width of 256 on. The size counts more than
    the aspect ratio (`aspect_ratio`). With `n_layer` the depth is fixed, and only the width is chosen.
    `init_std` None is `init_by_width`.
    """

    def d_model_of(depth: int) -> int:
        width = math.sqrt(n_params / (12 * depth))
        multiple = 4 if width < 32 else 8 if width < 128 else 16 if width < 256 else 64
        return max(multiple, round(width / multiple) * multiple)

    def cost(depth: int) -> float:
        d_model = d_model_of(depth)
        size = 12 * depth * d_model**2
        return 4 * abs(math.log(size / n_params)) + abs(
            math.log(d_model / depth / aspect_ratio(n_params))
        )

    depth = min(range(1, 129) if n_layer is None else (n_layer,), key=cost)
    d_model = d_model_of(depth)
    n_head = max(1, d_model // usual_head_width(d_model))
    while d_model % n_head:
        n_head -= 1
    return TransformerSpec(
        n_layer=depth,
        d_model=d_model,
        n_head=n_head,
        n_ctx=n_ctx,
        vocab_size=vocab_size,
        init_std=init_by_width(d_model) if init_std is None else init_std,
        **fields,
    )


def transformer_ladder(
    sizes: Sequence[float], *, n_ctx: int, vocab_size: int, head_multiple: int = 1, **fields: Any
) -> list[TransformerSpec]:
    """One shape for each size, without duplicates.

    Args:
      sizes: non-embedding parameters.
      head_multiple: see `ModelSpec.with_head_multiple`.
      fields: see `transformer_shape`.
    """
    shapes = [
        transformer_shape(size, n_ctx=n_ctx, vocab_size=vocab_size, **fields) for size in sizes
    ]
    return list(dict.fromkeys(shape.with_head_multiple(head_multiple) for shape in shapes))


def chinchilla_shapes(*, n_ctx: int, vocab_size: int) -> list[TransformerSpec]:
    """The 50 models of Hoffmann et al. 2022, Table A9."""
    return [
        TransformerSpec(
            n_layer=n_layer,
            d_model=d_model,
            d_ff=d_ff,
            d_attn=d_head * n_head,
            n_head=n_head,
            n_ctx=n_ctx,
            vocab_size=vocab_size,
        )
        for d_model, d_ff, d_head, n_head, n_layer in CHINCHILLA_SHAPES
    ]

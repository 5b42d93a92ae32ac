"""Llama (Touvron et al. 2023), and its shapes by size.

The model itself is in `lmscale.models.llama`, so that commands that do not train need no jax.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

from lmscale.architectures.base import ModelSpec, register
from lmscale.architectures.hugging_face import HuggingFace, Renamed, require_values, rotary_of
from lmscale.architectures.parts import (
    ADD,
    CROSS_ENTROPY,
    ROTATION,
    SCALE,
    SHARED_ARRAYS,
    SOFTMAX,
    Activations,
    Array,
    Operation,
    SizeOptions,
    elementwise,
    matmul,
    output_head,
)
from lmscale.architectures.transformer import nearest_shape, transformer_shape
from lmscale.serialize import DERIVED, Derived, require, require_positive
from lmscale.terminal import plural

if TYPE_CHECKING:
    from flax import nnx

#: FLOPs per element, forward and backward, as in `lmscale.models.llama`: x^2, mean, two products;
#: silu(gate) * up.
RMS_NORM, SWIGLU = (4, 9), (5, 9)


@register
@dataclass(frozen=True, kw_only=True)
class LlamaSpec(ModelSpec):
    """Llama's Transformer: RMSNorm, rotary positions, SwiGLU, no biases, an untied output head.

    `n_head` defaults to heads of about 64, `n_kv_head` (heads of keys and values, for grouped-query
    attention) to n_head, and `d_head` to d_model / n_head. `d_ff` defaults to 8/3 d_model, rounded to a
    multiple of 8: the three matrices of SwiGLU then have the parameters of the usual two.

    Defaults are filled in when a spec is made. So `dataclasses.replace(spec, d_model=...)` keeps the
    old ones; replace them by `DERIVED` to get the defaults again.
    """

    kind = "llama"

    d_model: int
    n_head: Derived[int] = DERIVED
    n_kv_head: Derived[int] = DERIVED
    d_head: Derived[int] = DERIVED
    d_ff: Derived[int] = DERIVED
    #: RMSNorm of each query and key head before the rotation (Dehghani et al. 2023; Qwen3).
    qk_norm: bool = False
    rope_theta: float = 10_000.0
    #: Added to the mean square in every norm.
    epsilon: float = 1e-5
    tied_head: bool = False
    #: Standard deviation of the initial weights; see `TransformerSpec.init_std`.
    init_std: float = 0.02

    MASKS_DOCUMENTS = True
    NON_EMBEDDING = ("qkv", "attention_out", "feed_forward")
    MATMULS = ("qkv", "attention_scores", "attention_out", "feed_forward")
    SHAPE_FIELDS = ("n_layer", "d_model", "n_head", "n_kv_head", "d_head", "d_ff")
    ARRAYS = (
        *SHARED_ARRAYS,
        Array(r"norm_\w+/scale$", None, decays=False),
        # [layer, d_model, n_head, d_head] and [layer, n_head, d_head, d_model].
        Array(r"attention/(query|key|value)/kernel$", (None, "data", "model", None), decays=True),
        Array(r"attention/out/kernel$", (None, "model", None, "data"), decays=True),
        Array(r"(gate|up)/kernel$", (None, "data", "model"), decays=True),
        Array(r"down/kernel$", (None, "model", "data"), decays=True),
    )

    def _check(self) -> None:
        def default(name: str, value: int) -> None:
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

        require_positive(self, "d_model")
        heads = max(1, round(self.d_model / 64))
        while self.d_model % heads:
            heads -= 1
        default("n_head", heads)
        default("n_kv_head", self.n_head)
        default("d_head", max(2, self.d_model // max(1, self.n_head)))
        default("d_ff", max(8, round(self.d_model / 3) * 8))
        super()._check()
        require_positive(self, "d_model", "n_head", "n_kv_head", "d_head", "d_ff")
        require(
            self.d_head % 2 == 0,
            f"LlamaSpec.d_head must be even, for the rotation of pairs, not {self.d_head}",
        )
        require(
            self.n_head % self.n_kv_head == 0,
            f"LlamaSpec.n_head ({self.n_head}) must be a multiple of n_kv_head ({self.n_kv_head})",
        )
        for name in ("init_std", "rope_theta", "epsilon"):
            value = getattr(self, name)
            require(value > 0, f"LlamaSpec.{name} must be positive, not {value!r}")

    @property
    def width(self) -> int:
        return self.d_model

    @property
    def shape(self) -> str:
        heads = plural(self.n_head, "head")
        if self.n_kv_head != self.n_head:
            heads += f" ({self.n_kv_head} of keys and values)"
        return f"{plural(self.n_layer, 'layer')}, d_model {self.d_model}, {heads}"

    @property
    def attention_width(self) -> int:
        return self.d_head

    def module(self, rngs: nnx.Rngs, **options: Any) -> nnx.Module:
        from lmscale.models.llama import Llama

        return Llama(self, rngs, **options)

    def hugging_face(self) -> HuggingFace:
        """`LlamaForCausalLM`; with `qk_norm` `Qwen3ForCausalLM`."""
        name, kind = ("Qwen3", "qwen3") if self.qk_norm else ("Llama", "llama")
        config = {
            "architectures": [f"{name}ForCausalLM"],
            "model_type": kind,
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "intermediate_size": self.d_ff,
            "num_hidden_layers": self.n_layer,
            "num_attention_heads": self.n_head,
            "num_key_value_heads": self.n_kv_head,
            "head_dim": self.d_head,
            "max_position_embeddings": self.n_ctx,
            "hidden_act": "silu",
            "rms_norm_eps": self.epsilon,
            # Versions before 5 read the first, later ones the second.
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "initializer_range": self.init_std,
            "tie_word_embeddings": self.tied_head,
        }
        layer = "model.layers.{layer}"

        def matrix(ours: str, theirs: str, n_in: int = 1) -> Renamed:
            return Renamed(f"blocks.{ours}.kernel", f"{layer}.{theirs}.weight", n_in, True)

        arrays = [
            Renamed("embed.embedding", "model.embed_tokens.weight"),
            Renamed("norm_final.scale", "model.norm.weight"),
            Renamed("blocks.norm_attention.scale", f"{layer}.input_layernorm.weight"),
            Renamed("blocks.norm_feed_forward.scale", f"{layer}.post_attention_layernorm.weight"),
            matrix("attention.query", "self_attn.q_proj"),
            matrix("attention.key", "self_attn.k_proj"),
            matrix("attention.value", "self_attn.v_proj"),
            matrix("attention.out", "self_attn.o_proj", 2),
            matrix("feed_forward.gate", "mlp.gate_proj"),
            matrix("feed_forward.up", "mlp.up_proj"),
            matrix("feed_forward.down", "mlp.down_proj"),
        ]
        if not self.tied_head:
            arrays.append(Renamed("head.kernel", "lm_head.weight", 1, True))
        if self.qk_norm:
            arrays += [
                Renamed(
                    f"blocks.attention.norm_{part}.scale", f"{layer}.self_attn.{short}_norm.weight"
                )
                for part, short in (("query", "q"), ("key", "k"))
            ]
        return HuggingFace(config, tuple(arrays))

    @classmethod
    def of_hugging_face(cls, config: dict[str, Any]) -> LlamaSpec | None:
        if config.get("model_type") not in ("llama", "qwen3"):
            return None
        rope = rotary_of(config)
        require_values(config, {"hidden_act": "silu", "partial_rotary_factor": 1.0})
        require_values(rope, {"partial_rotary_factor": 1.0})
        for name in ("attention_bias", "mlp_bias", "use_sliding_window"):
            require(not config.get(name), f"{name} must be false")
        heads = config["num_attention_heads"]
        return cls(
            n_layer=config["num_hidden_layers"],
            n_ctx=config["max_position_embeddings"],
            vocab_size=config["vocab_size"],
            d_model=config["hidden_size"],
            n_head=heads,
            n_kv_head=config.get("num_key_value_heads") or heads,
            d_head=config.get("head_dim") or config["hidden_size"] // heads,
            d_ff=config["intermediate_size"],
            qk_norm=config["model_type"] == "qwen3",
            rope_theta=rope.get("rope_theta") or config.get("rope_theta") or 10_000.0,
            epsilon=config.get("rms_norm_eps", 1e-6),
            tied_head=config.get("tie_word_embeddings", False),
        )

    def operations(self) -> dict[str, Operation]:
        d, f, n, c = self.d_model, self.d_ff, self.n_layer, self.n_ctx
        a, b = self.n_head * self.d_head, self.n_kv_head * self.d_head
        head_norms = 2 * self.d_head if self.qk_norm else 0
        return {
            "embedding": Operation(self.vocab_size * d, 0.0, float(d)),
            "norm": elementwise(
                (RMS_NORM, (2 * n + 1) * d + (n * (a + b) if self.qk_norm else 0)),
                params=(2 * n + 1) * d + n * head_norms,
            ),
            "qkv": matmul(n * d * (a + 2 * b)),
            "rotation": elementwise((ROTATION, n * (a + b))),
            # QK^T and the weighted sum of the values.
            "attention_scores": Operation(0, 4.0 * n * c * a, 8.0 * n * c * a),
            "softmax": elementwise((SOFTMAX, n * self.n_head * c), (SCALE, n * a)),
            "attention_out": matmul(n * a * d),
            "feed_forward": matmul(n * 3 * d * f),
            "activation": elementwise((SWIGLU, n * f)),
            "residual": elementwise((ADD, 2 * n * d)),
            "bias": Operation(0, 0.0, 0.0),
            "head": output_head(self),
            "loss": elementwise((CROSS_ENTROPY, self.vocab_size)),
        }

    def softmax_flops(self) -> float:
        return 3.0 * self.n_layer * self.n_head * self.n_ctx

    def activations(self, number_bytes: int, platform: str, attention: str) -> Activations:
        width, d, f = number_bytes, self.d_model, self.d_ff
        a, b = self.n_head * self.d_head, self.n_kv_head * self.d_head
        # The scores in float32, and the softmax weights.
        scores = (4 + width) * self.n_head * self.n_ctx if attention == "xla" else 0
        # Queries and the attention output; keys and values, and their copies for every query head.
        heads = 2 * a + 2 * b + (2 * a if b < a else 0)
        if attention == "cudnn":
            # That kernel pads heads.
            heads = heads * 8 * math.ceil(self.d_head / 8) // self.d_head
        return Activations(
            input=width * d,
            # Inputs and outputs of the two norms, and their inputs in float32.
            whole=(4 * width + (0 if platform == "gpu" else 2 * 4)) * d,
            # Gate, silu(gate), up and their product.
            split=(heads + 4 * f) * width + scores,
            layer_params=d * (2 * a + 2 * b + 3 * f),
        )

    def splits_over(self, n_devices: int) -> bool:
        return self.n_kv_head % n_devices == 0 and self.d_ff % n_devices == 0

    @classmethod
    def of_shape(cls, n_layer: int, width: int, *, n_ctx: int, vocab_size: int) -> LlamaSpec:
        return cls(n_layer=n_layer, d_model=width, n_ctx=n_ctx, vocab_size=vocab_size)

    @classmethod
    def of_size(cls, n_params: float, **options: Unpack[SizeOptions]) -> LlamaSpec:
        """The depth, width and heads of the Transformer of this size (see `transformer_shape`)."""
        options.setdefault("init_std", None)
        like = transformer_shape(n_params, **options)
        d_head = 2 * max(1, round(like.d_attn / like.n_head / 2))
        return cls(
            n_layer=like.n_layer,
            d_model=like.d_model,
            n_head=like.n_head,
            d_head=d_head,
            n_ctx=like.n_ctx,
            vocab_size=like.vocab_size,
            init_std=like.init_std,
        )

    def with_head_multiple(self, multiple: int) -> LlamaSpec:
        if self.d_head % multiple == 0:
            return self
        shape = nearest_shape(self.d_model, self.init_std, multiple)
        return dataclasses.replace(self, **shape, n_kv_head=DERIVED, d_head=DERIVED)

    def scaled(self, factor: float) -> LlamaSpec:
        groups = max(1, round(self.n_kv_head * factor**0.5))
        ratio = groups / self.n_kv_head
        return dataclasses.replace(
            self,
            d_model=max(2, round(self.d_model * ratio)),
            d_ff=max(1, round(self.d_ff * ratio)),
            n_head=groups * (self.n_head // self.n_kv_head),
            n_kv_head=groups,
        )

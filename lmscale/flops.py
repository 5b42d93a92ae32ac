"""Parameters and training FLOPs of a model by operation, and what the papers make of them.

Published laws disagree about what N and C count: whether the embeddings, the head and attention
over the context belong to them. Counting the head alone moves the exponent of N_opt(C) from 0.84 to
0.71 (Porian et al. 2024). So a model is first counted operation by operation (`operations`), and
each convention is a sum over that table:

| convention | N | training FLOPs per token |
|---|---|---|
| kaplan | matrices without embedding and head (Kaplan et al. 2020, Table 1) | 6 N |
| chinchilla | kaplan's and all vocabulary matrices | 3 x the list of Hoffmann et al. 2022, App. F |
| standard | kaplan's and the head, not the input embedding (Porian et al. 2024) | 6 N |
| exact | every stored scalar | every operation, forward and backward, as the models do it |

A recurrent Transformer stores its blocks once and applies them `reuse` times: N counts them once
and every FLOP count `reuse` times.

Throughout, a multiply-add is two FLOPs, one token stands for the mean over a full context of n_ctx,
and attention scores are counted in full, masked or not, because a dense kernel computes them all.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from lmscale.spec import LSTMSpec, ModelSpec, RunSpec, TransformerSpec

__all__ = [
    "CONVENTIONS",
    "Operation",
    "chinchilla_flops_per_token",
    "chinchilla_table_a9_params",
    "n_params",
    "operations",
    "own_flops",
    "step_flops",
    "training_flops",
    "training_flops_per_token",
]

CONVENTIONS = ("kaplan", "chinchilla", "standard", "exact")


@dataclass(frozen=True)
class Operation:
    """What one kind of operation stores and costs, over all layers of a model.

    Attributes:
      params: stored scalars, shared ones once.
      forward_flops: FLOPs per token of the forward pass.
      backward_flops: FLOPs per token of the gradients of inputs and parameters. Twice the forward
        pass for a matmul; elementwise work has no such rule.
    """

    params: int
    forward_flops: float
    backward_flops: float


#: Operations whose parameters are Kaplan's N, by kind of model. Kaplan's Transformer counts leave
#: the biases out (Table 1); the LSTM counts of Fig. 7 can be met only with them.
_NON_EMBEDDING = {
    "transformer": ("qkv", "attention_out", "feed_forward"),
    "lstm": ("lstm_input", "lstm_recurrent", "projection", "bias"),
}

#: Matmuls of the two models apart from the vocabulary's.
_MATMULS = (
    "qkv",
    "attention_scores",
    "attention_out",
    "feed_forward",
    "lstm_input",
    "lstm_recurrent",
    "projection",
)

# Elementwise arithmetic as (forward, backward) FLOPs per element, read off the formulas in
# lmscale.models. exp, tanh, log and rsqrt count nothing: they have no agreed price, and XLA's own
# count keeps them apart as well.
_ADD = (1, 1)
_SCALE = (1, 1)
_LAYER_NORM = (6, 12)
_SOFTMAX = (5, 4)
_ACTIVATION = {"gelu": (7, 14), "relu": (1, 2)}
_LSTM_GATES = (20, 20)
_CROSS_ENTROPY = (3, 4)


def operations(model: ModelSpec) -> dict[str, Operation]:
    """The raw counts of `model`, from which every convention follows.

    Left out of the FLOPs is what is paid per step and not per token (the optimizer's update, the
    sum of a shared matrix's gradients over its uses, the causal mask and the step signal), dropout,
    and whatever is computed twice to save memory. With batches of thousands of tokens XLA counts at
    most 1% more in its compiled program, even at widths of 32 to 64 where elementwise work is 2 to
    5% of all.

    Returns:
      Operations by name. Both kinds of model have embedding, bias, head and loss. A Transformer
      adds position, norm, qkv, attention_scores (QK^T and the weighted sum of values), softmax,
      attention_out, feed_forward, activation and residual; an LSTM adds lstm_input, lstm_recurrent,
      lstm_gates and projection.
    """
    if isinstance(model, TransformerSpec):
        return _transformer_operations(model)
    return _lstm_operations(model)


def n_params(model: ModelSpec, convention: str) -> int:
    """Parameters N of `model` under one of `CONVENTIONS`.

    kaplan: 2 d_model n_layer (2 d_attn + d_ff) for a Transformer (Kaplan et al. 2020, eq. 2.1); for
    an LSTM the count that Fig. 7 plots, biases included. chinchilla: that and the vocabulary's
    matrices, a tied one once. standard: kaplan's and d V for the head, tied or not (Porian et al.
    2024). exact: every stored scalar, so also positions, norms and biases.

    Raises:
      ValueError: if the convention is not one of `CONVENTIONS`.
    """
    _require_convention(convention)
    counts = operations(model)
    if convention == "exact":
        return sum(operation.params for operation in counts.values())
    N = sum(counts[name].params for name in _NON_EMBEDDING[model.kind])
    if convention == "chinchilla":
        return N + counts["embedding"].params + counts["head"].params
    if convention == "standard":
        return N + _head_matrix(model)
    return N


def training_flops_per_token(model: ModelSpec, convention: str) -> float:
    """Training FLOPs per token, forward and backward, under one of `CONVENTIONS`.

    kaplan: 6 N reuse, without attention scores, embedding or head (Kaplan et al. 2020, section
    2.1). chinchilla: `chinchilla_flops_per_token`. standard: 6 (N reuse + d V) with kaplan's N
    (Porian et al. 2024). exact: all `operations`, as the models perform them with the "xla"
    attention; a flash kernel skips masked scores and computes the others once more.

    Raises:
      ValueError: if the convention is not one of `CONVENTIONS`.
    """
    _require_convention(convention)
    if convention == "exact":
        counts = operations(model).values()
        return float(sum(count.forward_flops + count.backward_flops for count in counts))
    if convention == "chinchilla":
        return chinchilla_flops_per_token(model)
    N_applied = n_params(model, "kaplan") * _reuse(model)
    if convention == "standard":
        return 6.0 * (N_applied + _head_matrix(model))
    return 6.0 * N_applied


def training_flops(spec: RunSpec, convention: str) -> float:
    """Training FLOPs C of a whole run: per token, times D = steps * batch_size * n_ctx."""
    return training_flops_per_token(spec.model, convention) * spec.n_tokens


def step_flops(spec: RunSpec) -> float:
    """FLOPs that one update executes (exact convention)."""
    return training_flops_per_token(spec.model, "exact") * spec.batch_tokens


def own_flops(spec: RunSpec) -> float:
    """FLOPs that a run executes itself (exact convention): `spec.start` comes for free."""
    return step_flops(spec) * spec.own_steps


def chinchilla_flops_per_token(model: ModelSpec, *, vocabulary: bool = True) -> float:
    """Training FLOPs per token by the list of Hoffmann et al. 2022, Appendix F.

    Matmuls, full attention, 3 n_head n_ctx for the softmax of each layer, and 2 V d each for the
    embedding (as if it were a matmul) and the logits; the backward pass costs twice the forward. An
    LSTM is counted by the same rules: matmuls and the two vocabulary terms.

    Args:
      model: the model.
      vocabulary: count the two V d terms. The ratios to 6 N D of the paper's Table A4 come out only
        without them, though the list has them and N (`chinchilla_table_a9_params`) keeps its V d.
    """
    counts = operations(model)
    forward = sum(counts[name].forward_flops for name in _MATMULS if name in counts)
    if isinstance(model, TransformerSpec):
        forward += 3 * model.depth * model.n_head * model.n_ctx
    if vocabulary:
        forward += 2 * counts["embedding"].params + counts["head"].forward_flops
    return 3.0 * forward


def chinchilla_table_a9_params(
    d_model: int, d_ff: int, d_attn: int, n_layer: int, vocab_size: int = 32_000
) -> int:
    """Parameters V d + n_layer (5 d d_attn + 2 d d_ff) of Hoffmann et al. 2022, Table A9.

    Meets all 50 printed sizes within 0.8%, where four attention matrices would miss by 7% on
    average. The paper does not explain the fifth; presumably it projects the keys of the relative
    positions in Transformer-XL's attention.
    """
    return vocab_size * d_model + n_layer * d_model * (5 * d_attn + 2 * d_ff)


def _transformer_operations(model: TransformerSpec) -> dict[str, Operation]:
    d, a, f = model.d_model, model.d_attn, model.d_ff
    n, c, depth = model.n_layer, model.n_ctx, model.depth
    # A pre-norm stack ends in a norm of its own; a post-norm one has normalised already.
    n_final = 1 if model.norm == "pre" else 0
    # In a block: two norms, queries with keys and values, and the three projections back.
    block_biases, final_biases = (2 * d + 3 * a + d + f + d, n_final * d) if model.bias else (0, 0)
    # The signal is added before each pass of the stack, or before each application of a layer.
    n_signals = {"stack": model.reuse, "layer": depth}[model.reuse_order]
    if model.step_signal == "none":
        n_signals = 0
    return {
        # Forward, the lookup is a copy; backward, a token's gradient is added to its row.
        "embedding": Operation(model.vocab_size * d, 0.0, float(d)),
        # The signal has no parameters, so only the learned positions add up gradients.
        "position": Operation(c * d, float((1 + n_signals) * d), float(d)),
        "norm": _elementwise(
            (_LAYER_NORM, (2 * depth + n_final) * d), params=(2 * n + n_final) * d
        ),
        "qkv": _matmul(n * d * 3 * a, uses=model.reuse),
        # QK^T and the weighted sum of the values.
        "attention_scores": Operation(0, 4.0 * depth * c * a, 8.0 * depth * c * a),
        "softmax": _elementwise((_SOFTMAX, depth * model.n_head * c), (_SCALE, depth * a)),
        "attention_out": _matmul(n * a * d, uses=model.reuse),
        "feed_forward": _matmul(n * 2 * d * f, uses=model.reuse),
        "activation": _elementwise((_ACTIVATION[model.activation], depth * f)),
        "residual": _elementwise((_ADD, 2 * depth * d)),
        "bias": _elementwise(
            (_ADD, depth * block_biases + final_biases), params=n * block_biases + final_biases
        ),
        "head": _head(model),
        "loss": _elementwise((_CROSS_ENTROPY, model.vocab_size)),
    }


def _lstm_operations(model: LSTMSpec) -> dict[str, Operation]:
    e, h, n = model.d_embed, model.d_hidden, model.n_layer
    projected = e if model.projection else 0
    return {
        # Scaled by sqrt(d_embed) after the lookup; backward, also added to the token's row.
        "embedding": Operation(model.vocab_size * e, float(e), 2.0 * e),
        # The input projection of all time steps is one matmul, the recurrent one a step at a time.
        "lstm_input": _matmul(4 * h * (e + (n - 1) * h)),
        "lstm_recurrent": _matmul(n * 4 * h * h),
        "lstm_gates": _elementwise((_LSTM_GATES, n * h)),
        "projection": _matmul(h * projected),
        # Two vectors a layer are stored, but their sum is what is added.
        "bias": _elementwise((_ADD, n * 4 * h + projected), params=n * 8 * h + projected),
        "head": _head(model),
        "loss": _elementwise((_CROSS_ENTROPY, model.vocab_size)),
    }


def _matmul(params: int, uses: int = 1) -> Operation:
    """A token through `params` weights, `uses` times; each of the two gradients costs as much."""
    forward = 2.0 * params * uses
    return Operation(params, forward, 2.0 * forward)


def _elementwise(*work: tuple[tuple[int, int], int], params: int = 0) -> Operation:
    """`work` lists pairs of (FLOPs per element forward and backward) and elements per token."""
    forward = sum(cost[0] * elements for cost, elements in work)
    backward = sum(cost[1] * elements for cost, elements in work)
    return Operation(params, float(forward), float(backward))


def _head(model: ModelSpec) -> Operation:
    matmul = _matmul(_head_matrix(model))
    return dataclasses.replace(matmul, params=0) if model.tied_head else matmul


def _head_matrix(model: ModelSpec) -> int:
    """Elements d V of the output matrix, stored as the head's own or shared with the embedding."""
    if isinstance(model, TransformerSpec):
        width = model.d_model
    else:
        width = model.d_embed if model.projection else model.d_hidden
    return width * model.vocab_size


def _reuse(model: ModelSpec) -> int:
    return model.reuse if isinstance(model, TransformerSpec) else 1


def _require_convention(convention: str) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f"a convention is one of {', '.join(CONVENTIONS)}, not {convention!r}")

"""Parameters and training FLOPs of a model by operation, and by the conventions of the papers.

Published laws disagree about what N and C count: with or without embeddings, head, and attention over
the context. The head alone moves the exponent of N_opt(C) from 0.84 to 0.71 (Porian et al. 2024). So
a model is first counted operation by operation (`operations`), and each convention is a sum over
these operations:

| convention | N | training FLOPs per token |
|---|---|---|
| kaplan | matrices without embedding and head (Kaplan et al. 2020, Table 1) | 6 N |
| chinchilla | kaplan's and all vocabulary matrices | 3 x the list of Hoffmann et al. 2022, App. F |
| standard | kaplan's and the head, not the input embedding (Porian et al. 2024) | 6 N |
| exact | every stored scalar | every operation, forward and backward, as the models do it |

A recurrent Transformer stores its blocks once and applies them `reuse` times: N counts them once
and every FLOP count `reuse` times.

A multiply-add is two FLOPs. FLOPs per token are the mean over a full context of n_ctx tokens.
Attention scores are all counted, masked or not, because a dense kernel computes all of them.
"""

from __future__ import annotations

from lmscale.architectures import ModelSpec, Operation
from lmscale.spec import RunSpec

__all__ = [
    "CONVENTIONS",
    "Operation",
    "chinchilla_flops_per_token",
    "chinchilla_table_a9_params",
    "flops_without_start",
    "n_params",
    "operations",
    "step_flops",
    "training_flops",
    "training_flops_per_token",
]

CONVENTIONS = ("kaplan", "chinchilla", "standard", "exact")


def operations(model: ModelSpec) -> dict[str, Operation]:
    """The raw counts of `model`, from which every convention follows.

    The FLOPs leave out work per step and not per token (the update of the optimizer, the sum of the
    gradients of a shared matrix over its uses, the causal mask, the step signal), dropout, and
    recomputation that saves memory. With batches of thousands of tokens XLA counts at most 1% more in
    its compiled program, even at widths of 32 to 64, where elementwise work is 2 to 5% of the total.

    Returns:
      Operations by name. Every model has embedding, bias, head and loss. A Transformer
      adds position, norm, qkv, attention_scores (QK^T and the weighted sum of values), softmax,
      attention_out, feed_forward, activation and residual; an LSTM adds lstm_input, lstm_recurrent,
      lstm_gates and projection.
    """
    return model.operations()


def n_params(model: ModelSpec, convention: str) -> int:
    """Parameters N of `model` under one of `CONVENTIONS`.

    kaplan: 2 d_model n_layer (2 d_attn + d_ff) for a Transformer (Kaplan et al. 2020, eq. 2.1); for
    an LSTM the count of Fig. 7, with biases. chinchilla: kaplan's and the vocabulary matrices, a tied
    one once. standard: kaplan's and d V for the head, tied or not (Porian et al. 2024). exact: every
    stored scalar, so also positions, norms and biases.

    Raises:
      ValueError: the convention is not one of `CONVENTIONS`.
    """
    _require_convention(convention)
    counts = operations(model)
    if convention == "exact":
        return sum(operation.params for operation in counts.values())
    N = model.n_non_embedding()
    if convention == "chinchilla":
        return N + counts["embedding"].params + counts["head"].params
    if convention == "standard":
        return N + model.head_width * model.vocab_size
    return N


def training_flops_per_token(model: ModelSpec, convention: str) -> float:
    """Training FLOPs per token, forward and backward, under one of `CONVENTIONS`.

    kaplan: 6 N reuse, without attention scores, embedding or head (Kaplan et al. 2020, section
    2.1). chinchilla: `chinchilla_flops_per_token`. standard: 6 (N reuse + d V) with kaplan's N
    (Porian et al. 2024). exact: all `operations`, as the models perform them with the "xla"
    attention; a flash kernel skips masked scores and computes the others once more.

    Raises:
      ValueError: the convention is not one of `CONVENTIONS`.
    """
    _require_convention(convention)
    if convention == "exact":
        counts = operations(model).values()
        return float(sum(count.forward_flops + count.backward_flops for count in counts))
    if convention == "chinchilla":
        return chinchilla_flops_per_token(model)
    # A recurrent model applies its layers more than once.
    N_applied = n_params(model, "kaplan") * (model.depth // model.n_layer)
    if convention == "standard":
        return 6.0 * (N_applied + model.head_width * model.vocab_size)
    return 6.0 * N_applied


def training_flops(spec: RunSpec, convention: str) -> float:
    """Training FLOPs C of a whole run: per token, times D = steps * batch_size * n_ctx."""
    return training_flops_per_token(spec.model, convention) * spec.n_tokens


def step_flops(spec: RunSpec) -> float:
    """FLOPs of one update (exact convention)."""
    return training_flops_per_token(spec.model, "exact") * spec.batch_tokens


def flops_without_start(spec: RunSpec) -> float:
    """FLOPs of a run (exact convention) without those of the run that `spec.start` names."""
    return step_flops(spec) * spec.own_steps


def chinchilla_flops_per_token(model: ModelSpec, *, vocabulary: bool = True) -> float:
    """Training FLOPs per token by the list of Hoffmann et al. 2022, Appendix F.

    Matmuls, full attention, 3 n_head n_ctx for the softmax of each layer, and 2 V d each for the
    embedding (as if it were a matmul) and the logits. The backward pass costs twice the forward pass.
    The same rules count an LSTM: matmuls and the two vocabulary terms.

    Args:
      model: the model.
      vocabulary: count the two V d terms. Without them the ratios to 6 N D of the paper's Table A4 are
        reproduced, although its list has them and its N (`chinchilla_table_a9_params`) counts V d.
    """
    counts = operations(model)
    forward = sum(counts[name].forward_flops for name in model.MATMULS) + model.softmax_flops()
    if vocabulary:
        forward += 2 * counts["embedding"].params + counts["head"].forward_flops
    return 3.0 * forward


def chinchilla_table_a9_params(
    d_model: int, d_ff: int, d_attn: int, n_layer: int, vocab_size: int = 32_000
) -> int:
    """Parameters V d + n_layer (5 d d_attn + 2 d d_ff) of Hoffmann et al. 2022, Table A9.

    It gives all 50 printed sizes within 0.8%; four attention matrices would be off by 7% on average.
    The paper does not explain the fifth. It may project the keys of the relative positions in the
    attention of Transformer-XL.
    """
    return vocab_size * d_model + n_layer * d_model * (5 * d_attn + 2 * d_ff)


def _require_convention(convention: str) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f"a convention is one of {', '.join(CONVENTIONS)}, not {convention!r}")

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

from lmscale.architectures import ModelSpec, Operation
from lmscale.spec import RunSpec

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
    return model.operations()


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
      ValueError: if the convention is not one of `CONVENTIONS`.
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
    forward = sum(counts[name].forward_flops for name in model.MATMULS) + model.softmax_flops()
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


def _require_convention(convention: str) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f"a convention is one of {', '.join(CONVENTIONS)}, not {convention!r}")

"""Attention kernels, the fused head, the LSTM's kernels and matmuls, against more precise references."""

from __future__ import annotations

import math
import time
from typing import Any, Literal

from lmscale.doctor.check import Finding, Place

#: Widths of heads that the kernels are tried with: the usual one, one that is padded, and a wide one.
WIDTHS = (64, 44, 128)
#: Largest error of a kernel, relative to the largest number: bfloat16 has 8 bits, TF32 has 10.
TOLERANCE = {"bfloat16": 0.04, "float32": 0.01}
#: Error of a float32 matmul above which its factors were rounded, as TF32 rounds them.
FLOAT32_ERROR = 1e-5

#: Widths of final hidden states that the fused head is tried with: small models', and its widest.
HEAD_WIDTHS = (64, 256)
#: Hidden units that the LSTM's kernels are tried with: small models', and their widest.
LSTM_WIDTHS = (64, 128)
_PLAIN = "LMSCALE_HEAD=xla in the environment trains with the plain head"
_REPORT = "send the output of lmscale doctor --json with a report"

#: Kernel -> its platform, and how to have it.
_KERNELS = {"cudnn": ("gpu", "an NVIDIA GPU"), "splash": ("tpu", "a TPU")}


def precision(place: Place) -> Finding:
    """What float32 means here: NVIDIA GPUs round the factors of float32 matmuls to TF32."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    left, right = np.random.default_rng(0).normal(size=(2, 256, 256)).astype(np.float32)
    exact = left.astype(np.float64) @ right.astype(np.float64)
    found = np.asarray(jax.jit(jnp.matmul)(left, right), np.float64)
    error = float(np.abs(found - exact).max() / np.abs(exact).max())
    facts = {"relative_error": error, "float32": error < FLOAT32_ERROR}
    if not math.isfinite(error) or error > TOLERANCE["float32"]:
        return Finding("failed", f"a float32 matmul is off by {error:.2g}", "see devices", facts)
    if error > FLOAT32_ERROR:
        text = f"float32 matmuls round their factors (TF32 on NVIDIA GPUs): off by {error:.1g}"
        remedy = (
            "compute_dtype float32 means this here, which is usual for training; "
            "JAX_DEFAULT_MATMUL_PRECISION=highest gives full float32, several times slower"
        )
        return Finding("ok", text, remedy, facts)
    return Finding("ok", f"float32 matmuls are float32: off by {error:.1g}", None, facts)


def attention(place: Place) -> Finding:
    """Every attention kernel of this platform, forward and gradients, against scores in float32."""
    import jax

    platform = jax.devices()[0].platform
    kernels = [("xla", "float32"), ("xla", "bfloat16")]
    kernels += [(name, "bfloat16") for name, (where, _) in _KERNELS.items() if where == platform]
    cases = [
        (kernel, dtype, d_head, masked)
        for kernel, dtype in kernels
        for d_head, masked in [*((width, False) for width in WIDTHS), (WIDTHS[0], True)]
        # cuDNN's kernel has no mask between documents.
        if not (masked and kernel == "cudnn")
    ]
    errors, wrong = {}, []
    for kernel, dtype, d_head, masked in cases:
        name = f"{kernel} {dtype} heads of {d_head}" + " and masked documents" * masked
        try:
            errors[name] = kernel_error(kernel, dtype, d_head, masked)
        except Exception as error:  # One kernel that is not there says nothing about the others.
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            wrong.append(f"{name}: {first[:160]}")
            continue
        if not errors[name] < TOLERANCE[dtype]:
            wrong.append(f"{name} is off by {errors[name]:.2g}")
    absent = [
        f"{name} needs {what}" for name, (where, what) in _KERNELS.items() if where != platform
    ]
    facts = {"errors": errors, "wrong": wrong, "used": kernels[-1][0]}
    if wrong:
        remedy = (
            "install the extra for this platform anew (lmscale[cuda13] brings cuDNN); if it stays, "
            + _REPORT
        )
        return Finding("failed", "; ".join(wrong), remedy, facts)
    tried = ", ".join(dict.fromkeys(f"{kernel} in {dtype}" for kernel, dtype in kernels))
    text = f"{tried} agree with float32 scores to {max(errors.values()):.1g}; {'; '.join(absent)}"
    return Finding("ok", text, None, facts)


def head(place: Place) -> Finding:
    """The fused output head of NVIDIA GPUs against the plain one, in error and in time."""
    import jax

    if jax.devices()[0].platform != "gpu":
        return Finding("ok", "the fused head needs an NVIDIA GPU; here logits are in memory")
    facts: dict[str, Any] = {}
    try:
        for width in HEAD_WIDTHS:
            error, fused, plain = head_against_plain(width)
            facts[str(width)] = {"error": error, "fused_seconds": fused, "plain_seconds": plain}
    except Exception as error:  # Whatever a kernel raises is the finding.
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Finding("failed", f"the fused head: {first[:160]}", f"{_PLAIN}; {_REPORT}", facts)
    worst = max(one["error"] for one in facts.values())
    if not worst < TOLERANCE["bfloat16"]:
        return Finding(
            "failed", f"the fused head is off by {worst:.2g}", f"{_PLAIN}; {_REPORT}", facts
        )
    speeds = ", ".join(
        f"{one['plain_seconds'] / one['fused_seconds']:.2g} times as fast at width {width}"
        for width, one in facts.items()
    )
    text = f"the fused head agrees with float32 to {worst:.1g}; it is {speeds} as the plain one"
    slow = any(one["fused_seconds"] > one["plain_seconds"] for one in facts.values())
    return Finding("warning" if slow else "ok", text, _PLAIN if slow else None, facts)


def lstm(place: Place) -> Finding:
    """The LSTM's kernels against its time scan, in error and in time. By default they are not used."""
    import jax

    from lmscale.models.lstm_kernel import SWITCH, is_asked
    from lmscale.serialize import SpecError

    try:
        asked = is_asked()
    except SpecError as refused:
        return Finding("failed", str(refused), f"mend or unset {SWITCH}")
    if jax.devices()[0].platform != "gpu":
        return Finding("ok", "the LSTM's kernels need an NVIDIA GPU; here time steps are a scan")
    bad: Literal["failed", "warning"] = "failed" if asked else "warning"
    leave = f"{'unset' if asked else 'leave'} {SWITCH}{' unset' * (not asked)}"
    facts: dict[str, Any] = {}
    try:
        for width in LSTM_WIDTHS:
            error, kernel, scan = lstm_against_scan(width)
            facts[str(width)] = {"error": error, "kernel_seconds": kernel, "scan_seconds": scan}
    except Exception as error:  # Whatever a kernel raises is the finding.
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Finding(bad, f"the LSTM's kernels: {first[:160]}", f"{leave}; {_REPORT}", facts)
    worst = max(one["error"] for one in facts.values())
    if not worst < TOLERANCE["bfloat16"]:
        text = f"the LSTM's kernels are off by {worst:.2g}"
        return Finding(bad, text, f"{leave}; {_REPORT}", facts)
    speeds = ", ".join(
        f"{one['scan_seconds'] / one['kernel_seconds']:.2g} times as fast at {width} hidden units"
        for width, one in facts.items()
    )
    text = f"the LSTM's kernels agree with float32 to {worst:.1g}; they are {speeds} as its scan"
    if any(one["kernel_seconds"] > one["scan_seconds"] for one in facts.values()):
        return Finding("warning" if asked else "ok", text, leave, facts)
    use = f"{SWITCH}=kernel in the environment trains narrow LSTMs with them"
    return Finding("ok", text, None if asked else use, facts)


def lstm_against_scan(
    d_hidden: int,
    *,
    runs: int = 16,
    n_time: int = 128,
    n_batch: int = 32,
    interpret: bool = False,
) -> tuple[float, float, float]:
    """The LSTM's kernels' largest relative error, their seconds, and those of the scan.

    Args:
      d_hidden, runs, n_time, n_batch: of a pack's layers, in bfloat16, whose documents are apart.
      interpret: see `lmscale.models.lstm_kernel.kernel_recurrence`.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lmscale.models.lstm import recurrence
    from lmscale.models.lstm_kernel import kernel_recurrence

    random = np.random.default_rng(0)
    width, shape = 4 * d_hidden, (runs, n_time, n_batch)
    gates = jnp.asarray(random.normal(size=(*shape, width)), jnp.bfloat16)
    weights = random.normal(size=(runs, d_hidden, width)) / d_hidden**0.5
    keep = jnp.asarray(random.random((*shape, 1)) > 1 / 40, jnp.float32)
    d_out = jnp.asarray(random.normal(size=(*shape, d_hidden)), jnp.bfloat16)
    given = gates, jnp.asarray(weights, jnp.bfloat16), keep, d_out

    def both(cell: Any) -> Any:
        def total(gates: Any, weights: Any, keep: Any, d_out: Any) -> Any:
            hidden = cell(gates, weights, keep)
            return (hidden.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(), hidden

        return jax.jit(jax.vmap(jax.grad(total, (0, 1), has_aux=True)))

    def scan(gates: Any, weights: Any, keep: Any) -> Any:
        return recurrence(gates, weights, True, keep)

    def kernel(gates: Any, weights: Any, keep: Any) -> Any:
        return kernel_recurrence(gates, weights, keep, None, interpret)

    with jax.default_matmul_precision("highest"):
        expected = both(scan)(*(x[:1].astype(jnp.float32) for x in given))
    return _error_and_seconds(both(kernel), both(scan), given, expected)


def head_against_plain(
    width: int,
    *,
    runs: int = 16,
    n_tokens: int = 4096,
    n_vocab: int = 8192,
    interpret: bool = False,
) -> tuple[float, float, float]:
    """The fused head's largest relative error, its seconds, and those of the plain head.

    Args:
      width, runs, n_tokens, n_vocab: of a pack's heads.
      interpret: see `lmscale.training.fused_loss.fused_mean_loss`.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lmscale.training.fused_loss import fused_mean_loss
    from lmscale.training.loss import mean_loss_in_pieces

    random = np.random.default_rng(0)
    hidden = jnp.asarray(random.normal(size=(runs, n_tokens, width)), jnp.bfloat16)
    matrix = jnp.asarray(random.normal(size=(runs, n_vocab, width)) / width**0.5, jnp.bfloat16)
    targets = jnp.asarray(random.integers(0, n_vocab, (runs, n_tokens)), jnp.int32)

    def logits(head: Any, x: Any) -> Any:
        return (x @ head.T).astype(jnp.float32)

    def plain(hidden: Any, head: Any, targets: Any) -> Any:
        return mean_loss_in_pieces(logits, head, hidden[None], targets[None], 1)

    def fused(hidden: Any, head: Any, targets: Any) -> Any:
        return fused_mean_loss(hidden, head, targets, interpret)

    def packed(loss: Any) -> Any:
        return jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1))))

    with jax.default_matmul_precision("highest"):
        expected = packed(plain)(
            *(x[:1].astype(jnp.float32) for x in (hidden, matrix)), targets[:1]
        )
    given = hidden, matrix, targets
    return _error_and_seconds(packed(fused), packed(plain), given, expected)


def _error_and_seconds(
    ours: Any, theirs: Any, given: Any, expected: Any
) -> tuple[float, float, float]:
    """Our largest relative error, our seconds and theirs.

    Args:
      ours, theirs: functions of `given`, for all runs.
      expected: what is right for the first run.
    """
    import jax
    import numpy as np

    seconds = []
    for function in (ours, theirs):
        # The first call compiles.
        found = [_timed(function, given) for _ in range(5)]
        seconds.append(min(time for time, _ in found[1:]))
        if len(seconds) == 1:
            first = jax.tree.map(lambda x: x[:1], found[0][1])
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(expected), strict=True)
    error = max(_relative(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs)
    return error, seconds[0], seconds[1]


def _timed(function: Any, arguments: Any) -> tuple[float, Any]:
    import jax

    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start, result


def kernel_error(kernel: str, dtype: str, d_head: int, masked: bool = False) -> float:
    """Largest error of a kernel's output and gradients, relative to the largest number of each.

    Args:
      masked: with documents of 40 tokens that are masked from each other.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lmscale.models.attention import causal_attention

    shape = (2, 256, 2, d_head)
    given = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    *inputs, weight = (jnp.asarray(x, dtype) for x in given)
    documents = jnp.broadcast_to(jnp.arange(shape[1]) // 40, shape[:2]) if masked else None

    def both(function: Any) -> Any:
        def total(query: Any, key: Any, value: Any) -> Any:
            mixed = function(query, key, value)
            return (mixed.astype(jnp.float32) * weight.astype(jnp.float32)).sum(), mixed

        return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))

    found = both(lambda q, k, v: causal_attention(q, k, v, kernel, documents))(*inputs)
    with jax.default_matmul_precision("highest"):
        # Of the same rounded inputs.
        wide = (x.astype(jnp.float32) for x in inputs)
        expected = both(lambda q, k, v: written_out(q, k, v, documents))(*wide)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(_relative(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs)


def _relative(found: Any, expected: Any) -> float:
    return float(abs(found - expected).max() / abs(expected).max())


def written_out(query: Any, key: Any, value: Any, documents: Any = None) -> Any:
    """Causal attention of [batch, time, n_head, d_head] as a textbook has it, within documents [batch, time]."""
    import jax
    import jax.numpy as jnp

    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    if documents is not None:
        seen = seen & (documents[:, None, :, None] == documents[:, None, None, :])
    scores = jnp.where(seen, scores, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), value)

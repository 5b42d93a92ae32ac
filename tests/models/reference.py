"""Both architectures once more, in float64 NumPy, written from the papers' equations.

Nothing here is fast or clever: plain loops over sequences, layers, heads, gates and time, one
formula a line. It shares with `lmscale.models` the names of the parameters and nothing else, so the
two can only agree by computing the same function. Gradients come from central differences.

Kaplan: Kaplan et al. 2020 (2001.08361). GPT-2: Radford et al. 2019. UT: Dehghani et al. 2018
(1807.03819). AIAYN: Vaswani et al. 2017 (1706.03762).
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lmscale.spec import LSTMSpec, ModelSpec, TransformerSpec
from tests.quick_compile import quick_jit as quick

#: Arrays by dotted path, for example "blocks.attention.qkv.kernel".
Parameters = dict[str, np.ndarray]

BATCH, TIME = 2, 6


# The model under test.


def random_model(spec: ModelSpec, *, seed: int = 0, **options):
    """Graph definition and state of a model with every parameter random.

    Initial values would hide mistakes: zero biases, unit scales and weights of 0.02, which leave
    attention nearly uniform. Here every number is of order one and matters.
    """
    model = nnx.eval_shape(lambda: spec.module(nnx.Rngs(params=0), **options))
    graphdef, state = nnx.split(model)
    rng = np.random.default_rng(seed)
    values = {
        name: (1.0 if name.endswith("scale") else 0.0) + 0.3 * rng.standard_normal(leaf.shape)
        for name, leaf in named(state).items()
    }
    return graphdef, with_values(state, values)


def with_values(state, values: Parameters):
    """`state` with the given arrays, which must have its shapes, in its dtypes."""

    def value(path, leaf):
        assert values[_name(path)].shape == leaf.shape
        return jnp.asarray(values[_name(path)], leaf.dtype)

    return jax.tree_util.tree_map_with_path(value, state)


def named(state) -> Parameters:
    """The leaves of an NNX state (parameters or gradients) by dotted path."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def numpy(state) -> Parameters:
    """The same as NumPy arrays."""
    return {name: np.asarray(leaf) for name, leaf in named(state).items()}


def float64(state) -> Parameters:
    """The same as float64 NumPy arrays."""
    return {name: leaf.astype(np.float64) for name, leaf in numpy(state).items()}


def _name(path) -> str:
    return ".".join(str(key.key) for key in path if hasattr(key, "key"))


def batch(spec: ModelSpec) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets [BATCH, TIME], which have nothing to do with one another."""
    rng = np.random.default_rng(1)
    return tuple(rng.integers(0, spec.vocab_size, (2, BATCH, TIME)).astype(np.int32))


def loss_and_logits(graphdef, state, tokens, targets):
    logits = nnx.merge(graphdef, state)(tokens)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
    return -picked.mean(), logits


#: (graphdef, state, tokens, targets) -> logits.
model_logits = quick(lambda *args: loss_and_logits(*args)[1], static_argnums=0)
#: (graphdef, state, tokens, targets) -> ((loss, logits), gradients).
model_gradients = quick(
    jax.value_and_grad(loss_and_logits, argnums=1, has_aux=True), static_argnums=0
)


@functools.cache
def evaluated(spec: ModelSpec, **options):
    """Parameters in float64, loss, logits and gradients of a random model on `batch`."""
    graphdef, state = random_model(spec, **options)
    (loss, logits), gradient = model_gradients(graphdef, state, *batch(spec))
    return float64(state), float(loss), np.asarray(logits), numpy(gradient)


def deviation(value, truth) -> float:
    """Largest difference in units of the largest true value."""
    value, truth = np.asarray(value, np.float64), np.asarray(truth, np.float64)
    assert value.shape == truth.shape
    return float(np.abs(value - truth).max() / np.abs(truth).max())


def distance(value, truth) -> float:
    """Root mean square of the difference in units of that of the truth."""
    value, truth = np.asarray(value, np.float64), np.asarray(truth, np.float64)
    assert value.shape == truth.shape
    return float(np.linalg.norm(value - truth) / np.linalg.norm(truth))


def check_against_transformers(spec: ModelSpec, other, theirs) -> None:
    """Holds logits, loss and the gradients of every parameter against a model of the transformers library.

    Args:
      other: the model, in float64.
      theirs: our arrays by name -> the same under its names and in its shapes.
    """
    import torch

    params, loss, logits, gradients = evaluated(spec)
    state = {name: torch.tensor(x) for name, x in theirs(params).items()}
    missing = other.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= ({"lm_head.weight"} if spec.tied_head else set())
    tokens, targets = (torch.tensor(x.astype(np.int64)) for x in batch(spec))
    found = other(tokens).logits
    assert deviation(logits, found.detach().numpy()) < 1e-5
    mean = torch.nn.functional.cross_entropy(found.flatten(0, 1), targets.flatten())
    assert math.isclose(loss, mean.item(), rel_tol=1e-6)
    mean.backward()
    theirs_by_name = {name: x.grad.numpy() for name, x in other.named_parameters()}
    ours_by_name = theirs(gradients)
    assert set(ours_by_name) == set(theirs_by_name)
    for name, gradient in ours_by_name.items():
        assert deviation(gradient, theirs_by_name[name]) < 1e-5, name


# What it is compared with.


def forward(spec: ModelSpec, p: Parameters, tokens: np.ndarray) -> np.ndarray:
    """tokens [batch, time] -> logits [batch, time, vocab]."""
    one = {TransformerSpec: transformer, LSTMSpec: lstm}[type(spec)]
    return np.stack([one(spec, p, sequence) for sequence in tokens])


def loss(spec: ModelSpec, p: Parameters, tokens: np.ndarray, targets: np.ndarray) -> float:
    """Mean cross-entropy in nats per token."""
    total = 0.0
    for row, target in zip(
        forward(spec, p, tokens).reshape(targets.size, -1), targets.ravel(), strict=True
    ):
        total += math.log(sum(math.exp(z - row.max()) for z in row)) + row.max() - row[target]
    return total / targets.size


def slope(spec: ModelSpec, p: Parameters, tokens, targets, name: str, direction) -> float:
    """Derivative of the loss as parameter `name` moves along `direction`, by central difference."""
    h = 1e-5
    ahead = loss(spec, {**p, name: p[name] + h * direction}, tokens, targets)
    behind = loss(spec, {**p, name: p[name] - h * direction}, tokens, targets)
    return (ahead - behind) / (2 * h)


# The Transformer.


def transformer(spec: TransformerSpec, p: Parameters, tokens: np.ndarray) -> np.ndarray:
    """tokens [time] -> logits [time, vocab] (Kaplan section 2.1, GPT-2, UT section 2.1)."""
    x = p["embed.embedding"][tokens] + p["position"][: len(tokens)]
    for layer, step in block_order(spec):
        # UT: the signal is added at every step, which here is once a pass over the stack, or
        # before every application where each block is repeated in place.
        if spec.step_signal == "sinusoidal" and (spec.reuse_order == "layer" or layer == 0):
            x = x + coordinates(len(tokens), spec.d_model, step)
        block = {
            name.removeprefix("blocks."): leaf[layer]
            for name, leaf in p.items()
            if name.startswith("blocks.")
        }
        if spec.norm == "pre":  # GPT-2
            x = x + attention(block, layer_norm(block, "norm_attention", x))
            x = x + transition(spec, block, layer_norm(block, "norm_feed_forward", x))
        else:  # AIAYN section 3.1, UT equations 4 and 5
            x = layer_norm(block, "norm_attention", x + attention(block, x))
            x = layer_norm(block, "norm_feed_forward", x + transition(spec, block, x))
    if spec.norm == "pre":
        x = layer_norm(p, "norm_final", x)
    return x @ (p["embed.embedding"].T if spec.tied_head else p["head.kernel"])


def block_order(spec: TransformerSpec) -> list[tuple[int, int]]:
    """(block, step) of every application: ABAB for "stack", AABB for "layer"."""
    if spec.reuse_order == "stack":
        return [(layer, step) for step in range(spec.reuse) for layer in range(spec.n_layer)]
    return [(layer, step) for layer in range(spec.n_layer) for step in range(spec.reuse)]


def coordinates(n_time: int, d_model: int, step: int) -> np.ndarray:
    """UT equations 6 and 7, positions and steps counted from 0 as in the authors' code."""
    signal = np.zeros((n_time, d_model))
    for i in range(n_time):
        for channel in range(d_model):
            wave = math.sin if channel % 2 == 0 else math.cos
            period = 10000 ** (2 * (channel // 2) / d_model)
            signal[i, channel] = wave(i / period) + wave(step / period)
    return signal


def layer_norm(p: Parameters, name: str, x: np.ndarray) -> np.ndarray:
    y = np.zeros_like(x)
    for t, row in enumerate(x):
        y[t] = (row - row.mean()) / math.sqrt(row.var() + 1e-5) * p[f"{name}.scale"]
    return y + p.get(f"{name}.bias", 0.0)


def attention(p: Parameters, x: np.ndarray) -> np.ndarray:
    """AIAYN equation 1 for each head, over the positions up to and including t."""
    w, b = p["attention.qkv.kernel"], p.get("attention.qkv.bias")
    n_head, d_head = w.shape[2:]
    y = np.zeros_like(x)
    for head in range(n_head):
        q, k, v = (x @ w[:, i, head] + (0.0 if b is None else b[i, head]) for i in range(3))
        for t in range(len(x)):
            score = np.array([q[t] @ k[s] / math.sqrt(d_head) for s in range(t + 1)])
            weight = np.exp(score) / np.exp(score).sum()
            mixed = sum(weight[s] * v[s] for s in range(t + 1))
            y[t] += mixed @ p["attention.out.kernel"][head]
    return y + p.get("attention.out.bias", 0.0)


def transition(spec: TransformerSpec, p: Parameters, x: np.ndarray) -> np.ndarray:
    hidden = x @ p["feed_forward.up.kernel"] + p.get("feed_forward.up.bias", 0.0)
    if spec.activation == "relu":
        hidden = np.maximum(hidden, 0.0)
    else:  # Hendrycks & Gimpel 2016, the tanh form that GPT-2 uses
        inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
        hidden = 0.5 * hidden * (1 + np.tanh(inner))
    return hidden @ p["feed_forward.down.kernel"] + p.get("feed_forward.down.bias", 0.0)


# The LSTM.


def lstm(spec: LSTMSpec, p: Parameters, tokens: np.ndarray) -> np.ndarray:
    """tokens [time] -> logits [time, vocab] (Kaplan Fig. 7; Gers et al. 2000 for the cell)."""
    x = [math.sqrt(spec.d_embed) * p["embed.embedding"][token] for token in tokens]
    for layer in range(spec.n_layer):
        names = ("input_kernel", "recurrent_kernel", "input_bias", "recurrent_bias")
        if layer == 0:
            weights = [p[f"first.{name}"] for name in names]
        else:
            weights = [p[f"rest.{name}"][layer - 1] for name in names]
        x = lstm_layer(*weights, x)
    if spec.projection:
        x = [h @ p["projection.kernel"] + p["projection.bias"] for h in x]
    head = p["embed.embedding"].T if spec.tied_head else p["head.kernel"]
    return np.stack([h @ head for h in x])


def lstm_layer(w, r, b_w, b_r, x: list[np.ndarray]) -> list[np.ndarray]:
    """Hidden states of one layer; w and b_w act on the input, r and b_r on the hidden state."""
    h = c = np.zeros(r.shape[0])
    states = []
    for x_t in x:
        i, f, g, o = (x_t @ w[:, k] + b_w[k] + h @ r[:, k] + b_r[k] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return states


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))

"""Adafactor against a NumPy one that knows single matrices only, and against `transformers`."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from lmscale.optimizers.adafactor import Factors, scale_by_adafactor
from lmscale.spec import LSTMSpec, TransformerSpec
from tests.quick_compile import quick_jit as quick
from tests.training.specs import LSTM, TRANSFORMER

#: (path, axes of the matrix's input) of each kind of parameter that is a matrix.
TRANSFORMER_MATRICES = {
    "embed/embedding": 1,
    "position": 1,
    "blocks/attention/qkv/kernel": 1,
    "blocks/attention/out/kernel": 2,
    "blocks/feed_forward/up/kernel": 1,
    "blocks/feed_forward/down/kernel": 1,
}
LSTM_MATRICES = {
    "embed/embedding": 1,
    "projection/kernel": 1,
    "first/input_kernel": 1,
    "first/recurrent_kernel": 1,
    "rest/input_kernel": 1,
    "rest/recurrent_kernel": 1,
}
#: Of the paper's size, where the optimizer's memory is why Adafactor is used.
LARGE = [
    TransformerSpec(n_layer=48, d_model=1600, n_ctx=1024, vocab_size=50_257),
    TransformerSpec(n_layer=207, d_model=768, n_ctx=1024, vocab_size=50_257),
    LSTMSpec(n_layer=4, d_hidden=2048, n_ctx=1024, vocab_size=50_257),
]
MODELS = pytest.mark.parametrize(
    ("model", "matrices"),
    [
        (TRANSFORMER, TRANSFORMER_MATRICES),
        (LSTM, LSTM_MATRICES),
        # Deep and narrow: the two longest axes of its kernels hold the layers.
        (
            TransformerSpec(n_layer=20, d_model=8, n_head=2, n_ctx=4, vocab_size=11),
            TRANSFORMER_MATRICES,
        ),
    ],
    ids=["transformer", "lstm", "deep"],
)


@functools.cache
def parameters(model) -> dict[str, np.ndarray]:
    """Path -> initial values."""
    make = quick(lambda: nnx.to_pure_dict(nnx.split(model.module(nnx.Rngs(params=0)))[1]))
    params = make()
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(key.key for key in path): np.asarray(x) for path, x in leaves}


def nested(flat: dict[str, np.ndarray]) -> dict:
    tree = {}
    for path, x in flat.items():
        *folders, last = path.split("/")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = np.float32(x)
    return tree


def random_gradients(params, n: int) -> list[dict[str, np.ndarray]]:
    """Gradients whose rows, columns and layers differ in size, so that mixing them up shows."""
    rng = np.random.default_rng(0)

    def one(x):
        scale = 1.0
        for axis, size in enumerate(x.shape):
            shape = [1] * x.ndim
            shape[axis] = size
            scale = scale * np.exp(rng.normal(size=size)).reshape(shape)
        return (scale * rng.normal(size=x.shape)).astype(np.float32)

    return [{path: one(x) for path, x in params.items()} for _ in range(n)]


def our_updates(gradients) -> list[dict[str, np.ndarray]]:
    tx = scale_by_adafactor(("blocks", "rest"))
    state, seen, step = quick(tx.init)(nested(gradients[0])), [], quick(tx.update)
    for gradient in gradients:
        update, state = step(nested(gradient), state)
        leaves = jax.tree_util.tree_flatten_with_path(update)[0]
        seen.append({"/".join(key.key for key in path): np.asarray(x) for path, x in leaves})
    return seen


def by_layer(path: str, x: np.ndarray, matrices) -> list[np.ndarray]:
    """The matrices [d_in, d_out] or vectors that a parameter holds, one a layer."""
    layers = list(x) if path.startswith(("blocks", "rest")) else [x]
    if path.endswith("qkv/bias"):
        # Of queries, of keys, of values.
        layers = [vector for layer in layers for vector in layer]
    n_in = matrices.get(path)
    if n_in is None:
        return [layer.reshape(-1) for layer in layers]
    return [layer.reshape(int(np.prod(layer.shape[:n_in])), -1) for layer in layers]


def reference_updates(gradients: list[np.ndarray]) -> list[np.ndarray]:
    """Shazeer & Stern 2018, algorithms 4 and 5, of one matrix or vector, in float64."""
    seen, row, column, whole = [], 0.0, 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        g = g.astype(np.float64)
        b = 1 - t**-0.8
        squared = g**2 + 1e-30
        if g.ndim == 2:
            row = b * row + (1 - b) * squared.sum(1)
            column = b * column + (1 - b) * squared.sum(0)
            u = g / np.sqrt(np.outer(row, column) / row.sum())
        else:
            whole = b * whole + (1 - b) * squared
            u = g / np.sqrt(whole)
        seen.append(u / max(1.0, np.sqrt((u**2).mean())))
    return seen


@MODELS
@pytest.mark.slow
def test_every_matrix_of_every_layer_is_updated_as_if_it_were_alone(model, matrices):
    gradients = random_gradients(parameters(model), 3)
    assert matrices.keys() <= gradients[0].keys()
    got = our_updates(gradients)
    for path in gradients[0]:
        series = [by_layer(path, gradient[path], matrices) for gradient in gradients]
        want = [reference_updates(list(own)) for own in zip(*series, strict=True)]
        ours = zip(*(by_layer(path, update[path], matrices) for update in got), strict=True)
        np.testing.assert_allclose(
            np.array(list(ours)), np.array(want), rtol=2e-5, atol=1e-6, err_msg=path
        )


@MODELS
def test_updates_are_clipped_layer_by_layer(model, matrices):
    """One layer's large gradient leaves the others' updates as they were."""
    first, second = random_gradients(parameters(model), 2)
    stack = next(path for path in matrices if path.startswith(("blocks", "rest")))
    louder = {**second, stack: second[stack].copy()}
    louder[stack][0] *= 100.0
    plain, loud = (our_updates([first, last])[1][stack] for last in (second, louder))
    np.testing.assert_array_equal(plain[1:], loud[1:])
    for update in (plain, loud):
        rms = [np.sqrt((layer**2).mean()) for layer in update]
        assert max(rms) <= 1 + 1e-5
    if len(plain) > 1:
        assert np.abs(loud[0] - plain[0]).max() > 0.1


@pytest.mark.parametrize("model", LARGE, ids=lambda model: model.label)
def test_second_moments_are_those_of_rows_columns_and_vectors(model):
    abstract = jax.eval_shape(
        lambda: nnx.to_pure_dict(nnx.split(model.module(nnx.Rngs(params=0)))[1])
    )
    state = jax.eval_shape(scale_by_adafactor(("blocks", "rest")).init, abstract)
    count = sum(x.size for x in jax.tree.leaves(state.moments))
    matrices = TRANSFORMER_MATRICES if isinstance(model, TransformerSpec) else LSTM_MATRICES
    expected = n_params = 0
    for path, x in jax.tree_util.tree_flatten_with_path(abstract)[0]:
        name = "/".join(key.key for key in path)
        n_layer = x.shape[0] if name.startswith(("blocks", "rest")) else 1
        shape = x.shape[1:] if n_layer > 1 else x.shape
        n_in = matrices.get(name)
        inside, outside = (np.prod(s, dtype=int) for s in (shape[:n_in], shape[n_in:]))
        expected += n_layer * (inside if n_in is None else inside + outside)
        n_params += x.size
    assert count == expected
    assert count < 0.004 * n_params


def test_moments_keep_the_paths_and_axes_of_their_parameters():
    state = scale_by_adafactor(("blocks", "rest")).init(nested(parameters(TRANSFORMER)))
    attention = state.moments["blocks"]["attention"]
    assert isinstance(attention["qkv"]["kernel"], Factors)
    assert attention["qkv"]["kernel"].row.shape == (2, 32)
    assert attention["qkv"]["kernel"].column.shape == (2, 3, 4, 8)
    assert attention["out"]["kernel"].row.shape == (2, 4, 8)
    assert attention["out"]["kernel"].column.shape == (2, 32)
    assert attention["qkv"]["bias"].shape == (2, 3, 4, 8)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("model", "matrices"),
    [(TRANSFORMER, TRANSFORMER_MATRICES), (LSTM, LSTM_MATRICES)],
    ids=["transformer", "lstm"],
)
def test_updates_are_those_of_transformers(model, matrices):
    """Its optimizer is given each layer's matrices as GPT-2 and torch's LSTM hold them."""
    torch = pytest.importorskip("torch")
    optimization = pytest.importorskip("transformers.optimization")
    gradients = random_gradients(parameters(model), 5)

    def as_torch(path, x):
        for part in by_layer(path, x, matrices):
            # torch.nn.LSTM keeps [4 d_hidden, d_in].
            yield torch.tensor(part.T if path.endswith(("put_kernel", "current_kernel")) else part)

    theirs = {
        path: [torch.nn.Parameter(torch.zeros_like(part)) for part in as_torch(path, x)]
        for path, x in gradients[0].items()
    }
    optimizer = optimization.Adafactor(
        [x for parts in theirs.values() for x in parts],
        lr=1.0,
        eps=(1e-30, 1e-3),
        clip_threshold=1.0,
        decay_rate=-0.8,
        beta1=None,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
    )
    for gradient, update in zip(gradients, our_updates(gradients), strict=True):
        for path, parts in theirs.items():
            for x, g in zip(parts, as_torch(path, gradient[path]), strict=True):
                # From zero the parameter becomes the update itself, without rounding.
                x.data.zero_()
                x.grad = g
        optimizer.step()
        for path, parts in theirs.items():
            for x, change in zip(parts, as_torch(path, update[path]), strict=True):
                want = -x.detach().numpy()
                np.testing.assert_allclose(change.numpy(), want, rtol=1e-5, atol=1e-6, err_msg=path)

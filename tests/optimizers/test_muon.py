"""Muon against torch's, and against its equations in NumPy."""

from __future__ import annotations

import functools

import jax
import numpy as np
import optax
import pytest

from lmscale.architectures import TransformerSpec
from lmscale.optimizers import Optimizer, names, optimizer, register
from lmscale.optimizers.muon import UPDATE_RMS, scale_by_muon
from lmscale.serialize import SpecError
from lmscale.spec import OptimizerSpec
from tests.quick_compile import quick_jit as quick
from tests.training.specs import run_spec

CONSTANTS = {"momentum": 0.9, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
RNG = np.random.default_rng(0)


def random(*shape):
    return RNG.normal(size=shape).astype(np.float32)


#: Two layers of [d_model, d_ff], of [d_model, 3 heads] and of [heads, d_model], and what is no matrix.
PARAMS = {
    "blocks": {
        "feed_forward": {"up": {"kernel": random(2, 8, 20), "bias": random(2, 20)}},
        "attention": {
            "qkv": {"kernel": random(2, 8, 3, 2, 4), "bias": random(2, 3, 2, 4)},
            "out": {"kernel": random(2, 2, 4, 8)},
        },
        "norm_attention": {"scale": random(2, 8)},
    },
    "embed": {"embedding": random(10, 8)},
    "position": random(16, 8),
}
GRADIENTS = [jax.tree.map(lambda x: random(*x.shape), PARAMS) for _ in range(4)]
#: Our matrices: the entry, and its shape as matrices [layer, d_in, d_out].
MATRICES = {
    ("blocks", "feed_forward", "up", "kernel"): (2, 8, 20),
    ("blocks", "attention", "qkv", "kernel"): (2, 8, 24),
    ("blocks", "attention", "out", "kernel"): (2, 8, 8),
}


def entry(tree, path):
    for name in path:
        tree = tree[name]
    return np.asarray(tree, np.float64)


@functools.cache
def updates():
    transform = scale_by_muon(TransformerSpec, CONSTANTS)
    state, found, step = quick(transform.init)(PARAMS), [], quick(transform.update)
    for gradient in GRADIENTS:
        update, state = step(gradient, state, PARAMS)
        found.append(update)
    return found


def orthogonalised(x):
    """Jordan et al. 2024: five steps of X <- a X + (b X X' + c (X X')^2) X from X / |X|."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / np.linalg.norm(wide)
    for _ in range(5):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T


@pytest.mark.parametrize("path", MATRICES, ids="/".join)
def test_matrices_take_the_published_update(path):
    shape, b = MATRICES[path], CONSTANTS["momentum"]
    moment = np.zeros(shape)
    for step, (gradient, update) in enumerate(zip(GRADIENTS, updates(), strict=True), 1):
        g = entry(gradient, path).reshape(shape)
        moment = b * moment + (1 - b) * g
        # Nesterov's look ahead, both means corrected for their start at zero.
        ahead = b * moment / (1 - b ** (step + 1)) + (1 - b) * g / (1 - b**step)
        expected = np.stack([orthogonalised(x) for x in ahead])
        expected *= UPDATE_RMS * max(shape[1:]) ** 0.5
        np.testing.assert_allclose(entry(update, path).reshape(shape), expected, atol=2e-4)


@pytest.mark.parametrize(
    "path",
    [("embed", "embedding"), ("position",), ("blocks", "norm_attention", "scale")],
    ids="/".join,
)
def test_all_else_takes_adams_update(path):
    adam = optax.scale_by_adam(0.9, 0.95, 1e-8)
    state, step = quick(adam.init)(PARAMS), quick(adam.update)
    for gradient, update in zip(GRADIENTS, updates(), strict=True):
        expected, state = step(gradient, state)
        np.testing.assert_allclose(entry(update, path), entry(expected, path), rtol=1e-6)


@pytest.mark.parity
def test_the_first_update_is_that_of_torch():
    """Of the first step momentum is the gradient, whatever the convention."""
    torch = pytest.importorskip("torch")
    path = ("blocks", "feed_forward", "up", "kernel")
    first = entry(updates()[0], path)[1]
    weight = torch.nn.Parameter(torch.zeros(20, 8, dtype=torch.float64))
    weight.grad = torch.tensor(entry(GRADIENTS[0], path)[1].T.copy())
    muon = torch.optim.Muon(
        [weight], lr=1.0, weight_decay=0.0, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    muon.step()
    # torch iterates in bfloat16.
    np.testing.assert_allclose(-weight.detach().numpy().T, first, atol=0.05)
    assert np.corrcoef(-weight.detach().numpy().T.ravel(), first.ravel())[0, 1] > 0.999


def test_updates_are_as_large_as_adamws():
    for path, shape in MATRICES.items():
        rms = np.sqrt((entry(updates()[-1], path).reshape(shape) ** 2).mean())
        assert 0.1 < rms < 0.3


def test_its_momentum_belongs_to_it():
    assert OptimizerSpec(name="muon", peak_lr=1e-3, momentum=0.9).momentum == 0.9
    with pytest.raises(SpecError, match="momentum is none of the constants of adamw"):
        OptimizerSpec(name="adamw", peak_lr=1e-3, momentum=0.9)


def test_an_unknown_optimizer_is_named_with_those_there_are():
    with pytest.raises(SpecError, match=r"one of adafactor, adam, adamw, .*muon.*, not 'sgd'"):
        OptimizerSpec(name="sgd", peak_lr=1e-3)


# An optimizer of a user's own, in full.
LION = register(
    Optimizer(
        name="own-lion",
        direction=lambda model, constants: optax.scale_by_lion(
            constants["beta1"], constants["beta2"]
        ),
        constants=("beta1", "beta2", "weight_decay"),
        elementwise=True,
        moments=1,
        lr_factor=0.2,
    )
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "own-lion"])
def test_every_optimizer_trains_packed_as_alone_and_on_every_mesh(name):
    from tests.training.test_step import TOLERANCE, train

    assert name in names() and optimizer(name).name == name
    specs = [
        run_spec(seed=seed, optimizer={"name": name, "peak_lr": rate, "weight_decay": 0.01})
        for seed, rate in ((0, 3e-3), (1, 1e-3))
    ]
    together, state, program = train(specs, unroll=True)
    alone, _, _ = train(specs[1:])
    np.testing.assert_allclose(together[:, 1], alone[:, 0], rtol=TOLERANCE)
    meshed, _, other = train(specs, mesh=(2, 2, 2))
    np.testing.assert_allclose(meshed, together, rtol=5 * TOLERANCE)
    assert together[-1].mean() < together[0].mean()
    one = jax.device_get(program.take(jax.device_put(state), np.int32(1)))
    moved = jax.device_get(other.take(other.put(other.empty(), np.int32(0), one), np.int32(0)))
    jax.tree.map(np.testing.assert_array_equal, moved, one)

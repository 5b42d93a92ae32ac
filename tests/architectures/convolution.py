"""An architecture and an experiment of a user's own, in one file: convolutions over two tokens."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

from lmscale.architectures import Activations, Array, ModelSpec, parts, register
from lmscale.models.layers import Embedding, LayerNorm, Linear, apply_layers, stack_layers
from lmscale.parallel.partition import constrain_activations
from lmscale.sweep import Experiment, Run, make_run, product, width_rule


class Layer(nnx.Module):
    def __init__(self, width, rngs, dtype):
        shape = {"std": width**-0.5, "bias": False, "dtype": dtype}
        self.norm = LayerNorm(width, bias=False, dtype=dtype)
        self.now = Linear((width,), (width,), rngs, **shape)
        self.before = Linear((width,), (width,), rngs, **shape)

    def __call__(self, x, dropout_key):
        y = self.norm(x)
        earlier = jnp.pad(y, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        return constrain_activations(x + jax.nn.relu(self.now(y) + self.before(earlier)))


class Network(nnx.Module):
    def __init__(self, spec, rngs, *, dtype="float32", unroll=False, attention="", remat=False):
        self.spec, self.options = spec, {"unroll": unroll, "remat": remat}
        dtype = jnp.dtype(dtype)
        self.embed = Embedding(spec.vocab_size, spec.channels, rngs, std=0.1, dtype=dtype)
        self.blocks = stack_layers(
            spec.n_layer, rngs, lambda rngs: Layer(spec.channels, rngs, dtype)
        )

    def hidden(self, tokens, *, dropout_key=None):
        return apply_layers(
            self.blocks, self.embed(tokens), None, n_layer=self.spec.n_layer, **self.options
        )

    def logits(self, hidden):
        return self.embed.attend(hidden)

    def __call__(self, tokens, *, dropout_key=None):
        return self.logits(self.hidden(tokens, dropout_key=dropout_key))


@register
@dataclass(frozen=True, kw_only=True)
class ConvolutionSpec(ModelSpec):
    kind = "convolution"
    channels: int

    NON_EMBEDDING = MATMULS = ("convolution",)
    SHAPE_FIELDS = ("n_layer", "channels")
    ARRAYS = (
        *parts.SHARED_ARRAYS,
        Array(r"norm/scale$", None, decays=False),
        Array(r"(now|before)/kernel$", (None, "data", "model"), decays=True),
    )

    @property
    def width(self):
        return self.channels

    def module(self, rngs, **options):
        return Network(self, rngs, **options)

    def operations(self):
        n, d = self.n_layer, self.channels
        return {
            "embedding": parts.matmul(self.vocab_size * d, uses=0),
            "norm": parts.elementwise((parts.LAYER_NORM, n * d), params=n * d),
            "convolution": parts.matmul(2 * n * d * d),
            "activation": parts.elementwise(((1, 2), n * d)),
            "residual": parts.elementwise((parts.ADD, 2 * n * d)),
            "head": parts.output_head(self),
            "loss": parts.elementwise((parts.CROSS_ENTROPY, self.vocab_size)),
        }

    def activations(self, number_bytes, platform, attention):
        d = self.channels
        return Activations(d * number_bytes, 2 * d * number_bytes, 3 * d * number_bytes, 2 * d * d)

    @classmethod
    def of_shape(cls, n_layer, width, **shared):
        return cls(n_layer=n_layer, channels=width, **shared)

    @classmethod
    def of_size(cls, n_params, *, n_layer=None, init_std=None, **shared):
        n = n_layer or 2
        width = max(2, 2 * round((n_params / (2 * n)) ** 0.5 / 2))
        return cls(n_layer=n, channels=width, **shared)

    def scaled(self, factor):
        return replace(self, channels=round(self.channels * factor**0.5))


@dataclass(frozen=True, kw_only=True)
class Convolutions(Experiment):
    title = "Convolutions of three sizes"
    analyses = ("curves",)
    steps: int = 40

    def runs(self, corpus):
        shared = {"n_ctx": 32, "vocab_size": corpus.vocab_size}
        models = [ConvolutionSpec.of_size(size, **shared) for size in (1e3, 4e3, 1.6e4)]
        recipe = {"steps": self.steps, "batch_size": 4, "learning_rate": width_rule()}
        recipe |= {"data": self.data(corpus), "evals": self.evals(corpus)}
        return [
            Run(make_run(choice["model"], seed=choice["seed"], **recipe), {"family": "convolution"})
            for choice in product(model=models, seed=self.seeds)
        ]


SCALES = {"cpu": Convolutions(eval_tokens=4096)}

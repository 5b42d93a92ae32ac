"""What an architecture is: the protocol that each one implements, and the registry of all.

An architecture is one class, a frozen dataclass that derives from `ModelSpec`. Its fields are the
shape of a model, which is part of every `RunSpec` and of its hash. Its methods and class variables
hold all else that is known of it:

| what | member | used by |
|---|---|---|
| name of the architecture | `kind` | JSON, tables, `--model` |
| widths and depth | `width`, `head_width`, `depth`, `label` | tables, planner, run names |
| the model itself | `module` | training, evaluation, sampling |
| parameters and FLOPs | `operations`, `NON_EMBEDDING`, `MATMULS`, `softmax_flops` | `lmscale.flops` |
| sharding and weight decay | `ARRAYS`, `STACKS` | partition rules, optimizers, layouts |
| memory and communication | `activations`, `splits_over`, `REMAT`, `CPU_MICRO_BATCHES`, `REDUCTIONS`, `REDUCED_EVERY_TOKEN` | planner |
| models of other sizes | `of_shape`, `of_size`, `ladders`, `scaled`, `SHAPE_FIELDS` | grids, advice |
| learning rate of short runs | `short_run_lr` | experiments at cpu scale |

To add one, write such a class in a file and decorate it with `register`. Nothing else in lmscale asks
which architecture it has. This module imports no jax: commands that train nothing start without it.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Required, Self, TypedDict, Unpack

from lmscale.serialize import Spec, SpecError, require, require_fraction, require_positive, short

if TYPE_CHECKING:
    from flax import nnx


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


class Array(NamedTuple):
    """A rule for the parameter arrays whose path ends with `pattern` (a regular expression).

    Attributes:
      axes: the mesh axis ("data", "model" or None) that each dimension is split over. Stacked layers
        have their layer dimension first. A pattern may stand in several rules with other numbers of
        dimensions. None means that the array is small and replicated.
      decays: whether weight decay applies: to matrices, not to biases, norms or positions.
    """

    pattern: str
    axes: tuple[str | None, ...] | None
    decays: bool


@dataclass(frozen=True)
class Activations:
    """Bytes that training keeps for a token, apart from the logits.

    Attributes:
      input: where the token enters a layer.
      whole, split: what a layer keeps for the backward pass, of which tensor parallelism (the mesh
        axis `model`) divides the latter.
      backward: what the backward pass of a layer adds, divided likewise.
      ends: what lies outside of the layers during the backward pass.
      layer_params: numbers in the kernels of the largest layer.
    """

    input: float
    whole: float
    split: float
    layer_params: int
    backward: float = 0.0
    ends: float = 0.0


class SizeOptions(TypedDict, total=False):
    """Keyword arguments of `ModelSpec.of_size`.

    Attributes:
      n_ctx, vocab_size: of the model.
      n_layer: the depth; by default it follows from the size.
      init_std: standard deviation of the initial weights; by default the architecture's own choice.
        Architectures that scale each array by its inputs ignore it.
    """

    n_ctx: Required[int]
    vocab_size: Required[int]
    n_layer: int | None
    init_std: float | None


class Ladder(NamedTuple):
    """A rule for shapes by size, and its name in words."""

    of_size: Callable[[float], ModelSpec]
    name: str


#: Arrays that every architecture with `lmscale.models.layers.Embedding` and a linear head has.
SHARED_ARRAYS = (
    Array(r"embed/embedding$", ("model", "data"), decays=True),
    Array(r"head/kernel$", ("data", "model"), decays=True),
)


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Spec, abc.ABC):
    """Base of all architectures: the fields that each has, and the protocol (see the module)."""

    kind: ClassVar[str]

    n_layer: int
    n_ctx: int
    vocab_size: int
    #: Whether the output head is the transposed embedding.
    tied_head: bool = True
    dropout: float = 0.0

    #: Operations whose parameters are Kaplan's N.
    NON_EMBEDDING: ClassVar[tuple[str, ...]]
    #: Operations that Hoffmann et al. 2022, Appendix F counts, apart from the vocabulary's.
    MATMULS: ClassVar[tuple[str, ...]]
    #: A rule for every parameter array; the first that matches holds.
    ARRAYS: ClassVar[tuple[Array, ...]]
    #: Names of the parameters' top-level entries that hold stacked layers.
    STACKS: ClassVar[tuple[str, ...]] = ("blocks",)
    #: Whether layers can keep only their inputs, and be computed again for the backward pass.
    REMAT: ClassVar[bool] = True
    #: Whether a CPU is quicker with micro-batches that stay in its cache than with whole batches.
    CPU_MICRO_BATCHES: ClassVar[bool] = True
    #: All-reduces over the mesh axis `model` that a layer makes in a training step.
    REDUCTIONS: ClassVar[int] = 4
    #: Whether these happen at every time step, as in a recurrent layer, instead of once a layer.
    REDUCED_EVERY_TOKEN: ClassVar[bool] = False
    #: Fields that a rule for shapes decides; the others are the same in all models of a grid.
    SHAPE_FIELDS: ClassVar[tuple[str, ...]]

    def _check(self) -> None:
        require_positive(self, "n_layer", "n_ctx", "vocab_size")
        require_fraction(self, "dropout")

    @classmethod
    def class_of(cls, values: dict[str, Any], where: str) -> type[Spec]:
        if cls is not ModelSpec:
            return cls
        kind = values.get("kind")
        require(
            isinstance(kind, str) and kind in _REGISTRY,
            f"{where}.kind must be one of {', '.join(kinds())}, not {short(kind)}; an architecture of your "
            "own is known when its file is loaded: add --load FILE.py to the command",
        )
        return _REGISTRY[str(kind)]

    # --- Names and widths ------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Width of the layers, as in tables and labels."""

    @property
    def head_width(self) -> int:
        """Width of what the output head multiplies."""
        return self.width

    @property
    def embed_width(self) -> int:
        """Width of the embedding."""
        return self.width

    @property
    def depth(self) -> int:
        """Layers that a token passes through."""
        return self.n_layer

    @property
    def label(self) -> str:
        """A short name, the start of a run's."""
        return f"{self.kind}-{self.n_layer}x{self.width}"

    # --- Model -----------------------------------------------------------------------------------

    @abc.abstractmethod
    def module(
        self,
        rngs: nnx.Rngs,
        *,
        dtype: str = "float32",
        unroll: bool = False,
        attention: str = "xla",
        remat: bool = False,
    ) -> nnx.Module:
        """The model, freshly initialised from `rngs` (stream `params`).

        It maps token ids int32 [batch, time] to float32 logits [batch, time, vocab], in two steps
        for those who need them apart: `logits(hidden(tokens, dropout_key=...))`.

        Args:
          rngs: source of the initial parameters, which are always float32.
          dtype: of activations and matmuls, "float32" or "bfloat16".
          unroll: unroll the layers instead of scanning over them; the same numbers, slower to
            compile.
          attention: "xla", "cudnn" or "splash", for architectures that attend.
          remat: keep only the inputs of the layers for the backward pass, where `REMAT` allows it.
        """

    # --- Counts ----------------------------------------------------------------------------------

    @abc.abstractmethod
    def operations(self) -> dict[str, Operation]:
        """Parameters and FLOPs by operation, among them embedding, bias, head and loss."""

    def n_non_embedding(self) -> int:
        """Kaplan's N."""
        counts = self.operations()
        return sum(counts[name].params for name in self.NON_EMBEDDING)

    def softmax_flops(self) -> float:
        """Forward FLOPs a token of attention's softmax, as Hoffmann et al. 2022, App. F counts them."""
        return 0.0

    # --- Arrays ----------------------------------------------------------------------------------

    @classmethod
    def decays(cls, name: str) -> bool:
        """Whether weight decay applies to the parameter array of this path.

        Raises:
          SpecError: when no rule of `ARRAYS` matches.
        """
        for rule in cls.ARRAYS:
            if re.search(rule.pattern, name):
                return rule.decays
        raise SpecError(
            f"{cls.__name__}.ARRAYS has no rule for the parameter {name}: add one that says how it "
            "is split and whether it decays"
        )

    @classmethod
    def partition_rules(cls) -> tuple[tuple[str, tuple[str | None, ...]], ...]:
        """The rules of `lmscale.parallel.partition`: pattern and mesh axes."""
        return tuple((rule.pattern, rule.axes) for rule in cls.ARRAYS if rule.axes is not None)

    # --- Memory ----------------------------------------------------------------------------------

    @abc.abstractmethod
    def activations(self, number_bytes: int, platform: str, attention: str) -> Activations:
        """What training keeps for each token.

        Args:
          number_bytes: 2 for bfloat16, 4 for float32.
          platform: "cpu", "gpu" or "tpu".
          attention: see `module`.
        """

    def splits_over(self, n_devices: int) -> bool:
        """Whether layers can be cut into so many equal parts (tensor parallelism)."""
        return self.width % n_devices == 0

    # --- Other sizes -----------------------------------------------------------------------------

    @classmethod
    @abc.abstractmethod
    def of_shape(cls, n_layer: int, width: int, *, n_ctx: int, vocab_size: int) -> ModelSpec:
        """The plain model of this depth and width."""

    @classmethod
    @abc.abstractmethod
    def of_size(cls, n_params: float, **options: Unpack[SizeOptions]) -> ModelSpec:
        """The standard shape that is closest to `n_params` non-embedding parameters."""

    @classmethod
    def ladders(cls, models: Sequence[Self]) -> list[Ladder]:
        """Rules of shape by size that may have made these models, the most specific first."""
        shared = shared_fields(models)
        return [Ladder(lambda n: cls.of_size(n, **shared), "depth and width by size")]

    @abc.abstractmethod
    def scaled(self, factor: float) -> ModelSpec:
        """The model with its width scaled to `factor` times the parameters, depth kept."""

    def short_run_lr(self, base: float | None = None) -> float:
        """Peak learning rate of AdamW for runs of a few thousand small updates.

        Args:
          base: the rate at a width of 32, instead of the measured one. An architecture whose best
            rate was measured to follow another rule ignores it.
        """
        return (0.006 if base is None else base) * math.sqrt(32 / self.width)


class SharedFields(TypedDict):
    """The fields that all models of a grid have in common."""

    n_ctx: int
    vocab_size: int


def shared_fields(models: Sequence[ModelSpec]) -> SharedFields:
    """Context and vocabulary of a grid."""
    return {"n_ctx": models[0].n_ctx, "vocab_size": models[0].vocab_size}


# --- Registry -------------------------------------------------------------------------------------

_REGISTRY: dict[str, type[ModelSpec]] = {}


def register(cls: type[ModelSpec]) -> type[ModelSpec]:
    """Makes an architecture known by its `kind`; a class decorator, above `@dataclass`.

    A file that is loaded again replaces its own architecture.

    Raises:
      SpecError: when the class is not complete, or another architecture has its kind.
    """
    missing = sorted(cls.__abstractmethods__)
    missing += [
        name
        for name in ("kind", "NON_EMBEDDING", "MATMULS", "ARRAYS", "SHAPE_FIELDS")
        if getattr(cls, name, None) is None
    ]
    require(not missing, f"the architecture {cls.__name__} lacks {', '.join(missing)}")
    other = _REGISTRY.get(cls.kind)
    require(
        other is None or other.__qualname__ == cls.__qualname__,
        f"{cls.__name__} and {other and other.__name__} are both of the kind {cls.kind!r}",
    )
    _REGISTRY[cls.kind] = cls
    return cls


def architecture(kind: str) -> type[ModelSpec]:
    """The class of a kind.

    Raises:
      SpecError: when there is none.
    """
    require(
        kind in _REGISTRY,
        f"there is no architecture {short(kind)}; there are {', '.join(kinds())}",
    )
    return _REGISTRY[kind]


def kinds() -> tuple[str, ...]:
    """All registered architectures."""
    return tuple(sorted(_REGISTRY))


# --- For counts -----------------------------------------------------------------------------------

# Elementwise arithmetic as (forward, backward) FLOPs per element, read off the formulas in
# lmscale.models. exp, tanh, log and rsqrt count nothing: they have no agreed price, and XLA's own
# count keeps them apart as well.
ADD = (1, 1)
SCALE = (1, 1)
LAYER_NORM = (6, 12)
SOFTMAX = (5, 4)
ACTIVATION = {"gelu": (7, 14), "relu": (1, 2)}
CROSS_ENTROPY = (3, 4)


def matmul(params: int, uses: int = 1) -> Operation:
    """A token through `params` weights, `uses` times; each of the two gradients costs as much."""
    forward = 2.0 * params * uses
    return Operation(params, forward, 2.0 * forward)


def elementwise(*work: tuple[tuple[int, int], int], params: int = 0) -> Operation:
    """`work` lists pairs of (FLOPs per element forward and backward) and elements per token."""
    forward = sum(cost[0] * elements for cost, elements in work)
    backward = sum(cost[1] * elements for cost, elements in work)
    return Operation(params, float(forward), float(backward))


def output_head(model: ModelSpec) -> Operation:
    """The logits' matmul; a tied head stores nothing of its own."""
    found = matmul(model.head_width * model.vocab_size)
    return dataclasses.replace(found, params=0) if model.tied_head else found

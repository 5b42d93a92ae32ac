"""The protocol that every architecture implements, and the registry of architectures.

An architecture is one class: a frozen dataclass that derives from `ModelSpec`. Its fields are the
shape of a model, which is part of a `RunSpec` and of its hash. Its methods and class variables hold
everything else about the architecture:

| what | member | used by |
|---|---|---|
| name of the architecture | `kind` | JSON, tables, `--model` |
| widths and depth | `width`, `head_width`, `depth`, `label` | tables, planner, run names |
| widths that kernels must take | `attention_width`, `recurrent_width` | planner |
| the model itself | `module` | training, evaluation, sampling |
| documents hidden from each other | `MASKS_DOCUMENTS` | `document_separator` of every model |
| parameters and FLOPs | `operations`, `NON_EMBEDDING`, `MATMULS`, `softmax_flops` | `lmscale.flops` |
| sharding and weight decay | `ARRAYS`, `STACKS` | partition rules, optimizers, layouts |
| memory | `activations`, `REMAT`, `CPU_MICRO_BATCHES` | planner |
| launches and memory traffic on a GPU | `gpu_costs`, `recurrent_kernel_costs` | planner |
| tensor parallelism | `splits_over`, `REDUCTIONS`, `REDUCED_EVERY_TOKEN` | planner |
| models of other sizes | `of_shape`, `of_size`, `ladders`, `scaled`, `SHAPE_FIELDS` | grids, advice |
| heads that kernels take | `with_head_multiple` | ladders |
| learning rate of short runs | `short_run_lr` | experiments at cpu scale |
| the same model in transformers | `hugging_face` | `lmscale export` |

To add one, write such a class in a file and decorate it with `register`. No other code in lmscale asks
which architecture a model has. This module does not import jax, so commands that do not train start
without it.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypedDict, Unpack

from lmscale.architectures.hugging_face import HuggingFace
from lmscale.architectures.parts import Activations, Array, GpuCosts, Ladder, Operation, SizeOptions
from lmscale.serialize import Spec, SpecError, require, require_fraction, require_positive, short
from lmscale.terminal import plural
from lmscale.user_files import source_of

if TYPE_CHECKING:
    from flax import nnx


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Spec, abc.ABC):
    """Base of all architectures: their common fields, and the protocol (see the module)."""

    kind: ClassVar[str]

    n_layer: int
    n_ctx: int
    vocab_size: int
    #: Whether the output head is the transposed embedding.
    tied_head: bool = True
    dropout: float = 0.0
    #: The token id that separates documents. With it a token sees only its own document, which begins
    #: with the separator; positions still count from the start of the window. None: windows cross
    #: documents, and a token sees all that comes before it.
    document_separator: int | None = None

    #: Operations whose parameters are Kaplan's N.
    NON_EMBEDDING: ClassVar[tuple[str, ...]]
    #: Operations that Hoffmann et al. 2022, Appendix F counts, without those of the vocabulary.
    MATMULS: ClassVar[tuple[str, ...]]
    #: A rule for every parameter array; the first that matches applies.
    ARRAYS: ClassVar[tuple[Array, ...]]
    #: Names of the top-level parameter entries that hold stacked layers.
    STACKS: ClassVar[tuple[str, ...]] = ("blocks",)
    #: Whether layers can save only their inputs, and be recomputed in the backward pass.
    REMAT: ClassVar[bool] = True
    #: Whether the module hides documents from each other, as `document_separator` asks.
    MASKS_DOCUMENTS: ClassVar[bool] = False
    #: Whether a CPU is faster with micro-batches that fit its cache than with whole batches.
    CPU_MICRO_BATCHES: ClassVar[bool] = True
    #: All-reduces of a layer over the mesh axis `model` in a training step.
    REDUCTIONS: ClassVar[int] = 4
    #: Whether these happen at every time step, as in a recurrent layer, and not once per layer.
    REDUCED_EVERY_TOKEN: ClassVar[bool] = False
    #: Whether `of_size` makes larger models deeper, so that a ladder of one depth has to ask for it.
    DEPTH_BY_SIZE: ClassVar[bool] = True
    #: Fields that a rule for shapes sets; the others are the same in all models of a grid.
    SHAPE_FIELDS: ClassVar[tuple[str, ...]]

    def _check(self) -> None:
        require_positive(self, "n_layer", "n_ctx", "vocab_size")
        require_fraction(self, "dropout")
        if self.document_separator is not None:
            require(
                self.MASKS_DOCUMENTS,
                f"the architecture {self.kind} cannot hide documents from each other: leave out "
                "document_separator (--mask-documents)",
            )
            require(
                0 <= self.document_separator < self.vocab_size,
                f"{type(self).__name__}.document_separator must be a token id from 0 to "
                f"{self.vocab_size - 1}, not {short(self.document_separator)}",
            )

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
        """Width of the layers, for tables and labels."""

    @property
    def head_width(self) -> int:
        """Width of the input of the output head."""
        return self.width

    @property
    def embed_width(self) -> int:
        """Width of the embedding."""
        return self.width

    @property
    def attention_width(self) -> int | None:
        """Width of an attention head, which decides about the kernel; None without attention."""
        return None

    @property
    def recurrent_width(self) -> int | None:
        """Hidden units of an LSTM layer, which decide about the kernel; None without such layers."""
        return None

    @property
    def depth(self) -> int:
        """Layers that a token passes through."""
        return self.n_layer

    @property
    def label(self) -> str:
        """A short name; run names start with it."""
        return f"{self.kind}-{self.n_layer}x{self.width}"

    @property
    def shape(self) -> str:
        """Depth and width in words, by the names of the architecture's own fields."""
        return f"{plural(self.n_layer, 'layer')}, width {self.width}"

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

        It maps token ids int32 [batch, time] to float32 logits [batch, time, vocab]. The two steps are
        also available one by one: `logits(hidden(tokens, dropout_key=...))`. Where `MASKS_DOCUMENTS` holds
        it finds documents by the `document_separator` in the tokens.

        Args:
          rngs: source of the initial parameters, which are always float32.
          dtype: of activations and matmuls, "float32" or "bfloat16".
          unroll: unroll the layers instead of scanning over them. The numbers are the same; compiling
            takes longer.
          attention: "xla", "cudnn" or "splash", for architectures with attention.
          remat: save only the inputs of the layers for the backward pass, where `REMAT` allows it.
        """

    def hugging_face(self) -> HuggingFace:
        """This model in Hugging Face's transformers.

        Raises:
          SpecError: transformers has no such model; the message says why, in one line.
        """
        raise SpecError(f"transformers has no model of the architecture {self.kind}")

    @classmethod
    def of_hugging_face(cls, config: dict[str, Any]) -> ModelSpec | None:
        """The model of a config.json of transformers; None where it is of another architecture.

        Raises:
          SpecError: it is of this architecture, with something that this one has not.
        """
        return None

    # --- Counts ----------------------------------------------------------------------------------

    @abc.abstractmethod
    def operations(self) -> dict[str, Operation]:
        """Parameters and FLOPs by operation; embedding, bias, head and loss are always among them."""

    def n_non_embedding(self) -> int:
        """Kaplan's N."""
        counts = self.operations()
        return sum(counts[name].params for name in self.NON_EMBEDDING)

    def softmax_flops(self) -> float:
        """Forward FLOPs per token of the attention softmax, as Hoffmann et al. 2022, App. F counts them."""
        return 0.0

    # --- Arrays ----------------------------------------------------------------------------------

    @classmethod
    def decays(cls, name: str) -> bool:
        """Whether weight decay applies to the parameter array of this path.

        Raises:
          SpecError: no rule of `ARRAYS` matches.
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
        """The memory that training needs for each token.

        Args:
          number_bytes: 2 for bfloat16, 4 for float32.
          platform: "cpu", "gpu" or "tpu".
          attention: see `module`.
        """

    def gpu_costs(self, unrolled: bool) -> GpuCosts:
        """The costs of a layer on a GPU; by default those of a Transformer's.

        Args:
          unrolled: the layers are not looped over, which would copy what every layer saves.
        """
        if unrolled:
            return GpuCosts(kernels=45, passes=9.5, derivatives=7)
        return GpuCosts(kernels=105, passes=14.5, derivatives=21)

    def recurrent_kernel_costs(self, number_bytes: int) -> tuple[Activations, GpuCosts]:
        """`activations` and `gpu_costs` where a kernel computes all time steps of a layer.

        Only a model with a `recurrent_width` has them.
        """
        raise NotImplementedError

    def splits_over(self, n_devices: int) -> bool:
        """Whether tensor parallelism can cut the layers into `n_devices` equal parts."""
        return self.width % n_devices == 0

    # --- Other sizes -----------------------------------------------------------------------------

    @classmethod
    @abc.abstractmethod
    def of_shape(cls, n_layer: int, width: int, *, n_ctx: int, vocab_size: int) -> ModelSpec:
        """The model of this depth and width, with the defaults of all other fields."""

    @classmethod
    @abc.abstractmethod
    def of_size(cls, n_params: float, **options: Unpack[SizeOptions]) -> ModelSpec:
        """The standard shape that is closest to `n_params` non-embedding parameters."""

    @classmethod
    def ladders(cls, models: Sequence[Self]) -> list[Ladder]:
        """Rules of shape by size that may have made these models, the most specific first."""
        shared = shared_fields(models)
        return [Ladder(lambda n: cls.of_size(n, **shared), "depth and width by size")]

    def with_head_multiple(self, multiple: int) -> ModelSpec:
        """The nearest standard shape whose attention heads have a width that is a multiple of this.

        Kernels want such widths. The model itself, where there is no attention.
        """
        del multiple
        return self

    @abc.abstractmethod
    def scaled(self, factor: float) -> ModelSpec:
        """The model of the same depth whose width gives `factor` times the parameters."""

    def short_run_lr(self, base: float | None = None) -> float:
        """Peak learning rate of AdamW for runs of a few thousand small updates.

        Args:
          base: the rate at a width of 32, in place of the measured one. An architecture for which
            another rule was measured ignores it.
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
#: Mesh axes that split an array.
_AXES = ("data", "model")


def register(cls: type[ModelSpec]) -> type[ModelSpec]:
    """Registers an architecture under its `kind`: a class decorator, above `@dataclass`.

    A file that is loaded again replaces its own architecture.

    Raises:
      SpecError: the class is not complete, another architecture has its kind, or a class variable is
        not what the protocol says.
    """
    missing = sorted(cls.__abstractmethods__)
    missing += [
        name
        for name in ("kind", "NON_EMBEDDING", "MATMULS", "ARRAYS", "SHAPE_FIELDS")
        if getattr(cls, name, None) is None
    ]
    require(not missing, f"the architecture {cls.__name__} lacks {', '.join(missing)}")
    require(
        isinstance(cls.kind, str) and bool(re.fullmatch(r"[A-Za-z][\w.-]*", cls.kind)),
        f"{cls.__name__}.kind begins the names of runs: give it letters, digits, . _ and - alone, not "
        f"{short(cls.kind)}",
    )
    other = _REGISTRY.get(cls.kind)
    require(
        other is None or source_of(other) == source_of(cls),
        f"{cls.__name__} and {other and other.__name__} are both of the kind {cls.kind!r}",
    )
    _check_members(cls)
    _REGISTRY[cls.kind] = cls
    return cls


def _check_members(cls: type[ModelSpec]) -> None:
    """Raises a `SpecError` where a class variable cannot be what the protocol takes it for."""
    for name in ("NON_EMBEDDING", "MATMULS", "SHAPE_FIELDS", "STACKS"):
        value = getattr(cls, name)
        require(
            isinstance(value, (tuple, list)) and all(isinstance(item, str) for item in value),
            f"{cls.__name__}.{name} must be a tuple of names, as ('a',), not {short(value)}",
        )
    fields = {field.name for field in dataclasses.fields(cls)}
    for name in cls.SHAPE_FIELDS:
        require(
            name in fields,
            f"{cls.__name__}.SHAPE_FIELDS names {name!r}, which is no field of it: there are "
            f"{', '.join(sorted(fields))} (@register stands above @dataclass)",
        )
    for rule in cls.ARRAYS:
        require(
            isinstance(rule, Array) and isinstance(rule.pattern, str),
            f"{cls.__name__}.ARRAYS must hold Array(pattern, axes, decays=..), not {short(rule)}",
        )
        try:
            re.compile(rule.pattern)
        except re.error as error:
            raise SpecError(
                f"{cls.__name__}.ARRAYS: {rule.pattern!r} is no regular expression: {error}"
            ) from None
        wrong = [axis for axis in rule.axes or () if axis not in (*_AXES, None)]
        require(
            not wrong and (rule.axes is None or isinstance(rule.axes, (tuple, list))),
            f"{cls.__name__}.ARRAYS: the axes of {rule.pattern!r} must be 'data', 'model' or None, one for "
            f"each dimension, not {short(rule.axes)}",
        )


def architecture(kind: str) -> type[ModelSpec]:
    """The architecture of a kind.

    Raises:
      SpecError: there is none.
    """
    require(
        kind in _REGISTRY,
        f"there is no architecture {short(kind)}; there are {', '.join(kinds())}",
    )
    return _REGISTRY[kind]


def of_hugging_face(config: dict[str, Any]) -> ModelSpec:
    """The model of a config.json of transformers.

    Raises:
      SpecError: no architecture has such a model.
    """
    for cls in _REGISTRY.values():
        try:
            found = cls.of_hugging_face(config)
        except KeyError as error:
            raise SpecError(f"it has no {error}") from None
        except (TypeError, AttributeError, ZeroDivisionError) as error:
            # Null, zero, or a value of another kind, of which the model's own numbers are computed.
            raise SpecError(f"its values make no {cls.kind}: {error}") from error
        if found is not None:
            return found
    raise SpecError(f"no architecture here is a {short(config.get('model_type'))} of transformers")


def kinds() -> tuple[str, ...]:
    """The kinds of all registered architectures."""
    return tuple(sorted(_REGISTRY))

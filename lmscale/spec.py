"""A run is a value: frozen dataclasses that say everything which determines a training result.

A `RunSpec` holds the model, the data, the batch, the optimizer, the schedule, the precision, the
seed and the evaluations, and nothing about machines. Two equal specs give the same result wherever
they run; the content hash of a spec names its folder in a store.

Forward compatibility: the hash covers only the fields that differ from their defaults, so a later
version may add a field (with a default that means "as before") without renaming anybody's runs.
The price is that a default, once released, is never changed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import numbers
import sys
import types
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

__all__ = [
    "DataSpec",
    "EvalSpec",
    "LSTMSpec",
    "ModelSpec",
    "OptimizerSpec",
    "RunSpec",
    "ScheduleSpec",
    "SpecError",
    "StartSpec",
    "StoppingSpec",
    "TransformerSpec",
]


class SpecError(ValueError):
    """A spec that cannot be; the message is one line that says what was wrong and what is right."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


#: The most that counts may be, far above all that was ever trained: a larger one is a slip, and would
#: take minutes to plan or overflow the devices' 32-bit integers.
MOST = {
    "n_layer": 10_000,
    "reuse": 10_000,
    "d_model": 2**20,
    "d_attn": 2**20,
    "d_hidden": 2**20,
    "d_embed": 2**20,
    "d_ff": 2**24,
    "n_head": 2**20,
    "n_ctx": 2**24,
    "vocab_size": 2**24,
    "batch_size": 2**24,
    "steps": 10**9,
}
#: That of the others: tokens of a corpus.
_MOST_TOKENS = 10**18


def _positive(spec: Any, *fields: str) -> None:
    for field in fields:
        value, most = getattr(spec, field), MOST.get(field, _MOST_TOKENS)
        name = f"{type(spec).__name__}.{field}"
        _require(value >= 1, f"{name} must be at least 1, not {short(value)}")
        _require(value <= most, f"{name} must be at most {most:,}, not {short(value)}")


def short(value: Any) -> str:
    """A value for a message: of one line and bounded length."""
    if isinstance(value, int) and abs(value) >= 10**15:
        # Python refuses to print integers of thousands of digits.
        return f"{'-' * (value < 0)}1e{math.floor(math.log10(abs(value)))} or so"
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fraction(spec: Any, *fields: str) -> None:
    for field in fields:
        value = getattr(spec, field)
        _require(
            0.0 <= value < 1.0, f"{type(spec).__name__}.{field} must be in [0, 1), not {value!r}"
        )


@dataclass(frozen=True, kw_only=True)
class _Spec:
    """Shared by every part: types checked where values enter, JSON round trip."""

    def __post_init__(self) -> None:
        for field, hint in _type_hints(type(self)).items():
            value = _coerce(hint, getattr(self, field), f"{type(self).__name__}.{field}")
            object.__setattr__(self, field, value)
        self._check()

    def _check(self) -> None:
        """Fills in the defaults that depend on other fields, then validates."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary with every field, defaults included."""
        return _to_plain(self, keep_defaults=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> typing.Self:
        """The inverse of `to_dict`; raises `SpecError` on a field that does not exist."""
        return _from_plain(cls, values, cls.__name__)


@dataclass(frozen=True, kw_only=True)
class TransformerSpec(_Spec):
    """A decoder-only Transformer in the parameters of Kaplan et al. 2020, Table 1.

    `d_ff` defaults to 4 d_model, `d_attn` (queries, keys and values, all heads together) to
    d_model, and `n_head` to heads of about 64. With `reuse` > 1 the `n_layer` blocks are applied
    `reuse` times each: the recurrent (Universal) Transformer of Kaplan's Fig. 17, whose effective
    depth is n_layer * reuse.

    Defaults are filled in when a spec is made: `dataclasses.replace(spec, d_model=...)` keeps the
    old d_ff, d_attn and n_head unless they are replaced too (by None, for the default again).
    """

    kind: ClassVar[str] = "transformer"

    n_layer: int
    d_model: int
    n_ctx: int
    vocab_size: int
    n_head: int | None = None
    d_ff: int | None = None
    d_attn: int | None = None
    #: How often each block is applied; 1 is the plain Transformer.
    reuse: int = 1
    #: "stack" repeats the whole stack (ABAB), "layer" each block in place (AABB).
    reuse_order: Literal["stack", "layer"] = "stack"
    #: "sinusoidal" adds the Universal Transformer's position-and-step signal before every step.
    step_signal: Literal["none", "sinusoidal"] = "none"
    norm: Literal["pre", "post"] = "pre"
    activation: Literal["gelu", "relu"] = "gelu"
    bias: bool = True
    tied_head: bool = True
    dropout: float = 0.0
    #: Standard deviation of the initial weights, 0.02 as in GPT-2, whose width is 768. Far narrower
    #: models want more: near 0.5 / sqrt(d_model), or attention stays flat for long.
    init_std: float = 0.02

    def _check(self) -> None:
        _positive(self, "d_model")
        if self.d_attn is None:
            object.__setattr__(self, "d_attn", self.d_model)
        _positive(self, "d_attn")
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        if self.n_head is None:
            heads = max(1, round(self.d_attn / 64))
            while self.d_attn % heads:
                heads -= 1
            object.__setattr__(self, "n_head", heads)
        _positive(
            self, "n_layer", "d_model", "n_ctx", "vocab_size", "n_head", "d_ff", "d_attn", "reuse"
        )
        _fraction(self, "dropout")
        _require(
            self.init_std > 0, f"TransformerSpec.init_std must be positive, not {self.init_std!r}"
        )
        _require(
            self.d_attn % self.n_head == 0,
            f"TransformerSpec.d_attn ({self.d_attn}) must be a multiple of n_head ({self.n_head})",
        )

    @property
    def depth(self) -> int:
        """Blocks that a token passes through: n_layer * reuse."""
        return self.n_layer * self.reuse

    @property
    def label(self) -> str:
        reuse = f"x{self.reuse}" if self.reuse > 1 else ""
        return f"transformer-{self.n_layer}{reuse}x{self.d_model}"


@dataclass(frozen=True, kw_only=True)
class LSTMSpec(_Spec):
    """The LSTM of Kaplan et al. 2020, Fig. 7, as recovered from its parameter counts.

    Embedding of width `d_embed`, `n_layer` LSTM layers of width `d_hidden` with two bias vectors
    each (as in cuDNN), a linear projection with bias back to `d_embed`, and an output matrix tied to
    the embedding. Without `projection` the head reads the hidden state, so a tied head then needs
    d_hidden = d_embed.
    """

    kind: ClassVar[str] = "lstm"

    n_layer: int
    d_hidden: int
    n_ctx: int
    vocab_size: int
    d_embed: int = 512
    projection: bool = True
    tied_head: bool = True
    dropout: float = 0.0
    #: Standard deviation of the initial embedding and of an untied head. None is the sound choice,
    #: 1 / sqrt(width): the first layer then reads inputs of unit variance, and a tied head gives
    #: logits of the size of its inputs. 0.02 is what runs had before there was a choice; at widths
    #: below 100 it costs 0.1 to 0.3 nats.
    embed_std: float | None = 0.02
    #: Standard deviation of the initial projection, in units of 1 / sqrt(d_hidden). Hidden states
    #: are small at first (about 0.2), so that a gain of 2 trains better than 1.
    projection_gain: float = 1.0

    def _check(self) -> None:
        _positive(self, "n_layer", "d_hidden", "n_ctx", "vocab_size", "d_embed")
        _fraction(self, "dropout")
        _require(
            self.embed_std is None or self.embed_std > 0,
            f"LSTMSpec.embed_std must be positive or null, not {self.embed_std!r}",
        )
        _require(
            self.projection_gain > 0,
            f"LSTMSpec.projection_gain must be positive, not {self.projection_gain!r}",
        )
        _require(
            self.projection or self.projection_gain == 1.0,
            "LSTMSpec.projection_gain scales the projection, so it needs projection",
        )
        _require(
            self.projection or not self.tied_head or self.d_hidden == self.d_embed,
            f"a tied head without projection needs d_hidden = d_embed, not {self.d_hidden} and "
            f"{self.d_embed}",
        )

    @property
    def label(self) -> str:
        return f"lstm-{self.n_layer}x{self.d_hidden}"


ModelSpec = TransformerSpec | LSTMSpec


@dataclass(frozen=True, kw_only=True)
class DataSpec(_Spec):
    """Which tokens a run is trained on.

    `fingerprint` is the content hash of the token store (tokeniser included), so the same corpus
    name with other text is another run. `subset_tokens` keeps that many training tokens, and smaller
    subsets are nested in larger ones: by "documents" the first of the store, whose documents lie in
    a random order; by "sequences" of n_ctx tokens, drawn from all over it, which is nearer to a random
    sample where a subset would hold few documents.
    """

    corpus: str
    fingerprint: str
    subset_tokens: int | None = None
    subset_by: Literal["documents", "sequences"] = "documents"

    def _check(self) -> None:
        if self.subset_tokens is not None:
            _positive(self, "subset_tokens")
        _require(
            self.subset_tokens is not None or self.subset_by == "documents",
            "DataSpec.subset_by says how subset_tokens are chosen, so it needs subset_tokens",
        )


@dataclass(frozen=True, kw_only=True)
class EvalSpec(_Spec):
    """One named evaluation set: windows of n_ctx tokens of a split of a corpus, `tokens` in all.

    "spread" takes windows at equal distances over the whole split, so that every document can
    contribute; "first" takes the windows at its beginning, which a few long documents may fill.
    Both take all of a split that is shorter than `tokens`.
    """

    name: str
    corpus: str
    fingerprint: str
    split: Literal["train", "valid", "test"] = "valid"
    tokens: int = 65_536
    #: "first" is what runs were evaluated on before there was a choice.
    sampling: Literal["first", "spread"] = "first"

    def _check(self) -> None:
        _positive(self, "tokens")
        _require(bool(self.name), "EvalSpec.name must not be empty")


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec(_Spec):
    """Optimizer and its constants. `weight_decay` is decoupled and applies to matrices only."""

    name: Literal["adam", "adamw", "adafactor"] = "adamw"
    peak_lr: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    #: Largest global gradient norm; None leaves gradients as they are.
    grad_clip: float | None = 1.0

    def _check(self) -> None:
        _require(
            self.peak_lr > 0,
            f"OptimizerSpec.peak_lr must be a positive number, not {self.peak_lr!r}",
        )
        _fraction(self, "beta1", "beta2")
        _require(self.eps > 0, f"OptimizerSpec.eps must be positive, not {self.eps!r}")
        _require(
            self.weight_decay >= 0,
            f"OptimizerSpec.weight_decay must not be negative, not {self.weight_decay!r}",
        )
        _require(
            self.weight_decay == 0 or self.name != "adam",
            "OptimizerSpec.weight_decay needs the optimizer adamw (or adafactor), not adam",
        )
        _require(
            self.grad_clip is None or self.grad_clip > 0,
            f"OptimizerSpec.grad_clip must be positive or null, not {self.grad_clip!r}",
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec(_Spec):
    """Learning rate as a fraction of its peak: linear warmup, then one of five shapes.

    cosine, linear: down to `final_fraction` at step `cycle_steps` (the whole run when None).
    constant: stays at the peak. cooldown: constant, then 1 - sqrt down to `final_fraction` over the
    last `cooldown_steps` (a fifth of the run when None; Hägele et al. 2024). inverse_sqrt: peak *
    sqrt(warmup / step).
    """

    name: Literal["cosine", "linear", "constant", "cooldown", "inverse_sqrt"] = "cosine"
    warmup_steps: int = 0
    final_fraction: float = 0.1
    cycle_steps: int | None = None
    cooldown_steps: int | None = None

    def _check(self) -> None:
        _require(
            self.warmup_steps >= 0,
            f"ScheduleSpec.warmup_steps must not be negative, not {self.warmup_steps}",
        )
        _require(
            0.0 <= self.final_fraction <= 1.0,
            f"ScheduleSpec.final_fraction must be in [0, 1], not {self.final_fraction!r}",
        )
        if self.cycle_steps is not None:
            _positive(self, "cycle_steps")
            _require(
                self.name in ("cosine", "linear"),
                f"ScheduleSpec.cycle_steps belongs to cosine and linear, not {self.name}",
            )
        if self.cooldown_steps is not None:
            _positive(self, "cooldown_steps")
            _require(
                self.name == "cooldown",
                f"ScheduleSpec.cooldown_steps belongs to cooldown, not {self.name}",
            )
        _require(
            self.name != "inverse_sqrt" or self.warmup_steps >= 1,
            "ScheduleSpec inverse_sqrt needs warmup_steps of at least 1",
        )


@dataclass(frozen=True, kw_only=True)
class StoppingSpec(_Spec):
    """Early stopping: ends a run when its loss on the first evaluation set no longer falls.

    `patience` counts evaluations without a new lowest loss. The result is then that of the lowest
    one (Kaplan et al. 2020, the runs limited by data).
    """

    patience: int = 5

    def _check(self) -> None:
        _positive(self, "patience")


@dataclass(frozen=True, kw_only=True)
class StartSpec(_Spec):
    """Begins a run from another run's state: parameters, optimizer moments and step.

    `run` is the other's `run_id`. The data go on from that step, in the order of this run's seed.
    """

    run: str
    step: int

    def _check(self) -> None:
        _positive(self, "step")
        _require(bool(self.run), "StartSpec.run must name a run")


@dataclass(frozen=True, kw_only=True)
class RunSpec(_Spec):
    """Everything that determines the result of one training run.

    `batch_size` counts sequences of `model.n_ctx` tokens and `steps` optimizer updates, those of a
    `start` included. A run is evaluated every `eval_every` steps, at `eval_steps`, and after its
    last step. `noise_pieces` cuts every batch into that many equal pieces whose gradients are
    compared with the whole batch's, for the gradient noise scale (McCandlish et al. 2018).
    """

    model: ModelSpec
    data: DataSpec
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    batch_size: int
    steps: int
    seed: int = 0
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    evals: tuple[EvalSpec, ...] = ()
    eval_every: int | None = None
    eval_steps: tuple[int, ...] = ()
    stopping: StoppingSpec | None = None
    start: StartSpec | None = None
    noise_pieces: int | None = None

    def _check(self) -> None:
        _positive(self, "batch_size", "steps")
        _require(0 <= self.seed < 2**31, f"RunSpec.seed must be in [0, 2^31), not {self.seed!r}")
        if self.eval_every is not None:
            _positive(self, "eval_every")
        for step in self.eval_steps:
            _require(
                1 <= step <= self.steps,
                f"RunSpec.eval_steps must lie in 1 to steps ({self.steps}), not {step}",
            )
        _require(
            self.stopping is None or (bool(self.evals) and self.eval_every is not None),
            "RunSpec.stopping needs an evaluation set and eval_every",
        )
        _require(
            self.start is None or self.start.step < self.steps,
            f"StartSpec.step must be less than RunSpec.steps ({self.steps})",
        )
        if self.noise_pieces is not None:
            _require(
                self.noise_pieces >= 2 and self.batch_size % self.noise_pieces == 0,
                f"RunSpec.noise_pieces must be at least 2 and divide batch_size ({self.batch_size}), "
                f"not {self.noise_pieces}",
            )
        _require(
            self.schedule.warmup_steps <= self.steps,
            f"ScheduleSpec.warmup_steps ({self.schedule.warmup_steps}) must not exceed "
            f"RunSpec.steps ({self.steps})",
        )
        cooldown, cycle = self.schedule.cooldown_steps, self.schedule.cycle_steps
        _require(
            cooldown is None or self.schedule.warmup_steps + cooldown <= self.steps,
            f"ScheduleSpec.cooldown_steps ({cooldown}) and warmup_steps "
            f"({self.schedule.warmup_steps}) must fit in RunSpec.steps ({self.steps})",
        )
        _require(
            cycle is None or cycle > self.schedule.warmup_steps,
            f"ScheduleSpec.cycle_steps ({cycle}) must exceed warmup_steps "
            f"({self.schedule.warmup_steps})",
        )
        names = [evaluation.name for evaluation in self.evals]
        _require(len(set(names)) == len(names), f"RunSpec.evals has two sets of one name: {names}")

    @property
    def batch_tokens(self) -> int:
        return self.batch_size * self.model.n_ctx

    @property
    def n_tokens(self) -> int:
        """Training tokens D: steps * batch_size * n_ctx."""
        return self.steps * self.batch_tokens

    @property
    def own_steps(self) -> int:
        """Updates that this run makes itself: all but those of the run that it starts from."""
        return self.steps - (self.start.step if self.start else 0)

    @property
    def hash(self) -> str:
        """12 hexadecimal digits that depend on the content alone (see the module's docstring)."""
        canonical = json.dumps(
            _to_plain(self, keep_defaults=False), sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def run_id(self) -> str:
        """The folder of this run in a store: a readable name, then the hash."""
        return f"{self.model.label}-b{self.batch_size}-s{self.steps}-seed{self.seed}-{self.hash}"

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        try:
            values = json.loads(text)
        except RecursionError:
            raise SpecError("a run spec must be JSON: this is nested too deeply") from None
        except ValueError as error:
            # Integers of thousands of digits are one too.
            raise SpecError(f"a run spec must be JSON: {error}") from error
        return cls.from_dict(values)


_MODEL_KINDS = {"transformer": TransformerSpec, "lstm": LSTMSpec}


@functools.cache
def _type_hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`, or a `SpecError`. Whole floats pass as ints, ints as floats."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        _require(
            value in args,
            f"{where} must be one of {', '.join(map(repr, args))}, not {short(value)}",
        )
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None:
            _require(type(None) in args, f"{where} must not be null")
            return None
        options = [arg for arg in args if arg is not type(None)]
        if len(options) == 1:
            return _coerce(options[0], value, where)
        _require(
            isinstance(value, tuple(options)),
            f"{where} must be one of {', '.join(o.__name__ for o in options)}, not {short(value)}",
        )
        return value
    if origin is tuple:
        _require(isinstance(value, (tuple, list)), f"{where} must be a list, not {short(value)}")
        return tuple(_coerce(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is bool:
        _require(isinstance(value, bool), f"{where} must be true or false, not {short(value)}")
        return value
    if hint is int:
        whole = isinstance(value, float) and value.is_integer()
        _require(
            (isinstance(value, numbers.Integral) or whole) and not isinstance(value, bool),
            f"{where} must be a whole number, not {short(value)}",
        )
        _require(abs(value) <= _MOST_TOKENS, f"{where} must be at most 1e18, not {short(value)}")
        return int(value)
    if hint is float:
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        _require(
            number and abs(value) <= sys.float_info.max,
            f"{where} must be a finite number, not {short(value)}",
        )
        # Adding zero turns -0.0 into 0.0, which is equal and must hash alike.
        return float(value) + 0.0
    _require(isinstance(value, hint), f"{where} must be a {hint.__name__}, not {short(value)}")
    return value


def _to_plain(value: Any, keep_defaults: bool) -> Any:
    if isinstance(value, _Spec):
        plain = {"kind": value.kind} if isinstance(value, ModelSpec) else {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if keep_defaults or field.default is dataclasses.MISSING or item != field.default:
                plain[field.name] = _to_plain(item, keep_defaults)
        return plain
    if isinstance(value, tuple):
        return [_to_plain(item, keep_defaults) for item in value]
    return value


def _from_plain(hint: Any, value: Any, where: str) -> Any:
    if hint == ModelSpec:
        _require(isinstance(value, dict), f"{where} must be an object, not {short(value)}")
        kind = value.get("kind")
        _require(
            isinstance(kind, str) and kind in _MODEL_KINDS,
            f"{where}.kind must be one of {', '.join(_MODEL_KINDS)}, not {short(kind)}",
        )
        return _from_plain(_MODEL_KINDS[kind], value, where)
    if isinstance(hint, type) and issubclass(hint, _Spec):
        _require(isinstance(value, dict), f"{where} must be an object, not {short(value)}")
        hints = _type_hints(hint)
        if value.get("kind") == getattr(hint, "kind", None):
            value = {name: item for name, item in value.items() if name != "kind"}
        unknown = sorted(set(value) - set(hints))
        _require(
            not unknown,
            f"{where} has no field {', '.join(map(repr, unknown))}; its fields are "
            f"{', '.join(hints)}",
        )
        missing = [
            field.name
            for field in dataclasses.fields(hint)
            if field.default is dataclasses.MISSING and field.name not in value
        ]
        _require(not missing, f"{where} lacks the field {', '.join(missing)}")
        return hint(
            **{
                name: _from_plain(hints[name], item, f"{where}.{name}")
                for name, item in value.items()
            }
        )
    if typing.get_origin(hint) in (types.UnionType, typing.Union) and value is not None:
        # Of the unions that hold a spec only one part is not None; ModelSpec was met above.
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        return _from_plain(parts[0], value, where) if len(parts) == 1 else value
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        item_hint = typing.get_args(hint)[0]
        return tuple(_from_plain(item_hint, item, f"{where}[{i}]") for i, item in enumerate(value))
    return value

"""Allowed values of the fields of experiments: one table of bounds by name, also for users' experiments.

A name means the same in every experiment (`steps`, `n_ctx`, `budgets`), so that its bounds are said
once. A field of another name, or with other bounds, brings them along:

    depth_of_tree: int = field(metadata={"help": "...", "bounds": Bounds(1, 12)})

Bounds catch typing errors and values that would take for ever. Whether values fit together is checked by
`lmscale.spec` and `Experiment.check`.
"""

from __future__ import annotations

import difflib
import math
import numbers
import re
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lmscale import architectures, flops, optimizers, serialize, spec

#: Most values of one field and most runs of one experiment. More are mistakes, and take minutes to plan.
MOST_VALUES, MOST_RUNS = 1000, 10_000
#: Largest number for fields without bounds.
MOST_NUMBER = 1e30


class ExperimentError(ValueError):
    """An experiment that cannot be loaded or overridden; the message is one line."""


class FieldError(ExperimentError):
    """A value that a field cannot have. `fault` completes a sentence that begins with the field's name."""

    def __init__(self, experiment: str, field: str, fault: str):
        super().__init__(f"{experiment}.{field} {fault}")
        self.field, self.fault = field, fault


@dataclass(frozen=True)
class Bounds:
    """The allowed values of a field, or of each member of a list.

    Attributes:
      low, high: of a number, both included.
      choices: of a text; a function where users' files may add some.
      form: a regular expression for the whole text, and its meaning in words.
      distinct: whether a list must not repeat a value, because its runs would count twice.
      counts: the allowed numbers of values in a list; any number when None.
    """

    low: float = -MOST_NUMBER
    high: float = MOST_NUMBER
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = ()
    form: tuple[str, str] | None = None
    distinct: bool = False
    counts: tuple[int, ...] = ()


def _choices(owner: type, field: str) -> Bounds:
    """The choices of a field of a spec."""
    return Bounds(choices=typing.get_args(typing.get_type_hints(owner)[field]))


def _spec(field: str, low: float = 1, **more: Any) -> Bounds:
    """From `low` to the largest value that a spec takes for the field."""
    return Bounds(low, serialize.MOST[field], **more)


_TOKENS = Bounds(1, 1e18)
_SIZES = Bounds(1, 1e15, distinct=True)
_BUDGETS = Bounds(1, 1e30, distinct=True)
_RATE = Bounds(1e-12, 1e3)
# Large factors are allowed: a study may ask what happens when every run diverges.
_FACTOR = Bounds(1e-6, MOST_NUMBER)
_FACTORS = Bounds(1e-6, MOST_NUMBER, distinct=True)
_SHARE = Bounds(0, 1)
_REPEATS = Bounds(1, 1e6, distinct=True)
_WIDTHS = _spec("d_model", distinct=True)
_DEPTHS = _spec("n_layer", distinct=True)

#: Field -> bounds.
BOUNDS: dict[str, Bounds] = {
    "seeds": Bounds(0, 2**31 - 1, distinct=True),
    "vocab_size": _spec("vocab_size", 2),
    "n_ctx": _spec("n_ctx"),
    "short_ctx": _spec("n_ctx"),
    "eval_tokens": Bounds(1, 1e12),
    "eval_corpora": Bounds(distinct=True),
    "evaluations": Bounds(1, 10_000),
    # Lengths.
    "steps": _spec("steps"),
    "least_steps": _spec("steps"),
    "warmup_steps": _spec("steps", 0),
    "tokens": Bounds(1, 1e18, distinct=True),
    # 0 where the shapes of the paper set it.
    "unique_tokens": Bounds(0, 1e18),
    "fixed_cosine": _TOKENS,
    "fixed_warmup": _TOKENS,
    "epochs": _REPEATS,
    "fresh": _REPEATS,
    "divisors": Bounds(1, 1e12, distinct=True),
    "patience": Bounds(1, 1e6),
    "longer": Bounds(0, 10),
    # Batches, in sequences.
    "batch_size": _spec("batch_size"),
    "batch_sizes": _spec("batch_size", distinct=True),
    "fixed_batch": _spec("batch_size"),
    "tuned_batch": _spec("batch_size"),
    "large_batch": _spec("batch_size"),
    "turning_batch": _spec("batch_size"),
    "noise_pieces": Bounds(2, 1024),
    # Compute and size.
    "budgets": _BUDGETS,
    "kaplan_budgets": _BUDGETS,
    "convention": Bounds(choices=tuple(flops.CONVENTIONS)),
    "sizes": _SIZES,
    "slope_sizes": _SIZES,
    "lstm_sizes": _SIZES,
    "size": Bounds(1, 1e15),
    "sizes_per_budget": Bounds(1, 1000),
    "tokens_per_param": Bounds(1e-6, 1e9),
    "spread": Bounds(1, 1e6),
    "swept_budget": Bounds(0, MOST_VALUES),
    # Shapes.
    "shapes": Bounds(form=(r"\d{1,9}x\d{1,9}", "LAYERSxWIDTH such as 2x16"), distinct=True),
    "n_layer": _spec("n_layer"),
    "depths": _DEPTHS,
    "lstm_layers": _DEPTHS,
    "reuse": _spec("reuse", distinct=True),
    "positions": _choices(spec.TransformerSpec, "positions"),
    "reuse_order": _choices(spec.TransformerSpec, "reuse_order"),
    "step_signal": _choices(spec.TransformerSpec, "step_signal"),
    "widths": _WIDTHS,
    "head_widths": _WIDTHS,
    "d_embed": _spec("d_model"),
    "d_head": _spec("d_model"),
    "multiple": _spec("d_model"),
    "ff_ratios": Bounds(1e-3, 1e4, distinct=True),
    # Training.
    "base_lr": _RATE,
    "fixed_lr": _RATE,
    "final_lr": Bounds(0, 1e3),
    "lr_factor": _FACTOR,
    "constant_lr": _FACTOR,
    "lr_factors": _FACTORS,
    "centre_lr_factors": _FACTORS,
    "tuned_lr_factors": _FACTORS,
    "swept_lrs": _FACTORS,
    "init_std": Bounds(1e-6, 1e3),
    "dropout": Bounds(0, 0.999),
    "weight_decay": Bounds(0, 1e3),
    "warmup_fraction": _SHARE,
    "final_fraction": _SHARE,
    "cooldown": Bounds(1e-6, 0.999),
    "schedule": _choices(spec.ScheduleSpec, "name"),
    "architectures": Bounds(choices=architectures.kinds, distinct=True),
    "optimizer": Bounds(choices=optimizers.names),
    "large_optimizer": Bounds(choices=optimizers.names),
    "compute_dtype": _choices(spec.RunSpec, "compute_dtype"),
    # B_STAR and ALPHA_B, optionally followed by LOSS FACTOR ALPHA_LOW ALPHA_HIGH.
    "critical_batch": Bounds(1e-6, 1e18, counts=(2, 6)),
}


def check_value(value: Any, kind: type, many: bool, bounds: Bounds) -> str | None:
    """What is wrong with a field's value, as a sentence without its subject; None if it is right."""
    if not many:
        return _fault(value, kind, bounds)
    if not isinstance(value, tuple):
        return f"must be a tuple, not {short(value)}"
    if bounds.counts and len(value) not in bounds.counts:
        wanted = " or ".join(map(str, bounds.counts))
        return f"takes {wanted} values, not {len(value)}"
    if len(value) > MOST_VALUES:
        return f"takes at most {MOST_VALUES:,} values, not {len(value):,}"
    for item in value:
        if fault := _fault(item, kind, bounds):
            return fault
    if bounds.distinct and (twice := [v for i, v in enumerate(value) if v in value[:i]]):
        return f"has {short(twice[0])} more than once: give each value once"
    return None


def _fault(value: Any, kind: type[Any], bounds: Bounds) -> str | None:
    if kind in (int, float):
        of_kind = isinstance(value, numbers.Integral if kind is int else numbers.Real)
        if not of_kind or isinstance(value, bool):
            return f"must be a {'whole ' * (kind is int)}number, not {short(value)}"
        if not (bounds.low <= value <= bounds.high):
            return f"must be {_range(bounds)}, not {short(value)}"
        return None
    if not isinstance(value, kind):
        return f"must be a {kind.__name__}, not {short(value)}"
    choices = bounds.choices() if callable(bounds.choices) else bounds.choices
    if choices and value not in choices:
        close = difflib.get_close_matches(value, choices, n=1)
        hint = f": did you mean {close[0]}?" if close else ""
        return f"must be one of {', '.join(choices)}, not {short(value)}{hint}"
    if bounds.form and not re.fullmatch(bounds.form[0], value, re.ASCII):
        return f"must be {bounds.form[1]}, not {short(value)}"
    return None


def _range(bounds: Bounds) -> str:
    if bounds.low == -MOST_NUMBER and bounds.high == MOST_NUMBER:
        return f"a finite number, of at most {MOST_NUMBER:g} either side of zero"
    return f"from {bounds.low:g} to {bounds.high:g}"


def short(value: Any) -> str:
    """A value as one short line, for messages."""
    return f"{value:.12g}" if isinstance(value, float) else serialize.short(value)


def most_runs(count: float) -> None:
    """Raises an `ExperimentError` when a grid has too many runs."""
    if count > MOST_RUNS:
        raise ExperimentError(
            f"these fields declare {count:,.0f} runs, and an experiment has at most {MOST_RUNS:,}: "
            "give fewer values"
        )


def count_product(choices: Iterable[Iterable[Any]]) -> list[list[Any]]:
    """The choices as lists; raises an `ExperimentError` when they have too many combinations."""
    lists = [list(values) for values in choices]
    most_runs(math.prod(map(len, lists)))
    return lists

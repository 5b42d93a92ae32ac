"""`--recipe KEY=VALUE ...`: the runs of an experiment with another optimizer's constants, schedule or precision.

An experiment has options for what it studies. What it takes for granted (weight decay, warmup, final
learning rate) is changed here, for all of its runs alike, after the experiment has made them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lmscale.spec import RunSpec, SpecError
from lmscale.sweep.fields import ExperimentError
from lmscale.wording import plural, suggestion

if TYPE_CHECKING:
    from lmscale.sweep.experiment import Run

__all__ = ["KEYS", "changed_runs", "read_recipe", "with_recipe"]

_OPTIMIZER = ("peak_lr", "beta1", "beta2", "eps", "weight_decay", "grad_clip", "momentum")
_SCHEDULE = ("warmup_steps", "final_fraction", "cooldown_steps")
_RUN = ("eval_every", "compute_dtype")
#: `schedule` is the schedule's name; `warmup_fraction` is of a run's steps.
KEYS = (*_OPTIMIZER, "schedule", "warmup_fraction", *_SCHEDULE, *_RUN)
_WHOLE = ("warmup_steps", "cooldown_steps", "eval_every")
_WORDS = ("schedule", "compute_dtype")
_OPTIONAL = ("grad_clip", "eval_every", "cooldown_steps")
#: Fields of a schedule that belong to some shapes only.
_OF_SHAPES = {"cycle_steps": ("cosine", "linear"), "cooldown_steps": ("cooldown",)}


def read_recipe(entries: Sequence[str]) -> dict[str, Any]:
    """The values of KEY=VALUE entries by key.

    Raises:
      ValueError: an entry is none, or its value is of another kind; the message completes a sentence
        that begins with "recipe".
    """
    found: dict[str, Any] = {}
    for entry in entries:
        key, equals, text = entry.partition("=")
        if not equals or not text:
            raise ValueError(f"must be KEY=VALUE, such as weight_decay=0.1, not {entry!r}")
        if key not in KEYS:
            raise ValueError(f"has no key {key!r}: {suggestion(key, KEYS)}")
        if key in found:
            raise ValueError(f"has {key} twice: give it once")
        found[key] = _value(key, text)
    if {"warmup_steps", "warmup_fraction"} <= found.keys():
        raise ValueError("has warmup_steps and warmup_fraction: give one of them")
    return found


def _value(key: str, text: str) -> Any:
    if key in _WORDS:
        return text
    if text == "none" and key in _OPTIONAL:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    whole = key in _WHOLE
    if not math.isfinite(number) or (whole and not number.is_integer()):
        raise ValueError(f"takes a {'whole ' * whole}number for {key}, not {text!r}")
    if key == "warmup_fraction" and not 0 <= number <= 1:
        raise ValueError(f"takes a share from 0 to 1 for {key}, not {text!r}")
    return int(number) if whole else number


def with_recipe(runs: Sequence[Run], entries: Sequence[str]) -> list[Run]:
    """The runs with these values in their optimizer, schedule, evaluations and precision.

    Raises:
      ExperimentError: a value cannot be, or would make runs alike that the experiment tells apart by it.
    """
    recipe = read_recipe(entries)
    said = f"--recipe {' '.join(entries)}"
    shape = recipe.keys() & {"schedule", "warmup_fraction"}
    if shape and any(run.spec.start for run in runs):
        raise ExperimentError(
            f"{said}: some runs of this experiment go on from the state of others, so their schedules belong "
            f"together: leave {' and '.join(sorted(shape))} out"
        )
    try:
        changed = changed_runs(runs, lambda spec: _changed(spec, recipe))
    except SpecError as error:
        raise ExperimentError(f"{said}: {error}") from error
    before, after = (len({run.spec.hash for run in which}) for which in (runs, changed))
    if after < before:
        raise ExperimentError(
            f"{said}: makes {plural(before, 'run')} of this experiment {after} different ones: it varies what "
            "is set here"
        )
    return changed


def _changed(spec: RunSpec, recipe: dict[str, Any]) -> RunSpec:
    def own(names: Sequence[str]) -> dict[str, Any]:
        return {name: recipe[name] for name in names if name in recipe}

    schedule = own(_SCHEDULE)
    if "schedule" in recipe:
        shape = recipe["schedule"]
        unused = {name: None for name, shapes in _OF_SHAPES.items() if shape not in shapes}
        schedule = {**unused, **schedule, "name": shape}
    if "warmup_fraction" in recipe:
        schedule["warmup_steps"] = round(recipe["warmup_fraction"] * spec.steps)
    return dataclasses.replace(
        spec,
        optimizer=dataclasses.replace(spec.optimizer, **own(_OPTIMIZER)),
        schedule=dataclasses.replace(spec.schedule, **schedule),
        **own(_RUN),
    )


def changed_runs(runs: Sequence[Run], change: Callable[[RunSpec], RunSpec]) -> list[Run]:
    """The runs with changed specs; one that starts from another of them then starts from the changed one.

    Args:
      change: gives a run's spec as it should be, and leaves its `start` alone.
    """
    specs = {run.spec.run_id: run.spec for run in runs}

    @functools.cache
    def changed(run_id: str) -> RunSpec:
        spec = change(specs[run_id])
        if spec.start is None or spec.start.run not in specs:
            return spec
        start = dataclasses.replace(spec.start, run=changed(spec.start.run).run_id)
        return dataclasses.replace(spec, start=start)

    return [dataclasses.replace(run, spec=changed(run.spec.run_id)) for run in runs]

"""The runs that an experiment declares, checked before anything is trained.

An experiment may be a file of a user's own. What is wrong with it is told here, in one line, and not by
the table of results after the training.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from lmscale.serialize import short
from lmscale.spec import RunSpec
from lmscale.sweep.experiment import Run
from lmscale.sweep.fields import ExperimentError
from lmscale.sweep.result_table import is_column
from lmscale.terminal import plural
from lmscale.user_files import WrongReturnError, told_by

__all__ = ["checked_runs"]

#: What a run's folder may be called: its name begins with the label of the model.
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,@~-]*")


def checked_runs(
    name: str, runs: Callable[[Any], Iterable[Run]], corpus: Any
) -> tuple[list[Run], list[str]]:
    """The runs of an experiment on a corpus; of runs that are declared twice alike, one.

    Args:
      runs: `Experiment.runs`, bound to the experiment.

    Returns:
      The runs, and a line where some were declared twice.

    Raises:
      ExperimentError: it raises an error, or returns what are no runs.
      SpecError: a run cannot be.
    """

    def error(line: str) -> ExperimentError:
        return ExperimentError(f"{name}: {line}")

    with told_by(error, runs):
        found = runs(corpus)
        if not isinstance(found, Iterable) or isinstance(found, Mapping):
            what = "None" if found is None else f"a {type(found).__name__}"
            raise WrongReturnError(
                f"runs() returned {what}: it must return a list of Run(spec, labels)"
            )
        checked = [_checked(place, run) for place, run in enumerate(found)]
    alike: dict[str, list[dict[str, Any]]] = {}
    kept = []
    for run in checked:
        labels = alike.setdefault(run.spec.hash, [])
        # A run of two budgets has an entry for each; the same entry twice would count its seed twice.
        if run.labels not in labels:
            labels.append(run.labels)
            kept.append(run)
    if len(kept) == len(checked):
        return kept, []
    twice = plural(len(checked) - len(kept), "run")
    return kept, [f"{twice} declared a second time with the same labels: each counts once"]


def _checked(place: int, run: Any) -> Run:
    """The run, with labels that JSON can hold."""
    if isinstance(run, RunSpec):
        raise WrongReturnError(
            f"runs() returned a RunSpec at place {place}: put it into Run(spec, {{'family': ..}})"
        )
    if not isinstance(run, Run):
        raise WrongReturnError(
            f"runs() returned a {type(run).__name__} at place {place}, where a Run(spec, labels) belongs"
        )
    if not isinstance(run.spec, RunSpec):
        raise WrongReturnError(
            f"the spec of the run at place {place} is a {type(run.spec).__name__}: make_run(..) makes one"
        )
    if not isinstance(run.labels, Mapping):
        raise WrongReturnError(
            f"the labels of the run at place {place} are a {type(run.labels).__name__}: they must be a "
            "dictionary of column to value"
        )
    label = run.spec.model.label
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise WrongReturnError(
            f"{type(run.spec.model).__name__}.label is {short(label)}, which begins the name of a folder: "
            "use letters, digits and . _ - = + , alone"
        )
    evals = [one.name for one in run.spec.evals]
    labels = {key: _label(key, value, evals) for key, value in run.labels.items()}
    return Run(run.spec, labels)


def _label(key: Any, value: Any, evals: list[str]) -> Any:
    """The value of a label in Python's own types."""
    if not isinstance(key, str) or not key:
        raise WrongReturnError(f"a label has a name, not {short(key)}")
    if is_column(key, evals):
        raise WrongReturnError(
            f"the label {key!r} is a column of results.csv already: give it another name"
        )
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if not (value is None or isinstance(value, (str, int, float, bool))):
        raise WrongReturnError(
            f"the label {key!r} is a {type(value).__name__}: it must be a text, a number, True, False or None"
        )
    if isinstance(value, float) and not np.isfinite(value):
        raise WrongReturnError(f"the label {key!r} must be a finite number, not {value}")
    if key == "family" and not isinstance(value, str):
        raise WrongReturnError(f"the label family names a curve, as 'deep': {value!r} is no text")
    if key in ("budget", "lr_factor") and (
        not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0
    ):
        raise WrongReturnError(f"the label {key} must be a positive number, not {value!r}")
    return value

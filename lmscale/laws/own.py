"""What a law of a user's own must be, and how its faults are told: in one line, with the file and the line."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmscale.laws.errors import TableError
from lmscale.laws.finish import ranges_of
from lmscale.laws.options import check_options
from lmscale.laws.result import FitError, FitResult
from lmscale.laws.table import COLUMNS, Table

if TYPE_CHECKING:
    from lmscale.laws import Law

__all__ = ["check_law", "check_result", "is_ours", "same_source", "told", "with_residuals"]


def check_law(law: Law) -> None:
    """Raises a `FitError` where a law cannot be asked for by its name or its options."""
    if not isinstance(law.name, str) or not re.fullmatch(r"[A-Za-z][\w.-]*", law.name):
        raise FitError(
            f"a law has a name of letters, digits and dashes, as log-law, not {law.name!r}"
        )
    if law.name == "all":
        raise FitError("the name all stands for every law: choose another")
    if isinstance(law.needs, str) or not all(isinstance(name, str) for name in law.needs):
        raise FitError(
            f"the law {law.name}: needs must be a tuple of columns, as ('flops', 'loss'), not {law.needs!r}"
        )
    check_options(law)


def same_source(one: Law, other: Law) -> bool:
    """Whether two laws are one: their fits are defined by one name in one file, maybe loaded twice."""
    return _source(one) == _source(other)


def _source(law: Law) -> tuple[Any, ...]:
    fit = inspect.unwrap(law.fit)
    code = getattr(fit, "__code__", None)
    return (fit,) if code is None else (code.co_filename, fit.__qualname__)


def is_ours(law: Law) -> bool:
    """Whether lmscale itself brings the law."""
    return str(getattr(law.fit, "__module__", "")).startswith("lmscale.")


@contextlib.contextmanager
def told(law: Law) -> Iterator[None]:
    """Turns an error of a user's law into a `FitError` of one line. One of lmscale's keeps its traceback."""
    try:
        yield
    except (TableError, FitError):
        raise
    except (Exception, SystemExit) as error:
        if is_ours(law):
            raise
        code = getattr(inspect.unwrap(law.fit), "__code__", None)
        file = None if code is None else code.co_filename
        lines = [
            at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == file
        ]
        line = lines[-1] if lines else (1 if code is None else code.co_firstlineno)
        place = f" ({Path(file).name}:{line})" if file else ""
        words = " ".join(str(error).split())
        what = "it calls sys.exit" if isinstance(error, SystemExit) else type(error).__name__
        said = f"{what}: {words}" if words and not isinstance(error, SystemExit) else what
        raise FitError(f"the law {law.name} failed: {said}{place}") from error


def check_result(law: Law, result: Any) -> FitResult:
    """The result of a law.

    Raises:
      FitError: it is no `FitResult` of that law with finite parameters.
    """
    if is_ours(law):
        return result
    who = f"the law {law.name}"
    if not isinstance(result, FitResult):
        what = "None" if result is None else f"a {type(result).__name__}"
        raise FitError(f"{who} returned {what}: its fit must return a lmscale.laws.FitResult")
    if result.law != law.name:
        raise FitError(f"{who} returned a fit of the law {result.law!r}: give FitResult that name")
    for what in ("parameters", "intervals", "draws", "exponents", "details", "residuals", "ranges"):
        if not isinstance(getattr(result, what), Mapping):
            raise FitError(f"{who}: {what} of its FitResult must be a dictionary of name to value")
    if isinstance(result.warnings, str) or not all(isinstance(one, str) for one in result.warnings):
        raise FitError(f"{who}: warnings of its FitResult must be a tuple of sentences")
    if result.failure:
        return result
    for name, value in result.parameters.items():
        if not isinstance(value, Real) or not math.isfinite(value):
            raise FitError(f"{who} gives {name} = {value!r}: these runs do not determine it")
    for name, edges in result.intervals.items():
        pair = (
            isinstance(edges, (Sequence, np.ndarray))
            and len(edges) == 2
            and name in result.parameters
        )
        if not pair or not all(isinstance(edge, Real) for edge in edges):
            raise FitError(
                f"{who}: the interval of {name!r} must be (low, high) of one of its parameters, not {edges!r}"
            )
    lengths = {name: np.shape(values) for name, values in result.draws.items()}
    if len(set(lengths.values())) > 1 or any(len(shape) != 1 for shape in lengths.values()):
        raise FitError(f"{who}: its draws must be arrays [draw] of one length, not {lengths}")
    return result


def with_residuals(law: Law, result: FitResult, table: Table) -> FitResult:
    """The result with its residuals and ranges, where a user's law with a `model` left them out.

    They are read from the rows that are sound in the columns that the law needs. Where the law was fitted to
    another number of rows, nobody but the law knows to which, and nothing is added.
    """
    needs = [name for name in law.needs if name in COLUMNS]
    if (
        is_ours(law)
        or result.failure
        or result.model is None
        or result.residuals
        or "loss" not in needs
    ):
        return result
    try:
        runs = table.runs(*needs)
        inputs = {name: column for name, column in runs.columns.items() if name != "loss"}
        with told(law):
            predicted = np.asarray(result.predict(**inputs), float)
    except (TableError, FitError):
        # What is wrong is said where a prediction is asked for: on the largest runs, or at a budget.
        return result
    if len(runs) != result.n_used or predicted.shape != runs["loss"].shape:
        return result
    if not (np.isfinite(predicted) & (predicted > 0)).all():
        return result
    residuals = {
        "row": runs.row,
        **{name: column for name, column in inputs.items() if name in COLUMNS},
        "observed": runs["loss"],
        "predicted": predicted,
        "residual": np.log(runs["loss"] / predicted),
    }
    return dataclasses.replace(result, residuals=residuals, ranges=result.ranges or ranges_of(runs))

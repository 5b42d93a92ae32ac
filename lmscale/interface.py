"""The Python interface: the results of a store, a law fitted to any table, and advice.

`lmscale/__init__.py` gives these out as `lmscale.load`, `lmscale.fit` and `lmscale.advise`. The commands
call the same functions, so that a notebook and a terminal never disagree.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from lmscale import laws
from lmscale.laws import Advice, FitResult
from lmscale.serialize import short
from lmscale.studies.results import Results
from lmscale.sweep.fitting import Fits, all_options, fit_laws, law_names, options_by_law
from lmscale.sweep.recommend import law_source, recommend
from lmscale.sweep.store import Store, StoreError
from lmscale.sweep.tables import table_of_runs

__all__ = ["advise", "fit", "load"]

_Said = TypeVar("_Said")


def _said_in_keywords(function: Callable[..., _Said]) -> Callable[..., _Said]:
    """Errors and warnings of the function name keyword arguments where a command names its flags."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> _Said:
        try:
            return _with_keywords(function(*args, **options))
        except (laws.FitError, laws.TableError, StoreError) as error:
            error.args = (_in_python(str(error)),)
            raise

    return call


def _with_keywords(found: Any) -> Any:
    """The same result, whose warnings and reasons name keyword arguments."""
    if isinstance(found, laws.FitError):
        return laws.FitError(_in_python(str(found)))
    if isinstance(found, tuple):
        return tuple(map(_with_keywords, found))
    if isinstance(found, Fits):
        at = {law: _with_keywords(tuple(answers)) for law, answers in found.at.items()}
        return dataclasses.replace(found, lines=_with_keywords(found.lines), at=at)
    if isinstance(found, laws.Comparison):
        fit = found.fit and _with_keywords(found.fit)
        return dataclasses.replace(found, fit=fit, problem=_in_python(found.problem))
    said: dict[str, Any] = {"warnings": tuple(map(_in_python, found.warnings))}
    if isinstance(found, FitResult):
        said |= {"at": _with_keywords(found.at), "failure": _in_python(found.failure)}
    return dataclasses.replace(found, **said)


def load(store: Store | str | os.PathLike) -> Results:
    """The results of a store, as studies and reports read them.

        results = lmscale.load("results/isoflop-cpu")
        results.runs          # one row a run: labels, every hyperparameter, losses, N and C
        results.curves        # one row a run and step: run, step, tokens, flops, loss, ...
        lmscale.studies.isoflop.study(results).estimates["a"].interval

    Args:
      store: the folder of a `lmscale run`, which may still be training; also remote (gs://).

    Returns:
      What the store held at this moment; load it again to see more.

    Raises:
      StoreError: the folder holds no experiment; one line.
    """
    return Results.read(store)


@_said_in_keywords
def fit(
    source: Any,
    law: str | Sequence[str],
    *,
    columns: Mapping[str, str] | Sequence[str] | str | None = None,
    where: str | None = None,
    convention: str | None = None,
    cells: str | None = None,
    at: float | Sequence[float] | None = (),
    bootstrap: int = laws.DRAWS,
    **options: Any,
) -> FitResult | Fits:
    """Fits a law, or several side by side, as `lmscale fit` does.

        fit = lmscale.fit("runs.csv", "parametric", columns={"loss": "c4_en"}, at=1e22)
        fit.parameters["alpha"], fit.intervals["alpha"], fit.at[0].n_params
        both = lmscale.fit("results/isoflop-cpu", ["isoflop", "parametric"])
        both["parametric"].exponents

    Args:
      source: a store or its folder, `lmscale.load` of it, the path of a table (CSV, JSON, JSON lines), a
        DataFrame, such as some rows of `load(..).runs`, or a dict of columns.
      law: a name in `lmscale.laws.LAWS`, several of them, or "all".
      columns: our name -> the source's ("params=COL,loss=COL" as well); others are found by their
        common names.
      where: rows to take, "mode == train and params >= 1e8".
      convention: which params and flops of a store's results to read (standard).
      cells: best, mean or all, of runs with one params and tokens.
      at: FLOPs to give N_opt, D_opt and loss at.
      bootstrap: draws, at least 20, since fewer hold no interval; 0 for a fit without intervals.
      options: those of the laws, such as window=2 (`lmscale fit --help` has them), level and seed.

    Returns:
      For one law its `FitResult`, for several `Fits`, a mapping from laws to these.

    Raises:
      TableError, StoreError: the source cannot be read; one line.
      FitError: no law could be fitted, the only one has no answer at a budget that was asked for, or an
        argument is of another kind or out of its limits.
    """
    _check_numbers(bootstrap, options)
    _check_reading(columns, where)
    budgets = _budgets(at)
    names, source = law_names(law), _store_of(source)
    by_law = options_by_law(names, options)
    table = table_of_runs(source, columns=columns, where=where, convention=convention, cells=cells)
    found = fit_laws(
        table, names, source=source, budgets=budgets, bootstrap=int(bootstrap), options=by_law
    ).check()
    if not isinstance(law, str) or law == "all":
        return found
    answers = found.at.get(law, ())
    for answer in answers:
        if isinstance(answer, laws.FitError):
            raise answer
    return dataclasses.replace(found[law], at=tuple(answers))


@_said_in_keywords
def advise(
    source: Any,
    *,
    compute: float | None = None,
    loss: float | None = None,
    unique_tokens: float | None = None,
    inference_tokens: float = 0.0,
    law: str | None = None,
    family: str | None = None,
    extrapolate: bool = False,
    columns: Mapping[str, str] | Sequence[str] | str | None = None,
    where: str | None = None,
    convention: str | None = None,
    cells: str | None = None,
) -> Advice:
    """The best model for a budget, as `lmscale advise` gives it.

        advice = lmscale.advise("results/isoflop-cpu", compute=1e13)
        advice.n_params, advice.intervals["n_params"], advice.model, advice.learning_rate
        lmscale.advise("besiroglu2024", compute=1e22).n_tokens

    Args:
      source: a store (its folder, or `lmscale.load` of it), any table that `fit` takes, a `FitResult`, or
        the name of a published law (`lmscale.laws.PUBLISHED`).
      compute: FLOPs of training; with `inference_tokens` of training and serving.
      loss: instead of `compute`, the loss in nats per token to reach with the least compute.
      unique_tokens: how many tokens there are; beyond them data repeat.
      inference_tokens: tokens served later, which the compute then pays for as well.
      law: isoflop unless given; of a table what fits it.
      family: whose law of a store; by default the only one, or else the Transformers'.
      extrapolate: answer also far from the runs (`lmscale.laws.advise.FARTHEST`).
      columns, where, convention, cells: how a table is read; see `fit`.

    Raises:
      TableError, StoreError: the source cannot be read; one line.
      FitError: the law has no answer, the budget lies too far from its runs, or an argument is of another
        kind or out of its limits.
    """
    asked = {"compute": compute, "loss": loss, "unique_tokens": unique_tokens}
    asked = {name: _positive(name, value) for name, value in asked.items() if value is not None}
    served = _number(
        "inference_tokens", inference_tokens, "a number of at least 0", lambda value: value >= 0
    )
    _check_reading(columns, where)
    if (compute is None) == (loss is None):
        raise laws.FitError(
            "give either compute (a budget) or loss (a target), not both or neither"
        )
    reading = {"columns": columns, "where": where, "convention": convention, "cells": cells}
    chosen: dict[str, Any] = {"law": law, "family": family, "reading": reading}
    return recommend(
        law_source(_store_of(source), **chosen),
        **chosen,
        extrapolate=extrapolate,
        flops=asked.get("compute"),
        loss=asked.get("loss"),
        unique_tokens=asked.get("unique_tokens"),
        inference_tokens=served,
    )


def _in_python(text: str) -> str:
    """What the library says in the flags of a command, said in keyword arguments of `fit` and `advise`."""
    if "--" not in text:
        return text
    keywords = set(all_options(laws.LAWS.values()))
    keywords.update(*(inspect.signature(function).parameters for function in (fit, advise)))

    def keyword(flag: re.Match) -> str:
        name = flag[1].replace("-", "_")
        if name not in keywords:
            return flag[0]
        if flag[2]:
            return f"{name}=" + " or ".join(f'"{value}"' for value in flag[2].split("|"))
        return "extrapolate=True" if name == "extrapolate" else name

    return re.sub(r"--([a-z][a-z-]*)(?: ([a-z]+(?:\|[a-z]+)+))?", keyword, text)


def _check_numbers(bootstrap: Any, options: Mapping[str, Any]) -> None:
    """Raises `FitError` unless draws, level and seed are within the limits of the command's options."""
    fewest, most = laws.FEWEST_DRAWS, laws.MOST_DRAWS
    _number(
        "bootstrap",
        bootstrap,
        f"a whole number from {fewest}, since fewer draws hold no interval, to {most:,}, or 0 for none",
        lambda value: value == 0 or (fewest <= value <= most and value.is_integer()),
    )
    if "level" in options:
        _number("level", options["level"], "between 0 and 1", lambda value: 0 < value < 1)
    if "seed" in options:
        _number(
            "seed",
            options["seed"],
            "a whole number of at least 0",
            lambda value: value >= 0 and value.is_integer(),
        )


def _check_reading(columns: Any, where: Any) -> None:
    """Raises `FitError` where the choice of columns or of rows is of another kind."""
    if columns is not None and not isinstance(columns, Iterable):
        raise laws.FitError(f'columns must name them, as "params=N,loss=L", not {short(columns)}')
    if where is not None and not isinstance(where, str):
        raise laws.FitError(f'where must be a text, as "params >= 1e8", not {short(where)}')


def _budgets(at: Any) -> list[float]:
    """The budgets that `at` gives: one number, several, or None."""
    if at is None:
        return []
    if isinstance(at, (str, numbers.Real)) or not isinstance(at, Iterable):
        return [_positive("at", at)]
    return [_positive("at", budget) for budget in at]


def _positive(name: str, value: Any) -> float:
    """The value as a number.

    Raises:
      FitError: it is no number, or not a positive one.
    """
    return _number(name, value, "a positive number", lambda number: number > 0)


def _number(name: str, value: Any, what: str, test: Callable[[float], bool]) -> float:
    """The value as a number, which may be one of NumPy's.

    Raises:
      FitError: it is not `what`, which `test` tells of finite numbers.
    """
    try:
        number = float(value) if isinstance(value, numbers.Real) else math.nan
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and test(number)):
        raise laws.FitError(f"{name} must be {what}, not {short(value)}")
    return number


def _store_of(source: Any) -> Any:
    """The store that results were read from; anything else as it is.

    Raises:
      FitError: the results were made by hand.
    """
    if not isinstance(source, Results):
        return source
    if source.store is None:
        raise laws.FitError("these results were not read from a store: give their `.runs`")
    return source.store

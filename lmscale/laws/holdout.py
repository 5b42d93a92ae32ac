"""Validation: hold out the largest runs, predict them, and compare laws side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmscale.laws.columns import COLUMNS
from lmscale.laws.own import told
from lmscale.laws.power import power_variable
from lmscale.laws.result import FitError, FitResult
from lmscale.laws.table import Runs, Table, TableError

__all__ = ["Comparison", "HoldOut", "compare", "hold_out"]

#: Laws that are held out along a rule of their own; others along compute or another column (`_by_columns`).
_ORDERED = ("parametric", "over-training", "kaplan-nd", "kaplan-ns", "data-constrained", "isoflop")
_PREDICTS_NOTHING = "the law {} predicts no run's loss"


@dataclass(frozen=True)
class HoldOut:
    """How a law that is fitted to the smaller runs predicts the largest runs.

    Attributes:
      along: what the runs were ordered by (flops, unless the law has another variable).
      at: its value for each run that was held out.
      relative_error: predicted over observed loss, minus one.
      extrapolation: the largest value held out over the largest fitted value.
    """

    law: str
    fit: FitResult
    along: str
    row: np.ndarray
    at: np.ndarray
    observed: np.ndarray
    predicted: np.ndarray
    relative_error: np.ndarray
    extrapolation: float

    @property
    def mean_error(self) -> float:
        """Mean absolute relative error."""
        return float(np.mean(np.abs(self.relative_error)))

    @property
    def worst_error(self) -> float:
        """The relative error of largest absolute value, with its sign."""
        return float(self.relative_error[np.argmax(np.abs(self.relative_error))])

    def to_json(self) -> dict[str, Any]:
        return {
            "along": self.along,
            "n_held_out": len(self.row),
            "n_fitted": self.fit.n_used,
            "from": float(self.at.min()),
            "to": float(self.at.max()),
            "extrapolation": self.extrapolation,
            "mean_error": self.mean_error,
            "worst_error": self.worst_error,
            "bias": float(np.mean(self.relative_error)),
        }


@dataclass(frozen=True)
class Comparison:
    """One law in a comparison of several.

    `problem` says why it could not be fitted, `held_out_problem` why no runs could be held out.
    """

    law: str
    fit: FitResult | None = None
    rms_log_residual: float | None = None
    held_out: HoldOut | None = None
    problem: str = ""
    held_out_problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """The keys of `lmscale fit --json`; or the reason, where the law could not be fitted."""
        if self.fit is None:
            return {"law": self.law, "error": self.problem}
        return {
            **self.fit.to_json(),
            "rms_log_residual": self.rms_log_residual,
            "held_out": None if self.held_out is None else self.held_out.to_json(),
            **({"held_out_reason": self.held_out_problem} if self.held_out is None else {}),
        }


def hold_out(
    table: Any,
    law: str = "parametric",
    *,
    share: float = 0.2,
    columns: Any = None,
    **options: Any,
) -> HoldOut:
    """Fits `law` without the runs of most compute, then predicts these.

    Laws in one variable other than compute hold out the largest values of it. The points of one
    learning curve, which the column group identifies, are held out together.

    Args:
      share: fraction of the runs to hold out. Where there is a gap in compute of 10% or more nearby,
        the cut is there, so that a budget is not split; otherwise it is between any two runs. At least
        half of `share` is held out, and at most 40% (or `share`, if that is more).
      **options: the law's own.

    Raises:
      TableError: all runs have one budget, or the largest holds too many of them.
    """
    from lmscale.laws import LAWS, fit

    if not 0 < share < 1:
        raise FitError(f"share must be between 0 and 1, not {share!r}")
    table = Table.read(table, columns)
    along, runs, values = _ordering(table, law, options)
    values, cut = _split_off(runs, values, share, along, curves=law == "kaplan-ns")
    order = np.argsort(values, kind="stable")
    sorted_values = values[order]
    fitted = fit(table.only(runs.row[order[:cut]]), law, **options)
    if fitted.model is None:
        raise FitError(_PREDICTS_NOTHING.format(law))
    large = runs.take(order[cut:])
    inputs = {name: column for name, column in large.columns.items() if name != "loss"}
    with told(LAWS[law]):
        predicted = np.asarray(fitted.predict(**inputs), float)
        if predicted.shape != large["loss"].shape or not np.isfinite(predicted).all():
            raise FitError(f"the law {law} predicts no finite loss for each of the largest runs")
    return HoldOut(
        law=law,
        fit=fitted,
        along=along,
        row=large.row,
        at=sorted_values[cut:],
        observed=large["loss"],
        predicted=predicted,
        relative_error=predicted / large["loss"] - 1,
        extrapolation=float(sorted_values[-1] / sorted_values[cut - 1]),
    )


def _split_off(
    runs: Runs, values: np.ndarray, share: float, along: str, *, curves: bool
) -> tuple[np.ndarray, int]:
    """The values to sort the rows by, and how many of the sorted rows are fitted.

    Where every size has its own group, a group may be a model that was trained at several budgets, or
    one run with its checkpoints. Its rows stay together where this leaves enough rows to fit.

    Args:
      curves: the law reads learning curves, so the rows of a group always stay together.
    """
    kind, of_row = _runs_by_label(runs)
    if of_row is None:
        return values, _cut(np.sort(values), share, along)
    largest = np.full(of_row.max() + 1, -np.inf)
    np.maximum.at(largest, of_row, values)
    together = largest[of_row]
    try:
        return together, _cut(np.sort(together), share, along, whole_runs=True)
    except TableError:
        if curves or kind == "runs":
            raise
        return values, _cut(np.sort(values), share, along)


def _runs_by_label(runs: Runs) -> tuple[str, np.ndarray | None]:
    """Which rows are points of one learning curve, by the label group (and the seed).

    Points of one curve have one size and one budget, and all different tokens (or steps). A label with
    only one value, or with a group of other rows, names families or models.

    Returns:
      "runs" where groups share a size, "sizes" where every size has its own group; and the group of
      each row, or None where the label does not name runs.
    """
    if "group" not in runs.labels or "params" not in runs:
        return "", None
    group = runs.labels["group"].astype(str)
    if len(set(group)) < 2:
        return "", None
    parts = [group]
    if "seed" in runs.labels:
        parts.append(runs.labels["seed"].astype(str))
    names, of_row = np.unique(
        [" ".join(row) for row in zip(*parts, strict=True)], return_inverse=True
    )
    time = next((runs[name] for name in ("steps", "tokens", "flops") if name in runs), None)
    size = np.empty(len(names))
    for k in range(len(names)):
        rows = of_row == k
        size[k] = runs["params"][rows][0]
        one_size = np.ptp(runs["params"][rows]) <= 1e-6 * size[k]
        one_budget = "budget" not in runs.labels or len(set(runs.labels["budget"][rows])) == 1
        twice = time is not None and len(np.unique(time[rows])) < rows.sum()
        if not one_size or not one_budget or twice:
            return "", None
    return ("runs" if len(np.unique(size)) < len(size) else "sizes"), of_row


def _cut(values: np.ndarray, share: float, along: str, *, whole_runs: bool = False) -> int:
    """How many of the sorted values are fitted: all before the cut.

    With `whole_runs` a row has the largest value of its run; only the text of the error needs this.
    """
    n = len(values)
    steps = np.diff(np.log(values))
    if values[-1] < 1.1 * values[0]:
        raise TableError(f"all runs have one {along}, so there is no larger budget to hold out")
    most = max(0.4, share)
    for least_step, least_share in ((np.log(1.1), share / 2), (1e-9, 0.0)):
        cuts = np.flatnonzero(steps > least_step) + 1
        held = 1 - cuts / n
        cuts = cuts[(held <= most + 1e-9) & (held >= least_share - 1e-9)]
        last = np.flatnonzero(steps > np.log(1.1))
        top = int(last[-1]) + 1 if len(last) else 0
        one_budget = 1 - top / n > most and values[-1] < 1.1 * values[top]
        if not len(cuts) and one_budget:
            break
        if len(cuts):
            return int(cuts[np.argmin(np.abs(1 - cuts / n - share))])
    what = "holds more than {most:.0%} of the runs"
    if whole_runs:
        what = "is reached by runs with more than {most:.0%} of the rows"
    raise TableError(
        f"the largest {along} {what.format(most=most)}, so too few would be left to fit; give runs "
        f"at more budgets"
    )


def _ordering(table: Table, law: str, options: Mapping[str, Any]) -> tuple[str, Runs, np.ndarray]:
    """The variable to order by, in words; the runs that the law reads; and their values of it."""
    if law == "power":
        x = power_variable(table, options.get("x"), options.get("critical_batch"))
        needs = (x, "loss", *(("batch_tokens",) if options.get("critical_batch") else ()))
        runs = table.runs(*needs, least=5)
        return x, runs, runs[x]
    if law == "position":
        runs = table.runs("position", "loss", least=6)
        return "position", runs, runs["position"]
    if law not in _ORDERED:
        return _by_columns(table, law)
    if law != "kaplan-ns":
        extra = ("unique_tokens",) if law == "data-constrained" else ()
        runs = table.runs("params", "tokens", "loss", "flops", *extra, least=6)
        return "flops", runs, runs["flops"]
    if options.get("adjust"):
        raise FitError("S_min of a run follows from its own loss, so it cannot be predicted")
    runs = table.runs("params", "steps", "loss", least=6)
    if "flops" in runs:
        along, values = "flops", runs["flops"]
    else:
        along, values = "params x steps", runs["params"] * runs["steps"]
    return along, runs, values


def _by_columns(table: Table, law: str) -> tuple[str, Runs, np.ndarray]:
    """The ordering of a law of a user's own: by compute where there is one, else by a column it needs."""
    from lmscale.laws import LAWS

    needs = [name for name in LAWS[law].needs if name in COLUMNS]
    if "loss" not in needs or len(needs) < 2:
        raise FitError(
            f"the law {law} names no columns of a table in its needs: without loss and another of "
            f"{', '.join(name for name in COLUMNS if name != 'loss')} nothing can be held out"
        )
    runs = table.runs(*needs, least=6)
    along = next(
        name
        for name in ("flops", "tokens", "params", *needs)
        if name in runs.columns and name != "loss"
    )
    return along, runs, runs[along]


def compare(
    table: Any,
    laws: Sequence[str] | None = None,
    *,
    share: float = 0.2,
    columns: Any = None,
    bootstrap: int = 200,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Comparison]:
    """Fits several laws to one table: their residuals, and their errors on the largest runs.

    A law that cannot be fitted to the table is in the list with the reason.

    Args:
      options: law -> its options other than `bootstrap`.
    """
    table = Table.read(table, columns)
    return [
        _line(table, law, share, bootstrap, dict((options or {}).get(law, {})))
        for law in laws or ("parametric", "over-training", "kaplan-nd", "isoflop")
    ]


def _line(
    table: Table, law: str, share: float, bootstrap: int, options: dict[str, Any]
) -> Comparison:
    from lmscale.laws import fit

    try:
        fitted = fit(table, law, bootstrap=bootstrap, **options)
    except (TableError, FitError) as error:
        return Comparison(law, problem=str(error))
    except np.linalg.LinAlgError as error:
        return Comparison(law, problem=f"these runs do not determine its parameters ({error})")
    if fitted.model is None:
        return Comparison(law, fitted, held_out_problem=_PREDICTS_NOTHING.format(law))
    # A law of a user's own may give none.
    residuals = fitted.residuals.get("residual")
    rms = None if residuals is None else float(np.sqrt(np.mean(np.asarray(residuals) ** 2)))
    try:
        held_out = hold_out(table, law, share=share, bootstrap=0, **options)
    except (TableError, FitError, np.linalg.LinAlgError) as error:
        return Comparison(law, fitted, rms, held_out_problem=str(error))
    return Comparison(law, fitted, rms, held_out)

"""Laws fitted to the runs of a store or of any table: what `lmscale fit` and `lmscale.fit` do."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from lmscale import laws
from lmscale.laws.columns import is_results
from lmscale.laws.options import Option, options_of, parse_option
from lmscale.sweep.curves import curves_of
from lmscale.sweep.store import Store

__all__ = ["Fits", "all_options", "fit_laws", "law_names", "options_by_law"]


@dataclasses.dataclass(frozen=True)
class Fits:
    """Laws fitted to one table: `fits["parametric"]` is a `FitResult`.

    Attributes:
      lines: how each law did, also on the largest budget, which is held out for that.
      at: law -> its answer at each budget that was asked for, or why it has none.
    """

    lines: tuple[laws.Comparison, ...]
    at: Mapping[str, Sequence[laws.Advice | laws.FitError]] = dataclasses.field(
        default_factory=dict
    )

    def __getitem__(self, law: str) -> laws.FitResult:
        for line in self.lines:
            if line.law == law:
                if line.fit is None:
                    raise laws.FitError(f"{law} cannot be fitted: {line.problem}")
                return line.fit
        raise KeyError(f"{law} was not asked for; there are {', '.join(self)}")

    def __iter__(self) -> Iterator[str]:
        return (line.law for line in self.lines)

    def __len__(self) -> int:
        return len(self.lines)

    def check(self) -> Fits:
        """These fits.

        Raises:
          FitError: no law could be fitted.
        """
        if any(line.fit is not None for line in self.lines):
            return self
        first = self.lines[0]
        if len(self.lines) == 1:
            raise laws.FitError(first.problem)
        raise laws.FitError(f"none of these laws can be fitted; {first.law}: {first.problem}")


def law_names(asked: str | Sequence[str]) -> list[str]:
    """The laws that are asked for, each once; "all" stands for every law.

    Raises:
      FitError: there is no such law.
    """
    several = isinstance(asked, Iterable) and not isinstance(asked, str)
    names: list[Any] = (
        list(dict.fromkeys(asked)) if several else [asked] if asked is not None else []
    )
    if not names:
        raise laws.FitError(f"name a law, or several: {', '.join(laws.LAWS)}, all")
    for name in names:
        if name != "all" and name not in laws.LAWS:
            raise laws.FitError(
                f"there is no law {name!r}; choose from {', '.join(laws.LAWS)}, all"
            )
    return list(laws.LAWS) if "all" in names else names


def fit_laws(
    table: laws.Table,
    names: Sequence[str],
    *,
    source: Any = None,
    budgets: Sequence[float] = (),
    bootstrap: int = laws.DRAWS,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Fits:
    """Fits laws to one table. A law that cannot be fitted says why in its line.

    Profiles without exponents count as not fitted.

    Args:
      table: of `lmscale.sweep.tables.table_of_runs`.
      names: of the laws.
      source: what the table was read from: the law envelope needs the curves of a store.
      budgets: FLOPs at which each law is asked for N_opt, D_opt and loss.
      bootstrap: draws.
      options: law -> its own options, of `options_by_law`.
    """
    options = options or {}

    def fitted(table: laws.Table, names: Sequence[str]) -> list[laws.Comparison]:
        return laws.compare(table, names, bootstrap=bootstrap, options=options)

    others = [name for name in names if name != "envelope"]
    lines = fitted(table, others) if others else []
    if "envelope" in names:
        try:
            line = fitted(_curves(table, source), ["envelope"])[0]
        except laws.TableError as error:
            line = laws.Comparison("envelope", problem=str(error))
        lines.insert(list(names).index("envelope"), line)
    for k, line in enumerate(lines):
        if line.law == "isoflop" and line.fit is not None and not line.fit.exponents:
            min_points = options.get("isoflop", {}).get("min_points", 4)
            problem = laws.unusable_profiles(line.fit, min_points) + _remedy(table.convention)
            lines[k] = laws.Comparison("isoflop", problem=problem)
    answers = {
        line.law: tuple(_answer(line.fit, budget) for budget in budgets)
        for line in lines
        if line.fit is not None and budgets
    }
    return Fits(tuple(lines), answers)


def _answer(fit: laws.FitResult, budget: float) -> laws.Advice | laws.FitError:
    try:
        return laws.advise(fit, flops=budget)
    except laws.FitError as error:
        return error


def _curves(table: laws.Table, source: Any) -> laws.Table:
    """The table of learning curves; a store has them in its runs' metrics, not in results.csv.

    Raises:
      TableError: there are none.
    """
    if not is_results(table.header):
        return table
    path = source if isinstance(source, (str, os.PathLike)) else None
    if path is not None and epath.Path(path).is_dir():
        source = Store.open(path)
    if not isinstance(source, Store):
        what = "the table" if path is None else repr(os.fspath(path))
        raise laws.TableError(
            f"{what} holds the last loss of each run and an envelope needs learning curves: give "
            f"the folder of the store"
        )
    return curves_of(source, table)


def _remedy(convention: str) -> str:
    """What a user can do about profiles that cannot be used."""
    if convention in ("kaplan", "chinchilla", "exact"):
        return (
            f"; the runs of a budget cost different FLOPs under {convention}: `lmscale report` "
            f"restates them; fit with --convention standard"
        )
    return (
        "; --budget-tolerance puts runs of more unequal FLOPs into one budget, and the law "
        "parametric needs no budgets"
    )


# --- Options --------------------------------------------------------------------------------------


def all_options(of: Any) -> dict[str, list[Option]]:
    """Name -> that option of each of these laws that has it."""
    found: dict[str, list[Option]] = {}
    for law in of:
        for name, option in options_of(law).items():
            found.setdefault(name, []).append(option)
    return found


def options_by_law(names: Sequence[str], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Law -> the options that it is given.

    An option goes to every law that has it and can take its value; `level` and `seed` go to all.

    Args:
      names: of the laws that are fitted.
      given: option -> its value, as Python has it or as text. `critical_batch` is (B_star, alpha_B),
        and turns the steps of kaplan-ns into S_min as well.

    Raises:
      FitError: no law that is fitted has the option, or can take the value.
    """
    values: dict[str, dict[str, Any]] = {name: {} for name in names}
    own = {name: options_of(laws.LAWS[name]) for name in names}
    for name, value in given.items():
        if name in ("level", "seed"):
            for law in names:
                values[law][name] = value
            continue
        adjusts = name == "critical_batch" and "kaplan-ns" in names
        if adjusts:
            values["kaplan-ns"]["adjust"] = {"B_star": value[0], "alpha_B": value[1]}
        having = [law for law in names if name in own[law]]
        if not having and not adjusts:
            raise laws.FitError(_not_theirs(name, own))
        problems = []
        for law in having:
            try:
                plain = value if not isinstance(value, str) else parse_option(own[law][name], value)
                values[law][name] = plain
            except laws.FitError as error:
                problems.append(error)
        if problems and len(problems) == len(having):
            raise problems[0]
    return values


def _not_theirs(name: str, own: Mapping[str, Mapping[str, Option]]) -> str:
    """Which laws have an option, and what those that were asked for (`own`) take instead."""
    options = all_options(laws.LAWS.values()).get(name, [])
    owners = [option.law for option in options]
    if name == "critical_batch":
        owners.append("kaplan-ns")
    takes = "; ".join(
        f"{law} takes {', '.join(option.flag for option in mine.values()) or 'no options'}"
        for law, mine in own.items()
    )
    if not options:
        return f"no law has the option {name}; {takes}"
    belongs = " and ".join(f"--law {owner}" for owner in owners)
    return f"{options[0].flag} belongs to {belongs}; {takes}"

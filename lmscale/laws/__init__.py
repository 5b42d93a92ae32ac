"""The fitting library: every published law as a pure function from a table to a `FitResult`.

    from lmscale import laws

    result = laws.fit("runs.csv", "isoflop")
    result.parameters, result.intervals, result.exponents, result.warnings

A table is a file (CSV, JSON), a DataFrame or a dict of columns (`lmscale.laws.table`). This package
does not train, and does not import the rest of lmscale.

A law of your own is one function and one `register`. `lmscale fit --load FILE` then knows it by its
name, and its keyword arguments are options on the command line. CONTRIBUTING.md has an example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lmscale.laws.advice import Advice, OffOptimum
from lmscale.laws.advise import advise
from lmscale.laws.batch import (
    NoiseScale,
    adjusted_compute,
    adjusted_steps,
    critical_batch,
    fit_critical_batch,
    noise_scale,
    steps_to_loss,
)
from lmscale.laws.centering import Centering, grid_centering
from lmscale.laws.chinchilla import iso_loss, optimal_allocation
from lmscale.laws.data_constrained import fit_data_constrained
from lmscale.laws.envelope import fit_envelope
from lmscale.laws.holdout import Comparison, HoldOut, compare, hold_out
from lmscale.laws.isoflop import (
    exponents_again,
    fit_isoflop,
    redraw_losses,
    unusable_profiles,
    window_spread,
)
from lmscale.laws.kaplan import (
    Contradiction,
    Frontier,
    allocation_exponents,
    contradiction_point,
    data_requirement,
    early_stopping_bound,
    efficient_frontier,
    fit_kaplan_nd,
    fit_kaplan_ns,
    frontier_constant,
    frontier_exponent,
    off_optimum_cost,
    overfitting,
    stopping_ratio,
)
from lmscale.laws.over_training import fit_over_training
from lmscale.laws.own import check_law, check_result, same_source, told, with_residuals
from lmscale.laws.paired import Redrawn, paired_slopes, seeds_redrawn, widened
from lmscale.laws.parametric import fit_parametric
from lmscale.laws.position import fit_position
from lmscale.laws.power import fit_power
from lmscale.laws.profile_bias import vertex_bias
from lmscale.laws.profiles import Profile
from lmscale.laws.published import PUBLISHED, PublishedLaw, published
from lmscale.laws.result import DRAWS, FEWEST_DRAWS, MOST_DRAWS, FitError, FitResult
from lmscale.laws.table import CONVENTIONS, DroppedRow, Runs, Table, TableError

__all__ = [
    "CONVENTIONS",
    "DRAWS",
    "FEWEST_DRAWS",
    "LAWS",
    "MOST_DRAWS",
    "PUBLISHED",
    "Advice",
    "Centering",
    "Comparison",
    "Contradiction",
    "DroppedRow",
    "FitError",
    "FitResult",
    "Frontier",
    "HoldOut",
    "Law",
    "NoiseScale",
    "OffOptimum",
    "Profile",
    "PublishedLaw",
    "Redrawn",
    "Runs",
    "Table",
    "TableError",
    "adjusted_compute",
    "adjusted_steps",
    "advise",
    "allocation_exponents",
    "compare",
    "contradiction_point",
    "critical_batch",
    "data_requirement",
    "early_stopping_bound",
    "efficient_frontier",
    "exponents_again",
    "fit",
    "frontier_constant",
    "frontier_exponent",
    "grid_centering",
    "hold_out",
    "iso_loss",
    "noise_scale",
    "off_optimum_cost",
    "optimal_allocation",
    "overfitting",
    "paired_slopes",
    "published",
    "redraw_losses",
    "register",
    "seeds_redrawn",
    "steps_to_loss",
    "stopping_ratio",
    "unusable_profiles",
    "vertex_bias",
    "widened",
    "window_spread",
]


@dataclass(frozen=True)
class Law:
    """A law that can be fitted.

    Attributes:
      name: on the command line and in `FitResult.law`.
      needs: the columns that it reads, in words. Those of a law that predicts a loss (`FitResult.model`)
        are read when the largest runs are held out.
      equation, source: shown by `lmscale fit --help` and with every result.
      fit: takes a `Table`, the keyword arguments `bootstrap`, `level` and `seed`, and its own options.
        Each of these needs a type hint, a default and a line under Args: in the docstring. `columns`
        (how a table that is no `Table` yet is read) and `redrawn` (noise of the runs that another fit
        of them shares) are no options: a caller in Python may give them where the fit has them.
    """

    name: str
    needs: tuple[str, ...]
    equation: str
    source: str
    fit: Callable[..., FitResult]


#: Every law by its name, in the order of help texts.
LAWS: dict[str, Law] = {}


def register(law: Law) -> Law:
    """Registers a law under its name; a file that is loaded again replaces its own.

    Raises:
      FitError: another law has the name, or an option has no type hint, no default or a name of
        `lmscale fit` itself.
    """
    check_law(law)
    known = LAWS.get(law.name)
    if known is not None and not same_source(known, law):
        raise FitError(
            f"the name {law.name!r} is taken by the law of {known.fit.__module__}: choose another"
        )
    LAWS[law.name] = law
    return law


for _law in (
    Law(
        "isoflop",
        ("params", "flops", "loss"),
        "loss = c0 + c1 ln N + c2 (ln N)^2 at each C; N_opt = k_N C^a, D_opt = k_D C^b",
        "Hoffmann et al. 2022, Approach 2; Porian et al. 2024",
        fit_isoflop,
    ),
    Law(
        "power",
        ("params, tokens or flops", "loss"),
        "L = (x_c / x)^alpha (+ L_inf) for x one of params, tokens, flops, or C_min",
        "Kaplan et al. 2020, eqs. 1.1-1.3 and 5.5",
        fit_power,
    ),
    Law(
        "parametric",
        ("params", "tokens", "loss"),
        "L = E + A/N^alpha + B/D^beta",
        "Hoffmann et al. 2022, Approach 3; Besiroglu et al. 2024",
        fit_parametric,
    ),
    Law(
        "envelope",
        ("params", "flops", "loss"),
        "N_opt = k_N C^a, D_opt = k_D C^b through the lower envelope of learning curves",
        "Hoffmann et al. 2022, Approach 1",
        fit_envelope,
    ),
    Law(
        "kaplan-nd",
        ("params", "tokens", "loss"),
        "L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D",
        "Kaplan et al. 2020, eq. 1.5",
        fit_kaplan_nd,
    ),
    Law(
        "kaplan-ns",
        ("params", "steps", "loss"),
        "L = (N_c/N)^alpha_N + (S_c/S_min)^alpha_S",
        "Kaplan et al. 2020, eq. 1.6",
        fit_kaplan_ns,
    ),
    Law(
        "critical-batch",
        ("loss", "steps", "batch_tokens"),
        "S = S_min (1 + B_crit/B), B_crit = B_star / L^(1/alpha_B)",
        "McCandlish et al. 2018; Kaplan et al. 2020, eq. 1.4",
        fit_critical_batch,
    ),
    Law(
        "data-constrained",
        ("params", "tokens", "unique_tokens", "loss"),
        "L = E + A/N'^alpha + B/D'^beta, D' = U + U R_D* (1 - exp(-R_D/R_D*))",
        "Muennighoff et al. 2023",
        fit_data_constrained,
    ),
    Law(
        "over-training",
        ("params", "tokens", "loss"),
        "L = E + (a M^eta + b M^-eta) C^-eta, M = D/N",
        "Gadre et al. 2024",
        fit_over_training,
    ),
    Law(
        "position",
        ("position", "loss"),
        "L(T) = a + b T^-c",
        "Kaplan et al. 2020, App. D.5",
        fit_position,
    ),
):
    register(_law)


def fit(
    table: Any,
    law: str,
    *,
    columns: Any = None,
    convention: str = "given",
    cells: str | None = None,
    **options: Any,
) -> FitResult:
    """Fits one law to a table.

    Args:
      table: the path of a CSV or JSON, a DataFrame, a dict of columns or a `Table`.
      law: a name in `LAWS`.
      columns, convention, cells: how the table is read; see `Table.read`.
      **options: the law's own, e.g. bootstrap, level, seed.

    Raises:
      TableError: the table cannot be used, in one line.
      FitError: there is no such law, an option is not valid, or a law of a user's own fails.
    """
    if law not in LAWS:
        raise FitError(f"there is no law {law!r}; choose from {', '.join(sorted(LAWS))}")
    table, one = Table.read(table, columns, convention=convention, cells=cells), LAWS[law]
    with told(one):
        result = check_result(one, one.fit(table, **options))
    return with_residuals(one, result, table)

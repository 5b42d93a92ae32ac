"""How the sizes of a planned IsoFLOP grid lie about the minima that an earlier law predicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmscale import flops
from lmscale.laws.centering import Centering, grid_centering
from lmscale.laws.result import FitError, FitResult
from lmscale.laws.table import TableError
from lmscale.sweep.experiment import Run
from lmscale.sweep.recommend import PUBLISHED_CONVENTION, store_convention, store_law
from lmscale.sweep.store import Store

__all__ = ["badly_centered", "plan_centering"]


def plan_centering(runs: Sequence[Run], prior: Store | str) -> dict[str, list[Centering]]:
    """Family -> how each of its budgets lies; empty where no run has a budget.

    Args:
      runs: of the grid that is planned.
      prior: a store with results of the same families, or the name of a published law, which speaks
        for Transformers.

    Raises:
      FitError, TableError: the prior gives no law for a family.
    """
    families: dict[str, dict[float, list[Run]]] = {}
    for run in runs:
        budget, family = run.labels.get("budget"), run.labels.get("family")
        if budget is not None and family is not None:
            families.setdefault(family, {}).setdefault(float(budget), []).append(run)
    found = {}
    for family, budgets in families.items():
        law: FitResult | str
        if isinstance(prior, Store):
            law, convention = store_law(prior, family), store_convention(prior)
        elif family == "transformer":
            law, convention = prior, PUBLISHED_CONVENTION
        else:
            continue
        # The budgets may be counted by another convention than the law.
        grid = [
            (
                float(np.median([flops.training_flops(run.spec, convention) for run in members])),
                [flops.n_params(run.spec.model, convention) for run in members],
            )
            for _, members in sorted(budgets.items())
        ]
        found[family] = grid_centering(grid, law)
    return found


def badly_centered(runs: Sequence[Run], prior: Store | str | None, own: Store) -> list[str]:
    """One line for each badly centred budget; empty where no law is known.

    Args:
      prior: what the user named. Without it the store's own earlier results are asked about the
        budgets that still have runs to train.
      own: the store that the runs go to, which need not exist.

    Raises:
      FitError, TableError: the prior that was named gives no law.
    """
    if prior is None:
        budgets = {
            (run.labels.get("family"), run.labels.get("budget"))
            for run in runs
            if own.folder(run).result() is None
        }
        waiting = [
            run for run in runs if (run.labels.get("family"), run.labels.get("budget")) in budgets
        ]
        if not waiting or not (own.path / "experiment.json").exists():
            return []
        try:
            found = plan_centering(waiting, own)
        except (FitError, TableError):
            # A store without enough results for a law is no prior. The user did not ask for it, so it is no error.
            return []
    else:
        found = plan_centering(runs, prior)
    return [
        f"{family}, {centering}"
        for family, budgets in found.items()
        for centering in budgets
        if not centering.well_centered
    ]

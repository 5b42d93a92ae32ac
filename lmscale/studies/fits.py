"""Fits that may be refused: a study goes on without a law, and says why there is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lmscale.laws import FitError, FitResult, TableError

__all__ = ["attempt", "refused"]


def refused(law: str, why: str) -> FitResult:
    """What fits.json holds in place of a fit that could not be made; `failure` is `why`."""
    warnings = (f"no fit: {why}",)
    return FitResult(law=law, parameters={}, converged=False, warnings=warnings, failure=why)


def attempt(law: str, fit: Callable[[], FitResult], *, needs: str = "") -> FitResult:
    """`fit()`, or a refused fit where the runs do not determine the law.

    Args:
      needs: what is missing for the law, where that is known before; empty to fit.
    """
    if needs:
        return refused(law, needs)
    try:
        return fit()
    except (TableError, FitError, np.linalg.LinAlgError) as error:
        return refused(law, str(error))

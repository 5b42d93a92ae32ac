"""Fits that may be refused: a study goes on without a law, and says why there is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lmscale.laws import FitError, FitResult, TableError

__all__ = ["attempt", "refused"]


def refused(law: str, why: str) -> FitResult:
    """The entry in fits.json for a fit that could not be made; its `failure` says why."""
    warnings = (f"no fit: {why}",)
    return FitResult(law=law, parameters={}, converged=False, warnings=warnings, failure=why)


def attempt(law: str, fit: Callable[[], FitResult], *, needs: str = "") -> FitResult:
    """`fit()`, or a refused fit where the runs do not determine the law.

    Args:
      needs: what the law lacks, if that is known beforehand; then nothing is fitted.
    """
    if needs:
        return refused(law, needs)
    try:
        return fit()
    except (TableError, FitError, np.linalg.LinAlgError) as error:
        return refused(law, str(error))

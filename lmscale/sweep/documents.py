"""`--mask-documents`: the runs of an experiment with models that hide documents from each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmscale.spec import RunSpec
from lmscale.sweep.changed_recipe import changed_runs

if TYPE_CHECKING:
    from lmscale.sweep.experiment import Run

__all__ = ["with_masked_documents"]


def with_masked_documents(runs: Sequence[Run], separator: int) -> list[Run]:
    """The runs with `separator` as their models' `document_separator`.

    A run that starts from another of these runs then starts from the masked one.

    Raises:
      SpecError: an architecture cannot hide documents from each other.
    """

    def masked(spec: RunSpec) -> RunSpec:
        model = dataclasses.replace(spec.model, document_separator=separator)
        return dataclasses.replace(spec, model=model)

    return changed_runs(runs, masked)

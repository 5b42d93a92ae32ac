"""`--mask-documents`: the runs of an experiment with models that hide documents from each other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmscale.spec import RunSpec

if TYPE_CHECKING:
    from lmscale.sweep.experiment import Run

__all__ = ["with_masked_documents"]


def with_masked_documents(runs: Sequence[Run], separator: int) -> list[Run]:
    """The runs with `separator` as their models' `document_separator`.

    A run that starts from another of these runs then starts from the masked one.

    Raises:
      SpecError: an architecture cannot hide documents from each other.
    """
    specs = {run.spec.run_id: run.spec for run in runs}

    @functools.cache
    def masked(run_id: str) -> RunSpec:
        spec = specs[run_id]
        model = dataclasses.replace(spec.model, document_separator=separator)
        start = spec.start
        if start is not None and start.run in specs:
            start = dataclasses.replace(start, run=masked(start.run).run_id)
        return dataclasses.replace(spec, model=model, start=start)

    return [dataclasses.replace(run, spec=masked(run.spec.run_id)) for run in runs]

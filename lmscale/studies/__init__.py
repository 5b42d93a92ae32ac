"""What an experiment finds: pure functions from the results of a store to estimates and fits.

    from lmscale.studies import Results, size
    found = size.study(Results.read("results/lstm_vs_transformer"))
    found.estimates["gap"].value, found.estimates["gap"].interval

One module a study; its function `study` is registered under the module's name. A file of your own
registers more (`register`). `lmscale.report` writes the section of each study on the page.
"""

import importlib
import importlib.util
from types import ModuleType

from lmscale.studies.estimate import Estimate
from lmscale.studies.registry import Findings, find, names, register
from lmscale.studies.results import Results

__all__ = ["Estimate", "Findings", "Results", "find", "names", "register"]


def __getattr__(name: str) -> ModuleType:
    """A study's module, imported when it is first used: `lmscale.studies.isoflop`."""
    module = f"{__name__}.{name}"
    if name.startswith("_") or importlib.util.find_spec(module) is None:
        raise AttributeError(
            f"lmscale.studies has no study {name!r}; there are {', '.join(names())}"
        )
    return importlib.import_module(module)

"""Scaling-law experiments for Transformers and LSTMs: declare, train, fit, draw, recommend.

    import lmscale

    results = lmscale.load("results/isoflop-cpu")           # results.runs, results.curves
    lmscale.fit(results, "isoflop").exponents
    lmscale.advise(results, compute=1e13).n_params
    lmscale.studies.isoflop.study(results).estimates["a"]   # what the report's numbers are made of
    lmscale.figures.charts(results, "isoflop")[0].save("profiles.svg")

These names are imported when they are first used, so `import lmscale` is quick and imports no jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmscale import figures, laws, studies
    from lmscale.interface import advise, fit, load

from lmscale.compat import skip_cuda_check_without_gpu

__version__ = "0.1.0"

# Before anything imports jax.
skip_cuda_check_without_gpu()

__all__ = ["__version__", "advise", "figures", "fit", "laws", "load", "studies"]

#: Public name -> the module that has it; modules stand for themselves.
_MODULES = {name: f"lmscale.{name}" for name in ("figures", "laws", "studies")}
_FUNCTIONS = dict.fromkeys(("advise", "fit", "load"), "lmscale.interface")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'lmscale' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

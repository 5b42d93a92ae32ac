"""Grids of runs, the plan, its execution and the store of results."""

from lmscale.sweep.claims import Claim
from lmscale.sweep.experiment import Experiment, ExperimentError, Run, load_scales
from lmscale.sweep.grids import default_rule, isoflop_grid, make_run, product, width_rule
from lmscale.sweep.shapes import (
    chinchilla_shapes,
    lstm_shape,
    transformer_ladder,
    transformer_shape,
)
from lmscale.sweep.store import Store, StoreError

__all__ = [
    "Claim",
    "Experiment",
    "ExperimentError",
    "Run",
    "Store",
    "StoreError",
    "chinchilla_shapes",
    "default_rule",
    "isoflop_grid",
    "load_scales",
    "lstm_shape",
    "make_run",
    "product",
    "transformer_ladder",
    "transformer_shape",
    "width_rule",
]

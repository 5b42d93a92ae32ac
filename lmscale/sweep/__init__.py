"""Grids of runs, the plan, its execution and the store of results."""

from lmscale.architectures import (
    LSTM_INIT,
    chinchilla_shapes,
    init_by_width,
    lstm_shape,
    transformer_ladder,
    transformer_shape,
)
from lmscale.sweep.claims import Claim, finding, published_number
from lmscale.sweep.dropped import drop
from lmscale.sweep.experiment import Experiment, ExperimentError, Run, load_scales
from lmscale.sweep.fields import Bounds
from lmscale.sweep.gpu_recipe import (
    CENTRE,
    GPU_BATCH_TOKENS,
    GPU_RECIPE,
    batch_for,
    head_multiple,
)
from lmscale.sweep.grids import (
    BASE_LR_HELP,
    KAPLAN_RECIPE,
    POSITIONS_HELP,
    ByWidth,
    SharedRecipe,
    TransformersBySize,
    default_rule,
    isoflop_grid,
    make_run,
    product,
    width_rule,
)
from lmscale.sweep.shapes import family_label, ladder, nearest_sizes, off_centre, one_depth
from lmscale.sweep.store import Store, StoreError

__all__ = [
    "BASE_LR_HELP",
    "CENTRE",
    "GPU_BATCH_TOKENS",
    "GPU_RECIPE",
    "KAPLAN_RECIPE",
    "LSTM_INIT",
    "POSITIONS_HELP",
    "Bounds",
    "ByWidth",
    "Claim",
    "Experiment",
    "ExperimentError",
    "Run",
    "SharedRecipe",
    "Store",
    "StoreError",
    "TransformersBySize",
    "batch_for",
    "chinchilla_shapes",
    "default_rule",
    "drop",
    "family_label",
    "finding",
    "head_multiple",
    "init_by_width",
    "isoflop_grid",
    "ladder",
    "load_scales",
    "lstm_shape",
    "make_run",
    "nearest_sizes",
    "off_centre",
    "one_depth",
    "product",
    "published_number",
    "transformer_ladder",
    "transformer_shape",
    "width_rule",
]

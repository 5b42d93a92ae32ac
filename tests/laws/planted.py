"""Runs of a known law: Besiroglu et al. 2024, N_opt ~ C^0.5126, with 0.3% of noise."""

import numpy as np
import pandas as pd

LAW = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}


def loss(params, tokens):
    return LAW["E"] + LAW["A"] / params ** LAW["alpha"] + LAW["B"] / tokens ** LAW["beta"]


def runs(noise: float = 0.003) -> pd.DataFrame:
    """48 runs, 8 sizes by 6 lengths, of whole params and tokens, so that text holds them exactly."""
    sizes = np.geomspace(1e7, 1.6e9, 8).round()
    lengths = np.geomspace(4e8, 1e11, 6).round()
    params, tokens = (axis.ravel() for axis in np.meshgrid(sizes, lengths, indexing="ij"))
    scatter = np.exp(noise * np.random.default_rng(0).normal(size=len(params)))
    return pd.DataFrame(
        {"params": params, "tokens": tokens, "loss": (loss(params, tokens) * scatter).round(5)}
    )

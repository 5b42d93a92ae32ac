"""Scaling-law experiments for Transformers and LSTMs: declare, train, fit, draw, recommend."""

from lmscale.compat import skip_cuda_check_without_gpu

__version__ = "0.1.0"

# Before anything imports jax.
skip_cuda_check_without_gpu()

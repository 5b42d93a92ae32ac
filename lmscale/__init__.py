"""Scaling-law experiments for Transformers and LSTMs: declare, train, fit, draw, recommend."""

__version__ = "0.1.0"

"""Runs in other people's formats (Hugging Face's transformers, plain safetensors), and theirs scored here."""

from lmscale.export.read import read_weights, score_weights
from lmscale.export.write import FORMATS, Exported, ExportError, export_run

__all__ = ["FORMATS", "ExportError", "Exported", "export_run", "read_weights", "score_weights"]

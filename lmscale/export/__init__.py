"""A trained run in other people's formats: Hugging Face's transformers, and plain safetensors."""

from lmscale.export.write import FORMATS, Exported, ExportError, export_run

__all__ = ["FORMATS", "ExportError", "Exported", "export_run"]

"""Writes the folder of an exported run, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from lmscale.architectures.hugging_face import to_theirs
from lmscale.data import DataError, open_corpus
from lmscale.data.corpus import Corpus
from lmscale.export.tokenizer_json import (
    differing_text,
    tokenizer_config,
    tokenizer_json,
)
from lmscale.files import DiskError, write_json
from lmscale.remote import is_remote
from lmscale.spec import RunSpec, SpecError
from lmscale.training.run_folder import RunFolder
from lmscale.training.trained import named_arrays, trained_state

__all__ = ["FORMATS", "ExportError", "Exported", "export_run"]

FORMATS = ("hf", "safetensors")
#: What a folder of ours holds: only such a folder is ever replaced.
MARK = "lmscale.json"
#: Characters of held-out text that both tokenisers are tried on.
_TRIED = 200_000
_BYTE_NAME = "<0x41>"
#: How often an export that may replace others tries to take its name.
_TRIES = 20


class ExportError(ValueError):
    """An export that is not possible as asked; one line that says what would be right."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
      path: the folder.
      step: of the checkpoint.
      loads_as: how others read it, in a line of code.
      notes: what a user must know, a sentence each.
    """

    path: Path
    step: int
    loads_as: str
    notes: tuple[str, ...]


def export_run(
    run: str | os.PathLike,
    out: str | os.PathLike,
    format: str,
    *,
    step: int | None = None,
    tokenizer: bool = True,
    force: bool = False,
) -> Exported:
    """Writes a checkpoint of a run for others to load.

    Args:
      run: a folder of DIR/runs.
      out: the folder to write, which appears whole.
      format: "hf" (config, weights and tokeniser as transformers loads them) or "safetensors" (our
        arrays by our names, for every architecture).
      step: of the checkpoint; the newest if it is not given.
      tokenizer: whether to write it; it is read from the corpus of the run.
      force: replace a folder that an export has written.

    Raises:
      ExportError, SpecError: it cannot be done as asked: another format, a folder that holds something
        else, no checkpoint, or no such model in transformers.
      DataError: the corpus, which has the tokeniser, is not here.
      DamagedError: the checkpoint is not what was written.
      DiskError: the folder cannot be written.
    """
    if format not in FORMATS:
        raise ExportError(f"there is no format {format!r}; choose from {', '.join(FORMATS)}")
    try:
        importlib.import_module("safetensors.numpy")
    except ImportError:
        raise ExportError("exporting needs safetensors: pip install 'lmscale[hf]'") from None
    if not str(out) or is_remote(out):
        raise ExportError(f"--out must be a folder of this machine, not {str(out)!r}")
    folder = RunFolder.named(run)
    path, spec = folder.path, folder.spec
    # What a link points to is written, and the link stays.
    place = Path(out).resolve()
    _check_place(place, path, force)
    # All that can be refused is, before a checkpoint is read.
    form = _form(spec) if format == "hf" else None
    corpus = _corpus_of(spec) if tokenizer else None
    step, state = trained_state(folder, step)
    arrays = named_arrays(state["params"])
    notes = list(_notes(folder, step))
    temporary = _beside(place, "tmp")
    temporary.mkdir(parents=True)
    try:
        if form is None:
            metadata = {"format": "np", "run": folder.run_id, "step": str(step)}
            _write_weights(temporary, _contiguous(arrays), metadata)
            (temporary / "spec.json").write_bytes((path / "spec.json").read_bytes())
            loads = f"safetensors.numpy.load_file({str(place / 'model.safetensors')!r})"
        else:
            theirs = to_theirs(form, arrays)
            _write_weights(temporary, theirs, {"format": "pt"})
            _write_configs(temporary, form.config, corpus)
            loads = f"transformers.AutoModelForCausalLM.from_pretrained({str(place)!r})"
        if corpus is None:
            notes.append("no tokeniser was written")
        else:
            (temporary / corpus.tokenizer_file).write_bytes(corpus.tokenizer.content)
            if form is not None:
                notes += _write_tokenizer(temporary, corpus, spec)
        write_json(
            temporary / MARK,
            {"run": folder.run_id, "step": step, "format": format, "notes": notes},
        )
        _put(temporary, place, path, force)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Exported(place, step, loads, tuple(notes))


def _check_place(place: Path, run: epath.Path, force: bool) -> None:
    """Raises `ExportError` unless a folder may be written there."""
    if place in run.parents or any(folder in (place, *place.parents) for folder in _held(run)):
        raise ExportError(f"{place} is part of the store: give a folder outside of it as --out")
    if not place.exists():
        return
    if not place.is_dir():
        raise ExportError(f"{place} is a file: give another --out")
    if not any(place.iterdir()):
        return
    if not force:
        replace = ", or --force to replace it" if (place / MARK).exists() else ""
        raise ExportError(f"{place} is not empty: give another --out{replace}")
    if not (place / MARK).exists():
        raise ExportError(
            f"{place} was not written by lmscale export ({MARK} is missing), so --force does not replace "
            "it: give another --out"
        )


def _held(run: epath.Path) -> list[epath.Path]:
    """The folders in which no export is written: the run's, and those of the stores that it is in."""
    if is_remote(run):
        return [run]
    return [run, *(folder for folder in run.parents if (folder / "experiment.json").exists())]


def _corpus_of(spec: RunSpec) -> Corpus:
    """The corpus of a run, which has its tokeniser."""
    try:
        return open_corpus(spec.data.corpus, fingerprint=spec.data.fingerprint)
    except DataError as error:
        raise DataError(f"{error}; or leave the tokeniser out: --without-tokenizer") from None


def _form(spec: RunSpec) -> Any:
    try:
        return spec.model.hugging_face()
    except SpecError as error:
        raise ExportError(f"{error}: use --format safetensors, which has every model") from None


def _notes(folder: RunFolder, step: int) -> list[str]:
    status, notes = folder.status()["status"], []
    if status != "done" or step != folder.status()["step"]:
        notes.append(
            f"the run is {status}: these are its weights at step {step} of {folder.spec.steps}"
        )
    if folder.spec.model.document_separator is not None:
        notes.append(
            "trained with documents masked from each other, which only lmscale does: elsewhere give it one "
            "document at a time, after the end-of-document token"
        )
    return notes


def _write_configs(place: Path, config: Mapping[str, Any], corpus: Corpus | None) -> None:
    """config.json and generation_config.json."""
    # Without a tokeniser it is not known which token ends a document.
    ends = {} if corpus is None else {"bos_token_id": corpus.eod_id, "eos_token_id": corpus.eod_id}
    write_json(
        place / "config.json", {**config, "dtype": "float32", "torch_dtype": "float32", **ends}
    )
    write_json(place / "generation_config.json", {"do_sample": True, "temperature": 0.8, **ends})


def _write_tokenizer(place: Path, corpus: Corpus, spec: RunSpec) -> list[str]:
    """tokenizer.json, if it gives the same ids; what a user must know of it."""
    tokenizer = corpus.tokenizer
    content = tokenizer_json(tokenizer)
    split = next((name for name in ("valid", "test", "train") if corpus.n_tokens(name)), "train")
    text = tokenizer.decode(np.asarray(corpus.tokens(split)[:_TRIED]))[:_TRIED]
    try:
        differs = differing_text(tokenizer, content, text.splitlines(keepends=True))
    except ImportError:
        differs, checked = (
            None,
            "tokenizers is not installed, so tokenizer.json was not tried on text",
        )
    else:
        checked = f"tokenizer.json gives the same ids on {len(text):,} characters of the corpus"
        if differing_text(tokenizer, content, [_BYTE_NAME]):
            # Unigram models in tokenizers give a piece's name in a text that piece, also of bytes.
            checked += f", but not where a text spells the name of a byte, as {_BYTE_NAME}"
    if differs is not None:
        return [
            f"tokenizers encodes {differs[:40]!r} otherwise, so no tokenizer.json was written: encode with "
            f"the {tokenizer.kind} tokeniser of {tokenizer.file}"
        ]
    (place / "tokenizer.json").write_bytes(content.encode())
    config = tokenizer_config(spec.model.n_ctx, tokenizer.end_piece)
    write_json(place / "tokenizer_config.json", config)
    return [checked]


def _write_weights(place: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """model.safetensors, with the permissions of any new file: safetensors lets only its owner read it.

    Raises:
      DiskError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = place / "model.safetensors"
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(arrays), path, metadata=metadata)
    except SafetensorError as error:
        raise DiskError(f"{place.parent}: the weights cannot be written: {error}") from None
    path.chmod(mode)


def _contiguous(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(x) for name, x in arrays.items()}


def _put(temporary: Path, place: Path, run: Path, force: bool) -> None:
    """Gives the finished folder its name, in place of one of ours where that may be replaced.

    Another export may have written there since `_check_place` looked. A folder takes the name only of
    nothing or of an empty folder, so that each export is there whole, and with `force` the last one stays.
    """
    for _ in range(_TRIES):
        try:
            os.rename(temporary, place)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        _check_place(place, run, force)
        old = _beside(place, "old")
        with contextlib.suppress(FileNotFoundError):
            os.rename(place, old)
        shutil.rmtree(old, ignore_errors=True)
    raise ExportError(f"other exports write to {place} all the time: give another --out")


def _beside(place: Path, ending: str) -> Path:
    """A name of this export's own beside a folder."""
    return place.with_name(f".{place.name}.{os.getpid()}-{secrets.token_hex(3)}.{ending}")

"""Weights from Hugging Face's transformers as one of our models, and their loss by position.

A folder has config.json and safetensors, as `save_pretrained` and `lmscale export` write them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmscale.architectures import ModelSpec
from lmscale.architectures.base import of_hugging_face
from lmscale.architectures.hugging_face import from_theirs
from lmscale.data import Corpus
from lmscale.export.write import ExportError
from lmscale.files import read_json
from lmscale.planner.devices import local_devices
from lmscale.planner.packs import make_plan
from lmscale.planner.programs import mesh_of, program_of
from lmscale.serialize import SpecError
from lmscale.spec import DataSpec, EvalSpec, OptimizerSpec, RunSpec, ScheduleSpec
from lmscale.sweep.experiment import Run
from lmscale.training.evaluation import Evaluator
from lmscale.training.state import single_device_like
from lmscale.training.trained import named_arrays

__all__ = ["read_weights", "score_weights"]

#: Their arrays that hold no weights: masks that older versions saved.
_MASKS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
_HEAD = "lm_head.weight"
_EMBEDDINGS = ("transformer.wte.weight", "model.embed_tokens.weight")


def read_weights(folder: str | os.PathLike) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """The model in a folder of transformers, and their arrays by their names.

    Raises:
      ExportError: it holds no config or weights, or a model that we have not; one line.
    """
    try:
        from safetensors.numpy import load_file
    except ImportError:
        raise ExportError("reading weights needs safetensors: pip install 'lmscale[hf]'") from None
    place = Path(folder)
    config = read_json(place / "config.json", {"model_type": str})
    files = sorted(place.glob("*.safetensors"))
    if config is None or not files:
        raise ExportError(
            f"{folder} must hold config.json and *.safetensors, as save_pretrained of transformers "
            "writes them"
        )
    try:
        model = of_hugging_face(config)
    except SpecError as error:
        raise ExportError(f"{place / 'config.json'}: {error}") from None
    arrays: dict[str, np.ndarray] = {}
    for file in files:
        try:
            arrays |= load_file(file)
        except Exception as error:  # Its errors have a type of their own, and NumPy lacks bfloat16.
            raise ExportError(f"{file} cannot be read (float32 is wanted): {error}") from None
    arrays = {name: x for name, x in arrays.items() if not name.endswith(_MASKS)}
    if broken := sorted(name for name, x in arrays.items() if not np.isfinite(x).all()):
        raise ExportError(f"{folder}: {broken[0]} holds numbers that are not finite")
    if config["model_type"] == "gpt2" and not any(n.startswith("transformer.") for n in arrays):
        # As GPT2Model names them, without the head.
        arrays = {f"transformer.{name}": x for name, x in arrays.items()}
    return model, arrays


def score_weights(
    folder: str | os.PathLike, corpus: Corpus, evaluation: EvalSpec
) -> dict[str, Any]:
    """The loss of such weights on a text, also by position: `Evaluator.scores`.

    Args:
      folder: with config.json and safetensors.
      corpus: the text; its tokeniser must be that of the weights.
      evaluation: of that corpus (`lmscale.sweep.rescore.evaluation_set`).

    Raises:
      ExportError: the weights cannot be read, or have another tokeniser.
    """
    model, theirs = read_weights(folder)
    _check_tokenizer(Path(folder), model, corpus)
    spec = RunSpec(
        model=model,
        data=DataSpec(corpus=corpus.name, fingerprint=corpus.fingerprint),
        # Nothing is trained.
        optimizer=OptimizerSpec(peak_lr=1e-3),
        schedule=ScheduleSpec(),
        batch_size=1,
        steps=1,
    )
    # Of the optimizer, of which nothing is used, zeros.
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), single_device_like(spec))
    state["params"] = _with_arrays(state["params"], model, theirs, folder)
    devices = local_devices()
    (pack,) = make_plan([Run(spec, {})], devices, n_slots=1).packs
    program = program_of(pack, mesh_of(pack, jax.devices()), devices.platform)
    packed = program.put(program.empty(), np.int32(0), state)
    return Evaluator(program, lambda _: corpus).scores(packed, 0, evaluation)


def _with_arrays(
    params: Any, model: ModelSpec, theirs: Mapping[str, np.ndarray], folder: str | os.PathLike
) -> Any:
    """`params` with the values of their arrays."""
    form = model.hugging_face()
    shapes = {name: x.shape for name, x in named_arrays(params).items()}
    if all(one.theirs != _HEAD for one in form.arrays):
        # Some versions write a tied head too.
        theirs = {n: x for n, x in theirs.items() if n != _HEAD or not _is_embedding(x, theirs)}
    try:
        ours = from_theirs(form, theirs, shapes)
    except ValueError as error:
        raise ExportError(f"{folder}: {error}") from None
    leaves, tree = jax.tree_util.tree_flatten(params)
    # Both list the arrays in one order.
    names = list(named_arrays(params))
    return jax.tree_util.tree_unflatten(
        tree,
        [jnp.asarray(ours[name], leaf.dtype) for name, leaf in zip(names, leaves, strict=True)],
    )


def _is_embedding(head: np.ndarray, arrays: Mapping[str, np.ndarray]) -> bool:
    return any(np.array_equal(head, arrays[name]) for name in _EMBEDDINGS if name in arrays)


def _check_tokenizer(folder: Path, model: ModelSpec, corpus: Corpus) -> None:
    """Raises `ExportError` where the weights have another tokeniser than the corpus."""
    if model.vocab_size != corpus.vocab_size:
        raise ExportError(
            f"the weights have a vocabulary of {model.vocab_size:,}, and {corpus.name} one of "
            f"{corpus.vocab_size:,}: score them on a corpus with their tokeniser"
        )
    own = folder / corpus.tokenizer_file
    if own.exists() and not _encodes_alike(own.read_bytes(), corpus.tokenizer.content):
        raise ExportError(
            f"{own} is another tokeniser than that of {corpus.name}: score the weights on a corpus with "
            "theirs"
        )


def _encodes_alike(one: bytes, other: bytes) -> bool:
    """Whether two files of a tokeniser give a text the same ids.

    transformers writes a tokenizer.json again with what a text is put into for a model, and how ids become
    text; those may differ.
    """

    def encoding(content: bytes) -> Any:
        try:
            values = json.loads(content)
            parts = {name: values.get(name) for name in ("normalizer", "pre_tokenizer", "model")}
            added = [(token["id"], token["content"]) for token in values.get("added_tokens") or ()]
        except (ValueError, AttributeError, KeyError, TypeError):
            # No tokenizer.json: as it is.
            return content
        return parts, sorted(added)

    return one == other or encoding(one) == encoding(other)

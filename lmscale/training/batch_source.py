"""Batches for the slots of a pack, as indices into tokens on the device or as windows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmscale.compat import memory_limit
from lmscale.data import Corpus
from lmscale.data.loader import SequenceOrder, batch_indices, gather, n_sequences, sequence_order
from lmscale.parallel.distributed import broadcast_from_main, place
from lmscale.spec import ModelSpec, RunSpec, SpecError

#: Share of a device's memory that the training tokens may take before they stay on the host.
DEVICE_SHARE = 0.2


class BatchSource:
    """The training batches of one corpus, for any number of packs.

    Where the tokens lie on the devices, a batch is sent as indices into them; otherwise as windows of
    tokens. The batches are the same, because both come from the same indices. A process makes only
    the part of a batch that its own devices take.

    Args:
      corpus: whose training split is served.
      mesh: of the packs' programs.
      on_device: whether the tokens lie on the devices; where they fit when None.
    """

    def __init__(self, corpus: Corpus, mesh: Mesh, *, on_device: bool | None = None):
        self.corpus = corpus
        self._tokens = corpus.tokens("train")
        self._sharding = NamedSharding(mesh, PartitionSpec(None, "run", "data"))
        if on_device is None:
            on_device = broadcast_from_main(lambda: _fits(self._tokens, mesh))
        self._on_device = None
        if on_device:
            self._on_device = place(np.asarray(self._tokens), NamedSharding(mesh, PartitionSpec()))

    @property
    def corpus_shape(self) -> jax.ShapeDtypeStruct | None:
        """The shape of the tokens on the devices; None where they stay on the host."""
        tokens = self._on_device
        return None if tokens is None else jax.ShapeDtypeStruct(tokens.shape, tokens.dtype)

    def order(self, spec: RunSpec) -> SequenceOrder:
        """The endless order of a run's batches: a pure function of its seed and the step.

        Raises:
          SpecError: when the corpus has too few tokens for the run, or another separator of documents.
        """
        check_separator(spec.model, self.corpus)
        n_tokens = len(self._tokens)
        subset = spec.data.subset_tokens
        if subset is not None and subset > n_tokens:
            raise SpecError(
                f"DataSpec.subset_tokens is {subset:,}, but {spec.data.corpus} has {n_tokens:,} "
                "training tokens"
            )
        n = n_sequences(min(n_tokens, subset or n_tokens), spec.model.n_ctx)
        if n < 1:
            raise SpecError(
                f"{spec.data.corpus} has {n_tokens:,} training tokens, fewer than one sequence of "
                f"n_ctx = {spec.model.n_ctx}"
            )
        population = None
        if spec.data.subset_by == "sequences":
            population = n_sequences(n_tokens, spec.model.n_ctx)
        return sequence_order(n, spec.batch_size, spec.seed, population)

    def chunk(
        self, runs: Sequence[tuple[RunSpec, Any, int] | None], n_steps: int, chunk_steps: int
    ) -> dict[str, Any]:
        """The `data` argument of `Program.train`.

        Args:
          runs: for every slot its (spec, order, first step), or None for a slot without a run.
          n_steps: batches to serve; the rest of the chunk is zeros.
          chunk_steps: length of the program's chunk.
        """
        spec = next(run[0] for run in runs if run is not None)
        shape = (chunk_steps, len(runs), spec.batch_size)

        @functools.cache
        def batches(slot: int) -> np.ndarray:
            whole = np.zeros((chunk_steps, spec.batch_size), np.int32)
            if (run := runs[slot]) is not None:
                _, order, step = run
                whole[:n_steps] = batch_indices(order, step, n_steps)
            return whole

        def indices(part: tuple[slice, ...] | None) -> np.ndarray:
            """The indices of one device: all steps of its slots and rows."""
            assert part is not None, "jax names the part of an array that has axes"
            slots = range(*part[1].indices(len(runs)))
            return np.stack([batches(slot)[:, part[2]] for slot in slots], axis=1)

        if self._on_device is not None:
            return {
                "corpus": self._on_device,
                "indices": jax.make_array_from_callback(shape, self._sharding, indices),
            }
        n_ctx = spec.model.n_ctx
        return {
            "windows": jax.make_array_from_callback(
                (*shape, n_ctx + 1),
                self._sharding,
                lambda part: gather(self._tokens, indices(part), n_ctx),
            )
        }


def check_separator(model: ModelSpec, corpus: Corpus) -> None:
    """Raises `SpecError` where a model masks documents by a token that does not end those of a corpus."""
    separator = model.document_separator
    if separator is not None and separator != corpus.eod_id:
        raise SpecError(
            f"{model.label} masks documents by the token id {separator} (document_separator), but in "
            f"{corpus.name} documents end with {corpus.eod_id}: use a corpus with the same tokeniser"
        )


def fits_on_device(n_tokens: int, n_bytes: int, memory: float | None) -> bool:
    """Whether the training tokens should lie on the devices.

    Args:
      n_tokens, n_bytes: of the tokens.
      memory: bytes of a device; None where that is not known.
    """
    # Windows start at int32 offsets.
    return n_tokens < 2**31 and (memory is None or n_bytes < DEVICE_SHARE * memory)


def _fits(tokens: np.ndarray, mesh: Mesh) -> bool:
    return fits_on_device(len(tokens), tokens.nbytes, memory_limit(mesh.local_devices[0]))

"""From a store of tokens to batches, in an order that is a pure function of (seed, step).

Sequence i of a text is tokens[i * n_ctx : i * n_ctx + n_ctx + 1]: inputs are its first n_ctx
tokens, targets its last n_ctx. Every epoch visits each sequence once, in an order of its own;
batches run on across the end of an epoch, so no remainder is lost. The position in the data is
the step, so a run resumes exactly, under any number of processes.

The order is that of Grain's `range(n).shuffle(seed).repeat().batch(b)`, whose permutation is a
block cipher (Simon, Beaulieu et al. 2013, four rounds, with cycle walking) and can be asked for
any position. It is written out here for whole arrays: a hundred times faster than one position
at a time, and fixed, so that a later Grain cannot reorder the runs of today.

Training does not run Grain's pipeline either. The tokens lie packed in one array, so a batch is one
gather of 0.03 to 1 ms, and the host prepares it while the device works on the steps before. Grain's
threads take 1.5 to 10 times as long for the same batch (PERFORMANCE.md, "Data").
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from lmscale.data.corpus import Corpus

#: Seed of the permutation whose first sequences are a sample. It is far from the small seeds of epochs.
_SAMPLE_SEED = 2**31 + 2**30
#: Of "overlapping" evaluation sets: how many windows begin within one context, the most stretches of text, and the
#: least length of a stretch in contexts. Its ends, where tokens have fewer positions, are then a small part of it.
OVERLAP, STRETCHES, LEAST_STRETCH = 8, 12, 4


def n_sequences(n_tokens: int, n_ctx: int) -> int:
    """How many sequences of n_ctx inputs and targets n_tokens hold."""
    return max(0, n_tokens - 1) // n_ctx


@dataclass(frozen=True)
class SequenceOrder:
    """The endless batches of a run: `order[step]` is int32 [batch_size], the global batch.

    It is a random-access source, which `grain.MapDataset.source` takes as it is.
    """

    n_sequences: int
    batch_size: int
    seed: int
    #: Sequences of the whole text, where the order is that of a sample of it.
    population: int | None = None

    def __len__(self) -> int:
        # More batches than any run takes, with positions well inside 64 bits.
        return 2**62 // self.batch_size

    def __getitem__(self, step: int) -> np.ndarray:
        return batch_indices(self, step, 1)[0]

    @property
    def shuffle_seed(self) -> int:
        """The seed of epoch 0; the following epochs count on from it.

        It is hashed: otherwise seed 1 would begin with the second epoch of seed 0.
        """
        return int(np.random.SeedSequence(self.seed).generate_state(1)[0])


def sequence_order(
    n_sequences: int, batch_size: int, seed: int, population: int | None = None
) -> SequenceOrder:
    """The order in which a run sees its sequences.

    Args:
      population: draws the n_sequences from that many, instead of taking the first. The sample does
        not depend on the seed, and smaller samples are parts of larger ones.
    """
    if n_sequences < 1:
        raise ValueError(f"an order needs at least one sequence, not {n_sequences}")
    return SequenceOrder(n_sequences, batch_size, seed, population)


def batch_indices(order: SequenceOrder, start_step: int, n_steps: int) -> np.ndarray:
    """Sequences of the batches of n_steps steps: int32 [n_steps, batch_size]."""
    n, batch_size, seed = order.n_sequences, order.batch_size, order.shuffle_seed
    position, end = start_step * batch_size, (start_step + n_steps) * batch_size
    pieces = []
    while position < end:
        epoch, first = divmod(position, n)
        last = min(n, first + end - position)
        pieces.append(_permuted(np.arange(first, last), n, (seed + epoch) % 2**32))
        position += last - first
    if not pieces:
        return np.zeros((n_steps, batch_size), np.int32)
    sequences = np.concatenate(pieces)
    if order.population is not None:
        sequences = _permuted(sequences, order.population, _SAMPLE_SEED)
    return sequences.astype(np.int32).reshape(n_steps, batch_size)


def gather(tokens: np.ndarray, indices: np.ndarray, n_ctx: int) -> np.ndarray:
    """The sequences int32 [..., n_ctx + 1] of some indices [...], on the host."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens, n_ctx + 1)[::n_ctx]
    return windows[indices].astype(np.int32)


def gather_on_device(tokens, indices, n_ctx: int):
    """`gather` for tokens that live on the device: a traceable function of JAX arrays.

    Offsets are int32, so at most 2^31 tokens.
    """
    import jax  # imported here, because processes that only prepare text do not need it

    def one(index):
        return jax.lax.dynamic_slice(tokens, (index * n_ctx,), (n_ctx + 1,))

    for _ in range(indices.ndim):
        one = jax.vmap(one)
    return one(indices).astype("int32")


def evaluation_sequences(n_tokens: int, n_ctx: int, tokens: int, sampling: str) -> np.ndarray:
    """Which sequences of a split an evaluation set holds: increasing positions [n].

    The split's m sequences are cut into n stretches of equal length, and "spread" takes the sequence
    in the middle of each; "first" takes the first n.

    Args:
      n_tokens: length of the split.
      tokens: targets wanted; all sequences when the split has fewer, and at least one sequence
        unless the split has none.
      sampling: see `lmscale.spec.EvalSpec`.
    """
    m = n_sequences(n_tokens, n_ctx)
    n = min(max(1, tokens // n_ctx), m)
    if sampling == "first":
        return np.arange(n)
    return (2 * np.arange(n) + 1) * m // (2 * max(1, n))


def overlapping_starts(n_tokens: int, n_ctx: int, tokens: int) -> np.ndarray:
    """Where the windows of an "overlapping" evaluation set begin: int64 [stretch, window].

    Stretches lie at equal distances over the split and have equally many windows, of which `OVERLAP` begin within
    one context. There are at most `STRETCHES`. Each is at least `LEAST_STRETCH` contexts long, unless the whole
    split is shorter.

    Args:
      n_tokens: length of the split.
      tokens: targets wanted; fewer where the split has no room for them.
    """
    stride = max(1, n_ctx // OVERLAP)
    if n_tokens < n_ctx + 1:
        return np.zeros((0, 0), np.int64)
    stretches = max(1, min(STRETCHES, n_tokens // (LEAST_STRETCH * n_ctx + 1)))
    fit = (n_tokens // stretches - n_ctx - 1) // stride + 1
    asked = tokens // (n_ctx * stretches)
    windows = min(fit, max(asked, (LEAST_STRETCH - 1) * n_ctx // stride + 1))
    length = (windows - 1) * stride + n_ctx + 1
    first = (np.arange(stretches) * 2 + 1) * n_tokens // (2 * stretches) - length // 2
    return np.clip(first, 0, n_tokens - length)[:, None] + stride * np.arange(windows)


def evaluation_windows(
    corpus: Corpus, split: str, n_ctx: int, tokens: int, sampling: str = "first"
) -> tuple[np.ndarray, np.ndarray]:
    """(windows int32 [n, n_ctx + 1], document int64 [n]): the text of an evaluation set.

    `document` numbers the documents of the split; a window belongs to the one that holds the target
    in its middle. See `evaluation_sequences` and `overlapping_starts` for the arguments; windows of the latter are
    in the order of stretches.
    """
    stored = corpus.tokens(split)
    if sampling == "overlapping":
        starts = overlapping_starts(len(stored), n_ctx, tokens).reshape(-1)
    else:
        starts = evaluation_sequences(len(stored), n_ctx, tokens, sampling).astype(np.int64) * n_ctx
    if not len(starts):
        return np.zeros((0, n_ctx + 1), np.int32), np.zeros(0, np.int64)
    ends = np.flatnonzero(np.asarray(stored) == corpus.eod_id)
    windows = np.lib.stride_tricks.sliding_window_view(stored, n_ctx + 1)[starts]
    return windows.astype(np.int32), np.searchsorted(ends, starts + 1 + n_ctx // 2)


def _permuted(indices: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Where a pseudorandom permutation of range(n) takes some indices."""
    if n <= 2**14:
        # Cycle walking would take 2^16 / n rounds. Computing a small permutation whole is cheaper.
        return _small_permutation(n, seed)[indices]
    keys = _round_keys(seed)
    word_bits = (max(16, (n - 1).bit_length()) + 1) // 2
    result = _encrypted(indices, keys, word_bits)
    # Cycle walking: values outside of range(n) are encrypted again until they are inside.
    outside = np.flatnonzero(result >= n)
    while outside.size:
        result[outside] = _encrypted(result[outside], keys, word_bits)
        outside = outside[result[outside] >= n]
    return result


@functools.lru_cache(maxsize=256)
def _small_permutation(n: int, seed: int) -> np.ndarray:
    domain = np.arange(2**16)
    step = _encrypted(domain, _round_keys(seed), 8)
    # Cycle walking by 1, 2, 4, ... steps at a time.
    walk = np.where(domain < n, domain, step)
    result = step[:n]
    while (result >= n).any():
        result, walk = walk[result], walk[walk]
    return result.astype(np.int32)


def _encrypted(values: np.ndarray, keys: tuple[int, ...], word_bits: int) -> np.ndarray:
    # Bytes where they are wide enough, which makes a permutation of 2^16 cheap.
    dtype = np.uint8 if word_bits == 8 else np.int64
    mask = (1 << word_bits) - 1

    def rotated(x, bits):
        return (x << bits | x >> (word_bits - bits)) & mask

    def mixed(x):
        return (rotated(x, 1) & rotated(x, 8)) ^ rotated(x, 2)

    left, right = (values >> word_bits).astype(dtype), (values & mask).astype(dtype)
    for first, second in zip(keys[::2], keys[1::2], strict=True):
        left = left ^ mixed(right) ^ (first & mask)
        right = right ^ mixed(left) ^ (second & mask)
    return left.astype(np.int64) << word_bits | right


@functools.lru_cache(maxsize=1024)
def _round_keys(seed: int) -> tuple[int, ...]:
    """Four 32-bit keys: C++'s `std::seed_seq{seed}.generate`, which Grain uses."""
    n, p, q = 4, 1, 2
    keys = [0x8B8B8B8B] * n

    def scrambled(x):
        return (x ^ x >> 27) % 2**32

    for k in range(n):
        first = 1664525 * scrambled(keys[k] ^ keys[(k + p) % n] ^ keys[k - 1]) % 2**32
        second = (first + (1, k + seed, k, k)[k]) % 2**32
        keys[(k + p) % n] = (keys[(k + p) % n] + first) % 2**32
        keys[(k + q) % n] = (keys[(k + q) % n] + second) % 2**32
        keys[k] = second
    for k in range(n):
        total = (keys[k] + keys[(k + p) % n] + keys[k - 1]) % 2**32
        third = 1566083941 * scrambled(total) % 2**32
        fourth = (third - k) % 2**32
        keys[(k + p) % n] ^= third
        keys[(k + q) % n] ^= fourth
        keys[k] = fourth
    return tuple(keys)

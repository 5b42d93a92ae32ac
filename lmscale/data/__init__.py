"""Text to tokens to batches: corpora, their tokeniser, and the order in which a run reads them."""

from lmscale.data.build import build_corpus
from lmscale.data.catalog import evaluation_corpus, list_corpora, open_corpus, summary
from lmscale.data.corpus import Corpus, data_root
from lmscale.data.describe import copies_sentence, describe, has_many_copies, mixture_sentence
from lmscale.data.errors import DataError
from lmscale.data.loader import (
    SequenceOrder,
    batch_indices,
    evaluation_windows,
    gather,
    gather_on_device,
    n_sequences,
    sequence_order,
)
from lmscale.data.tokenizer import Tokenizer
from lmscale.data.tokenizers_of_files import read_tokenizer

__all__ = [
    "Corpus",
    "DataError",
    "SequenceOrder",
    "Tokenizer",
    "batch_indices",
    "build_corpus",
    "copies_sentence",
    "data_root",
    "describe",
    "evaluation_corpus",
    "evaluation_windows",
    "gather",
    "gather_on_device",
    "has_many_copies",
    "list_corpora",
    "mixture_sentence",
    "n_sequences",
    "open_corpus",
    "read_tokenizer",
    "sequence_order",
    "summary",
]

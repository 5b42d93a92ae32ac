"""A corpus that experiments can declare runs on without one being built."""

from types import SimpleNamespace


def fake_corpus(vocab_size: int):
    return SimpleNamespace(name="planted", fingerprint="0123456789ab", vocab_size=vocab_size)

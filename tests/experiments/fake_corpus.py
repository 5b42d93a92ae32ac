"""What an experiment's `runs` reads of a corpus, without one."""

from types import SimpleNamespace

CORPUS = SimpleNamespace(name="text", fingerprint="0123456789abcdef", vocab_size=512)


def of_tokens(vocab_size: int, train_tokens: int) -> SimpleNamespace:
    """Such a corpus that says how many training tokens it has."""
    return SimpleNamespace(
        name="text",
        fingerprint="0123456789abcdef",
        vocab_size=vocab_size,
        n_tokens=lambda split: train_tokens,
    )

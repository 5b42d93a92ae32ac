"""What an experiment's `runs` reads of a corpus, without one."""

from types import SimpleNamespace

CORPUS = SimpleNamespace(name="text", fingerprint="0123456789abcdef", vocab_size=512)

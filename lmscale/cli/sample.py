"""`lmscale sample`: a text continued by a trained run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lmscale.cli.argument_types import positive_int, seed, temperature
from lmscale.cli.errors import CommandError
from lmscale.cli.parser import Parser

__all__ = ["add_arguments", "run"]


def add_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.add_argument("run", metavar="RUN_DIR")
    parser.add_argument("--prompt", metavar="TEXT", required=True)
    parser.add_argument("--tokens", type=_tokens, default=100, help="to add, up to a million (100)")
    parser.add_argument(
        "--temperature", type=temperature, default=0.8, help="0 takes the likeliest"
    )
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--step", type=positive_int, help="of the checkpoint (the newest)")


#: Tokens of the longest text: some minutes of a small model, which prints when all are there.
_MOST_TOKENS = 1_000_000


def _tokens(text: str) -> int:
    value = positive_int(text)
    if value > _MOST_TOKENS:
        raise argparse.ArgumentTypeError(f"must be at most {_MOST_TOKENS:,}, not {text!r}")
    return value


def run(args: argparse.Namespace) -> int:
    from lmscale.cli import start_jax

    start_jax()
    from lmscale.data import open_corpus
    from lmscale.training.run_folder import RunFolder
    from lmscale.training.sample import sample_tokens

    folder = RunFolder.named(args.run)
    data = folder.spec.data
    tokenizer = open_corpus(data.corpus, fingerprint=data.fingerprint).tokenizer
    tokens = tokenizer.encode(args.prompt)
    if not len(tokens):
        raise CommandError("--prompt must not be empty")
    continuation = sample_tokens(
        folder,
        tokens,
        n_tokens=args.tokens,
        temperature=args.temperature,
        seed=args.seed,
        step=args.step,
    )
    print(tokenizer.decode([*tokens, *continuation]))
    return 0

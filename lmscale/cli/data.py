"""`lmscale data`: corpora built, listed, shown and verified."""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmscale.cli.argument_types import positive_int, positive_whole
from lmscale.cli.parser import Parser
from lmscale.remote import is_remote
from lmscale.terminal import print_json, say

__all__ = ["add_arguments", "run"]

_BUILD_EPILOG = """\
Rows of .jsonl and .parquet are documents; a .txt is one, or several between separating lines. Held-out
documents are chosen by their hash, and no copies of training text. A corpus that is there is not built again.

  lmscale data build mytext --input ~/text '~/more/*.jsonl.zst' --vocab-size 8192
  lmscale data build mix --input ~/wiki=0.7 ~/books=0.3 --tokens 2e9 --tokenizer ~/gpt2/tokenizer.json
  lmscale data build books --input ~/books --tokenizer-from mytext        a set to evaluate mytext's runs on
"""


def add_arguments(parser: Parser, words: Sequence[str]) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_build_arguments(actions.add_parser("build", help="text -> tokeniser and token store"))
    listing = actions.add_parser("list", help="the corpora of this machine")
    listing.add_argument("--json", action="store_true")
    show = actions.add_parser(
        "show", help="one corpus: splits, held-out text, copies, settings, samples"
    )
    show.add_argument("name", metavar="NAME")
    show.add_argument(
        "--samples",
        type=_count,
        default=3,
        metavar="N",
        help="beginnings of training documents (3)",
    )
    show.add_argument("--json", action="store_true")
    check = actions.add_parser("verify", help="read all of a corpus: is it what was written?")
    check.add_argument("name", metavar="NAME")
    check.add_argument("--json", action="store_true")


def _add_build_arguments(build: Parser) -> None:
    build.formatter_class = argparse.RawDescriptionHelpFormatter
    build.epilog = _BUILD_EPILOG
    build.add_argument("name", metavar="NAME")
    build.add_argument(
        "--input",
        metavar="PATH[=WEIGHT]",
        nargs="+",
        required=True,
        help="files, folders, globs: .txt .jsonl .ndjson .json (also .gz .xz .zst .bz2) .parquet; each with a "
        "weight for a mixture: wiki/=0.7 books/=0.3",
    )
    build.add_argument(
        "--tokens",
        type=positive_whole,
        metavar="N",
        help="of a mixture's training text: sources are repeated to reach it (ends with the first source)",
    )
    build.add_argument("--vocab-size", type=positive_int, help="4096, or the other tokeniser's")
    for split in ("valid", "test"):
        build.add_argument(
            f"--{split}-fraction",
            metavar="SHARE",
            type=float,
            help=f"share of the documents that {split} is chosen from (1%% to 10%%, for 200 documents)",
        )
    build.add_argument(
        "--cut-documents",
        metavar="BYTES",
        type=positive_int,
        help="store longer documents in pieces; all pieces of one stay in one split",
    )
    build.add_argument(
        "--split-pieces",
        action="store_true",
        help="take the pieces for documents: for text that is one long document",
    )
    build.add_argument("--text-field", default="text", help="of .jsonl and .parquet")
    build.add_argument(
        "--where",
        metavar="CONDITION",
        nargs="+",
        default=(),
        help="read only the rows of .jsonl and .parquet that meet all: 'language_score>=0.9' meta.lang=en",
    )
    build.add_argument(
        "--separator",
        metavar="LINE",
        help="line between the documents of a .txt (a form feed or <|endoftext|>); '' for an empty one",
    )
    build.add_argument(
        "--skip-bad",
        metavar="MOST",
        nargs="?",
        const=0.01,
        default=False,
        type=_bound_of_bad,
        help="leave out rows and documents that are no text, and count them by reason: at most 1%% of "
        "all, or so many (100), or another share (0.1%%), or any number (any)",
    )
    build.add_argument(
        "--tokenizer",
        metavar="FILE|bytes|characters",
        help="a SentencePiece .model or a Hugging Face tokenizer.json (one learnt from the text)",
    )
    build.add_argument(
        "--end-token",
        metavar="TOKEN",
        help="the token of that file that ends a document, where the file does not say: <|endoftext|>",
    )
    build.add_argument(
        "--tokenizer-from",
        metavar="CORPUS",
        help="take this corpus's tokeniser, for evaluation sets",
    )


def _count(text: str) -> int:
    """An int of at least 0, in digits."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, not {text!r}")
    return int(text)


def _bound_of_bad(text: str) -> int | float:
    """A number of rows, a share of all written 0.1% or 0.001, or True for "any"."""
    if text == "any":
        return True
    with contextlib.suppress(ValueError):
        if text.isdecimal():
            return int(text)
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        if 0 < share < 1:
            return share
    raise argparse.ArgumentTypeError(
        f"must be a whole number of rows, a share of them such as 0.1%, or any, not {text!r}"
    )


def run(args: argparse.Namespace) -> int:
    actions = {"build": _build, "list": _list, "show": _show, "verify": _verify}
    return actions[args.action](args)


def _build(args: argparse.Namespace) -> int:
    from lmscale.data import build_corpus
    from lmscale.data.mixture import parse_weights

    signal.signal(signal.SIGTERM, _interrupt)
    corpus = build_corpus(
        args.name,
        parse_weights(args.input),
        tokens=args.tokens,
        vocab_size=args.vocab_size,
        valid_fraction=args.valid_fraction,
        test_fraction=args.test_fraction,
        text_field=args.text_field,
        separator=args.separator,
        skip_bad=args.skip_bad,
        where=args.where,
        cut_documents=args.cut_documents,
        split_pieces=args.split_pieces,
        tokenizer=args.tokenizer,
        end_token=args.end_token,
        tokenizer_from=args.tokenizer_from,
    )
    _print_corpus(corpus)
    return 0


def _interrupt(number: int, frame: Any) -> None:
    """Ends a build as Ctrl-C does, so that it leaves nothing behind.

    Later signals are ignored, so that they do not interrupt the cleaning up.
    """
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _verify(args: argparse.Namespace) -> int:
    from lmscale.data import open_corpus

    corpus = open_corpus(args.name)
    found = dict(corpus.check_files())
    damaged = {name: str(error) for name, error in found.items() if error is not None}
    if args.json:
        print_json(
            {
                "name": corpus.name,
                "path": str(corpus.path),
                "fingerprint": corpus.fingerprint,
                "damaged": damaged,
                "files": list(found),
            }
        )
    elif not damaged:
        print(f"{corpus.name}: {', '.join(found)} are what was written ({corpus.fingerprint})")
    for line in damaged.values():
        say(f"lmscale data verify: {line}")
    return 1 if damaged else 0


def _show(args: argparse.Namespace) -> int:
    from lmscale.data import describe, open_corpus
    from lmscale.data.describe import samples, settings_lines

    corpus = open_corpus(args.name)
    texts = samples(corpus, args.samples)
    if args.json:
        print_json({**describe(corpus), "samples": texts})
        return 0
    _print_corpus(corpus)
    print("\n".join(settings_lines(corpus)))
    for text in texts:
        # In quotes, so that line ends and control characters of a stranger's text show as such.
        print(f"sample: {text!r}")
    return 0


def _print_corpus(corpus: Any) -> None:
    from lmscale.data.describe import summary_lines

    print(f"{corpus.name}: {corpus.path}, vocabulary {corpus.vocab_size}")
    print("\n".join(summary_lines(corpus)))


def _list(args: argparse.Namespace) -> int:
    from lmscale.data import data_root, list_corpora
    from lmscale.data.building import remove_leftovers, unfinished

    corpora = list_corpora(lambda error: say(f"lmscale data list: {error}"))
    if not is_remote(data_root()):
        for name in remove_leftovers(Path(data_root())):
            say(f"removed what a build of {name} that was killed had left")
        for name in unfinished(Path(data_root())):
            say(
                f"the build of {name} that was killed goes on when the same command is run again (kept for a "
                "day)"
            )
    rows = [
        {
            "name": corpus.name,
            "vocab_size": corpus.vocab_size,
            "train_tokens": corpus.n_tokens("train"),
            "bytes_per_token": round(corpus.bytes_per_token("train"), 3),
            "fingerprint": corpus.fingerprint,
            "path": str(corpus.path),
        }
        for corpus in corpora
    ]
    if args.json:
        print_json({"corpora": rows})
        return 0
    for row in rows:
        print(
            f"{row['name']:<24} vocabulary {row['vocab_size']:>6}  {row['train_tokens']:>13,} training "
            f"tokens  {row['bytes_per_token']:.2f} bytes a token  {row['path']}"
        )
    if not rows:
        print("no corpus yet; `lmscale run isoflop` builds installed-python by itself")
    return 0

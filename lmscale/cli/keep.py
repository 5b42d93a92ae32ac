"""`lmscale keep`: the results of finished stores, small enough for a repository."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from lmscale.cli.errors import CommandError
from lmscale.cli.parser import Parser
from lmscale.cli.places import stores_in
from lmscale.terminal import print_json, say

__all__ = ["add_arguments", "run"]

_EPILOG = """\
writes FOLDER/NAME for each store: kept.json.xz (what studies read of every run, some 100 kB), results.csv,
experiment.json, and a page README.md with three figures and the verdicts; and FOLDER/README.md over all of
them. Every fit and verdict is made from both the full store and the kept one, and must be equal.

  lmscale keep results/isoflop-cpu --out docs/results --machine "2 cores of a laptop"
  lmscale report docs/results/isoflop-cpu        figures, fits and verdicts again, without training
  lmscale fit docs/results/isoflop-cpu --law parametric
"""


def add_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("dirs", metavar="DIR", nargs="+", help="a store, or a folder of stores")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where they are kept")
    parser.add_argument(
        "--machine", metavar="TEXT", default="", help="what trained them, in words, for the page"
    )
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from lmscale.report.keep import keep, write_index

    found = []
    for store in _stores(args.dirs):
        kept = keep(store, os.path.join(args.out, store.path.name), args.machine)
        curves = ", with exact curves" if kept.exact_curves else ""
        say(
            f"{kept.path}: {kept.runs} runs in {kept.bytes / 1000:.0f} kB{curves}; {kept.fits} fits and "
            f"{kept.verdicts} verdicts are those of {store.path}"
        )
        found.append(kept)
    index = write_index(args.out)
    if args.json:
        print_json({"kept": [{**vars(kept), "path": str(kept.path)} for kept in found]})
    else:
        print(index)
    return 0


def _stores(folders: Sequence[str]) -> list[Any]:
    """The stores in folders, each once.

    Raises:
      CommandError: two have one name, and so one place.
    """
    found: dict[str, Any] = {}
    for store in (store for folder in folders for store in stores_in(folder)[0]):
        other = found.setdefault(store.path.name, store)
        if other.path != store.path:
            raise CommandError(
                f"{other.path} and {store.path} have one name, and would be kept in one place: keep one of "
                "them with another --out"
            )
    return list(found.values())

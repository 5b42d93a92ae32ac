"""`lmscale report`: the page, figures and fits of a store."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lmscale.cli.parser import Parser
from lmscale.cli.places import stores_in
from lmscale.terminal import say

__all__ = ["add_arguments", "run"]


def add_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.add_argument("dir", metavar="DIR", help="a store, or a folder of stores")


def run(args: argparse.Namespace) -> int:
    from lmscale.report import write_front, write_report

    stores, many = stores_in(args.dir)
    for store in stores:
        for line in store.damage():
            say(f"left out: {line}; `lmscale run` makes it again")
        store.write_table()
        print(write_report(store))
    if many:
        print(write_front(stores[0].path.parent))
    return 0

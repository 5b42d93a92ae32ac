"""`lmscale report`: the page, figures and fits of a store."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from lmscale.cli import argument_types
from lmscale.cli.errors import CommandError
from lmscale.cli.parser import Parser
from lmscale.cli.places import stores_in
from lmscale.cli.training import failures_of
from lmscale.terminal import say

__all__ = ["add_arguments", "run"]

#: Seconds between two looks of `--watch`.
WATCH_SECONDS = 20.0
_EPILOG = """\
  lmscale report results/isoflop-cpu             the page, figures and fits of what is there
  lmscale report results/isoflop-cpu --watch     in a second terminal, while `lmscale run` trains
  lmscale report results/isoflop-cpu --style paper
  lmscale report results                         all stores of a folder, and index.html over them
"""


def add_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("dir", metavar="DIR", help="a store, or a folder of stores")
    parser.add_argument(
        "--style",
        choices=("page", "paper"),
        default="page",
        help="paper: only figures/paper/*.pdf and *.svg, 3.25 or 6.75 inches wide, in 8 points and without "
        "titles, to be included at their own size",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="keep the page of a store that trains fresh, with what is under way and to come and the time "
        "left, until every run has ended or Ctrl-C",
    )
    parser.add_argument(
        "--every",
        metavar="SECONDS",
        type=argument_types.seconds,
        help=f"between two looks of --watch ({WATCH_SECONDS:g})",
    )


def run(args: argparse.Namespace) -> int:
    from lmscale.report import write_front, write_paper_figures, write_report
    from lmscale.studies.registry import check_known

    if args.watch and args.style == "paper":
        raise CommandError("--watch keeps the page fresh: leave --style paper out, or --watch")
    if args.watch:
        return _watch(args.dir, WATCH_SECONDS if args.every is None else args.every)
    stores, many = stores_in(args.dir)
    if args.every is not None:
        raise CommandError("--every is the time between two looks of --watch: give --watch too")
    failures: list[str] = []
    if args.style == "paper":
        for store in stores:
            for path in write_paper_figures(store, failures.append):
                print(path)
        return _end(failures)
    for store in stores:
        # Before any page is written.
        check_known(store)
    for store in stores:
        for line in store.damage():
            say(f"left out: {line}; `lmscale run` makes it again")
        print(write_report(store, say))
        failures += failures_of(store)
    if many:
        print(write_front(stores[0].path.parent))
    return _end(failures)


def _end(failures: Sequence[str]) -> int:
    """Says which analyses of users' files failed; the exit code."""
    for failure in failures:
        say(f"lmscale report: {failure}")
    return 1 if failures else 0


def _watch(folder: str, seconds: float) -> int:
    from lmscale.report.watch import wait_for_store, watch

    if seconds < 1:
        raise CommandError(f"--every must be at least 1 second, not {seconds:g}")
    try:
        wait_for_store(folder, seconds, lambda line: say(f"lmscale report: {line}"))
        stores, _ = stores_in(folder)
        if len(stores) != 1:
            names = ", ".join(store.path.name for store in stores[:3])
            raise CommandError(
                f"--watch wants one store, and there are several ({names}): give one"
            )
        (store,) = stores
        # The cores are for the training beside it.
        os.nice(10)
        say(f"lmscale report: {store.path / 'report.html'} is kept fresh; Ctrl-C ends this")
        watch(store, seconds, lambda line: say(f"{store.path.name}: {line}"))
    except KeyboardInterrupt:
        say("lmscale report: stopped watching; the page stays as it is")
        return 0
    print(store.path / "report.html")
    return _end(failures_of(store))

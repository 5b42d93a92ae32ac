"""`lmscale doctor`: whether lmscale works on this machine, and how fast."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmscale.cli.argument_types import seconds
from lmscale.cli.parser import Parser
from lmscale.terminal import print_json, say

if TYPE_CHECKING:
    from lmscale.doctor import Check, Result

__all__ = ["add_arguments", "run"]

#: Seconds after which something hangs: several times what the checks take on an idle machine.
LIMIT = 300

_EPILOG = """\
A line a check: ok, warning or failed, and under it what to do. The exit code is 0 when all that is needed
works, and 1 when something that is needed fails. It takes one to two minutes, most of them to compile.

  lmscale doctor                          before the first study on a machine
  lmscale doctor --quick                  without the training of tiny runs
  lmscale doctor --out /shared/results    asks whether results can be written there
  lmscale doctor --json > doctor.json     for programs, and to send with a report of a fault
"""


def add_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "--out", default="results", metavar="DIR", help="where results would go (results)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="leave out the checks that train tiny runs"
    )
    parser.add_argument(
        "--limit",
        type=seconds,
        default=LIMIT,
        metavar="SECONDS",
        help=f"give up, with exit code 1, when all checks together take longer ({LIMIT})",
    )
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from lmscale.cli import start_jax
    from lmscale.doctor import CHECKS, Place, run_checks

    chosen = [check for check in CHECKS if not (args.quick and check.long)]
    results: list[Result] = []
    watch = threading.Timer(args.limit, _give_up, (args, chosen, results))
    watch.daemon = True
    watch.start()
    try:
        with tempfile.TemporaryDirectory(prefix="lmscale-doctor-") as scratch:
            for result in run_checks(chosen, Place(args.out, Path(scratch))):
                results.append(result)
                _print_result(args, result)
                if result.check.first and not result.fatal:
                    start_jax()
    finally:
        watch.cancel()
    works = not any(result.fatal for result in results)
    _print_finding(args, results, works)
    return 0 if works else 1


def _print_result(args: argparse.Namespace, result: Result) -> None:
    found = result.finding
    line = f"{found.status:8} {result.check.name:12} {found.text}"
    # With --json standard output holds the object alone.
    (say if args.json else print)(line)
    if found.remedy and not args.json:
        print(f"{'':21} {found.remedy}")


def _print_finding(args: argparse.Namespace, results: list[Result], works: bool) -> None:
    from lmscale.doctor import verdict

    if not args.json:
        print(verdict(results))
        return
    print_json(
        {
            "works": works,
            "finding": verdict(results),
            "seconds": sum(result.seconds for result in results),
            "checks": [result.to_json() for result in results],
        }
    )


def _give_up(args: argparse.Namespace, chosen: Sequence[Check], results: list[Result]) -> None:
    """Ends the program when a check takes too long; nothing else stops one that hangs in a driver."""
    from lmscale.doctor import Finding, Result

    if len(results) == len(chosen):
        return
    # Whatever it is, the checks after it were not made.
    check = dataclasses.replace(chosen[len(results)], needed=True)
    remedy = (
        "give --limit more seconds on a busy machine; jax waits without end for the other hosts of a TPU "
        "slice, and for a driver that hangs"
    )
    text = f"not done {args.limit:g} s after the start of all checks"
    results.append(Result(check, Finding("failed", text, remedy), args.limit))
    _print_result(args, results[-1])
    _print_finding(args, results, False)
    sys.stdout.flush()
    os._exit(1)

"""`lmscale doctor`: whether lmscale works on this machine, and how fast."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lmscale.cli.parser import Parser
from lmscale.terminal import print_json, say

__all__ = ["add_arguments", "run"]

_EPILOG = """\
A line a check: ok, warning or failed, and under it what to do. The exit code is 0 when all that is needed
works, and 1 when something that is needed fails. It takes at most two minutes, most of them to compile.

  lmscale doctor                          before the first study on a machine
  lmscale doctor --quick                  without the training of tiny runs
  lmscale doctor --out /shared/results    asks whether results can be written there
  lmscale doctor --json > doctor.json     for programs, and to send with a report of a fault
"""


def add_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="where results would go (results)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="leave out the checks that train tiny runs"
    )
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from lmscale.cli import start_jax
    from lmscale.doctor import CHECKS, Place, run_checks, verdict

    start_jax()
    chosen = [check for check in CHECKS if not (args.quick and check.long)]
    results = []
    with tempfile.TemporaryDirectory(prefix="lmscale-doctor-") as scratch:
        for result in run_checks(chosen, Place(args.out, Path(scratch))):
            results.append(result)
            found = result.finding
            line = f"{found.status:8} {result.check.name:12} {found.text}"
            # With --json standard output holds the object alone.
            (say if args.json else print)(line)
            if found.remedy and not args.json:
                print(f"{'':21} {found.remedy}")
    works = not any(result.fatal for result in results)
    if args.json:
        print_json(
            {
                "works": works,
                "finding": verdict(results),
                "seconds": sum(result.seconds for result in results),
                "checks": [result.to_json() for result in results],
            }
        )
    else:
        print(verdict(results))
    return 0 if works else 1

"""Groups of arguments that several commands take, and what they stand for.

The value of an experiment is built in `lmscale.cli.experiment_arguments`; the stores and corpora that
arguments name are opened in `lmscale.cli.places`.
"""

from __future__ import annotations

import argparse
from typing import Any

from lmscale.cli import argument_types

__all__ = [
    "add_checkpoint_seconds",
    "add_law_choice",
    "add_mesh",
    "add_prior",
    "add_table_reading",
    "table_reading",
]


def add_mesh(parser: argparse.ArgumentParser) -> None:
    """--mesh, of `run` and `plan`."""
    parser.add_argument(
        "--mesh",
        metavar="RUN,DATA,MODEL",
        type=argument_types.mesh,
        help="devices for runs side by side, for parts of each batch, for parts of each layer (planned)",
    )


def add_prior(parser: argparse.ArgumentParser) -> None:
    """--prior, of `run` and `plan`."""
    parser.add_argument(
        "--prior",
        metavar="DIR|LAW",
        help="a store or a published law that tells where the minima of an isoflop grid will be: "
        "badly centred budgets are named (earlier results of this experiment)",
    )


def add_checkpoint_seconds(parser: argparse.ArgumentParser) -> None:
    """--checkpoint-seconds, of the commands that train."""
    parser.add_argument(
        "--checkpoint-seconds",
        type=argument_types.seconds,
        default=60.0,
        help="at most this much is lost to a kill",
    )


def add_law_choice(parser: argparse.ArgumentParser) -> None:
    """Which family's law of a store, which law, and how far it is trusted: of `advise`, `verify`."""
    parser.add_argument("--family", help="whose law of a store (the only one; else transformer)")
    parser.add_argument(
        "--law", metavar="LAW", help="isoflop, parametric, ... (isoflop; of a table what fits it)"
    )
    parser.add_argument(
        "--extrapolate",
        action="store_true",
        help="answer also at more than 30 times the largest budget, or below 1/30 of the smallest",
    )


def add_table_reading(parser: Any) -> None:
    """How a table of runs is read, of `fit` and `advise`; `table_reading` has the values."""
    parser.add_argument(
        "--columns",
        metavar="ROLE=COL,...",
        action="append",
        help="which column of the table is which: params=COL,tokens=COL,loss=COL,flops=COL. May be "
        "given several times; a name with commas or = stands in quotes ('params=\"N, total\"'), and "
        "COL*1e6 scales a column in millions",
    )
    parser.add_argument(
        "--where",
        metavar="EXPR",
        help="rows to take: 'mode == train and params >= 1e8', 'run in (a, b)', with not, or, ( )",
    )
    parser.add_argument(
        "--convention",
        choices=("kaplan", "chinchilla", "standard", "exact"),
        help="which params and flops of a store's results to read (standard)",
    )
    parser.add_argument(
        "--cells",
        choices=("best", "mean", "all"),
        help="of runs with one params and tokens that differ in learning rate, batch, warmup or "
        "weight decay take the best (the default), their mean, or all as repeats; if given, also of "
        "runs that nothing tells apart, which are repeats otherwise",
    )


def table_reading(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `add_table_reading`, as `lmscale.sweep.tables.table_of_runs` takes them."""
    return {name: getattr(args, name) for name in ("columns", "where", "convention", "cells")}

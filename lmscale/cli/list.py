"""`lmscale list`: the experiments that come with lmscale."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from lmscale.cli.parser import Parser
from lmscale.terminal import print_json, print_table

__all__ = ["add_arguments", "run"]


def add_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from lmscale.sweep.experiment import experiment_names, load_scales

    found: list[dict[str, Any]] = []
    for name in experiment_names():
        scales = load_scales(name)[2]
        title = next(iter(scales.values())).title
        found.append({"experiment": name, "title": title, "scales": list(scales)})
    if args.json:
        print_json({"experiments": found})
        return 0
    rows = [(one["experiment"], " ".join(one["scales"]), one["title"]) for one in found]
    print_table([("experiment", "scales", "title"), *rows])
    print("lmscale run EXPERIMENT --help has what each is about, its cost and its fields")
    return 0

"""`lmscale advise`: the best model for a budget, from a store, any table of runs or a published law."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmscale.cli import argument_types
from lmscale.cli.parser import Parser
from lmscale.cli.shared_arguments import (
    DEFAULT_FAMILY,
    add_law_choice,
    add_table_reading,
    table_reading,
)
from lmscale.terminal import print_json, say

__all__ = ["add_arguments", "run"]

_EPILOG = """\
With --inference-tokens the compute pays for training and serving, 6 N D + 2 N D_inference: the best
model is smaller than one that is only trained. FLOPs may have a unit (5 PF-days, 3 EFLOPs),
tokens a suffix (300B, 1.4T).
"""


def add_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "source", metavar="DIR|TABLE|PUBLISHED-LAW", help="besiroglu2024, chinchilla, ..."
    )
    question = parser.add_mutually_exclusive_group(required=True)
    question.add_argument(
        "--compute",
        metavar="FLOPS",
        type=argument_types.flops,
        help="the training budget (with --inference-tokens: of training and serving)",
    )
    question.add_argument(
        "--loss", type=argument_types.positive_loss, help="the loss to reach with the least compute"
    )
    parser.add_argument(
        "--unique-tokens",
        metavar="TOKENS",
        type=argument_types.positive_tokens,
        help="how much data there is",
    )
    parser.add_argument(
        "--inference-tokens",
        metavar="TOKENS",
        type=argument_types.nonnegative_tokens,
        default=0.0,
        help="tokens served later; the compute then pays for them too, 6 N D + 2 N D_inference",
    )
    add_law_choice(parser)
    parser.add_argument("--json", action="store_true")
    add_table_reading(parser.add_argument_group("the table"))


def run(args: argparse.Namespace) -> int:
    from lmscale.sweep.recommend import recommend

    question = {"flops": args.compute, "loss": args.loss, "unique_tokens": args.unique_tokens}
    advice = recommend(
        _source(args),
        law=args.law or "isoflop",
        family=args.family or DEFAULT_FAMILY,
        extrapolate=args.extrapolate,
        reading=table_reading(args),
        inference_tokens=args.inference_tokens,
        **question,
    )
    if args.json:
        print_json(advice.to_json())
        return 0
    _print(advice, args)
    for warning in advice.warnings:
        say(f"warning: {warning}")
    return 0


def _source(args: argparse.Namespace) -> Any:
    """A store, a law fitted to a table, or the name of a published law."""
    from lmscale import laws
    from lmscale.sweep.store import Store
    from lmscale.sweep.tables import table_of_runs

    path, reading = Path(args.source), table_reading(args)
    if path.is_dir() or _is_results_of_a_store(path):
        return Store.open(path if path.is_dir() else path.parent)
    if args.source in laws.PUBLISHED:
        if args.law or args.family or any(value is not None for value in reading.values()):
            raise laws.FitError(
                f"{args.source} is a published law: leave --law, --family and what a table is read "
                f"by out"
            )
        return args.source
    if not path.exists():
        raise laws.FitError(
            f"there is no store, no table and no published law {args.source!r}; the published laws "
            f"are {', '.join(laws.PUBLISHED)}"
        )
    if args.family:
        raise laws.FitError(
            f"--family is of a store; {args.source} is a table: choose its rows with --where"
        )
    table = table_of_runs(args.source, **reading)
    return laws.fit(table, args.law) if args.law else _law_of_table(table)


def _is_results_of_a_store(path: Path) -> bool:
    return path.name == "results.csv" and (path.parent / "experiment.json").exists()


def _law_of_table(table: Any) -> Any:
    """IsoFLOP profiles where a table has them, else the surface of Approach 3."""
    from lmscale import laws

    try:
        fitted = laws.fit(table, "isoflop")
    except laws.TableError:
        fitted = None
    if fitted is not None and fitted.parameters:
        return fitted
    return laws.fit(table, "parametric")


def _header(advice: Any, args: argparse.Namespace) -> str:
    """What the compute is, how well it is known, what it pays for, and by which law."""
    text = f"for {advice.flops:.3g} FLOPs"
    if reach := advice.intervals.get("flops"):
        text += f" [{reach[0]:.3g}, {reach[1]:.3g}]"
    if advice.inference_flops:
        text += (
            f" of training and serving (6 N D + 2 N D_inference; serving {args.inference_tokens:.3g} "
            f"tokens takes {advice.inference_flops:.3g}, {advice.inference_flops / advice.flops:.0%})"
        )
    by = f"the law {advice.law}, {advice.source}" if advice.source == "fitted here" else ""
    return f"{text}, by {by or advice.source or args.source}:"


def _print(advice: Any, args: argparse.Namespace) -> None:
    from lmscale.architectures import ModelSpec

    def line(name: str, key: str, text: str) -> None:
        low_high = advice.intervals.get(key)
        interval = f"  [{low_high[0]:.3g}, {low_high[1]:.3g}]" if low_high else ""
        print(f"  {name:<22}{text}{interval}")

    print(_header(advice, args))
    line("parameters", "n_params", f"{advice.n_params:.3g}")
    line("tokens", "n_tokens", f"{advice.n_tokens:.3g}")
    line("tokens per parameter", "tokens_per_param", f"{advice.tokens_per_param:.3g}")
    if advice.loss is not None:
        line("loss (nats per token)", "loss", f"{advice.loss:.4g}")
    if advice.model is not None:
        line("model", "", ModelSpec.from_dict(advice.model).shape)
    if advice.batch_tokens is not None:
        line("batch", "", f"{advice.batch_tokens:,} tokens")
        line("peak learning rate", "", f"{advice.learning_rate:.2g}")
    if advice.run is not None:
        line("steps", "", f"{advice.run['steps']:,}")
    for off in advice.off_optimum:
        reach = off.loss_interval
        loss = "" if off.loss is None else f", loss {off.loss:.4g}"
        loss += f"  [{reach[0]:.4g}, {reach[1]:.4g}]" if reach else ""
        print(
            f"  {off.factor:g} x the parameters costs {off.compute_factor:.3g} x the compute{loss}"
        )
    if advice.intervals:
        print(f"intervals: {advice.interval_method}")
    if advice.recipe:
        print(f"recipe: {advice.recipe}")

"""`lmscale advise`: the best model for a budget, from a store, any table of runs or a published law."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from lmscale.cli import argument_types
from lmscale.cli.parser import Parser
from lmscale.cli.shared_arguments import add_law_choice, add_table_reading, table_reading
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
    from lmscale.sweep.recommend import law_source, recommend

    chosen = {"law": args.law, "family": args.family, "reading": table_reading(args)}
    advice = recommend(
        law_source(args.source, **chosen),
        **chosen,
        extrapolate=args.extrapolate,
        flops=args.compute,
        loss=args.loss,
        unique_tokens=args.unique_tokens,
        inference_tokens=args.inference_tokens,
    )
    if args.json:
        print_json(advice.to_json())
        return 0
    _print(advice, args)
    for warning in advice.warnings:
        say(f"warning: {warning}")
    return 0


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

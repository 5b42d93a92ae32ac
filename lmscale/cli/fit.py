"""`lmscale fit`: laws fitted to a table of runs, with every option that each law has."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

from lmscale.cli.fit_tables import FittedTable
from lmscale.cli.parser import Parser
from lmscale.cli.shared_arguments import add_table_reading, table_reading
from lmscale.terminal import print_json

__all__ = ["add_arguments", "run"]

_AFTERWORD = """
Tables are CSV (commas, tabs, semicolons), JSON or JSON lines, also in .gz and .xz. Columns are found
under their own or a common name (N, n_params, D, C, final_loss, ...), else name them with --columns.
Where a table has two of params, tokens and flops, the third follows from C = 6 N D. Loss is in nats.
envelope and kaplan-ns read learning curves: one row a point, and a column group that names the run. A
column seed keeps repeated runs apart; of runs that differ in learning rate or batch the best is taken
(--cells). The results of a store are read by one convention for params and flops (--convention).

  lmscale fit runs.csv --law parametric --columns params=N,tokens=D,loss=final_loss
  lmscale fit runs.csv --law parametric --columns 'params="N, million"*1e6' --columns loss=c4_en
  lmscale fit runs.csv --law parametric isoflop --where "mode == train" --at 1e22 1e23
  lmscale fit runs.csv --law isoflop --window 2 --budget-tolerance 0.2
  lmscale fit runs.csv --law power --x flops --critical-batch 2.1e8,0.21
  lmscale fit runs.csv --law parametric --split dataset
  lmscale fit results/isoflop-cpu --law all

Laws that predict a loss are also fitted without the largest budget and tested on it.
"""


# --- Arguments ------------------------------------------------------------------------------------


def add_arguments(parser: Parser, words: Sequence[str]) -> None:
    """The table, the laws, and the options of every law."""
    from lmscale.laws import DRAWS, LAWS
    from lmscale.sweep.fitting import all_options

    # `run` says which laws are asked for, and which options those have.
    parser.keeps_unknown = True
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _laws_epilog()
    parser.add_argument("table", metavar="DIR|TABLE", nargs="?")
    parser.add_argument(
        "--law",
        required=True,
        nargs="+",
        action="extend",
        metavar="LAW",
        help="one or more, or all",
    )
    parser.add_argument(
        "--at",
        metavar="FLOPS",
        nargs="+",
        type=_positive,
        help="print N_opt, D_opt and loss at these budgets",
    )
    parser.add_argument(
        "--bootstrap", metavar="K", type=_draws, default=DRAWS, help=f"draws ({DRAWS})"
    )
    parser.add_argument("--level", type=_share, help="of the intervals (0.95)")
    parser.add_argument("--seed", metavar="K", type=_whole, help="of the draws (0)")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    table = parser.add_argument_group("the table")
    add_table_reading(table)
    table.add_argument(
        "--split", metavar="COL", help="fit the rows of each value of a column by themselves"
    )
    group = parser.add_argument_group("options of the laws")
    for name, options in all_options(LAWS.values()).items():
        switch = all(option.is_switch for option in options)
        form: dict[str, Any] = (
            {"action": "store_true"} if switch else {"metavar": _metavar(options)}
        )
        text = _help(options)
        if name == "critical_batch":
            form = {"metavar": "B_STAR,ALPHA_B", "type": _critical_batch}
            text += "; kaplan-ns: the same, for S_min (adjust)"
        group.add_argument(
            options[0].flag,
            dest=f"option_{name}",
            default=argparse.SUPPRESS,
            help=text,
            **form,
        )


def _metavar(options: Sequence[Any]) -> str:
    return "|".join(dict.fromkeys(w for o in options for w in o.choices.split("|")))


def _help(options: Sequence[Any]) -> str:
    """The laws that have an option, its meaning and default; laws that agree are named together."""
    alike: dict[tuple[str, str], list[str]] = {}
    for option in options:
        default = "" if option.is_switch or option.default in ((), None) else f" ({option.default})"
        alike.setdefault((option.meaning.rstrip("."), default), []).append(option.law)
    same = "the same" if any(meaning for meaning, _ in alike) else "see its paper"
    parts = [
        f"{', '.join(laws)}: {meaning or same}{default}"
        for (meaning, default), laws in sorted(alike.items(), key=lambda item: not item[0][0])
    ]
    return "; ".join(parts).replace("%", "%%")


def _laws_epilog() -> str:
    """Every law with its equation and the columns that it reads."""
    from lmscale.laws import LAWS

    lines = ["laws:"]
    for law in LAWS.values():
        lines += [
            f"  {law.name:<17} {law.equation}",
            f"  {'':<17} reads {', '.join(law.needs)} ({law.source})",
        ]
    return "\n".join(lines) + "\n" + _AFTERWORD


def _number(text: str, test: Any, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and test(value)):
        raise argparse.ArgumentTypeError(f"must be {what}, not {text!r}")
    return value


def _positive(text: str) -> float:
    return _number(text, lambda value: value > 0, "a positive number")


def _share(text: str) -> float:
    return _number(text, lambda value: 0 < value < 1, "between 0 and 1")


def _draws(text: str) -> int:
    from lmscale.laws import FEWEST_DRAWS, MOST_DRAWS

    what = (
        f"a whole number from {FEWEST_DRAWS}, since fewer draws hold no interval, to {MOST_DRAWS:,}"
    )
    return int(_number(text, lambda v: FEWEST_DRAWS <= v <= MOST_DRAWS and v.is_integer(), what))


def _whole(text: str) -> int:
    return int(_number(text, lambda v: v >= 0 and v.is_integer(), "a whole number"))


def _critical_batch(text: str) -> tuple[float, float]:
    try:
        star, alpha = (_positive(item) for item in text.split(","))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"must be two positive numbers, as 2.1e8,0.21, not {text!r}"
        ) from None
    return star, alpha


# --- Fitting --------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    from lmscale import laws
    from lmscale.laws.options import unknown_option
    from lmscale.sweep.fitting import fit_laws, options_by_law
    from lmscale.sweep.tables import table_of_runs

    names = _names(args)
    if args.unknown:
        raise laws.FitError(
            unknown_option(
                next((x for x in args.unknown if x.startswith("-")), args.unknown[0]),
                [laws.LAWS[name] for name in names],
            )
        )
    options = options_by_law(names, _given(args))
    table = table_of_runs(args.table, **table_reading(args))
    parts = {None: table} if args.split is None else table.split(args.split)
    asked = {
        "source": args.table,
        "budgets": args.at or (),
        "bootstrap": args.bootstrap,
        "options": options,
    }
    found = {
        value: FittedTable(fit_laws(part, names, **asked), args.at or ())
        for value, part in parts.items()
    }
    _refuse_if_none(found)
    if args.json:
        if args.split is None:
            print_json(found[None].to_json())
        else:
            values = [{"value": value, **fits.to_json()} for value, fits in found.items()]
            print_json({"split": args.split, "values": values})
    for value, fits in found.items():
        if not args.json:
            if value is not None:
                print(f"{args.split} {value}:")
            fits.print()
            if value is not None:
                print()
        fits.say_warnings("" if value is None else f"{args.split} {value}: ")
    return 0


def _names(args: argparse.Namespace) -> list[str]:
    """The laws that are asked for; the table may be the last of them."""
    from lmscale import laws
    from lmscale.sweep.fitting import law_names

    names = list(dict.fromkeys(args.law))
    if args.table is None and names[-1] != "all" and names[-1] not in laws.LAWS:
        # `fit --law LAW TABLE`: the table was taken for one more law.
        args.table = names.pop()
    if args.table is None or not names:
        raise laws.FitError("give a table and a law: lmscale fit DIR|TABLE --law LAW")
    return law_names(names)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Option -> its value, of the options that were given."""
    given = {key: getattr(args, key) for key in ("level", "seed") if getattr(args, key) is not None}
    for dest, value in vars(args).items():
        if dest.startswith("option_"):
            given[dest.removeprefix("option_")] = value
    return given


def _refuse_if_none(found: dict[Any, FittedTable]) -> None:
    """Raises a `FitError` where nothing was fitted, or nothing can be said at any budget."""
    from lmscale.laws import FitError
    from lmscale.sweep.fitting import Fits

    Fits(tuple(line for table in found.values() for line in table.lines)).check()
    answers = [item for table in found.values() for items in table.at.values() for item in items]
    if answers and all("error" in item for item in answers):
        raise FitError(answers[0]["error"])

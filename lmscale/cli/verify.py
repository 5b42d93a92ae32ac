"""`lmscale verify`: a forecast written down, tested by training, and compared with its outcome."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from lmscale.cli import argument_types
from lmscale.cli.declared import Declared, plan_line
from lmscale.cli.errors import CommandError
from lmscale.cli.parser import Parser
from lmscale.cli.places import training_corpus
from lmscale.cli.shared_arguments import add_checkpoint_seconds, add_law_choice
from lmscale.cli.training import Job, failures_of, train_job
from lmscale.stopping import PREEMPTED, PREEMPTED_LINE
from lmscale.terminal import plural, print_json, print_table, say

__all__ = ["add_arguments", "run"]

_EPILOG = """\
The forecast goes to DIR/verify/C<FLOPS>/forecast-<hash of its content>.json before anything is trained,
the outcome beside it, and both into the store's report. Exit code 0 also where the forecast has failed.

  lmscale verify results/isoflop-cpu --compute 1.92e12             three runs, 3 times the largest budget
  lmscale verify results/isoflop-cpu --compute 1.92e12 --seeds 0 1 2
"""


def add_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("dir", metavar="DIR", help="a store with finished runs")
    parser.add_argument(
        "--compute",
        metavar="FLOPS",
        type=argument_types.flops,
        required=True,
        help="of each of the three runs",
    )
    parser.add_argument(
        "--seeds",
        type=argument_types.seed,
        nargs="+",
        default=[0],
        help="each size is trained once per seed (0)",
    )
    add_law_choice(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="show the forecast and the plan, write nothing"
    )
    add_checkpoint_seconds(parser)
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from lmscale.cli import start_jax
    from lmscale.sweep.recommend import default_family
    from lmscale.sweep.store import Store

    store, law = Store.open(args.dir), args.law or "isoflop"
    family = args.family or default_family(store)
    if store.kept and not args.dry_run:
        raise CommandError(
            f"{store.path} holds kept results, which cannot be trained on: --dry-run shows the forecast"
        )
    from lmscale.studies.registry import check_known

    # Its report is written when all is trained.
    check_known(store)
    start_jax()
    from lmscale.sweep import verify
    from lmscale.training.loop import Preempted

    folder = verify.verification_store(store, args.compute, family, law)
    known = verify.read_forecast(folder)
    if known is None:
        forecast = verify.forecast_of(
            store, args.compute, law=law, family=family, extrapolate=args.extrapolate
        )
    else:
        forecast, path = known
        say(f"the forecast of {forecast['date']} stands: {path}")
        if forecast["results_sha256"] != verify.results_hash(store):
            say("warning: the store has other results now than when its forecast was made")
    corpus = training_corpus(store)
    if not args.json:
        _print_forecast(forecast)
    for warning in _warnings(forecast, corpus):
        say(f"warning: {warning}")
    seeds = tuple(dict.fromkeys(args.seeds))
    runs = verify.outcome_runs(forecast, seeds)
    if args.dry_run:
        _say_plan(runs)
        if args.json:
            print_json({"forecast": forecast, "outcome": None})
        return 0
    if known is None:
        path = verify.write_forecast(folder, forecast)
        say(f"forecast written to {path}")
    declared = store.experiment()
    experiment = verify.Verification(
        vocab_size=declared["corpus"]["vocab_size"], seeds=seeds, forecast=path.name
    )
    try:
        any_failed = _train(
            args, Declared("verify", experiment, corpus, runs, []), declared["scale"], folder
        )
    except Preempted:
        folder.write_table()
        say(PREEMPTED_LINE)
        return PREEMPTED
    reported = _report_outcome(args, store, folder, forecast)
    return 1 if any_failed or not reported else 0


def _train(args: argparse.Namespace, declared: Declared, scale: str, store: Any) -> bool:
    """Trains the runs that test a forecast; True where one failed."""
    from lmscale.planner.devices import local_devices
    from lmscale.planner.packs import make_plan
    from lmscale.progress import progress

    plan = make_plan(declared.runs, local_devices())
    with progress("training", plan.flops) as bar:
        bar.log(f"{declared.name}: {plan_line(plan)} -> {store.path}")
        # A later call with more seeds extends the store.
        job = Job(declared, scale, plan, store, extend=True)
        return train_job(job, bar, args.stop, args.stop, checkpoint_seconds=args.checkpoint_seconds)


def _report_outcome(
    args: argparse.Namespace, store: Any, folder: Any, forecast: dict[str, Any]
) -> bool:
    """Holds the forecast against the results in `folder`; writes both into the store's report.

    False where an analysis of a user's file failed there.
    """
    from lmscale.files import write_json
    from lmscale.report import write_report
    from lmscale.sweep import verify

    outcome = verify.compare(forecast, folder)
    write_json(folder.path / "outcome.json", outcome, sealed=True)
    page = write_report(store, say)
    if args.json:
        print_json({"forecast": forecast, "outcome": outcome})
    else:
        _print_outcome(forecast, outcome)
    failures = failures_of(store)
    for failure in failures:
        say(f"lmscale verify: {failure}")
    say(f"report: {page}")
    return not failures


def _say_plan(runs: list[Any]) -> None:
    from lmscale.planner.devices import local_devices
    from lmscale.planner.packs import make_plan

    plan = make_plan(runs, local_devices())
    say(
        f"{plural(plan.n_runs, 'run')}, {plan.flops:.3g} FLOPs, about {plan.seconds / 60:.1f} min here"
    )


def _warnings(forecast: dict[str, Any], corpus: Any) -> list[str]:
    """What a user should know of a verification before it is trained."""
    warnings = list(forecast["advice"]["warnings"])
    if forecast["flops"] <= forecast["largest_budget"]:
        # Forecasts of earlier versions do not hold the smallest.
        below = forecast["flops"] < forecast.get("smallest_budget", 0.0)
        warnings.append(
            f"this budget lies {'below' if below else 'within'} those of the store: it tests no "
            f"extrapolation{' to larger ones' if below else ''}"
        )
    roles = {planned["role"] for planned in forecast["runs"]}
    missing = {"advised", "half", "double"} - roles
    if missing:
        names = " and ".join(sorted(missing))
        warnings.append(f"the ladder has no model of its own for the {names} of the advised size")
    tokens = corpus.n_tokens("train")
    longest = max(planned["n_tokens"] for planned in forecast["runs"])
    if longest > tokens:
        warnings.append(
            f"the smallest model takes {longest:.3g} tokens, {longest / tokens:.2g} epochs of the "
            f"{tokens:.3g} training tokens: the law may not hold for repeated text"
        )
    return list(dict.fromkeys(warnings))


def _print_forecast(forecast: dict[str, Any]) -> None:
    from lmscale.architectures import ModelSpec

    rows = [("size", "N", "D", "model", "forecast loss", "95% interval")]
    for planned in forecast["runs"]:
        reach = planned["interval"]
        rows.append(
            (
                planned["role"],
                f"{planned['n_params']:.3g}",
                f"{planned['n_tokens']:.3g}",
                ModelSpec.from_dict(planned["spec"]["model"]).label,
                f"{planned['loss']:.3f}",
                f"[{reach[0]:.3f}, {reach[1]:.3f}]" if reach else "none",
            )
        )
    print(f"for {forecast['flops']:.3g} FLOPs each, by the law {forecast['law']}:")
    print_table(rows)


def _print_outcome(forecast: dict[str, Any], outcome: dict[str, Any]) -> None:
    rows = [("size", "forecast loss", "outcome", "in the interval")]
    words = {True: "yes", False: "no", None: "no outcome"}
    for planned, run in zip(forecast["runs"], outcome["runs"], strict=True):
        found = " ".join(f"{loss:.3f}" for loss in run["losses"]) or "-"
        rows.append((planned["role"], f"{planned['loss']:.3f}", found, words[run["contained"]]))
    print_table(rows)
    print(outcome["finding"])

"""`lmscale verify`: a forecast written down, trained, and held against its outcome."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from lmscale.advise_command import FAMILY, add_law_arguments, flops_argument
from lmscale.terminal import print_json, print_table, say

__all__ = ["add_arguments", "run"]

_EPILOG = """\
The forecast goes to DIR/verify/C<FLOPS>/forecast-<hash of its content>.json before anything is trained,
the outcome beside it, and both into the store's report. Exit code 0 also where the forecast has failed.

  lmscale verify results/isoflop-cpu --compute 1.1e12              three runs, about 3 times the budget
  lmscale verify results/isoflop-cpu --compute 1.1e12 --seeds 0 1 2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `lmscale verify` takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("dir", metavar="DIR", help="a store with finished runs")
    parser.add_argument(
        "--compute",
        metavar="FLOPS",
        type=flops_argument,
        required=True,
        help="of each of the three runs",
    )
    parser.add_argument(
        "--seeds", type=_seed, nargs="+", default=[0], help="each size is trained once per seed (0)"
    )
    add_law_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="show the forecast and the plan, write nothing"
    )
    parser.add_argument(
        "--checkpoint-seconds",
        type=_seconds,
        default=60.0,
        help="at most this much is lost to a kill",
    )
    parser.add_argument("--json", action="store_true")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1e9 seconds, not {text!r}")
    return value


def _seed(text: str) -> int:
    if not text.isdigit() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"must be a whole number below 2^31, not {text!r}")
    return int(text)


def run(args: argparse.Namespace, train: Callable, open_corpus: Callable) -> int:
    """The command.

    Args:
      train: trains the runs of an experiment into a store; whether any failed.
      open_corpus: (name, vocabulary) -> corpus.
    """
    from lmscale.files import write_json
    from lmscale.parallel.distributed import PREEMPTED
    from lmscale.report import write_report
    from lmscale.sweep import verify
    from lmscale.sweep.store import Store
    from lmscale.training.loop import Preempted

    store, law, family = Store.open(args.dir), args.law or "isoflop", args.family or FAMILY
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
    corpus = _corpus(store, open_corpus)
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
        ill = train(experiment, declared["scale"], corpus, runs, folder)
    except Preempted:
        folder.write_table()
        say("preempted: every run is saved; the same command goes on from here")
        return PREEMPTED
    outcome = verify.compare(forecast, folder)
    write_json(folder.path / "outcome.json", outcome, sealed=True)
    store.write_table()
    page = write_report(store)
    if args.json:
        print_json({"forecast": forecast, "outcome": outcome})
    else:
        _print_outcome(forecast, outcome)
    say(f"report: {page}")
    return 1 if ill else 0


def _say_plan(runs: list[Any]) -> None:
    from lmscale.planner.devices import local_devices
    from lmscale.planner.packs import make_plan

    plan = make_plan(runs, local_devices())
    say(f"{plan.n_runs} runs, {plan.flops:.3g} FLOPs, about {plan.seconds / 60:.1f} min here")


def _corpus(store: Any, open_corpus: Callable) -> Any:
    """The text that a store's runs were trained on.

    Raises:
      StoreError: when the corpus of that name holds other text here.
    """
    from lmscale.sweep.store import StoreError

    declared = store.experiment()["corpus"]
    corpus = open_corpus(declared["name"], declared["vocab_size"])
    if corpus.fingerprint != declared["fingerprint"]:
        raise StoreError(
            f"the runs were trained on {declared['name']} with fingerprint "
            f"{declared['fingerprint']}, but the corpus here has {corpus.fingerprint}: give the "
            "machine that trained them, or build the corpus from the same text"
        )
    return corpus


def _warnings(forecast: dict[str, Any], corpus: Any) -> list[str]:
    """What of a verification a user should know before it is trained."""
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
    rows = [("size", "N", "D", "layers x width", "forecast loss", "95% interval")]
    for planned in forecast["runs"]:
        model = planned["spec"]["model"]
        width = model.get("d_model", model.get("d_hidden"))
        reach = planned["interval"]
        rows.append(
            (
                planned["role"],
                f"{planned['n_params']:.3g}",
                f"{planned['n_tokens']:.3g}",
                f"{model['n_layer']} x {width}",
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

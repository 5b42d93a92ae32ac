"""`lmscale status`: how far a store is, run by run."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from lmscale.cli.parser import Parser
from lmscale.cli.places import stores_in
from lmscale.foreign_text import readable
from lmscale.terminal import plural, print_json, print_table, say
from lmscale.wording import duration, first_few

__all__ = ["add_arguments", "run"]


def add_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.add_argument("dir", metavar="DIR")
    parser.add_argument(
        "--check",
        action="store_true",
        help="read the checkpoints of runs that have ended, too: is every byte what was written?",
    )
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from lmscale.sweep.overview import overview

    stores, many = stores_in(args.dir)
    found = {store.path.name: overview(store) for store in stores}
    damaged = {s.path.name: s.damaged_checkpoints() if args.check else None for s in stores}
    lacking = {s.path.name: s.without_checkpoint() if args.check else None for s in stores}
    if args.json:
        objects = [
            {
                "store": name,
                **_to_json(one),
                "damaged_checkpoints": damaged[name],
                "without_checkpoint": lacking[name],
            }
            for name, one in found.items()
        ]
        print_json({"stores": objects} if many else objects[0])
    else:
        for number, (store, one) in enumerate(zip(stores, found.values(), strict=True)):
            if number:
                print()
            _print(str(store.path), one)
    for name, runs in lacking.items():
        if runs:
            what = f"{plural(len(runs), 'run')} of {name} without a checkpoint, which `sample` and `export` need"
            say(f"lmscale status: {what}: {first_few(runs)}")
    remedy = "delete the run's result.json, then `lmscale run` makes it again"
    for line in (line for lines in damaged.values() for line in lines or ()):
        say(f"lmscale status: {line}; {remedy}")
    return 1 if any(damaged.values()) else 0


def _to_json(found: Any) -> dict[str, Any]:
    runs = [dataclasses.asdict(run) for run in found.runs]
    for run in runs:
        run.update(run.pop("labels"))
    return {
        "runs": len(runs),
        "counts": found.whole.counts,
        "share": found.whole.share,
        "runs_of_unknown_share": found.whole.unknown,
        "seconds_left": found.whole.left,
        "shards": [dataclasses.asdict(shard) for shard in found.shards],
        "table": runs,
    }


def _print(name: str, found: Any) -> None:
    whole = found.whole
    filled = round(30 * whole.share)
    bar = "#" * filled + "." * (30 - filled)
    left = f", {_left(whole.left)}" if whole.left is not None else ""
    print(f"{name}: {readable(_counts(whole))}")
    runs = f"{whole.unknown} run{'s' * (whole.unknown > 1)}"
    unknown = f", without {runs} of unknown size" if whole.unknown else ""
    print(f"[{bar}] {whole.share:.0%} of {whole.flops:.3g} FLOPs{unknown}{left}")
    if found.shards:
        rows = [["shard", "worker", "share", "left", "runs"]]
        for part in found.shards:
            rows.append(
                [part.name, part.host, f"{part.share:.0%}", _left(part.left), _counts(part)]
            )
        print()
        print_table(rows)
    rows = [["status", "step", "left", "run", "why"]]
    for run in found.runs:
        if run.status in ("done", "pending"):
            continue
        why = run.doubt or run.worker or run.reason or ""
        step = f"{run.step}/{run.steps}"
        rows.append([run.status, step, _left(run.left), run.run, why])
    if len(rows) > 1:
        print()
        print_table(rows)


def _counts(part: Any) -> str:
    """'3 done, 1 failed'."""
    return ", ".join(f"{n} {status}" for status, n in part.counts.items())


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"about {duration(seconds)} left"

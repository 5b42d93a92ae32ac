"""Kills real sweeps many times, or starts several at once, and says what came of it.

    python -m tests.torture --kills 300 --seed 1 --out /tmp/torture --report counts.json
    python -m tests.torture --kills 100 --kinds worker --scales workers --out /tmp/torture
    python -m tests.torture --kills 400 --kinds group --damage all --out /tmp/torture
    python -m tests.torture --together 50 --out /tmp/torture

Exits with 1 where anything differed, hung, or ended otherwise than it should.
"""

import argparse
import json
import random
import sys
from pathlib import Path

from tests.torture.damage import DAMAGE
from tests.torture.experiment import SCALES
from tests.torture.processes import KILLS
from tests.torture.together import Together, combinations
from tests.torture.torture import Options, Torture, write_counts


def _names(known):
    def parse(text: str) -> tuple[str, ...]:
        if text == "none":
            return ()
        names = tuple(known) if text == "all" else tuple(text.split(","))
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(
                f"{', '.join(sorted(unknown))}: choose from {', '.join(known)}, all, none"
            )
        return names

    return parse


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument(
        "--together", type=int, metavar="ROUNDS", help="kill nothing: several commands on one store"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", type=_names(KILLS), default=tuple(KILLS))
    parser.add_argument("--damage", type=_names(DAMAGE), default=())
    parser.add_argument("--scales", type=_names(SCALES), default=tuple(SCALES))
    parser.add_argument("--per-sweep", type=int, default=8, help="kills of one sweep")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds until it hangs")
    parser.add_argument("--report", type=Path, help="where the counts go (OUT/counts.json)")
    args = parser.parse_args()
    options = Options(args.kinds, args.damage, args.scales, args.per_sweep, args.patience)
    torture = Torture(args.out, args.seed, options)
    torture.prepare()
    report = args.report or args.out / "counts.json"
    if args.together:
        return _together(torture, args.together, report)
    index = 0
    while torture.counts.n_kills() < args.kills:
        torture.round(index)
        index += 1
        # Kept up to date, so that an end before the last round loses nothing.
        write_counts(torture.counts, report)
        n = len(torture.counts.failures)
        print(f"{torture.counts.n_kills()} kills, {index} sweeps, {n} failures", file=sys.stderr)
    return 1 if torture.counts.failures else 0


def _together(torture: Torture, rounds: int, report: Path) -> int:
    together = Together(torture)
    for index, shards in enumerate(combinations(random.Random(torture.seed), rounds)):
        together.round(index, shards)
        report.write_text(json.dumps(together.to_json(), indent=1) + "\n")
        print(f"{index + 1} rounds, {len(together.failures)} failures", file=sys.stderr)
    return 1 if together.failures else 0


if __name__ == "__main__":
    sys.exit(main())

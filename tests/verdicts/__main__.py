"""How often verdicts are wrong: claims that are true or false by so much, on planted results.

    python -m tests.verdicts --draws 200 --json verdicts.json
    python -m tests.verdicts --draws 50 --kinds 3,7

Prints a table of words for each planted truth. Exits with 1 where a wrong verdict is given at 5% or more.
"""

import argparse
import json
import sys
from pathlib import Path

from tests.verdicts.count import MOST_WRONG, as_table, count
from tests.verdicts.kinds import KINDS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.verdicts", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--draws", type=int, default=200, help="results planted for each truth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", help="numbers from 1, with commas between them; all by default")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    chosen = range(len(KINDS))
    if options.kinds:
        chosen = [int(number) - 1 for number in options.kinds.split(",")]
        if not all(0 <= k < len(KINDS) for k in chosen):
            parser.error(f"--kinds: numbers from 1 to {len(KINDS)}, not {options.kinds}")
    counts = []
    for k in chosen:
        counts += count(KINDS[k], options.draws, options.seed)
        print(as_table(counts[-len(KINDS[k].truths) :], header=k == chosen[0]), flush=True)
    if options.json:
        options.json.write_text(json.dumps([one.to_json() for one in counts], indent=1) + "\n")
    return int(any(one.share_wrong >= MOST_WRONG for one in counts))


if __name__ == "__main__":
    sys.exit(main())

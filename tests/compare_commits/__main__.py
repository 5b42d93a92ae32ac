"""Shows that a refactoring changes no number: trains the same short runs with the code of two commits.

    python -m tests.compare_commits 2883fa8 --out /tmp/compare
    python -m tests.compare_commits HEAD~3 HEAD --experiments isoflop,shape --steps 40 --out /tmp/compare

The first commit declares the runs: of every experiment's grid the run of the fewest FLOPs of each kind (by
architecture, schedule, optimizer and what is switched on), with the runs that it starts from, cut to about 60 steps
with two evaluations; and all runs of the smallest budget of `isoflop`, whole. Both commits build the corpora,
compute the runs' hashes and train on the corpora of the first. Compared are the corpora's files, the hash of every
run of every grid, and every number of metrics.jsonl and result.json that does not depend on the clock, bit by bit.

Without a second commit the working tree is compared. Both run in this Python, with its dependencies.
Exits with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.compare_commits.numbers import numbers_of, verdict

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


class Side:
    """A commit's code, and the folder of what it makes."""

    def __init__(self, commit: str | None, folder: Path):
        self.folder, self.code = folder, ROOT if commit is None else folder / "code"
        folder.mkdir(parents=True, exist_ok=True)
        if commit is not None:
            shutil.rmtree(self.code, ignore_errors=True)
            self.code.mkdir()
            archive = subprocess.run(
                ["git", "-C", str(ROOT), "archive", commit], check=True, stdout=subprocess.PIPE
            )
            subprocess.run(["tar", "-x", "-C", str(self.code)], check=True, input=archive.stdout)
        # Experiments are installed as a package of another name than their folder's.
        links = folder / "packages"
        links.mkdir(exist_ok=True)
        link = links / "lmscale_experiments"
        link.unlink(missing_ok=True)
        link.symlink_to(self.code / "experiments")
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(self.code), str(links)]),
            "PYTHONSAFEPATH": "1",
            "LMSCALE_DATA": str(folder / "data"),
            "LMSCALE_CACHE": str(folder / "cache"),
            "JAX_PLATFORMS": "cpu",
        }
        place = self._run("-c", "import lmscale; print(lmscale.__file__)", capture=True).strip()
        if Path(place).resolve().parents[1] != self.code.resolve():
            raise SystemExit(f"{self.code}: Python imports lmscale from {place} instead")

    def _run(self, *words: str, capture: bool = False, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            check=False,
            env={**self.environment, **environment},
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE if capture else None,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} exited with {done.returncode} in {self.folder}")
        return done.stdout or ""

    def do(self, *words: str) -> None:
        """A command of side.py."""
        self._run(str(HERE / "side.py"), *words)

    def train(self, runs: Path, data: Path) -> Path:
        """Trains the runs on the corpora of a data folder; gives the store."""
        store = self.folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        start = "from lmscale.cli import entry_point; entry_point()"
        self._run(
            *("-c", start, "run", str(HERE / "recorded.py"), "--out", str(store)),
            COMPARE_COMMITS_RUNS=str(runs),
            LMSCALE_DATA=str(data),
        )
        return store


def different_corpora(before: Path, after: Path) -> list[str]:
    """A line for every tokeniser or token file of the first folder that is not in the second alike."""
    files = sorted(path for path in before.glob("*/*") if path.suffix in (".bin", ".model"))
    if not files:
        return [f"{before} holds no corpus"]
    return [
        f"corpus file {path.relative_to(before)} differs"
        for path in files
        if not (other := after / path.relative_to(before)).exists()
        or other.read_bytes() != path.read_bytes()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compare_commits", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("before", metavar="COMMIT")
    parser.add_argument("after", metavar="COMMIT", nargs="?", help="the working tree by default")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--experiments", default="all", help="names, with commas between them")
    parser.add_argument("--scale", default="cpu")
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    before = Side(args.before, args.out.resolve() / "before")
    after = Side(args.after, args.out.resolve() / "after")
    runs = args.out.resolve() / "runs.json"
    before.do("declare", args.scale, str(args.steps), args.experiments, str(runs))
    after.do("corpora", str(runs))
    ids = []
    for side in (before, after):
        side.do("identify", str(runs), str(side.folder / "ids.json"))
        ids.append(json.loads((side.folder / "ids.json").read_text()))
    stores = [side.train(runs, before.folder / "data") for side in (before, after)]
    wrong = different_corpora(before.folder / "data", after.folder / "data")
    print("\n".join(wrong) if wrong else "corpora: identical")
    same = not wrong
    print(f"{'experiment':34}{'hashes kept':>13}{'runs':>6}{'numbers':>9}  results")
    for name in ids[0]:
        kept = sum(a == b for a, b in zip(ids[0][name]["grid"], ids[1][name]["grid"], strict=True))
        total = len(ids[0][name]["grid"])
        pairs = [
            [numbers_of(store / "runs" / run) for store, run in zip(stores, both, strict=True)]
            for both in zip(ids[0][name]["runs"], ids[1][name]["runs"], strict=True)
        ]
        verdicts = [verdict(*pair) for pair in pairs]
        # Trunks come first, and what follows them differs too.
        shown = next((one for one in verdicts if not one.startswith("identical")), verdicts[0])
        same &= kept == total and shown.startswith("identical")
        counted = sum(len(pair[0]) for pair in pairs)
        print(f"{name:34}{f'{kept}/{total}':>13}{len(pairs):>6}{counted:>9}  {shown}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())

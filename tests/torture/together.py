"""Several commands at once on one store, in all combinations of shards: is every run trained once?"""

from __future__ import annotations

import itertools
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.torture.compare import differences
from tests.torture.processes import HangError, Process
from tests.torture.torture import Torture

#: Every division into one to four parts.
SHARDS = tuple(f"{index}/{count}" for count in range(1, 5) for index in range(count))
#: Seconds between two looks at the files of a round.
_LOOK_SECONDS = 0.05


def combinations(rng: random.Random, rounds: int) -> list[tuple[str, ...]]:
    """Shards of the commands of each round: of two and of four commands, every pair and then any."""
    pairs = list(itertools.combinations_with_replacement(SHARDS, 2))
    fours = list(itertools.combinations_with_replacement(SHARDS, 4))
    half = (rounds + 1) // 2
    chosen = rng.sample(pairs, min(half, len(pairs))) + rng.choices(fours, k=rounds - half)
    chosen = [tuple(rng.sample(shards, len(shards))) for shards in chosen]
    return rng.sample(chosen, len(chosen))


def is_whole(shards: Sequence[str]) -> bool:
    """Whether all parts of some division are among these shards."""
    return any(
        {f"{index}/{count}" for index in range(count)} <= set(shards) for count in range(1, 5)
    )


class Together:
    """Rounds of commands at once, against the undisturbed store of a `Torture`."""

    def __init__(self, torture: Torture):
        self.torture = torture
        #: Commands of a round -> rounds.
        self.rounds: Counter[int] = Counter()
        #: Runs that were trained, and commands that left runs to others.
        self.runs = self.left = 0
        self.failures: list[dict[str, str]] = []

    def to_json(self) -> dict:
        return {
            "rounds_by_commands": dict(sorted(self.rounds.items())),
            "runs_trained": self.runs,
            "commands_that_left_runs_to_others": self.left,
            "failures": self.failures,
        }

    def round(self, index: int, shards: Sequence[str]) -> None:
        """One store, a command for each shard, and a last one for what no shard has."""
        rng = random.Random(f"{self.torture.seed} {index}")
        scale = self.torture.options.scales[index % len(self.torture.options.scales)]
        folder = self.torture.out / f"together-{self.torture.seed}-{index}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copytree(self.torture.out / "reference" / "data", folder / "data")
        wrong = self._wrong(folder, scale, shards, rng)
        self.rounds[len(shards)] += 1
        if not wrong:
            shutil.rmtree(folder)
            return
        self.failures.append(
            {"round": folder.name, "shards": " ".join(shards), "what": "; ".join(wrong)}
        )
        print(f"{folder.name} ({' '.join(shards)}): {wrong[0]}", file=sys.stderr)

    def _wrong(
        self, folder: Path, scale: str, shards: Sequence[str], rng: random.Random
    ) -> list[str]:
        store, reference = folder / "store", self.torture.out / "reference" / scale
        command = self.torture.run_command(store, scale, rng.choice((0.01, 0.3, 60.0)))
        look, processes = Look(store), []
        for number, shard in enumerate(shards):
            log = folder / f"log-{number}.txt"
            processes.append(self.torture.start([*command, "--shard", shard], folder, log))
            # Sometimes all at once, sometimes while another has begun or ended.
            look.wait(rng.choice((0.0, 0.0, rng.uniform(0.0, 10.0))))
        wrong = self._end(processes, look)
        self.left += sum("left to others" in process.said() for process in processes)
        runs = {path.name for path in (reference / "runs").iterdir()}
        if is_whole(shards) and (missing := runs - set(look.results)):
            wrong.append(f"not trained though their shard was: {sorted(missing)}")
        # What no shard had; and a report of all.
        wrong += self._end([self.torture.start(command, folder, folder / "log-last.txt")], look)
        self.runs += len(look.results)
        wrong += look.wrong + [str(path) for path in store.rglob("claim*")]
        return wrong or differences(store, reference)

    def _end(self, processes: Sequence[Process], look: Look) -> list[str]:
        """Waits for commands to end; what is wrong with their ends."""
        end, wrong = time.monotonic() + self.torture.options.patience, []
        while any(process.code() is None for process in processes) and time.monotonic() < end:
            look.wait(_LOOK_SECONDS)
        for process in processes:
            try:
                code = process.wait(0.1)
                if code or "Traceback" in process.said():
                    wrong.append(f"ended with {code}: {process.said()[-1000:]}")
            except HangError as error:
                wrong.append(str(error))
            finally:
                process.end()
        look.wait(0.0)
        return wrong


class Look:
    """Looks at a store while it is written: a run that is trained twice is seen to begin again."""

    def __init__(self, store: Path):
        self._store = store
        self._lengths: dict[str, int] = {}
        #: Run -> when its result was written.
        self.results: dict[str, int] = {}
        self.wrong: list[str] = []

    def wait(self, seconds: float) -> None:
        """Looks once, and again until so many seconds have passed."""
        end = time.monotonic() + seconds
        self._look()
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_SECONDS))
            self._look()

    def _look(self) -> None:
        for path in self._store.glob("runs/*/metrics.jsonl"):
            length, before = path.stat().st_size, self._lengths.get(path.parent.name, 0)
            if length < before:
                self.wrong.append(f"{path.parent.name}: its metrics fell from {before} to {length}")
            self._lengths[path.parent.name] = length
        for path in self._store.glob("runs/*/result.json"):
            written = path.stat().st_mtime_ns
            if self.results.setdefault(path.parent.name, written) != written:
                self.wrong.append(f"{path.parent.name}: its result was written again")
                self.results[path.parent.name] = written

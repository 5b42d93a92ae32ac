"""The torture itself: rounds of a sweep that is killed and damaged until it ends, then compared."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import write_text
from tests.quick_compile import xla_flags
from tests.torture.compare import differences
from tests.torture.damage import Blow, strike
from tests.torture.phases import PHASES, Watch
from tests.torture.processes import HangError, Process

EXPERIMENT = Path(__file__).parent / "experiment.py"
#: Exit codes that a kill may end with: killed, preempted, failed, or done just before.
_CODES = {
    "group": {-9, 0},
    "parent": {-9, 0},
    "term": {42, 0, -15},
    "term-group": {42, 0, -15},
    "int": {42, 1, 0, -2},
    "int-group": {42, 1, 0, -2},
}
#: Seconds that orphans may live after their parent.
ORPHAN_SECONDS = 30.0
#: Seconds of training after which a kill does not wait for its phase any longer.
PATIENT_SECONDS = 3.0
#: Starts of one sweep without a kill: some are needed where workers died again and again, and one for
#: every blow that is refused.
_MOST_STARTS = 16


@dataclass(frozen=True)
class Options:
    """What is done to the sweeps.

    Attributes:
      kinds: of kills, of `processes.KILLS`.
      damage: kinds of damage, of `damage.DAMAGE`; each start that was killed is followed by one, of
        the kind that was done least often.
      scales: of the experiment.
      per_sweep: kills of one sweep.
      patience: seconds after which a process hangs.
    """

    kinds: tuple[str, ...]
    damage: tuple[str, ...]
    scales: tuple[str, ...]
    per_sweep: int = 8
    patience: float = 120.0


@dataclass
class Counts:
    """What was done, and what came of it."""

    kills: Counter = field(default_factory=Counter)
    damage: Counter = field(default_factory=Counter)
    sweeps: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)

    def n_kills(self) -> int:
        return sum(self.kills.values())

    def to_json(self) -> dict:
        kills: dict[str, dict[str, int]] = {}
        for (kind, phase), count in sorted(self.kills.items()):
            kills.setdefault(kind, {})[phase] = count
        damage: dict[str, dict[str, int]] = {}
        for (kind, outcome), count in sorted(self.damage.items()):
            damage.setdefault(kind, {})[outcome] = count
        phases = {
            phase: sum(n for (_, at), n in self.kills.items() if at == phase) for phase in PHASES
        }
        return {
            "kills": self.n_kills(),
            "sweeps": self.sweeps,
            "by_phase": phases,
            "by_kind_and_phase": kills,
            "damage": damage,
            "failures": self.failures,
        }


class Torture:
    """Undisturbed stores to compare with, and rounds against them.

    Args:
      out: holds all that is made; a round's folder stays where it failed.
      seed: of every choice. What a kill hits also depends on the clock.
    """

    def __init__(self, out: Path, seed: int, options: Options):
        self.out, self.seed, self.options = out.absolute(), seed, options
        self.counts = Counts()
        #: Kind of damage -> how often it was done.
        self.struck: Counter[str] = Counter()
        self._environment = {
            **os.environ,
            "LMSCALE_CACHE": str(self.out / "cache"),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla_flags(),
        }
        self._text = self.out / "text.txt"

    def prepare(self) -> None:
        """Trains what every round is compared with, and fills the compilation cache."""
        self.out.mkdir(parents=True, exist_ok=True)
        write_text(self._text)
        folder = self.out / "reference"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self._undisturbed(self._build_command(), folder)
        for scale in self.options.scales:
            self._undisturbed(self.run_command(folder / scale, scale, 60.0), folder)

    def run(self, kills: int) -> Counts:
        """Rounds until there were so many kills."""
        index = 0
        while self.counts.n_kills() < kills:
            self.round(index)
            index += 1
        return self.counts

    def round(self, index: int) -> None:
        """One corpus and one sweep on it, killed until they end."""
        rng = random.Random(f"{self.seed} {index}")
        scale = self.options.scales[index % len(self.options.scales)]
        folder = self.out / f"round-{self.seed}-{index}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        before = len(self.counts.failures)
        one = _Round(self, folder, scale, rng)
        one.build()
        one.sweep()
        self.counts.sweeps += 1
        if len(self.counts.failures) == before:
            shutil.rmtree(folder)

    def start(self, arguments: Sequence[str], folder: Path, log: Path) -> Process:
        environment = self._environment | {"LMSCALE_DATA": str(folder / "data")}
        return Process(arguments, environment, log)

    def _undisturbed(self, arguments: Sequence[str], folder: Path) -> None:
        process = self.start(arguments, folder, folder / "log.txt")
        if code := process.wait(600):
            raise RuntimeError(f"undisturbed, it ended with {code}: {process.said()}")

    def _build_command(self) -> list[str]:
        shares = ["--valid-fraction", "0.05", "--test-fraction", "0.05"]
        return ["data", "build", "tiny", "--input", str(self._text), "--vocab-size", "300", *shares]

    def run_command(self, store: Path, scale: str, checkpoint_seconds: float) -> list[str]:
        command = ["run", str(EXPERIMENT), "--scale", scale, "--data", "tiny", "--out", str(store)]
        return [*command, "--checkpoint-seconds", str(checkpoint_seconds)]


class _Round:
    """One corpus and one sweep; see `Torture.round`."""

    def __init__(self, torture: Torture, folder: Path, scale: str, rng: random.Random):
        self.torture, self.options, self.counts = torture, torture.options, torture.counts
        self.folder, self.scale, self.rng = folder, scale, rng
        self.store = folder / "store"
        # One process alone has no workers.
        self.kinds = [kind for kind in self.options.kinds if kind != "worker" or scale == "workers"]
        self.blows: list[tuple[str, Blow]] = []
        self.history: list[str] = []
        self._generation = 0

    def build(self) -> None:
        """Builds the corpus, which may be killed on the way."""
        command = self.torture._build_command()
        kinds = [kind for kind in self.options.kinds if kind in ("group", "term", "int")]
        if kinds and self.rng.random() < 0.5:
            process = self._start(command)
            time.sleep(self.rng.uniform(0.0, 0.6))
            kind = self.rng.choice(kinds)
            if process.kill(kind, self.rng):
                self._after(process, kind, "corpus")
        process = self._start(command)
        # A corpus that was whole when it was killed is not built again.
        if process.wait(self.options.patience) and "exists" not in process.said():
            self._fail("the corpus is not built after a kill", process)
        for path in (self.torture.out / "reference" / "data" / "tiny").glob("*.bin"):
            if path.read_bytes() != (self.folder / "data" / "tiny" / path.name).read_bytes():
                self._fail(f"{path.name} of the corpus differs")

    def sweep(self) -> None:
        """Starts the sweep, and kills it, until it ends; then compares."""
        left, starts = self._targets(), 0
        while starts < _MOST_STARTS:
            if not left:
                starts += 1
            ended = self._one_start(left)
            if ended is not None:
                break
        else:
            self._fail(f"not ended after {_MOST_STARTS} starts without a kill")
            return
        wrong = differences(self.store, self.torture.out / "reference" / self.scale)
        outcome = "silent difference" if wrong else "mended"
        for kind, _ in self.blows:
            self.counts.damage[kind, outcome] += 1
        if wrong:
            self._fail("; ".join(wrong))

    def _targets(self) -> list[str]:
        """At what each kill aims: a phase, or any time. The report, which is last, comes last."""
        if not self.kinds:
            return []
        earlier = [phase for phase in PHASES if phase not in ("corpus", "report")]
        targets = self.rng.choices([*earlier, "time", "time"], k=self.options.per_sweep)
        if self.rng.random() < 0.5:
            targets[-1] = "report"
        return targets

    def _one_start(self, left: list[str]) -> int | None:
        """One process to its end: 0 when the sweep has ended, None when it must go on."""
        seconds = self.rng.choice((0.01, 0.3, 60.0))
        process = self._start(self.torture.run_command(self.store, self.scale, seconds))
        watch = Watch(self.store, process.log)
        target = left.pop(0) if left else None
        while target is not None and self._reached(process, watch, target):
            kind = self.rng.choice(self.kinds)
            if kind == "worker" and not process.workers():
                target = "time"
                continue
            phase = watch.phase()
            if not process.kill(kind, self.rng):
                break
            if kind == "worker":
                # The others go on, and so does the torture.
                self._count(kind, phase)
                target = "time" if left and left.pop(0) else None
                continue
            if self._after(process, kind, phase, watch) == 0:
                return 0
            self._damage()
            return None
        return self._natural_end(process)

    def _reached(self, process: Process, watch: Watch, target: str) -> bool:
        """Waits for the moment of a kill; False when the process has ended before it."""
        begun = time.monotonic()
        limit = self.rng.uniform(0.0, 8.0) if target == "time" else math.inf
        training = None
        while process.code() is None:
            now = time.monotonic()
            if now - begun > limit:
                return True
            if target != "time":
                phase = watch.phase()
                if phase == target:
                    # A run ends within few hundredths of a second.
                    time.sleep(self.rng.uniform(0.0, 0.01 if phase == "ending" else 0.1))
                    return process.code() is None
                if phase not in ("start-up", "compiling"):
                    training = training or now
                    # It was missed, or is rare: the next start may meet it.
                    late = target in ("start-up", "compiling") or now - training > PATIENT_SECONDS
                    if late and target != "report":
                        return True
            time.sleep(0.002 if target == "ending" else 0.01)
        return False

    def _count(self, kind: str, phase: str) -> None:
        self.counts.kills[kind, phase] += 1
        self.history.append(f"{kind} in {phase}")

    def _after(
        self, process: Process, kind: str, phase: str, watch: Watch | None = None
    ) -> int | None:
        """Counts a kill and waits for what must follow; the exit code, None where it hangs."""
        if kind == "group" and watch is not None:
            process.wait(self.options.patience)
            # What it left behind tells best.
            phase = watch.phase()
        self._count(kind, phase)
        begun = time.monotonic()
        try:
            code = process.wait(self.options.patience)
            self.history.append(f"code {code} after {time.monotonic() - begun:.1f} s")
            if kind != "parent" or self.rng.random() < 0.5:
                process.wait_for_group(ORPHAN_SECONDS)
        except HangError as error:
            self._fail(f"{kind} in {phase}: {error}", process)
            return None
        # `data build` has nothing to save: it says that it was interrupted.
        interrupted = phase == "corpus" and code == 1 and "interrupted" in process.said()
        # What was damaged before may be found after the signal has come.
        refused = bool(self.options.damage) and code == 1 and " is damaged: " in process.said()
        if code not in _CODES[kind] and not interrupted and not refused:
            self._fail(f"{kind} in {phase} ended with {code}", process)
        if "Traceback" in process.said() and phase != "start-up":
            self._fail(f"{kind} in {phase} printed a traceback", process)
        return code

    def _damage(self) -> None:
        kinds = self.rng.sample(self.options.damage, len(self.options.damage))
        for kind in sorted(kinds, key=self.torture.struck.__getitem__):
            if (blow := strike(self.folder, kind, self.rng)) is not None:
                self.torture.struck[kind] += 1
                self.blows.append((kind, blow))
                self.history.append(f"{blow}".replace(str(self.folder), ""))
                return

    def _natural_end(self, process: Process) -> int | None:
        """Waits for a process that nobody kills any more."""
        try:
            code = process.wait(self.options.patience)
        except HangError as error:
            self._fail(str(error), process)
            return None
        finally:
            process.end()
        said = process.said()
        self.history.append(f"ended by itself with {code}")
        if "Traceback" in said:
            self._fail("ended with a traceback", process)
        if code == 0:
            return 0
        if self.blows and self._repaired(said):
            return None
        # Of a run whose worker died several times lmscale may say that it has failed.
        if any("worker" in line for line in self.history) and code == 1:
            return None
        self._fail(f"ended with {code}", process)
        return None

    def _repaired(self, said: str) -> bool:
        """Does what a message of damage asks for: deletes what it names, or copies the corpus anew."""
        for kind, blow in list(self.blows):
            named = [path for path in (blow.path, *blow.path.parents) if str(path) in said]
            if not named:
                continue
            self.blows.remove((kind, blow))
            self.counts.damage[kind, "refused"] += 1
            if kind == "corpus":
                shutil.copy2(
                    self.torture.out / "reference" / "data" / "tiny" / blow.path.name, blow.path
                )
            elif kind == "experiment":
                blow.path.unlink(missing_ok=True)
            else:
                run = self.store / "runs" / blow.path.relative_to(self.store / "runs").parts[0]
                shutil.rmtree(run, ignore_errors=True)
            return True
        return False

    def _start(self, command: Sequence[str]) -> Process:
        self._generation += 1
        log = self.folder / f"log-{self._generation}.txt"
        return self.torture.start(command, self.folder, log)

    def _fail(self, what: str, process: Process | None = None) -> None:
        failure = {
            "round": self.folder.name,
            "scale": self.scale,
            "what": what,
            "history": "; ".join(self.history),
            "said": process.said()[-3000:] if process else "",
        }
        self.counts.failures.append(failure)
        print(f"{self.folder.name} ({self.scale}): {what.splitlines()[0]}", file=sys.stderr)


def write_counts(counts: Counts, path: Path) -> None:
    path.write_text(json.dumps(counts.to_json(), indent=1) + "\n")

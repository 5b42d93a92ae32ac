"""A whole sweep against torch: processes that start cold, train all runs and evaluate them."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmscale.bench.timing import Timing, interleave
from lmscale.cores import n_cores
from lmscale.data import Corpus
from lmscale.sweep.experiment import Experiment

#: How torch may go about it: name -> arguments of `lmscale.bench.torch_sweep`, given the cores.
TORCH_FORMS: dict[str, Callable[[int], list[str]]] = {
    "torch, a run a core": lambda cores: ["--workers", str(cores)],
    "torch, all cores a run": lambda cores: ["--threads", str(cores)],
    "torch.compile, a run a core": lambda cores: ["--workers", str(cores), "--compile"],
}


@dataclass(frozen=True)
class SweepResult:
    """Seconds of the sweep from a cold start, and the mean final loss over its runs."""

    seconds: dict[str, Timing]
    losses: dict[str, float]


def measure_sweep(
    experiment: Experiment,
    overrides: Sequence[str],
    corpus: Corpus,
    *,
    against: Sequence[str],
    repeat: int,
    tick: Callable[[str], None],
) -> SweepResult:
    """Times `lmscale run` of the sweep, its report included, beside torch.

    Nothing is warm: our compiled programs start from an empty cache every time, and so do those of
    torch.compile.

    Args:
      experiment: as declared by `lmscale.bench.sweep_runs` with `overrides`, the same on the
        command line.
      corpus: where all sides read.
      against: keys of `TORCH_FORMS`.
      repeat: times each, in turns.
    """
    cores = n_cores()
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch, counter = Path(folder), iter(range(10**9))
        runs = scratch / "runs.json"
        runs.write_text(json.dumps([run.spec.to_json() for run in experiment.runs(corpus)]))

        def ours() -> None:
            out = scratch / f"ours-{next(counter)}"
            declaration = Path(__file__).with_name("sweep_runs.py")
            command = [sys.executable, "-m", "lmscale", "run", str(declaration)]
            _run([*command, "--out", str(out), *overrides], LMSCALE_CACHE=f"{out}-cache")
            found = [json.loads(p.read_text()) for p in out.glob("runs/*/result.json")]
            losses["lmscale"] = statistics.fmean([result["losses"]["valid"] for result in found])

        def theirs(name: str) -> Callable[[], None]:
            def call() -> None:
                out = scratch / f"torch-{next(counter)}.json"
                command = [sys.executable, "-m", "lmscale.bench.torch_sweep", str(runs), str(out)]
                _run([*command, *TORCH_FORMS[name](cores)], TORCHINDUCTOR_CACHE_DIR=f"{out}-cache")
                losses[name] = statistics.fmean(list(json.loads(out.read_text()).values()))

            return call

        cases = {"lmscale": ours, **{name: theirs(name) for name in against}}
        seconds = interleave(cases, repeat=repeat, tick=tick, warm_up=False)
    return SweepResult(seconds, losses)


def _run(command: list[str], **environment: str) -> None:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")

"""What one commit's code does in a comparison. It runs with that commit's lmscale on the path.

It uses only what has stayed the same since `tests.compare_commits` was written: `load_scales`, `Experiment.runs`,
`RunSpec.to_dict` and `from_dict`, `training_flops`, `open_corpus` and `evaluation_corpus`.

    python side.py declare SCALE STEPS NAMES RUNS.json       # NAMES: experiments with commas, or "all"
    python side.py identify RUNS.json IDS.json               # run ids as this code computes them
    python side.py corpora RUNS.json                         # builds the corpora of the runs
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

#: The experiment and the label of the runs that are trained whole: the quickstart's smallest budget.
WHOLE, BUDGET = "isoflop", "budget"


def declare(scale: str, steps: str, names: str, target: str) -> None:
    """Writes every spec of each experiment's grid, and the runs of it that are compared."""
    from lmscale.data.catalog import open_corpus
    from lmscale.sweep.experiment import experiment_names, load_scales

    found = {}
    for name in experiment_names() if names == "all" else names.split(","):
        experiment = load_scales(name)[2][scale]
        runs = experiment.runs(open_corpus("installed-python", experiment.vocab_size))
        specs = [run.spec for run in runs]
        found[name] = {
            "grid": [spec.to_dict() for spec in specs],
            "runs": [
                spec.to_dict()
                for chain in smallest_of_each_kind(specs)
                for spec in shortened(chain, int(steps))
            ],
        }
        if name == WHOLE:
            budget = min(run.labels[BUDGET] for run in runs)
            whole = [run.spec for run in runs if run.labels[BUDGET] == budget]
            found[f"{name}, smallest budget whole"] = {
                "grid": [],
                "runs": [spec.to_dict() for spec in whole],
            }
    Path(target).write_text(json.dumps(found))


def smallest_of_each_kind(specs):
    """For each kind of run (`kind_of`) the one of the fewest FLOPs, after the runs that it starts from."""
    from lmscale.flops import training_flops

    by_id, kinds = {spec.run_id: spec for spec in specs}, {}
    for spec in specs:
        kinds.setdefault(kind_of(spec), []).append(spec)
    for members in kinds.values():
        chain = [min(members, key=lambda spec: training_flops(spec, "standard"))]
        while chain[0].start is not None:
            chain.insert(0, by_id[chain[0].start.run])
        yield chain


def kind_of(spec):
    """What is chosen and switched on in a run, such as its architecture and schedule, but no sizes and rates."""
    found = []

    def note(values):
        for name, value in sorted(values.items()):
            if isinstance(value, dict):
                note(value)
            elif name not in ("corpus", "fingerprint", "run"):
                chosen = value if isinstance(value, (str, bool)) else value is None
                found.append((name, chosen))

    note({name: value for name, value in spec.to_dict().items() if name != "evals"})
    for field in dataclasses.fields(spec.model):
        # Blocks are applied once, unless they are reused.
        if type(field.default) is int:
            found.append((field.name, getattr(spec.model, field.name) == field.default))
    return tuple(found)


def shortened(chain, steps: int):
    """The runs with every number of steps scaled down, so that the last run has `steps`, and two evaluations."""
    scale, new_ids, short = min(1.0, steps / chain[-1].steps), {}, []

    def scaled(number: int | None) -> int | None:
        return None if number is None else round(number * scale)

    for spec in chain:
        schedule = dataclasses.replace(
            spec.schedule,
            warmup_steps=scaled(spec.schedule.warmup_steps),
            cycle_steps=scaled(spec.schedule.cycle_steps),
            cooldown_steps=scaled(spec.schedule.cooldown_steps),
        )
        start = spec.start and dataclasses.replace(
            spec.start, run=new_ids[spec.start.run], step=scaled(spec.start.step)
        )
        total = scaled(spec.steps)
        changed = dataclasses.replace(
            spec,
            steps=total,
            schedule=schedule,
            start=start,
            eval_every=-(-total // 2),
            eval_steps=(),
        )
        new_ids[spec.run_id] = changed.run_id
        short.append(changed)
    return short


def identify(source: str, target: str) -> None:
    """Writes each spec's hash (of the grids) and run id (of the compared runs), as this code computes them."""
    from lmscale.spec import RunSpec

    found = {
        name: {
            "grid": [RunSpec.from_dict(values).hash for values in one["grid"]],
            "runs": [RunSpec.from_dict(values).run_id for values in one["runs"]],
        }
        for name, one in json.loads(Path(source).read_text()).items()
    }
    Path(target).write_text(json.dumps(found))


def corpora(source: str) -> None:
    """Builds the corpora of the compared runs in this side's data folder."""
    from lmscale.data.catalog import evaluation_corpus, open_corpus

    runs = [run for one in json.loads(Path(source).read_text()).values() for run in one["runs"]]
    for trained in sorted({run["data"]["corpus"] for run in runs}):
        corpus = open_corpus(trained)
        evals = {one["corpus"] for run in runs for one in run["evals"]} - {trained}
        for name in sorted(evals):
            kind = re.fullmatch(r"(installed-(?!python)\w+)-\w+", name)
            if kind:
                evaluation_corpus(kind[1], corpus)


if __name__ == "__main__":
    {"declare": declare, "identify": identify, "corpora": corpora}[sys.argv[1]](*sys.argv[2:])

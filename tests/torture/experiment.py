"""A sweep that trains in seconds and has a part of everything that a kill could disturb.

Both architectures, evaluations on the way, a trunk with two cooldowns that branch off, and a run that
early stopping ends.
"""

from dataclasses import dataclass

from lmscale.planner import packs
from lmscale.spec import (
    LSTMSpec,
    OptimizerSpec,
    RunSpec,
    ScheduleSpec,
    StartSpec,
    StoppingSpec,
    TransformerSpec,
)
from lmscale.sweep import Experiment, Run

#: Steps between two evaluations of every run. Records are written every step or two, so that the
#: step of an evaluation always has one.
EVAL_EVERY = 60


@dataclass(frozen=True, kw_only=True)
class Torture(Experiment):
    title = "A sweep to be killed"
    analyses = ("size", "curves")
    steps: int = 300

    def runs(self, corpus):
        shape = {"n_ctx": 16, "vocab_size": corpus.vocab_size}
        models = {
            "transformer": TransformerSpec(n_layer=1, d_model=16, **shape),
            "lstm": LSTMSpec(n_layer=1, d_hidden=12, d_embed=16, **shape),
        }

        def spec(model, steps, schedule, lr=1e-2, **fields):
            return RunSpec(
                model=model,
                data=self.data(corpus),
                evals=self.evals(corpus),
                optimizer=OptimizerSpec(peak_lr=lr),
                schedule=ScheduleSpec(**schedule),
                batch_size=4,
                steps=steps,
                eval_every=EVAL_EVERY,
                **fields,
            )

        runs, constant = [], {"name": "constant"}
        for family, model in models.items():
            for seed in (0, 1):
                runs.append(Run(spec(model, self.steps, {}, seed=seed), {"family": family}))
            trunk = spec(model, self.steps, constant)
            runs.append(Run(trunk, {"family": f"{family} trunk"}))
            for start in (self.steps // 2, self.steps):
                tail = self.steps // 4
                cooldown = {"name": "cooldown", "cooldown_steps": tail, "final_fraction": 0.0}
                from_trunk = StartSpec(run=trunk.run_id, step=start)
                branch = spec(model, start + tail, cooldown, start=from_trunk)
                runs.append(Run(branch, {"family": f"{family} branch"}))
            # So high a rate that the loss soon rises.
            stopping = spec(
                model, 4 * self.steps, constant, lr=0.3, stopping=StoppingSpec(patience=2)
            )
            runs.append(Run(stopping, {"family": f"{family} stopping"}))
        return runs


class TortureWorkers(Torture):
    """The same sweep in a worker process a core, which it is too short for by itself."""

    def runs(self, corpus):
        if not hasattr(packs, "WORKER_SECONDS"):
            raise RuntimeError(
                "lmscale.planner.packs has no WORKER_SECONDS: how do workers start now?"
            )
        packs.WORKER_SECONDS = 0.0
        return super().runs(corpus)


SCALES = {"cpu": Torture(eval_tokens=1024), "workers": TortureWorkers(eval_tokens=1024)}

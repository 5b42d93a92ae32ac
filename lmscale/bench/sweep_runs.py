"""The sweeps that are timed end to end: `lmscale run lmscale/bench/sweep_runs.py`."""

from dataclasses import dataclass, field, replace
from typing import Any

from lmscale.architectures import architecture
from lmscale.sweep import Experiment, Run, make_run, product, width_rule

#: (n_layer, width) of the models, where earlier timings used these; fields in which they differ from the
#: plain ones. 14 thousand to 300 thousand non-embedding parameters.
SHAPES = {
    "transformer": ((2, 24), (2, 48), (3, 64), (4, 80)),
    "lstm": ((1, 64), (2, 112)),
}
INIT = {"transformer": {"init_std": 0.08}}
#: Non-embedding parameters of the models of any other architecture.
SIZES = (14e3, 55e3, 150e3, 300e3)


@dataclass(frozen=True, kw_only=True)
class SpeedSweep(Experiment):
    title = "A sweep to time"
    vocab_size: int = 1024
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    model: str = field(default="transformer", metadata={"help": "a registered architecture"})
    steps: int = field(default=400, metadata={"help": "updates of every run"})
    batch_size: int = field(default=8, metadata={"help": "sequences a batch"})
    n_ctx: int = 128

    def runs(self, corpus):
        shared = {"n_ctx": self.n_ctx, "vocab_size": corpus.vocab_size}
        kind = architecture(self.model)
        if shapes := SHAPES.get(self.model):
            models = [kind.of_shape(*shape, **shared) for shape in shapes]
            start: dict[str, Any] = INIT.get(self.model, {})
            models = [replace(model, **start) for model in models]
        else:
            models = [kind.of_size(n_params, **shared) for n_params in SIZES]
        return [
            Run(
                make_run(
                    choice["model"],
                    steps=self.steps,
                    data=self.data(corpus),
                    evals=self.evals(corpus),
                    batch_size=self.batch_size,
                    learning_rate=width_rule(),
                    seed=choice["seed"],
                ),
                {"family": self.model},
            )
            for choice in product(model=models, seed=self.seeds)
        ]


SCALES = {"cpu": SpeedSweep(eval_tokens=16_384)}

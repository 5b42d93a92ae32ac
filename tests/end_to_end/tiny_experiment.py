"""A grid that trains in seconds: both architectures, two seeds, evaluations on the way."""

from dataclasses import dataclass

from lmscale.spec import LSTMSpec, TransformerSpec
from lmscale.sweep import Experiment, Run, make_run, product, width_rule


@dataclass(frozen=True, kw_only=True)
class Tiny(Experiment):
    title = "A tiny grid"
    analyses = ("size", "curves")
    steps: int = 1200
    seeds: tuple[int, ...] = (0, 1, 2)
    lr_factor: tuple[float, ...] = (1.0,)

    def runs(self, corpus):
        shared = {"n_ctx": 16, "vocab_size": corpus.vocab_size}
        models = {
            "transformer": TransformerSpec(n_layer=1, d_model=16, **shared),
            "lstm": LSTMSpec(n_layer=1, d_hidden=12, d_embed=16, **shared),
        }
        return [
            Run(
                make_run(
                    model,
                    steps=self.steps,
                    data=self.data(corpus),
                    evals=self.evals(corpus),
                    batch_size=4,
                    learning_rate=width_rule(),
                    eval_every=500,
                    **choice,
                ),
                {"family": family, "lr_factor": choice["lr_factor"]},
            )
            for family, model in models.items()
            for choice in product(lr_factor=self.lr_factor, seed=self.seeds)
        ]


SCALES = {"cpu": Tiny(eval_tokens=1024)}

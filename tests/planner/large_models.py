"""Models that plans for pods are checked with, one run each.

GPT-2's and Kaplan's sizes, two of Hoffmann et al. 2022, and the largest LSTM of Kaplan's Fig. 7, in
batches of half a million tokens:

    lmscale plan tests/planner/large_models.py --device v5e:256 --compile all
"""

from dataclasses import dataclass, field

from lmscale.spec import DataSpec, LSTMSpec, OptimizerSpec, RunSpec, ScheduleSpec, TransformerSpec
from lmscale.sweep import Experiment, Run, chinchilla_shapes

_GPT2 = {"n_ctx": 1024, "vocab_size": 50_257}
_CHINCHILLA = {(m.n_layer, m.d_model): m for m in chinchilla_shapes(n_ctx=2048, vocab_size=32_000)}
#: Name -> (model, optimizer).
MODELS = {
    "transformer-124M": (TransformerSpec(n_layer=12, d_model=768, **_GPT2), "adamw"),
    "transformer-774M": (TransformerSpec(n_layer=36, d_model=1280, **_GPT2), "adamw"),
    "transformer-1.5B": (TransformerSpec(n_layer=48, d_model=1600, **_GPT2), "adafactor"),
    "chinchilla-1.4B": (_CHINCHILLA[25, 2048], "adamw"),
    "chinchilla-6.8B": (_CHINCHILLA[40, 3584], "adamw"),
    "lstm-2x4096": (LSTMSpec(n_layer=2, d_hidden=4096, **_GPT2), "adamw"),
}


@dataclass(frozen=True, kw_only=True)
class LargeModels(Experiment):
    title = "Large models"

    models: tuple[str, ...] = field(
        default=tuple(MODELS), metadata={"help": "which: " + ", ".join(MODELS)}
    )
    batch_tokens: int = field(default=2**19, metadata={"help": "of each step"})
    steps: int = field(default=250_000, metadata={"help": "of each run"})

    def runs(self, corpus):
        # No corpus has these vocabularies: the runs are planned, not trained.
        data = DataSpec(corpus=corpus.name, fingerprint=corpus.fingerprint)
        found = []
        for name in self.models:
            model, optimizer = MODELS[name]
            spec = RunSpec(
                model=model,
                data=data,
                batch_size=self.batch_tokens // model.n_ctx,
                steps=self.steps,
                seed=0,
                optimizer=OptimizerSpec(name=optimizer, peak_lr=3e-4),
                schedule=ScheduleSpec(name="cosine", warmup_steps=3000),
                compute_dtype="bfloat16",
            )
            found.append(Run(spec, {"family": name}))
        return found


SCALES = {"cpu": LargeModels(vocab_size=512)}

"""Small runs for the tests of training."""

from lmscale.spec import (
    DataSpec,
    EvalSpec,
    LSTMSpec,
    OptimizerSpec,
    RunSpec,
    ScheduleSpec,
    TransformerSpec,
)

VOCAB = 300
TRANSFORMER = TransformerSpec(
    n_layer=2, d_model=32, n_head=4, n_ctx=16, vocab_size=VOCAB, dropout=0.0
)
LSTM = LSTMSpec(n_layer=2, d_hidden=24, d_embed=32, n_ctx=16, vocab_size=VOCAB)


def run_spec(corpus=None, *, model=TRANSFORMER, optimizer=None, schedule=None, **fields) -> RunSpec:
    """A run of 12 steps unless told otherwise."""
    name, fingerprint = (corpus.name, corpus.fingerprint) if corpus else ("none", "none")
    values = {
        "batch_size": 4,
        "steps": 12,
        "evals": (EvalSpec(name="valid", corpus=name, fingerprint=fingerprint, tokens=512),),
        **fields,
    }
    return RunSpec(
        model=model,
        data=DataSpec(corpus=name, fingerprint=fingerprint),
        optimizer=OptimizerSpec(**{"peak_lr": 1e-2, **(optimizer or {})}),
        schedule=ScheduleSpec(**{"warmup_steps": 3, **(schedule or {})}),
        **values,
    )

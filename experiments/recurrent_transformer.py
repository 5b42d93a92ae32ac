"""Recurrent Transformer: layers applied twice, four and eight times, against plain ones.

Kaplan et al. 2020, Fig. 17. A recurrent (Universal) Transformer stores a stack of blocks once and
applies it several times. The paper found it slightly better than a plain Transformer of equally many
stored parameters, and slightly worse than one that takes as much compute.

    lmscale run recurrent_transformer                # cpu: 11 models x 3 rates x 3 seeds, 22 minutes
    lmscale run recurrent_transformer --scale gpu    # 25 models x 3 seeds, 80 minutes on one H100
    lmscale plan recurrent_transformer --scale paper --device v5p:256

LSTMs, which share nothing over depth but all over time, are trained beside. The paper says neither in
which order shared blocks are applied nor whether a step signal is added: here the whole stack is
repeated (ABAB) without a signal; `--reuse-order layer` (AABB) and `--step-signal sinusoidal` (the
Universal Transformer's) are the others. At cpu scale the rate of every model is searched, as a deeper
one may want a lower rate than its width tells; the report shows the search. Its largest model sees 88
tokens a parameter, as the paper's did. At paper scale the models with reuse are the paper's own, the
plain ones and the LSTMs are those of Fig. 7, and there are three seeds where the paper had one.
"""

from dataclasses import dataclass, field

from lmscale_experiments.lstm_vs_transformer import PAPER_LSTMS, PAPER_TRANSFORMERS

from lmscale.spec import LSTMSpec, TransformerSpec
from lmscale.sweep import (
    GPU_RECIPE,
    KAPLAN_RECIPE,
    LSTM_INIT,
    Run,
    SharedRecipe,
    family_label,
    finding,
    init_by_width,
    lstm_shape,
    product,
)

#: (series, reuse, n_layer stored, d_model) of Kaplan et al. 2020, Fig. 17. The last point of the
#: series 8x really has a ratio of 6.
PAPER_REUSED = (
    *((2, 2, 1, 128), (2, 2, 2, 256), (2, 2, 4, 512), (2, 2, 6, 768), (2, 2, 12, 1024)),
    *((4, 4, 1, 256), (4, 4, 2, 512), (4, 4, 3, 768), (4, 4, 9, 1280)),
    *((8, 8, 1, 512), (8, 6, 2, 768)),
)


@dataclass(frozen=True, kw_only=True)
class RecurrentTransformer(SharedRecipe):
    title = "Recurrent Transformer: reused layers against plain ones"
    analyses = ("recurrent", "rate_search", "curves")
    claims = (
        finding(
            "recurrent/params",
            "With as many stored parameters, a Transformer with reused layers ends below a "
            "plain one.",
            "Kaplan et al. 2020, Fig. 17",
            at_most=0.0,
            would_tell="the scale paper, where shallow and deep models alike near convergence",
        ),
        finding(
            "recurrent/compute",
            "With as much compute, it ends above.",
            "Kaplan et al. 2020, Fig. 17",
            at_least=0.0,
            would_tell="the scale paper, where shallow and deep models alike near convergence",
        ),
    )

    n_layer: int = field(default=2, metadata={"help": "stored layers of every Transformer"})
    widths: tuple[int, ...] = field(
        metadata={"help": "of the plain Transformers; () takes the paper's models"}
    )
    reuse: tuple[int, ...] = field(default=(2, 4, 8), metadata={"help": "how often layers apply"})
    lstm_layers: tuple[int, ...] = field(default=(2,), metadata={"help": "of the LSTMs beside"})
    lstm_sizes: tuple[float, ...] = field(default=(), metadata={"help": "non-embedding parameters"})
    d_embed: int = field(default=512, metadata={"help": "embedding width of the LSTMs"})
    reuse_order: str = field(default="stack", metadata={"help": "stack (ABAB) or layer (AABB)"})
    step_signal: str = field(default="none", metadata={"help": "none or sinusoidal"})
    lr_factors: tuple[float, ...] = field(
        default=(1.0,), metadata={"help": "multiples of the learning-rate rule to try per cell"}
    )

    def shapes(self):
        """(series, reuse, n_layer, d_model) of every Transformer."""
        if not self.widths:
            yield from ((1, 1, n_layer, d_model) for n_layer, d_model in PAPER_TRANSFORMERS)
            yield from PAPER_REUSED
            return
        yield from ((1, 1, self.n_layer, width) for width in self.widths)
        widest = max(self.widths)
        for reuse in self.reuse:
            # Beyond the compute of the largest plain model there is nothing to compare with.
            widths = [width for width in self.widths if reuse * width**2 <= 1.01 * widest**2]
            yield from ((reuse, reuse, self.n_layer, width) for width in widths)

    def lstms(self, **shared):
        shared |= LSTM_INIT
        if not self.widths:
            for n_layer, widths in PAPER_LSTMS.items():
                for width in widths:
                    yield LSTMSpec(n_layer=n_layer, d_hidden=width, **shared)
        for size in self.lstm_sizes:
            for n_layer in self.lstm_layers:
                yield lstm_shape(size, n_layer=n_layer, d_embed=self.d_embed, **shared)

    def models(self, vocab_size):
        """(family, reuse, model) for every point of the figure."""
        shared = {"n_ctx": self.n_ctx, "vocab_size": vocab_size}
        for series, reuse, n_layer, d_model in self.shapes():
            # Order and signal mean nothing without reuse.
            kind = {"reuse_order": self.reuse_order, "step_signal": self.step_signal}
            yield (
                f"transformer, reused {series}x" if series > 1 else "transformer",
                reuse,
                TransformerSpec(
                    n_layer=n_layer,
                    d_model=d_model,
                    reuse=reuse,
                    init_std=self.init_std or init_by_width(d_model),
                    positions=self.positions,
                    **(kind if reuse > 1 else {}),
                    **shared,
                ),
            )
        for lstm in self.lstms(**shared):
            yield family_label(lstm), 1, lstm

    def runs(self, corpus):
        return [
            Run(
                self.spec(corpus, model, **choice),
                {"family": family, "reuse": reuse, "lr_factor": choice["lr_factor"]},
            )
            for family, reuse, model in self.models(corpus.vocab_size)
            for choice in product(lr_factor=self.lr_factors, seed=self.seeds)
        ]


SCALES = {
    "cpu": RecurrentTransformer(
        vocab_size=512,
        # Steps of about sqrt(2): layers applied twice take the compute of the next width.
        widths=(12, 16, 24, 34),
        reuse=(2, 4),
        lstm_layers=(1,),
        lstm_sizes=(7e3, 2.4e4),
        d_embed=32,
        init_std=0.08,
        positions="rotary",
        steps=9600,
        n_ctx=128,
        batch_size=2,
        lr_factors=(0.5, 1.0, 2.0),
        seeds=(0, 1, 2),
    ),
    "gpu": RecurrentTransformer(
        **GPU_RECIPE,
        widths=(96, 128, 192, 256, 384, 512, 768),
        lstm_layers=(2,),
        lstm_sizes=(4e5, 1.6e6, 6.4e6),
        steps=5000,
        n_ctx=1024,
        batch_size=16,
        lr_factors=(0.5, 1.0, 2.0),
        eval_tokens=2**20,
        seeds=(0, 1, 2),
    ),
    "paper": RecurrentTransformer(
        **KAPLAN_RECIPE,
        widths=(),
        seeds=(0, 1, 2),
        eval_tokens=2**24,
    ),
}

"""LSTM against Transformer: loss over model size, and over the position in the context.

Kaplan et al. 2020, Fig. 7. LSTMs of one, two and four layers and Transformers are trained on the same
tokens. The paper found that LSTMs match Transformers on the first tokens of the context but stop
improving after fewer than 100, so that at 400 thousand parameters they are about 0.2 nats behind and
at 200 million about 0.5.

    lmscale run lstm_vs_transformer            # cpu: 4 sizes x 2 architectures x 3 rates x 3 seeds, 21 minutes
    lmscale run lstm_vs_transformer --scale cpu-hour    # up to 4e5 parameters, 2.9M tokens
    lmscale run lstm_vs_transformer --scale gpu
    lmscale plan lstm_vs_transformer --scale paper --device v5e:256

At cpu scale each architecture has its own learning-rate rule (`width_rule`) and searches three rates
about it (at scale cpu-hour, Transformers of one layer about 1.5 and 2 times it), and its shapes are the
strongest found by hand (RESULTS.md): one layer, but four for the largest Transformer, and rotary
positions, without which Transformers lag by up to half a nat more. After 0.7M tokens
the LSTM is ahead at every size, most on the first 16 tokens. After 2.9M (scale cpu-hour) the two are level
up to 1e5 parameters, and at 4e5 the Transformer ends ahead, by 0.18 nats in the mean of three seeds that
differ by 0.3.

The paper publishes neither the LSTM's training recipe nor its initialisation (here: `LSTM_INIT`). At
paper scale the widths, depths, context, batch, steps, schedule, optimizer and learning rates are those of
the paper's Transformers; `--lr-factors 0.5 1 2` searches around them.
"""

from dataclasses import dataclass, field, replace

from lmscale.spec import LSTMSpec, TransformerSpec
from lmscale.sweep import (
    GPU_RECIPE,
    KAPLAN_RECIPE,
    LSTM_INIT,
    ExperimentError,
    Run,
    SharedRecipe,
    family_label,
    finding,
    head_multiple,
    lstm_shape,
    product,
    published_number,
    transformer_ladder,
)

#: (n_layer, d_model) of the Transformers of Kaplan et al. 2020, Fig. 7.
PAPER_TRANSFORMERS = (
    *((2, 48), (2, 64), (3, 96), (3, 128), (4, 128), (6, 128), (5, 160), (3, 256), (4, 256)),
    *((6, 256), (3, 512), (6, 384), (6, 512), (8, 512), (8, 640), (6, 1024), (12, 768)),
    *((12, 1024), (24, 1024), (36, 1280), (48, 1600)),
)
#: n_layer: widths of its LSTMs.
PAPER_LSTMS = {
    1: tuple(2**i for i in range(5, 13)),
    2: tuple(2**i for i in range(5, 13)),
    4: tuple(2**i for i in range(8, 12)),
}


@dataclass(frozen=True, kw_only=True)
class LSTMvsTransformer(SharedRecipe):
    title = "LSTM against Transformer: loss over size, and over position in the context"
    analyses = ("size", "position", "rate_search", "curves")
    claims = (
        finding(
            "size/gap",
            "At equal size the LSTM ends above the Transformer.",
            "Kaplan et al. 2020, Fig. 7 left",
            at_least=0.0,
            would_tell="more seeds",
        ),
        # The paper's points give 0.19 above the Transformers' law and 0.25 above their neighbours.
        published_number(
            "size/gap_at_400k",
            "At 400 thousand parameters it is about 0.2 nats behind.",
            "Kaplan et al. 2020, Fig. 7 left",
            0.1,
            0.3,
            would_tell="sizes around 4e5: the scale gpu",
        ),
        finding(
            "size/widening",
            "From there on the gap widens with size, to about 0.5 nats at 200 million.",
            "Kaplan et al. 2020, Fig. 7 left",
            at_least=0.0,
            would_tell="sizes from 4e5 over a decade or more, with three seeds: the scale gpu",
        ),
        finding(
            "position/early",
            "On the first tokens of the context the two are equal (here: the first 16, to 0.05 nats; "
            "our bounds).",
            "Kaplan et al. 2020, Fig. 7 right",
            at_least=-0.05,
            at_most=0.05,
            would_tell="more seeds and more text to evaluate on",
        ),
        finding(
            "position/transformer_gain",
            "The Transformer's loss falls beyond 100 tokens.",
            "Kaplan et al. 2020, Fig. 7 right",
            at_least=0.0,
            would_tell="a longer context and more text to evaluate on: the scale gpu",
        ),
        finding(
            "position/lstm_gain",
            "The LSTM's does not fall there (by less than 0.02 nats; our bound).",
            "Kaplan et al. 2020, Fig. 7 right",
            at_most=0.02,
            would_tell="a longer context and more text to evaluate on: the scale gpu",
        ),
        finding(
            "position/behind_beyond",
            "Beyond 100 tokens the LSTM falls further behind.",
            "Kaplan et al. 2020, Fig. 7 right",
            at_least=0.0,
            would_tell="more seeds, or larger models: the scale gpu",
        ),
    )

    sizes: tuple[float, ...] = field(
        metadata={"help": "non-embedding parameters; () takes the paper's shapes"}
    )
    lstm_layers: tuple[int, ...] = field(metadata={"help": "one curve per number of layers"})
    d_embed: tuple[int, ...] = field(
        default=(512,), metadata={"help": "embedding width of the LSTMs: one, or one a size"}
    )
    n_layer: tuple[int, ...] = field(
        default=(),
        metadata={"help": "depth of the Transformers: one, or one a size; () is by size"},
    )
    lr_factors: tuple[float, ...] = field(
        default=(1.0,), metadata={"help": "multiples of the centre's learning rate to try per cell"}
    )
    transformer_lr: tuple[float, ...] = field(
        default=(1.0,),
        metadata={
            "help": "centre of the Transformers' search over their learning-rate rule: one, or one a size"
        },
    )
    position_tokens: int = field(
        default=0,
        metadata={"help": "tokens of overlapping windows, for the loss by position; 0 takes none"},
    )

    def models(self, vocab_size):
        """(family, model, centre of its learning rates over the rule) for every point of the figure."""
        shared = {"n_ctx": self.n_ctx, "vocab_size": vocab_size}
        if not self.sizes:
            for n_layer, d_model in PAPER_TRANSFORMERS:
                model = TransformerSpec(n_layer=n_layer, d_model=d_model, **shared)
                yield "transformer", model, 1.0
            for n_layer, widths in PAPER_LSTMS.items():
                for width in widths:
                    lstm = LSTMSpec(n_layer=n_layer, d_hidden=width, **LSTM_INIT, **shared)
                    yield family_label(lstm), lstm, 1.0
            return
        recipe = {
            "init_std": self.init_std,
            "positions": self.positions,
            "head_multiple": head_multiple(self.compute_dtype),
        }
        depths = self.one_a_size("n_layer", self.n_layer or (None,))
        centres = self.one_a_size("transformer_lr", self.transformer_lr)
        for size, depth, centre in zip(self.sizes, depths, centres, strict=True):
            for model in transformer_ladder((size,), n_layer=depth, **recipe, **shared):
                yield "transformer", model, centre
        widths = self.one_a_size("d_embed", self.d_embed)
        for n_layer in self.lstm_layers:
            for size, d_embed in zip(self.sizes, widths, strict=True):
                lstm = lstm_shape(size, n_layer=n_layer, d_embed=d_embed, **LSTM_INIT, **shared)
                yield family_label(lstm), lstm, 1.0

    def evals(self, corpus):
        sets = super().evals(corpus)
        if not self.position_tokens:
            return sets
        overlapping = replace(
            sets[0], name="positions", tokens=self.position_tokens, sampling="overlapping"
        )
        return (*sets, overlapping)

    def one_a_size(self, name, values):
        if len(values) not in (1, len(self.sizes)):
            raise ExperimentError(
                f"{name} gives {len(values)} values for {len(self.sizes)} sizes: give one, or one a size"
            )
        return values * len(self.sizes) if len(values) == 1 else values

    def runs(self, corpus):
        return [
            Run(
                self.spec(corpus, model, lr_factor=centre * choice["factor"], seed=choice["seed"]),
                {"family": family, "lr_factor": choice["factor"]},
            )
            for family, model, centre in self.models(corpus.vocab_size)
            for choice in product(factor=self.lr_factors, seed=self.seeds)
        ]


_CPU = LSTMvsTransformer(
    vocab_size=512,
    sizes=(1.5e4, 4e4, 1e5, 3.6e5),
    # The strongest of each architecture that was found (RESULTS.md).
    lstm_layers=(1,),
    d_embed=(64,),
    n_layer=(1, 1, 1, 4),
    init_std=0.08,
    positions="rotary",
    steps=1400,
    n_ctx=256,
    batch_size=2,
    lr_factors=(0.5, 1.0, 2.0),
    eval_tokens=2**17,
    position_tokens=2**19,
    seeds=(0, 1, 2),
)

SCALES = {
    "cpu": _CPU,
    # To the size at which the paper's gap is published. At scale cpu parabolas put the best rates of its
    # Transformers at 2.9, 2.7, 1.6 and 1.0 times the rule, of the LSTMs at 0.9 times theirs.
    "cpu-hour": replace(
        _CPU,
        sizes=(1.5e4, 4e4, 1e5, 4e5),
        transformer_lr=(2.0, 2.0, 1.5, 1.0),
        steps=5600,
    ),
    "gpu": LSTMvsTransformer(
        **GPU_RECIPE,
        sizes=(4e5, 1.6e6, 6.4e6, 2.5e7),
        lstm_layers=(1, 2, 4),
        steps=6000,
        n_ctx=1024,
        batch_size=16,
        lr_factors=(0.5, 1.0, 2.0),
        eval_tokens=2**20,
        position_tokens=2**22,
        seeds=(0, 1, 2),
    ),
    "paper": LSTMvsTransformer(
        **KAPLAN_RECIPE,
        sizes=(),
        lstm_layers=(1, 2, 4),
        eval_tokens=2**24,
        position_tokens=2**24,
    ),
}

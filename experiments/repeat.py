"""Repeated data: what is a second, fourth or sixty-fourth epoch worth?

Muennighoff et al. 2023 (2305.16264), Figs. 1, 3 and 5. Models are trained for 1 to 64 epochs on a fixed
set of unique tokens, each with a cosine schedule that ends with the run, and beside every one a model
on as many fresh tokens. The paper found that 4 epochs are nearly as good as fresh data (+0.5% loss at
8.7 billion parameters), that returns diminish strongly by 16 and that beyond 40 nothing is gained;
U unique tokens repeated R times are worth U + U R* (1 - exp(-R/R*)) fresh ones, with R* = 15.4.

    lmscale run repeat                # cpu: 3 sizes x 12 runs x 5 seeds, minutes on two cores
    lmscale run repeat --scale gpu    # 3 sizes x 11 runs x 3 seeds, minutes on one H100
    lmscale plan repeat --scale paper --device v5p:256

The unique tokens are sequences drawn from all over the text: 2048 of 64 tokens at cpu scale and 8192 of
512 at gpu scale. Which were drawn is common to all seeds. At paper scale three sizes are trained for as
many tokens as is optimal for them, of which 1/44 to all are unique, as in the paper's Fig. 4; the batch
is 512 sequences throughout, theirs is 256 to 1024.
"""

from dataclasses import dataclass, field

from lmscale.spec import TransformerSpec
from lmscale.sweep import (
    GPU_RECIPE,
    ByWidth,
    Run,
    default_rule,
    finding,
    head_multiple,
    make_run,
    product,
    published_number,
    transformer_ladder,
)

#: (n_layer, d_model, training tokens) of its models of 2.8, 4.2 and 8.7 billion parameters.
PAPER_MODELS = ((34, 2560, 55e9), (36, 3072, 84e9), (42, 4096, 178e9))


@dataclass(frozen=True, kw_only=True)
class Repeat(ByWidth):
    title = "Repeated data: the worth of an epoch"
    analyses = ("repeat", "curves")
    repeats_text = True
    claims = (
        finding(
            "repeat/excess_at_4",
            "Four epochs are nearly as good as fresh data: at most 1% more loss (our bound; the "
            "paper's largest model had 0.5%)",
            "Muennighoff et al. 2023, Fig. 4",
            at_most=0.01,
            would_tell="more unique tokens and larger models: the scale gpu",
        ),
        finding(
            "repeat/worth_at_16",
            "By 16 epochs repeated tokens are worth less than fresh ones.",
            "Muennighoff et al. 2023, eq. 5, Fig. 3",
            at_most=1.0,
            would_tell="more unique tokens and larger models: the scale gpu",
        ),
        published_number(
            "repeat/worth_at_16",
            "Returns diminish strongly by 16 epochs: they are worth half to three quarters of "
            "as many fresh tokens (our bounds; the paper's law says 66%)",
            "Muennighoff et al. 2023, eq. 5, Fig. 3",
            0.5,
            0.75,
            would_tell="more unique tokens and larger models: the scale gpu",
        ),
        finding(
            "repeat/gain_beyond_40",
            "Beyond 40 epochs repeating is worthless: loss falls by less than 1% more (our bound)",
            "Muennighoff et al. 2023, Fig. 5",
            at_most=0.01,
            would_tell="more unique tokens and larger models: the scale gpu",
        ),
        published_number(
            "repeat/R_D_star",
            "Repeated tokens lose their worth with R_D* = 15.4 (10 to 23 counts as the same)",
            "Muennighoff et al. 2023, sec. 6",
            10.0,
            23.0,
            would_tell="more epochs, sizes and seeds: the scale gpu",
        ),
    )

    sizes: tuple[float, ...] = field(
        metadata={"help": "non-embedding parameters; () takes the paper's models and tokens"}
    )
    unique_tokens: int = field(
        default=0, metadata={"help": "the set that is repeated; the paper's models have their own"}
    )
    epochs: tuple[int, ...]
    fresh: tuple[int, ...] = field(
        default=(), metadata={"help": "epochs for which a run on fresh tokens stands beside"}
    )
    n_layer: int | None = field(
        default=None, metadata={"help": "depth of all models, instead of one by size"}
    )

    dropout: float = 0.1
    weight_decay: float = 0.1
    n_ctx: int
    batch_size: int = field(metadata={"help": "sequences"})
    lr_factor: float = field(default=1.0, metadata={"help": "multiple of the learning-rate rule"})
    compute_dtype: str = "float32"

    def check(self):
        if self.sizes and not self.unique_tokens:
            raise self.wrong("unique_tokens", "must be at least 1 where there are sizes")

    def cells(self, vocab_size):
        """(model, training tokens, unique tokens) of every run but for its seed."""
        shared = {"n_ctx": self.n_ctx, "vocab_size": vocab_size, "dropout": self.dropout}
        if not self.sizes:
            for n_layer, d_model, tokens in PAPER_MODELS:
                model = TransformerSpec(n_layer=n_layer, d_model=d_model, **shared)
                yield from ((model, tokens, tokens / epochs) for epochs in self.epochs)
            return
        shape = {
            "n_layer": self.n_layer,
            "init_std": self.init_std,
            "positions": self.positions,
            "head_multiple": head_multiple(self.compute_dtype),
        }
        for model in transformer_ladder(self.sizes, **shape, **shared):
            for epochs in self.epochs:
                yield model, epochs * self.unique_tokens, self.unique_tokens
            for epochs in self.fresh:
                yield model, epochs * self.unique_tokens, epochs * self.unique_tokens

    def learning_rate(self, model, n_tokens, batch_tokens):
        if not self.sizes:
            return 2e-4
        return default_rule(self.compute_dtype, self.base_lr)(model, n_tokens, batch_tokens)

    def runs(self, corpus):
        batch_tokens = self.batch_size * self.n_ctx
        return [
            Run(
                make_run(
                    model,
                    steps=round(tokens / batch_tokens),
                    data=self.data(corpus, subset_tokens=round(unique), subset_by="sequences"),
                    evals=self.evals(corpus),
                    batch_size=self.batch_size,
                    learning_rate=self.learning_rate,
                    lr_factor=self.lr_factor,
                    warmup_fraction=0.01,
                    weight_decay=self.weight_decay,
                    beta2=0.999 if not self.sizes else 0.95,
                    compute_dtype=self.compute_dtype,
                    seed=choice["seed"],
                ),
                {"family": "transformer", "epochs": round(tokens / unique)},
            )
            for model, tokens, unique in self.cells(corpus.vocab_size)
            for choice in product(seed=self.seeds)
        ]


SCALES = {
    "cpu": Repeat(
        vocab_size=512,
        # One depth; widths 8, 12 and 16.
        n_layer=2,
        sizes=tuple(24.0 * width**2 for width in (8, 12, 16)),
        unique_tokens=2**17,
        epochs=(1, 2, 4, 8, 16, 32, 64),
        # What 16 epochs are worth is read off a fresh run that gets as far: at width 8 one of 16 does not.
        fresh=(2, 4, 8, 16, 32),
        init_std=0.08,
        positions="rotary",
        n_ctx=64,
        batch_size=4,
        # Seeds of a size differ by as much as 16 epochs and fresh tokens do.
        seeds=(0, 1, 2, 3, 4),
    ),
    "gpu": Repeat(
        **GPU_RECIPE,
        sizes=(2.5e5, 1e6, 4e6),
        # A thousand updates an epoch. The longest fresh run takes 67 million tokens.
        unique_tokens=2**22,
        epochs=(1, 2, 4, 8, 16, 32, 64),
        fresh=(2, 4, 8, 16),
        n_ctx=512,
        batch_size=8,
        eval_tokens=2**18,
        seeds=(0, 1, 2),
    ),
    "paper": Repeat(
        vocab_size=50_257,
        sizes=(),
        epochs=(1, 2, 3, 4, 5, 7, 14, 44),
        n_ctx=2048,
        batch_size=512,
        compute_dtype="bfloat16",
        eval_tokens=2**24,
    ),
}

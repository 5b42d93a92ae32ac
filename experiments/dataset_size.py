"""Dataset size: how loss depends on N and D together, and when a run must stop before it overfits.

Kaplan et al. 2020, Figs. 4 (left), 9 and 16. Models of several sizes are trained on nested subsets of
one corpus, the full set over powers of two, with a dropout of 0.1, until the test loss stops falling.
The paper found L(N, D) = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D, so that overfitting depends on
N^0.74/D only and D >~ 5e3 N^0.74 tokens avoid it; and that no run may stop before
S_c / [L(N, D) - L(N, infinity)]^(1/alpha_S) updates.

    lmscale run dataset_size                  # cpu: 3 sizes x 10 subsets x 3 seeds, minutes on two cores
    lmscale run dataset_size --scale gpu      # 5 sizes x 8 subsets, under an hour on one H100
    lmscale plan dataset_size --scale paper --device v5p:256

Every run has the same cosine schedule over all steps, as in the paper, so a run that stops early
does so at a higher learning rate. Subsets are drawn as sequences from all over the text, so that the
small ones are not a few documents. At cpu scale the full set is not passed once: it stands for
unlimited data at this length of training. At paper scale the shapes, subsets, batch, steps and
learning rates are the paper's.
"""

from dataclasses import dataclass, field

from lmscale.spec import StoppingSpec, TransformerSpec
from lmscale.sweep import (
    GPU_RECIPE,
    KAPLAN_RECIPE,
    Run,
    SharedRecipe,
    finding,
    head_multiple,
    product,
    published_number,
    transformer_ladder,
)

#: (n_layer, d_model) of the runs of Kaplan et al. 2020, Fig. 9: 393 thousand to 708 million parameters.
PAPER_SHAPES = ((2, 128), (4, 256), (8, 512), (12, 768), (24, 1024), (36, 1280))


@dataclass(frozen=True, kw_only=True)
class DatasetSize(SharedRecipe):
    title = "Dataset size: loss over N and D, overfitting and early stopping"
    analyses = ("dataset", "curves")
    repeats_text = True
    claims = (
        finding(
            "dataset/more_overfitting",
            "Larger models overfit more on the same data.",
            "Kaplan et al. 2020, sec. 4.2, Fig. 9",
            at_least=0.0,
            would_tell="sizes and subsets that span a factor of a hundred each",
        ),
        published_number(
            "dataset/overfitting_exponent",
            "Overfitting depends on N and D through N^0.74 / D only",
            "Kaplan et al. 2020, sec. 4.2, Fig. 9",
            0.64,
            0.84,
            would_tell="sizes and subsets that span a factor of a hundred each, as at gpu scale",
        ),
        finding(
            "dataset/overfitting_at_rule",
            "D = 5e3 N^0.74 tokens keep overfitting below the noise between seeds, 0.02",
            "Kaplan et al. 2020, eq. 4.4",
            at_most=0.02,
            would_tell="a training set that holds so many tokens for the largest size",
        ),
        finding(
            "dataset/share_above_stopping_bound",
            "Test loss stops falling no earlier than S_c / [L(N, D) − L(N, ∞)]^(1/α_S) updates: "
            "at least 4 of 5 runs keep to it (our bound)",
            "Kaplan et al. 2020, eq. 5.7, Fig. 16",
            at_least=0.8,
            would_tell="20 runs or more that early stopping ends",
        ),
        finding(
            "dataset/data_exponent",
            "Where size does not limit, loss falls with the tokens.",
            "Kaplan et al. 2020, eq. 1.2, Fig. 4",
            at_least=0.0,
            would_tell="models so large that more parameters no longer help, at paper scale",
        ),
        published_number(
            "dataset/data_exponent",
            "Where size does not limit, loss falls as D^−0.095 (0.08 to 0.11 counts as the same)",
            "Kaplan et al. 2020, eq. 1.2, Fig. 4",
            0.08,
            0.11,
            would_tell="models so large that more parameters no longer help, at paper scale",
        ),
    )

    sizes: tuple[float, ...] = field(
        metadata={"help": "non-embedding parameters; () takes the paper's shapes"}
    )
    divisors: tuple[int, ...] = field(
        metadata={"help": "the training set over these, 1 for all of it"}
    )
    n_layer: int | None = field(
        default=None, metadata={"help": "depth of all models, instead of one by size"}
    )
    dropout: float = 0.1
    evaluations: int = field(default=50, metadata={"help": "in a run that is not stopped"})
    patience: int = field(
        default=6, metadata={"help": "evaluations without a new lowest loss that end a run"}
    )
    warmup_fraction: float = field(default=0.012, metadata={"help": "3000 of the paper's 250,000"})
    final_fraction: float = 0.0
    lr_factor: float = field(default=1.0, metadata={"help": "multiple of the learning-rate rule"})

    def models(self, vocab_size):
        shared = {"n_ctx": self.n_ctx, "vocab_size": vocab_size, "dropout": self.dropout}
        if self.sizes:
            shape = {
                "n_layer": self.n_layer,
                "init_std": self.init_std,
                "positions": self.positions,
                "head_multiple": head_multiple(self.compute_dtype),
            }
            return transformer_ladder(self.sizes, **shape, **shared)
        return [TransformerSpec(n_layer=n, d_model=d, **shared) for n, d in PAPER_SHAPES]

    def subset(self, full, divisor):
        if divisor == 1:
            return {}
        return {"subset_tokens": full // divisor, "subset_by": "sequences"}

    def runs(self, corpus):
        full = corpus.n_tokens("train")
        return [
            Run(
                self.spec(
                    corpus,
                    model,
                    data=self.data(corpus, **self.subset(full, d)),
                    eval_every=max(1, self.steps // self.evaluations),
                    stopping=StoppingSpec(patience=self.patience),
                    lr_factor=self.lr_factor,
                    seed=cell["seed"],
                ),
                {"family": "transformer", "divisor": d},
            )
            for model in self.models(corpus.vocab_size)
            for cell in product(divisor=self.divisors, seed=self.seeds)
            for d in (cell["divisor"],)
        ]


SCALES = {
    "cpu": DatasetSize(
        vocab_size=512,
        # One depth; widths 12, 24 and 40.
        n_layer=2,
        sizes=tuple(24.0 * width**2 for width in (12, 24, 40)),
        # L(N, D) is fitted to subsets of 42 updates and more, which are the first six; the last are so
        # small that early stopping ends their runs, at the lowest loss that the data allow.
        divisors=(1, 128, 256, 512, 1024, 2048, 3072, 4096, 6144, 8192),
        init_std=0.08,
        positions="rotary",
        # At the rule's own rate test losses scattered by 0.05 nats from one evaluation to the next.
        lr_factor=0.5,
        steps=2400,
        evaluations=60,
        n_ctx=64,
        batch_size=8,
        eval_tokens=16_384,
        seeds=(0, 1, 2),
    ),
    "gpu": DatasetSize(
        **GPU_RECIPE,
        sizes=(4e5, 1.6e6, 6.3e6, 2.5e7, 8.5e7),
        divisors=(1, 8, 16, 32, 64, 128, 256, 512),
        steps=8000,
        n_ctx=512,
        batch_size=32,
        eval_tokens=2**19,
    ),
    "paper": DatasetSize(
        **KAPLAN_RECIPE,
        sizes=(),
        divisors=(1, 16, 32, 64, 128, 256, 512, 1024),
        evaluations=250,
        eval_tokens=2**24,
    ),
}

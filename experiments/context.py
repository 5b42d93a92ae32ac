"""Loss by position in the context: over model size, during training, and with a short context.

Kaplan et al. 2020, Figs. 20 and 21. Transformers of several sizes are trained with a long context and
with one of 8 tokens, on equally many tokens a batch, and the loss of every position T is kept. The
paper found L(T) = a + b T^-c with c from 0.47 to 0.62, larger models better at every position but the
first, short range learned before long range, and models with a context of 8 better on the first
tokens than those with 1024.

    lmscale run context                  # cpu: 4 sizes to 5e5, 2 contexts, 3 seeds, 18 minutes on two cores
    lmscale run context --scale gpu      # 5 sizes x 2 contexts x 3 seeds, under an hour on one H100
    lmscale plan context --scale paper --device v5p:256

At paper scale the contexts, the batch, the steps, the schedule and the learning rates are the paper's;
the shapes are those of its standard ladder from 0.8M to 708M parameters, as Fig. 20 names only sizes.
"""

from dataclasses import dataclass, field

from lmscale.spec import TransformerSpec
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

#: (n_layer, d_model) of the standard ladder of Kaplan et al. 2020 between the ends of Fig. 20.
PAPER_SHAPES = ((4, 128), (4, 256), (8, 512), (12, 768), (24, 1024), (36, 1280))


@dataclass(frozen=True, kw_only=True)
class Context(SharedRecipe):
    title = "Loss by position in the context: over size, during training, and with a short context"
    analyses = ("context", "curves")
    claims = (
        finding(
            "context/exponent",
            "Loss falls with the position in the context.",
            "Kaplan et al. 2020, Fig. 20",
            at_least=0.0,
            would_tell="models of 1M parameters and more with a context of 512 and more: the scale gpu",
        ),
        published_number(
            "context/exponent",
            "Loss falls with the position as a + b T^−c, with c from 0.47 for a model of a "
            "million parameters to 0.62 for one of 774 million.",
            "Kaplan et al. 2020, Fig. 20",
            0.47,
            0.62,
            would_tell="models of 1M parameters and more with a context of 512 and more: the scale gpu",
        ),
        finding(
            "context/first_token",
            "Larger models predict the first token no better: its loss falls with N by less "
            "than a quarter of the rate of the last tokens (our bound).",
            "Kaplan et al. 2020, Fig. 21",
            at_most=0.25,
            would_tell="more sizes and seeds",
        ),
        finding(
            "context/long_range_delay",
            "Short range is learned first: long range reaches half of its final gain later.",
            "Kaplan et al. 2020, Fig. 20 right",
            at_least=1.0,
            would_tell="three seeds and more evaluations during training",
        ),
        finding(
            "context/short_context_gain",
            "A model with a context of 8 beats one with a long context on the first 8 tokens.",
            "Kaplan et al. 2020, Fig. 21",
            at_least=0.0,
            would_tell="three seeds, and more evaluation text: a long context leaves few windows",
        ),
    )

    eval_tokens: int = 2**18
    sizes: tuple[float, ...] = field(
        metadata={"help": "non-embedding parameters; () takes shapes of the paper"}
    )
    n_ctx: int = field(metadata={"help": "the long context"})
    short_ctx: int = field(default=8, metadata={"help": "the short context"})
    n_layer: int | None = field(
        default=None, metadata={"help": "one depth for the whole ladder, instead of one by size"}
    )
    batch_size: int = field(metadata={"help": "sequences of the long context"})
    evaluations: int = field(
        default=7, metadata={"help": "during training, each at half the steps of the next"}
    )

    def models(self, n_ctx, vocab_size):
        shared = {
            "n_ctx": n_ctx,
            "vocab_size": vocab_size,
            "init_std": self.init_std,
            "positions": self.positions,
        }
        if self.sizes:
            multiple = head_multiple(self.compute_dtype)
            return transformer_ladder(
                self.sizes, n_layer=self.n_layer, head_multiple=multiple, **shared
            )
        return [TransformerSpec(n_layer=n, d_model=d, **shared) for n, d in PAPER_SHAPES]

    def runs(self, corpus):
        halvings = {max(1, self.steps // 2**k) for k in range(1, self.evaluations + 1)}
        return [
            Run(
                self.spec(
                    corpus,
                    model,
                    # The positions of a long context are what training changes one after the other.
                    eval_steps=tuple(sorted(halvings)) if n_ctx == self.n_ctx else (),
                    # Equal tokens a batch, so that only the context differs.
                    batch_size=self.batch_size * self.n_ctx // n_ctx,
                    **choice,
                ),
                {"family": f"transformer, context {n_ctx}"},
            )
            for n_ctx in (self.n_ctx, self.short_ctx)
            for model in self.models(n_ctx, corpus.vocab_size)
            for choice in product(seed=self.seeds)
        ]


SCALES = {
    "cpu": Context(
        vocab_size=512,
        sizes=(3.5e3, 1.4e4, 7.5e4, 5.6e5),
        n_layer=2,
        init_std=0.08,
        positions="rotary",
        steps=1200,
        n_ctx=512,
        batch_size=2,
        seeds=(0, 1, 2),
    ),
    "gpu": Context(
        **GPU_RECIPE,
        sizes=(2e5, 8e5, 3.2e6, 1.3e7, 2.5e7),
        steps=8000,
        n_ctx=1024,
        batch_size=16,
        eval_tokens=2**21,
        seeds=(0, 1, 2),
    ),
    "paper": Context(
        **KAPLAN_RECIPE,
        sizes=(),
        evaluations=10,
        eval_tokens=2**24,
        seeds=(0, 1, 2),
    ),
}

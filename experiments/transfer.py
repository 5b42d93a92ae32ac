"""Loss on other text than the training text, over model size and during training.

Kaplan et al. 2020, Fig. 8. Transformers of several sizes are evaluated on the training distribution
and on others, at the end and on the way. The paper found that the loss on another distribution
lies a nearly constant offset above that on the training distribution, and that it depends on that loss
alone: not on how far training has come.

    lmscale run transfer                 # cpu: 4 sizes x 6 seeds, minutes on two cores
    lmscale run transfer --scale gpu     # 5 sizes x 3 seeds, under an hour on one H100
    lmscale plan transfer --scale paper --device v5p:256

The other text is what every machine has beside Python sources, in the training corpus's tokens: the
prose of READMEs and licences, C, type stubs, and tables of numbers. To evaluate on your own:

    lmscale data build books --input ~/books --tokenizer-from mytext --valid-fraction 0.9
    lmscale run transfer --data mytext --eval-corpora books installed-prose

The paper's were Books, Common Crawl, Wikipedia and Internet Books for models of web text: much nearer
to each other. It does not list the shapes of its Fig. 8; at paper scale they span its sizes.
"""

from dataclasses import dataclass, field

from lmscale.data import evaluation_corpus
from lmscale.spec import EvalSpec
from lmscale.sweep import (
    GPU_RECIPE,
    KAPLAN_RECIPE,
    Run,
    SharedRecipe,
    finding,
    head_multiple,
    product,
    transformer_ladder,
)


@dataclass(frozen=True, kw_only=True)
class Transfer(SharedRecipe):
    title = "Loss on other text than the training text"
    analyses = ("transfer", "curves")
    claims = (
        # "A small and very slowly growing offset": slopes a little below 1.
        finding(
            "transfer/slope",
            "The loss on other distributions lies a nearly constant offset above that on the "
            "training distribution: nat for nat it falls by as much (here: 0.8 to 1.1; our bounds).",
            "Kaplan et al. 2020, Fig. 8 left",
            at_least=0.8,
            at_most=1.1,
            would_tell="distributions as near as the paper's, and sizes over more decades",
        ),
        finding(
            "transfer/stage_shift",
            "It depends on the loss on the training distribution alone: models on their way lie "
            "on the line of the trained ones, to 0.05 nats (our bound).",
            "Kaplan et al. 2020, Fig. 8 right",
            at_least=-0.05,
            at_most=0.05,
            would_tell="three seeds and more sizes",
        ),
    )

    eval_tokens: int = 2**17
    eval_corpora: tuple[str, ...] = field(
        default=("installed-prose", "installed-c", "installed-stubs", "installed-tables"),
        metadata={"help": "text to evaluate on, in the training corpus's tokens"},
    )
    sizes: tuple[float, ...] = field(metadata={"help": "non-embedding parameters"})
    n_layer: int | None = field(
        default=None, metadata={"help": "one depth for the whole ladder, instead of one by size"}
    )
    evaluations: int = field(
        default=8, metadata={"help": "during training, two for every doubling of the steps"}
    )

    def evals(self, corpus):
        others = [(name, evaluation_corpus(name, corpus)) for name in self.eval_corpora]
        return (
            *super().evals(corpus),
            *(
                EvalSpec(
                    name=name.removeprefix("installed-"),
                    corpus=other.name,
                    fingerprint=other.fingerprint,
                    tokens=self.eval_tokens,
                    sampling="spread",
                )
                for name, other in others
            ),
        )

    def runs(self, corpus):
        models = transformer_ladder(
            self.sizes,
            n_ctx=self.n_ctx,
            vocab_size=corpus.vocab_size,
            n_layer=self.n_layer,
            init_std=self.init_std,
            positions=self.positions,
            head_multiple=head_multiple(self.compute_dtype),
        )
        evals = self.evals(corpus)
        # Halved 64 times, any number of steps is none.
        halvings = range(1, min(self.evaluations, 128) + 1)
        on_the_way = {round(self.steps / 2 ** (k / 2)) for k in halvings}
        at = tuple(sorted(on_the_way - {0}))
        return [
            Run(
                self.spec(corpus, model, eval_steps=at, evals=evals, **choice),
                {"family": "transformer"},
            )
            for model in models
            for choice in product(seed=self.seeds)
        ]


SCALES = {
    "cpu": Transfer(
        vocab_size=512,
        sizes=(3.5e3, 1.4e4, 3.8e4, 9.8e4),
        n_layer=2,
        init_std=0.08,
        positions="rotary",
        steps=1000,
        n_ctx=128,
        batch_size=4,
        eval_tokens=2**15,
        # Of four texts the farthest counts, at 98.75%: Student's factor for three seeds is 8.9, for six 3.8.
        seeds=(0, 1, 2, 3, 4, 5),
    ),
    "gpu": Transfer(
        **GPU_RECIPE,
        sizes=(2e5, 8e5, 3.2e6, 1.3e7, 5e7),
        steps=8000,
        n_ctx=1024,
        batch_size=16,
        eval_tokens=2**19,
        seeds=(0, 1, 2),
    ),
    "paper": Transfer(
        **KAPLAN_RECIPE,
        sizes=(1e5, 8e5, 3.1e6, 2.5e7, 8.5e7, 3e8, 7e8, 1.5e9),
        eval_tokens=2**20,
    ),
}

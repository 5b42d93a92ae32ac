"""Loss against model size, by depth: which count of parameters makes depth not matter?

Kaplan et al. 2020, Fig. 6. Transformers of 1, 2, 3, 6 and more layers are trained on the same
tokens. The paper found that against all parameters the losses form one curve a depth, while against
the parameters without embeddings those of two and more layers fall on one line, L = (N_c / N)^0.076,
from which only a single layer or an extreme ratio of depth to width departs.

    lmscale run model_size                    # cpu: 4 depths x 4 widths x 3 seeds, 9 minutes on two cores
    lmscale run model_size --scale gpu        # 5 depths x 4 widths x 3 seeds, under an hour on one H100
    lmscale plan model_size --scale paper --device v5p:256

At paper scale the 39 shapes, the context, the batch, the steps, the schedule, the optimizers and the
learning rates are the paper's own. All sizes see equally many tokens. The paper's three findings are
about models near convergence, and deeper models take longer: at cpu scale the largest model sees 88 tokens
a parameter, as the paper's did; at gpu scale far fewer, so that it draws the figure and decides nothing.
"""

from dataclasses import dataclass, field

from lmscale.spec import TransformerSpec
from lmscale.sweep import (
    GPU_RECIPE,
    KAPLAN_RECIPE,
    Run,
    SharedRecipe,
    family_label,
    finding,
    init_by_width,
    product,
    published_number,
)

#: n_layer: widths of the models of Kaplan et al. 2020, Fig. 6.
PAPER_SHAPES = {
    1: (8, 16, 64, 128, 256, 512, 1024, 2048),
    2: (16, 48, 64, 128, 256, 512, 1024, 2048),
    3: (16, 32, 64, 96, 128, 256, 512, 1024, 2048),
    6: (128, 256, 384, 512, 1024, 2048, 4288),
    8: (512, 640),
    12: (768, 1024),
    24: (1024,),
    36: (1280,),
    48: (1600,),
}

NEAR_CONVERGENCE = "the scale paper, where every model nears convergence"


@dataclass(frozen=True, kw_only=True)
class ModelSize(SharedRecipe):
    title = "Loss against model size, by depth"
    analyses = ("families", "curves")
    claims = (
        # The paper's own points give 2.5.
        finding(
            "families/collapse",
            "Against N without embeddings the depths from two layers on collapse onto one line; "
            "against N with embeddings they do not (here: they scatter 1.5 times as far; our bound). The "
            "paper excepts extreme ratios of depth to width.",
            "Kaplan et al. 2020, Fig. 6",
            at_least=1.5,
            would_tell=NEAR_CONVERGENCE,
        ),
        # At 5e4 parameters the paper's single layers lie 2% above, at 5e7 18%.
        finding(
            "families/single_layer",
            "Models of a single layer lie above that line.",
            "Kaplan et al. 2020, Fig. 6 and section 3.2",
            at_least=0.0,
            would_tell=NEAR_CONVERGENCE,
        ),
        finding(
            "families/alpha_N",
            "Loss falls with the size of the model.",
            "Kaplan et al. 2020, eq. 1.1",
            at_least=0.0,
            would_tell=NEAR_CONVERGENCE,
        ),
        published_number(
            "families/alpha_N",
            "Loss falls as N^−0.076.",
            "Kaplan et al. 2020, eq. 1.1",
            0.066,
            0.086,
            would_tell=NEAR_CONVERGENCE,
        ),
    )

    depths: tuple[int, ...] = field(
        metadata={"help": "layers, one curve each; () takes the paper's shapes"}
    )
    widths: tuple[int, ...] = field(default=(), metadata={"help": "of every depth"})
    lr_factors: tuple[float, ...] = field(
        default=(1.0,), metadata={"help": "multiples of the learning-rate rule to try per cell"}
    )

    def models(self, vocab_size):
        """(family, model) for every point of the figure."""
        shapes = dict.fromkeys(self.depths, self.widths) or PAPER_SHAPES
        for n_layer, width in ((n, width) for n, widths in shapes.items() for width in widths):
            model = TransformerSpec(
                n_layer=n_layer,
                d_model=width,
                n_ctx=self.n_ctx,
                vocab_size=vocab_size,
                init_std=self.init_std or init_by_width(width),
                positions=self.positions,
            )
            # The paper's legend.
            many = "transformer, more than 6 layers"
            yield (family_label(model) if n_layer <= 6 else many), model

    def runs(self, corpus):
        return [
            Run(
                self.spec(corpus, model, **choice),
                {"family": family, "lr_factor": choice["lr_factor"]},
            )
            for family, model in self.models(corpus.vocab_size)
            for choice in product(lr_factor=self.lr_factors, seed=self.seeds)
        ]


SCALES = {
    "cpu": ModelSize(
        vocab_size=512,
        depths=(1, 2, 3, 6),
        widths=(8, 12, 16, 20),
        init_std=0.08,
        positions="rotary",
        steps=10_000,
        n_ctx=128,
        batch_size=2,
        seeds=(0, 1, 2),
    ),
    "gpu": ModelSize(
        **GPU_RECIPE,
        depths=(1, 2, 3, 6, 12),
        widths=(64, 128, 256, 512),
        steps=8000,
        n_ctx=1024,
        batch_size=16,
        eval_tokens=2**20,
        seeds=(0, 1, 2),
    ),
    "paper": ModelSize(
        **KAPLAN_RECIPE,
        depths=(),
        eval_tokens=2**24,
    ),
}

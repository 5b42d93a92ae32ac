"""Learning curves of a ladder of sizes: what compute buys, and how to spend it best.

Kaplan et al. 2020, Figs. 2, 4, 12, 13 and 14 and App. B. Models of many sizes are trained for the same
number of steps with one batch, warmup and a cosine to zero (here, in the short runs of the scales cpu
and gpu, at a constant rate, and at cpu the small sizes for longer), and evaluated all along. Every
point of every curve is a pair of compute and loss: their lower edge is L(C), and the size that touches
it at C is N_opt(C). The paper found L ∝ C_min^-0.050 and N_opt ∝ C_min^0.73, with C_min what training
far below the critical batch would take (N_opt ∝ C^0.88 at its fixed batch of 2^19 tokens); learning
curves L(N, S) = (N_c/N)^0.077 + (S_c/S_min)^0.76; and so that one should stop about 10% above the
converged loss. Hoffmann et al. 2022 give each length a cosine of its own and find C^0.5: see `isoflop`.

    lmscale run compute                    # cpu: 6 sizes x 3 seeds, minutes on two cores
    lmscale run compute --scale gpu        # 7 sizes x 3 seeds, under an hour on one H100
    lmscale plan compute --scale paper --device v5p:256

`--critical-batch B_STAR ALPHA_B` gives the constants of B_crit(L) = B_STAR / L^(1/ALPHA_B), in tokens
of your text; `lmscale run batch_size` measures them. Four more numbers, LOSS FACTOR ALPHA_LOW
ALPHA_HIGH, say how well: at LOSS, in the middle of those measured, B_crit is known to within FACTOR,
and ALPHA_B to within the two ends, each at 95%. Without them what depends on B_crit(L) decides no claim;
without any the constants are the paper's. At paper scale
the shapes, batch, context, schedule and learning rates are the paper's, with one seed as there;
intervals need three (`--seeds 0 1 2`).
"""

import itertools
from dataclasses import dataclass, field

import numpy as np
from lmscale_experiments.lstm_vs_transformer import PAPER_TRANSFORMERS

from lmscale.flops import n_params
from lmscale.serialize import MOST
from lmscale.spec import TransformerSpec
from lmscale.sweep import (
    GPU_RECIPE,
    KAPLAN_RECIPE,
    Run,
    SharedRecipe,
    default_rule,
    finding,
    head_multiple,
    product,
    published_number,
    transformer_ladder,
)

NEEDS_MORE = "the scale gpu, or paper with --seeds 0 1 2"
#: With a batch below the critical one throughout, C_min is C.
LARGE_BATCH = (
    "the scale paper with --seeds 0 1 2: its batch begins far above the critical one, which is where "
    "a fixed batch and a good one differ"
)


@dataclass(frozen=True, kw_only=True)
class LearningCurves(SharedRecipe):
    """A ladder of sizes, one long run each; `sample_efficiency` reads the same runs."""

    sizes: tuple[float, ...] = field(
        metadata={"help": "non-embedding parameters; () takes the paper's shapes"}
    )
    n_layer: int | None = field(
        default=None, metadata={"help": "one depth for the whole ladder, instead of one by size"}
    )
    steps: int = field(metadata={"help": "of the largest size"})
    longer: float = field(
        default=0.0, metadata={"help": "power of 1/N by which smaller sizes train for more steps"}
    )
    warmup_fraction: float = field(default=0.012, metadata={"help": "3000 of the paper's 250,000"})
    final_fraction: float = 0.0
    # As in the paper.
    optimizer: str = "adam"
    large_optimizer: str | None = "adafactor"
    schedule: str = field(default="cosine", metadata={"help": "to zero; or constant"})
    evaluations: int = field(default=40, metadata={"help": "of a run, at log-spaced steps"})
    critical_batch: tuple[float, ...] = field(
        default=(2.1e8, 0.21),
        metadata={
            "help": "B_STAR (tokens) and ALPHA_B of B_crit(L), and maybe their error: LOSS FACTOR "
            "ALPHA_LOW ALPHA_HIGH"
        },
    )

    def models(self, vocab_size):
        shared = {
            "n_ctx": self.n_ctx,
            "vocab_size": vocab_size,
            "init_std": self.init_std,
            "positions": self.positions,
        }
        if not self.sizes:
            return [TransformerSpec(n_layer=n, d_model=d, **shared) for n, d in PAPER_TRANSFORMERS]
        multiple = head_multiple(self.compute_dtype)
        return transformer_ladder(
            self.sizes, n_layer=self.n_layer, head_multiple=multiple, **shared
        )

    def learning_rate(self, model, n_tokens, batch_tokens):
        rule = default_rule(self.compute_dtype, self.base_lr)
        # Of a cosine's peak, a constant rate of three quarters did better in `batch_size`.
        share = 0.75 if self.schedule == "constant" else 1.0
        return share * rule(model, n_tokens, batch_tokens)

    def runs(self, corpus):
        models = self.models(corpus.vocab_size)
        largest = max(n_params(model, "kaplan") for model in models)
        runs = []
        for model, choice in itertools.product(models, product(seed=self.seeds)):
            size = n_params(model, "kaplan")
            steps = round(self.steps * (largest / size) ** self.longer)
            if steps > MOST["steps"]:
                much = f"trains {model.label} for {steps:.2g} steps, and a run has at most"
                raise self.wrong("longer", f"{much} {MOST['steps']:.0e}")
            # The warmup is no part of the laws.
            at = np.geomspace(steps * max(2 * self.warmup_fraction, 0.01), steps, self.evaluations)
            spec = self.spec(
                corpus,
                model,
                steps=steps,
                eval_steps=tuple(sorted({round(step) for step in at})),
                schedule=self.schedule,
                **choice,
            )
            runs.append(Run(spec, {"family": "transformer"}))
        return runs


@dataclass(frozen=True, kw_only=True)
class Compute(LearningCurves):
    title = "Learning curves, and the best use of compute"
    analyses = ("compute", "learning", "efficiency", "curves")
    claims = (
        published_number(
            "compute/alpha_C_min",
            "With a good batch the loss falls with compute as L ∝ C_min^−0.050 (eq. 1.3), "
            "0.052 (eq. B.7) or 0.054 (eq. 6.4).",
            "Kaplan et al. 2020, Fig. 13",
            0.045,
            0.059,
            would_tell=NEEDS_MORE,
        ),
        published_number(
            "compute/alpha_C",
            "At a fixed batch it falls as L ∝ C^−0.057.",
            "Kaplan et al. 2020, Fig. 13",
            0.050,
            0.064,
            would_tell=LARGE_BATCH,
        ),
        finding(
            "compute/exponent_ratio",
            "The exponent of L(C_min) follows from those of L(N, S) and B_crit(L): their "
            "inverses add up to its own (here: to a tenth; our bound).",
            "Kaplan et al. 2020, eq. 1.7",
            at_least=0.9,
            at_most=1.1,
            would_tell=NEEDS_MORE,
        ),
        finding(
            "compute/size_exponent_min",
            "Most of more compute should go into larger models.",
            "Kaplan et al. 2020, Fig. 14",
            at_least=0.5,
            would_tell=NEEDS_MORE,
        ),
        published_number(
            "compute/size_exponent_min",
            "Most of more compute should go into larger models: N_opt ∝ C_min^0.73.",
            "Kaplan et al. 2020, Fig. 14",
            0.66,
            0.80,
            would_tell=NEEDS_MORE,
        ),
        published_number(
            "compute/size_exponent",
            "At a fixed batch, N_opt ∝ C^0.88.",
            "Kaplan et al. 2020, Fig. 14",
            0.80,
            0.96,
            would_tell=LARGE_BATCH,
        ),
        finding(
            "compute/excess",
            "Compute-efficient training stops above the converged loss.",
            "Kaplan et al. 2020, eq. B.5",
            at_least=0.0,
            would_tell=NEEDS_MORE,
        ),
        published_number(
            "compute/excess",
            "Compute-efficient training stops about 10% above the converged loss.",
            "Kaplan et al. 2020, eq. B.5",
            0.07,
            0.13,
            would_tell=NEEDS_MORE,
        ),
        finding(
            "compute/off_optimum",
            "Models of 0.6 to 2.2 times the best size need at most about 20% more compute (here: 25%; "
            "our bound).",
            "Kaplan et al. 2020, Fig. 12",
            at_most=0.25,
            would_tell=NEEDS_MORE,
        ),
        published_number(
            "learning/alpha_S",
            "Learning curves fall as S_min^−0.76 towards what the size allows.",
            "Kaplan et al. 2020, eq. 1.6 and Table 3",
            0.66,
            0.86,
            would_tell=NEEDS_MORE,
        ),
        published_number(
            "learning/alpha_N",
            "What the size allows falls as N^−0.077.",
            "Kaplan et al. 2020, eq. 1.6 and Table 3",
            0.067,
            0.087,
            would_tell=NEEDS_MORE,
        ),
    )


CPU = {
    "vocab_size": 512,
    # One depth, so that no step in depth bends the curves; widths 8 to 48.
    "n_layer": 2,
    "sizes": tuple(24.0 * width**2 for width in (8, 12, 16, 24, 32, 48)),
    "init_std": 0.08,
    "positions": "rotary",
    # Long runs of small sizes cost little, and a best size needs a smaller one that got as far.
    "steps": 3900,
    "longer": 0.33,
    # In runs this short a cosine's end bends every curve where it touches the edge.
    "schedule": "constant",
    "n_ctx": 128,
    "batch_size": 4,
    # Measured by `batch_size` at cpu scale on losses of 4.6 to 3.7, where the power 1/0.213 is known
    # to within 1.0 to 7.9 only.
    "critical_batch": (9.6e5, 0.213, 4.0, 1.9, 0.127, 0.98),
    "warmup_fraction": 0.02,
    "evaluations": 24,
    "eval_tokens": 2**14,
    "seeds": (0, 1, 2),
}
GPU = {
    **GPU_RECIPE,
    "sizes": tuple(1e5 * 2.5**i for i in range(7)),
    "steps": 8000,
    "schedule": "constant",
    "n_ctx": 512,
    "batch_size": 32,
    "eval_tokens": 2**18,
    "seeds": (0, 1, 2),
}
PAPER = KAPLAN_RECIPE | {"sizes": (), "eval_tokens": 2**24}

SCALES = {"cpu": Compute(**CPU), "gpu": Compute(**GPU), "paper": Compute(**PAPER)}

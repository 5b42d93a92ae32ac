"""IsoFLOP profiles: for a fixed budget of FLOPs, which model size reaches the lowest loss?

Hoffmann et al. 2022, Fig. 3 (Approach 2), and from the same runs their Fig. 2 and 4. For each of
several budgets, models of different sizes are trained for as many tokens as the budget buys, each
with a cosine schedule that ends with the run. A parabola through the losses of a budget gives its best
size, and a power law through the best sizes gives N_opt = k C^a. The paper found a = 0.49 and
D_opt = k C^0.51: double the model, double the data. Kaplan et al. 2020 had found 0.73. Approach 1
reads the best size off the lower envelope of all training curves (a = 0.50), Approach 3 off a fit of
L(N, D) = E + A/N^alpha + B/D^beta (a = 0.46).

    lmscale run isoflop                       # cpu: 6 budgets x 5 sizes, minutes on two cores
    lmscale run isoflop --scale cpu-hour      # 10 budgets over a factor of 512, three seeds, an hour
    lmscale run isoflop --scale gpu           # 5 budgets x 7 sizes, under an hour on one H100
    lmscale run isoflop --architectures transformer llama lstm    # one grid each, rates searched
    lmscale plan isoflop --scale paper --device v5p:256

Architectures are compared by the compute that each needs for one loss (the analysis `multiplier`). Rivals
must be tuned: where there are several, every cell tries half and twice the rule's learning rate as well,
at three times the cost, unless `--lr-factors` has others. With `--centre-lr-factors 0.5 1 2` the search is
made at the middle size of each budget only; then the runs take the rule's rate, and the report says what
that costs.

The scale cpu-hour spends an hour of two cores on a narrow interval: sizes around the best known (N_opt near
1.6e5 at 1.9e12 FLOPs), three seeds up to 2.6e12 FLOPs, two and one above. The rule for the learning rate is
tested at the middle size of two budgets.

The scale gpu has the recipe of `lmscale.sweep.gpu_recipe`: half and twice the rule's learning rate are
tried at the middle size of each budget. Its longest run takes 450M tokens, so that a corpus of 113M
training tokens is repeated no more than 4 times.

At paper scale the budgets, shapes, context and learning rates are those of Hoffmann et al.; the
batch is 0.5M tokens throughout, because theirs is published for the largest models only. Which of the
50 shapes they trained at which budget is not published: here nine a budget, from a sixth of the best
size to six times it or the largest.
"""

import math
from dataclasses import dataclass, field, replace

from lmscale.flops import n_params
from lmscale.sweep import (
    BASE_LR_HELP,
    CENTRE,
    GPU_RECIPE,
    POSITIONS_HELP,
    Experiment,
    ExperimentError,
    chinchilla_shapes,
    default_rule,
    finding,
    head_multiple,
    isoflop_grid,
    ladder,
    nearest_sizes,
    one_depth,
    published_number,
)

#: What narrows an exponent's interval.
MORE = "budgets over a wider range (--scale gpu) or more seeds (--seeds 0 1 2)"
#: Multiples of each architecture's learning-rate rule that are tried where several are compared.
RIVAL_LR_FACTORS = (0.5, 1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class IsoFLOP(Experiment):
    title = "IsoFLOP profiles: the best model size for a budget"
    _analyses = ("isoflop", "envelope", "parametric", "curves")
    _claims = (
        finding(
            "isoflop/a",
            "The best size grows more slowly than the C^0.73 of Kaplan et al. 2020.",
            "Hoffmann et al. 2022, Table 2",
            at_most=0.73,
            would_tell=MORE,
        ),
        published_number(
            "isoflop/a",
            "The best size grows as C^0.49 (Approach 2, 80% interval 0.462 to 0.534).",
            "Hoffmann et al. 2022, Table 2",
            0.462,
            0.534,
            would_tell=MORE,
        ),
        published_number(
            "envelope/a",
            "Along the envelope of the training curves the best size grows as C^0.50.",
            "Hoffmann et al. 2022, Fig. 2 and Table 2 (Approach 1)",
            0.45,
            0.55,
            would_tell=MORE,
        ),
        published_number(
            "parametric/a",
            "By the parametric fit the best size grows as C^0.46 (refitted: 0.513).",
            "Hoffmann et al. 2022, Table 2 (Approach 3); Besiroglu et al. 2024",
            0.41,
            0.56,
            would_tell=MORE,
        ),
        published_number(
            "isoflop/a_kaplan",
            "Counted without embeddings, the best size grows as C^0.73.",
            "Kaplan et al. 2020, Fig. 14",
            0.68,
            0.78,
            would_tell=MORE,
        ),
        finding(
            "isoflop/kaplan_minus_native",
            "Counting N and C without the vocabulary raises the exponent of small models.",
            "Porian et al. 2024, Fig. 1; Pearce and Song 2024",
            at_least=0.0,
            would_tell=MORE,
        ),
        finding(
            "isoflop/tokens_per_param_exponent",
            "Model and data should grow alike: D_opt/N_opt does not depend on C (here: as C^-0.1 to "
            "C^0.1; our bounds).",
            "Hoffmann et al. 2022, abstract",
            at_least=-0.1,
            at_most=0.1,
            would_tell=MORE,
        ),
        published_number(
            "isoflop/tokens_per_param",
            "The best model has about 20 tokens a parameter.",
            "Hoffmann et al. 2022, Table A3 (Approach 2: 19 at 400M, 27 at 1T)",
            15.0,
            27.0,
            would_tell=MORE,
        ),
        finding(
            "envelope/a_minus_approach_2",
            "The envelope and the profiles agree on the exponent (to 0.05; our bound).",
            "Hoffmann et al. 2022, Table 2 (0.50 and 0.49)",
            at_least=-0.05,
            at_most=0.05,
            would_tell=MORE,
        ),
        finding(
            "parametric/a_minus_approach_2",
            "The parametric fit and the profiles agree on the exponent (to 0.05; our bound).",
            "Hoffmann et al. 2022, Table 2 (0.46 and 0.49)",
            at_least=-0.05,
            at_most=0.05,
            would_tell=MORE,
        ),
    )

    #: "multiplier/ARCHITECTURE", against the Transformer.
    _claims_of_rivals = (
        finding(
            "multiplier/lstm",
            "An LSTM needs more compute than a Transformer to reach the same loss.",
            "Kaplan et al. 2020, Fig. 7 left (at equal size and tokens the LSTM ends above)",
            at_least=1.0,
            would_tell=MORE,
        ),
        finding(
            "multiplier/llama",
            "Llama's changes (RMSNorm, rotary positions, SwiGLU) reach a loss with less compute.",
            "Gu and Dao 2023, Fig. 4 left (Transformer++ against the recipe of GPT-3)",
            at_most=1.0,
            would_tell=MORE,
        ),
    )

    budgets: tuple[float, ...] = field(metadata={"help": "training FLOPs of each profile"})
    sizes: tuple[float, ...] = field(
        metadata={"help": "non-embedding parameters of the ladder; () takes the paper's shapes"}
    )
    sizes_per_budget: int = field(metadata={"help": "sizes of a profile, around its best"})
    tokens_per_param: float = field(
        default=20.0, metadata={"help": "tokens per parameter that each profile is centred on"}
    )
    spread: float | None = field(
        default=None,
        metadata={"help": "a profile's sizes reach this factor to either side; none: the nearest"},
    )
    n_layer: int | None = field(
        default=None, metadata={"help": "one depth for the whole ladder, instead of one by size"}
    )
    init_std: float | None = field(
        default=0.02, metadata={"help": "of the initial weights; none goes with the width"}
    )
    positions: str = field(default="learned", metadata={"help": POSITIONS_HELP})
    architectures: tuple[str, ...] = field(
        default=("transformer",),
        metadata={
            "help": "each gets profiles of its own: transformer, llama, lstm, or your own; several are "
            "compared, with rates searched for each"
        },
    )
    n_ctx: int = 128
    batch_size: int | None = field(
        default=4, metadata={"help": "sequences; none grows with the square root of the tokens"}
    )
    lr_factors: tuple[float, ...] = field(
        default=(1.0,),
        metadata={
            "help": "multiples of the learning-rate rule to try per cell; where architectures are "
            "compared, 1 alone stands for 0.5 1 2"
        },
    )
    centre_lr_factors: tuple[float, ...] = field(
        default=(),
        metadata={"help": "more multiples, to test the rule at each budget's middle size"},
    )
    base_lr: float | None = field(default=None, metadata={"help": BASE_LR_HELP})
    optimizer: str = field(default="adamw", metadata={"help": "adam, adamw, adafactor, muon"})
    compute_dtype: str = "float32"
    convention: str = field(
        default="standard", metadata={"help": "what counts as FLOPs: kaplan, chinchilla, standard"}
    )

    @property
    def analyses(self):
        several = ("multiplier", "rate_search") if len(self.architectures) > 1 else ()
        return (*self._analyses[:1], *several, *self._analyses[1:])

    @property
    def claims(self):
        rivals = self._claims_of_rivals if "transformer" in self.architectures else ()
        return (
            *self._claims,
            *(c for c in rivals if c.measure.split("/")[1] in self.architectures),
        )

    @property
    def searched_lr_factors(self):
        """The multiples that every cell tries: three where architectures are compared."""
        alone = len(self.architectures) == 1 or len({*self.centre_lr_factors, 1.0}) > 2
        return self.lr_factors if alone or self.lr_factors != (1.0,) else RIVAL_LR_FACTORS

    def own_fields(self, kind):
        """Fields of the models that not all architectures have."""
        positions = {"positions": self.positions} if kind == "transformer" else {}
        return {**one_depth(kind, self.n_layer), **positions}

    def models(self, budget, vocab_size):
        """The shapes of each architecture's ladder around the budget's centre."""
        shared = {"n_ctx": self.n_ctx, "vocab_size": vocab_size}
        if not self.sizes and self.architectures != ("transformer",):
            raise ExperimentError("the paper's shapes are of Transformers: give --sizes too")
        heads = head_multiple(self.compute_dtype)
        fields = {"init_std": self.init_std, "head_multiple": heads, **shared}
        ladders = [
            ladder(kind, self.sizes, **fields, **self.own_fields(kind))
            if self.sizes
            else chinchilla_shapes(**shared)
            for kind in self.architectures
        ]
        return [
            model
            for shapes in ladders
            for model in nearest_sizes(
                shapes,
                budget,
                self.sizes_per_budget,
                tokens_per_param=self.tokens_per_param,
                convention=self.convention,
                spread=self.spread,
            )
        ]

    def learning_rate(self, model, n_tokens, batch_tokens):
        if not self.sizes:
            # Hoffmann et al., App. D: 2e-4 for the smallest model (44M), 1.25e-4 for the largest.
            place = math.log(n_params(model, "chinchilla") / 44e6) / math.log(16e9 / 44e6)
            return 2e-4 * (1.25e-4 / 2e-4) ** min(1.0, max(0.0, place))
        return default_rule(self.compute_dtype, self.base_lr)(model, n_tokens, batch_tokens)

    def runs(self, corpus):
        return isoflop_grid(
            self.budgets,
            lambda budget: self.models(budget, corpus.vocab_size),
            data=self.data(corpus),
            evals=self.evals(corpus),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            lr_factors=self.searched_lr_factors,
            centre_lr_factors=self.centre_lr_factors,
            convention=self.convention,
            seeds=self.seeds,
            optimizer=self.optimizer,
            compute_dtype=self.compute_dtype,
        )


@dataclass(frozen=True, kw_only=True)
class RepeatedIsoFLOP(IsoFLOP):
    """More seeds where they are cheap, and the rule's rate tested at some of the budgets."""

    seeds_per_budget: tuple[int, ...] = field(
        metadata={"help": "how many of --seeds each budget trains, from the smallest budget"}
    )
    centre_budgets: tuple[float, ...] = field(
        metadata={
            "help": "budgets at whose middle size --centre-lr-factors are tried, for one seed"
        }
    )

    def check(self):
        if len(self.seeds_per_budget) != len(self.budgets):
            raise self.wrong(
                "seeds_per_budget",
                f"must give a count for each of the {len(self.budgets)} budgets, not "
                f"{len(self.seeds_per_budget)}",
            )
        if not 1 <= max(self.seeds_per_budget) <= len(self.seeds):
            raise self.wrong("seeds_per_budget", f"must be at most the {len(self.seeds)} --seeds")

    def runs(self, corpus):
        runs = []
        for budget, count in zip(sorted(self.budgets), self.seeds_per_budget, strict=True):
            one = {"budgets": (budget,), "seeds": self.seeds[:count], "seeds_per_budget": (count,)}
            runs += replace(self, **one, centre_lr_factors=())._grid(corpus)
            if budget in self.centre_budgets:
                one |= {"seeds": self.seeds[:1], "seeds_per_budget": (1,)}
                runs += replace(self, **one)._grid(corpus)
        return list({run.spec.hash: run for run in runs}.values())

    def _grid(self, corpus):
        return super().runs(corpus)


SCALES = {
    "cpu": IsoFLOP(
        vocab_size=512,
        budgets=(2e10, 4e10, 8e10, 1.6e11, 3.2e11, 6.4e11),
        # One depth, so that no step in depth bends the profiles; widths 8 to 96.
        n_layer=2,
        sizes=tuple(24.0 * width**2 for width in (8, 12, 16, 24, 32, 48, 64, 96)),
        sizes_per_budget=5,
        tokens_per_param=18.0,
        # With GPT-2's 0.02 the widths of 24 and 32 ended 0.1 and 0.5 nats higher at 1e11 FLOPs.
        init_std=0.08,
        positions="rotary",
        batch_size=2,
        eval_tokens=2**17,
    ),
    "cpu-hour": RepeatedIsoFLOP(
        vocab_size=512,
        budgets=tuple(2e10 * 2**i for i in range(10)),
        n_layer=2,
        sizes=tuple(24.0 * width**2 for width in (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)),
        sizes_per_budget=5,
        tokens_per_param=18.0,
        init_std=0.08,
        positions="rotary",
        batch_size=2,
        centre_lr_factors=(0.5, 1.0, 2.0),
        centre_budgets=(1.6e11, 5.12e12),
        eval_tokens=2**18,
        seeds=(0, 1, 2),
        seeds_per_budget=(3,) * 8 + (2, 1),
    ),
    "gpu": IsoFLOP(
        **GPU_RECIPE,
        **CENTRE,
        budgets=(2.5e14, 7.5e14, 2.2e15, 6.7e15, 2e16),
        sizes=tuple(2e5 * 1.35**i for i in range(20)),
        sizes_per_budget=7,
        n_ctx=512,
        batch_size=None,
        centre_lr_factors=(0.5, 1.0, 2.0),
        eval_tokens=2**20,
    ),
    "paper": IsoFLOP(
        vocab_size=32_000,
        budgets=(6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21),
        sizes=(),
        sizes_per_budget=9,
        spread=6.0,
        n_ctx=2048,
        batch_size=256,
        compute_dtype="bfloat16",
        convention="chinchilla",
        eval_tokens=2**24,
    ),
}

"""Shape at fixed size: feed-forward width, depth against width, and number of heads.

Kaplan et al. 2020, Fig. 5. Transformers of one size are trained on the same tokens while one ratio
varies: d_ff / d_model, d_model / n_layer, or d_model / n_head. Sizes do not meet exactly, so every loss
is first moved to the size of its scan along L(N), whose slope comes from standard shapes of other
sizes. The paper found that shape hardly matters: a 40-fold aspect ratio costs less than 3% of the
loss, d_ff between one and four times d_model under 0.3%, heads 16 to 64 wide under 0.6%.

    lmscale run shape                    # cpu: 9 shapes x 3 seeds, 20 minutes on two cores
    lmscale run shape --scale gpu        # 17 shapes x 3 seeds, under an hour on one H100
    lmscale plan shape --scale paper --device v5p:256

At cpu scale the standard shape is one layer of 64, which heads of 16, 32 and 64 divide, and every model
sees 88 tokens a parameter, as the paper's largest did. At paper scale the shapes of the scans over
aspect ratio and heads are the paper's own, as the plotted ratios and sizes give them. Those of the
feed-forward scan cannot be told from the figure: here it has 8 layers and heads 64 wide. The slope
there comes from the best shapes of 25M to 1.5B parameters. There are three seeds, where the paper had
one: without noise to hold them against, its differences of less than a percent decide nothing.
"""

import math
from dataclasses import dataclass, field

from lmscale.spec import TransformerSpec
from lmscale.sweep import (
    GPU_RECIPE,
    KAPLAN_RECIPE,
    Bounds,
    Run,
    SharedRecipe,
    finding,
    init_by_width,
    product,
)

#: N: (n_layer, d_model) of the scans over d_model / n_layer in Kaplan et al. 2020, Fig. 5.
PAPER_ASPECT = {
    "50M": ((2, 1440), (3, 1152), (4, 1024), (8, 720), (12, 600), (16, 512), (32, 360), (64, 256)),
    "274M": ((2, 3392), (8, 1664), (33, 832), (155, 384)),
    "1.5B": ((6, 4288), (12, 3200), (48, 1600), (92, 1152), (207, 768)),
}
#: (n_layer, d_model) of its scans over d_model / n_head at 25M, heads 16 to 256 wide.
PAPER_HEADS = ((32, 256), (8, 512), (2, 1024))
#: Standard shapes that L(N) is read from there.
PAPER_STANDARD = ((8, 512), (12, 600), (33, 832), (48, 1600))
PAPER_FF_RATIOS = (0.5, 1, 2, 4, 8, 22, 40)


@dataclass(frozen=True, kw_only=True)
class Shape(SharedRecipe):
    title = "Shape at fixed size: feed-forward width, depth against width, heads"
    analyses = ("shape", "curves")
    claims = (
        finding(
            "shape/aspect",
            "The aspect ratio d_model / n_layer can change 40-fold for less than 3% of the loss.",
            "Kaplan et al. 2020, Fig. 5",
            at_most=3.0,
            would_tell="the scale paper, where deep and flat models alike near convergence",
        ),
        finding(
            "shape/ff_ratio",
            "d_ff between one and four times d_model changes the loss by less than 1% (our bound; "
            "the paper's points differ by 0.3%).",
            "Kaplan et al. 2020, Fig. 5",
            at_most=1.0,
            would_tell="more seeds: the loss must be known to about 0.3%",
        ),
        finding(
            "shape/head_width",
            "Heads 16 to 64 wide differ by less than 1% of the loss (our bound; the paper's points "
            "differ by up to 0.5%).",
            "Kaplan et al. 2020, Fig. 5",
            at_most=1.0,
            would_tell="more seeds, and a width that all of 16, 32 and 64 divide: the scale gpu",
        ),
    )

    size: float = field(
        metadata={
            "help": "non-embedding parameters; 0 takes the paper's shapes",
            "bounds": Bounds(0, 1e15),
        }
    )
    n_layer: int = field(default=8, metadata={"help": "layers of the standard shape"})
    depths: tuple[int, ...] = field(default=(), metadata={"help": "of the scan over aspect ratio"})
    ff_ratios: tuple[float, ...] = field(
        default=PAPER_FF_RATIOS, metadata={"help": "d_ff / d_model of the feed-forward scan"}
    )
    head_widths: tuple[int, ...] = field(metadata={"help": "d_model / n_head of the head scan"})
    slope_sizes: tuple[float, ...] = field(
        default=(), metadata={"help": "standard shapes of these sizes give the slope of L(N)"}
    )
    d_head: int = field(
        default=64, metadata={"help": "heads of all other shapes are about so wide"}
    )
    multiple: int = field(default=8, metadata={"help": "of which every d_model is one"})

    def width(self, size, n_layer, ff_ratio=4):
        """d_model of `size` parameters: N = 2 d_model^2 n_layer (2 + d_ff / d_model)."""
        exact = math.sqrt(size / (2 * n_layer * (2 + ff_ratio)))
        return self.multiple * max(1, round(exact / self.multiple))

    def model(self, vocab_size, n_layer, d_model, ff_ratio=4, d_head=None):
        heads = max(1, round(d_model / (d_head or self.d_head)))
        while d_model % heads:
            heads -= 1
        return TransformerSpec(
            n_layer=n_layer,
            d_model=d_model,
            d_ff=round(ff_ratio * d_model),
            n_head=heads,
            n_ctx=self.n_ctx,
            vocab_size=vocab_size,
            init_std=self.init_std or init_by_width(d_model),
            positions=self.positions,
        )

    def scans(self):
        """(scan, series, shape) for every point of the figure, and the shapes that give the slope."""
        if not self.size:
            for series, shapes in PAPER_ASPECT.items():
                for n_layer, d_model in shapes:
                    yield "aspect", series, {"n_layer": n_layer, "d_model": d_model}
            for n_layer, d_model in PAPER_HEADS:
                for width in self.head_widths:
                    shape = {"n_layer": n_layer, "d_model": d_model, "d_head": width}
                    yield "head_width", f"d_model = {d_model}", shape
            for n_layer, d_model in PAPER_STANDARD:
                yield "standard", "", {"n_layer": n_layer, "d_model": d_model}
        else:
            standard = {"n_layer": self.n_layer, "d_model": self.width(self.size, self.n_layer)}
            for n_layer in self.depths:
                shape = {"n_layer": n_layer, "d_model": self.width(self.size, n_layer)}
                yield "aspect", "", shape
            for width in self.head_widths:
                yield "head_width", "", standard | {"d_head": width}
            for size in (self.size, *self.slope_sizes):
                yield "standard", "", standard | {"d_model": self.width(size, self.n_layer)}
        for ratio in self.ff_ratios:
            width = self.width(self.size or 50e6, self.n_layer, ratio)
            shape = {"n_layer": self.n_layer, "d_model": width, "ff_ratio": ratio}
            yield "ff_ratio", "", shape

    def runs(self, corpus):
        # A shape may belong to several scans; it is trained once.
        members = {}
        for scan, series, shape in self.scans():
            model = self.model(corpus.vocab_size, **shape)
            members.setdefault(model, []).append(f"{scan}:{series}")
        return [
            Run(
                self.spec(corpus, model, **choice),
                {
                    "family": "transformer",
                    "scans": "; ".join(scans),
                    "d_ff": model.d_ff,
                    "n_head": model.n_head,
                },
            )
            for model, scans in members.items()
            for choice in product(seed=self.seeds)
        ]


SCALES = {
    "cpu": Shape(
        vocab_size=512,
        size=49_152,
        n_layer=1,
        # 64 to 1.5 wide a layer: 43-fold, with a single layer at one end.
        depths=(1, 3, 12),
        ff_ratios=(1, 2, 4),
        head_widths=(16, 32, 64),
        slope_sizes=(19_200, 30_000),
        d_head=16,
        multiple=2,
        init_std=0.08,
        positions="rotary",
        steps=16_900,
        n_ctx=128,
        batch_size=2,
        seeds=(0, 1, 2),
    ),
    "gpu": Shape(
        **GPU_RECIPE,
        size=3.15e6,
        n_layer=4,
        depths=(2, 3, 4, 8, 16, 32),
        ff_ratios=(0.5, 1, 2, 4, 8, 22),
        head_widths=(16, 32, 64, 128, 256),
        slope_sizes=(1.3e6, 7.1e6),
        multiple=4,
        steps=8000,
        n_ctx=1024,
        batch_size=16,
        eval_tokens=2**20,
        seeds=(0, 1, 2),
    ),
    "paper": Shape(
        **KAPLAN_RECIPE,
        size=0,
        head_widths=(16, 32, 64, 128, 256),
        seeds=(0, 1, 2),
        eval_tokens=2**24,
    ),
}

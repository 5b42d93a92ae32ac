"""Loss against size in families of equal depth (Kaplan et al. 2020, Fig. 6).

The same models are set against N with and without embeddings. Models of different depth lie on one
line where N leaves the embeddings out, and on one line a depth where it counts them. How far they
scatter about one power law, each way, puts a number to that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from lmscale import laws
from lmscale.laws import FitError, FitResult, TableError
from lmscale.report import style
from lmscale.report.analyses.rate_search import search_grid
from lmscale.report.papers import points
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section, refused
from lmscale.report.study import Study, unfinished
from lmscale.report.wording import (
    interval_of_mean,
    listed,
    number,
    plural,
    si,
    with_interval,
)

__all__ = ["Collapse", "analyse", "collapse", "single_layer_shift"]

NAME = "families"
TITLE = "Loss against size, by depth"
#: Depths that share a curve in the paper: 1, 2, 3, 6 and all above.
DEEP = 6
#: Kaplan et al. 2020 leave models of one layer out of L(N).
LEAST_DEPTH = 2
KAPLAN_ALPHA = laws.published("kaplan2020-nd").parameters["alpha_N"]
#: Fewest models for a line whose scatter means something.
LEAST_MODELS = 5
_DRAWS = 2000


@dataclass(frozen=True)
class _Model:
    """One shape: its two counts of N and its losses over seeds."""

    n_layer: int
    width: int
    #: Non-embedding N, and N with the embeddings of tokens and positions.
    n_params: float
    n_total: float
    tokens: float
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses))


@dataclass(frozen=True)
class Collapse:
    """Scatter of models about one power law, N counted without and with embeddings.

    Attributes:
      without, including: residual rms of the logarithm of the loss (two degrees of freedom spent).
      ratio: including / without; above 1 where leaving the embeddings out brings depths together.
      interval: 95%, over bootstrap draws of models.
    """

    without: float
    including: float
    ratio: float
    interval: tuple[float, float]
    n_models: int


def collapse(n_params: Any, n_total: Any, loss: Any, *, seed: int = 0) -> Collapse | None:
    """`Collapse` of models given as arrays of one length; None for fewer than `LEAST_MODELS`."""
    x = np.log(np.stack([np.asarray(n_params, float), np.asarray(n_total, float)]))
    y = np.log(np.asarray(loss, float))
    n = len(y)
    if n < LEAST_MODELS:
        return None
    counts = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=_DRAWS).astype(float)
    # A line through fewer than four distinct models has no scatter to speak of.
    counts = counts[(counts > 0).sum(axis=1) >= 4]
    weights = np.concatenate([np.ones((1, n)), counts])
    rms = [_residual_rms(row, y, weights) for row in x]
    ratio = rms[1] / rms[0]
    low, high = np.percentile(ratio[1:], [2.5, 97.5])
    return Collapse(
        float(rms[0][0]), float(rms[1][0]), float(ratio[0]), (float(low), float(high)), n
    )


def _residual_rms(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[draw]: rms about the straight line of every draw's weights."""
    total = weights.sum(axis=1)
    dx = x - (weights @ x / total)[:, None]
    dy = y - (weights @ y / total)[:, None]
    slope = (weights * dx * dy).sum(axis=1) / (weights * dx**2).sum(axis=1)
    rest = dy - slope[:, None] * dx
    return np.sqrt((weights * rest**2).sum(axis=1) / (total - 2))


def single_layer_shift(
    n_layer: Any, n_params: Any, loss: Any
) -> tuple[float, tuple[float, float], int] | None:
    """How far models of one layer lie above the line of the deeper ones, as a share of the loss.

    Only those whose N lies among the deeper models' count, so that nothing is extrapolated.

    Returns:
      Mean share, 95% interval (Student's, from the scatter of the deeper models about their line)
      and the number of one-layer models; None where there are none, or too few deep ones.
    """
    n_layer, x = np.asarray(n_layer), np.log(np.asarray(n_params, float))
    y = np.log(np.asarray(loss, float))
    deep = n_layer >= LEAST_DEPTH
    if deep.sum() < LEAST_MODELS:
        return None
    single = (n_layer == 1) & (x >= x[deep].min()) & (x <= x[deep].max())
    if not single.any():
        return None
    slope, level = np.polyfit(x[deep], y[deep], 1)
    rest = y - slope * x - level
    n, m = int(deep.sum()), int(single.sum())
    scatter = math.sqrt(float(np.sum(rest[deep] ** 2)) / (n - 2))
    half = student.ppf(0.975, n - 2) * scatter * math.sqrt(1 / n + 1 / m)
    value = float(rest[single].mean())
    low, high = (math.expm1(edge) for edge in (value - half, value + half))
    return math.expm1(value), (low, high), m


def analyse(study: Study) -> Section:
    """Both ways of counting N, one curve a depth, and the law of the deeper models."""
    models = _models(study)
    if not models:
        return Section(
            name=NAME, title=TITLE, finding="No run of a Transformer has ended well yet."
        )
    deep = [m for m in models if m.n_layer >= LEAST_DEPTH]
    fit, failure = _fit(deep)
    found = collapse(*_columns(deep, "n_params", "n_total", "loss"))
    shift = single_layer_shift(*_columns(models, "n_layer", "n_params", "loss"))
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(models, fit, found, failure),
        conclusive=found is not None,
        details=_details(models, fit, found, shift),
        key_numbers=_key_numbers(found),
        charts=[_chart(models, fit)],
        grids=[_grid(models), *search_grid(study)],
        fits={f"depth {LEAST_DEPTH} and more/kaplan": fit or refused("power", failure)},
        measures=_measures(deep, fit, failure, found, shift, unfinished(study.usable)),
        warnings=_warnings(study, models, fit),
    )


def _models(study: Study) -> list[_Model]:
    usable = study.usable
    if not len(usable):
        return []
    runs = usable[usable["architecture"] == "transformer"]
    found = []
    for (n_layer, width), group in runs.groupby(["n_layer", "width"]):
        longest = group[group["tokens"] == group["tokens"].max()]
        row = longest.iloc[0]
        embedding = (row["vocab_size"] + row["n_ctx"]) * width
        n_params = float(row["params_kaplan"])
        losses = tuple(longest["loss"].astype(float))
        found.append(
            _Model(
                int(n_layer),
                int(width),
                n_params,
                n_params + float(embedding),
                row["tokens"],
                losses,
            )
        )
    return sorted(found, key=lambda m: (m.n_layer, m.n_params))


def _columns(models: list[_Model], *names: str) -> list[list[float]]:
    return [[getattr(m, name) for m in models] for name in names]


def _fit(deep: list[_Model]) -> tuple[FitResult | None, str]:
    """L(N) of the models of two and more layers, as Kaplan et al. fitted it."""
    rows = pd.DataFrame(
        [
            {
                "params": m.n_params,
                "loss": loss,
                "group": f"{m.n_layer} x {m.width}",
                "seed": seed,
            }
            for m in deep
            for seed, loss in enumerate(m.losses)
        ]
    )
    if len(deep) < LEAST_MODELS:
        return (
            None,
            f"{plural(len(deep), 'model')} of two or more layers, and {LEAST_MODELS} are needed",
        )
    try:
        table = laws.Table.read(rows, convention="kaplan")
        return laws.fit(table, "power", x="params", by=("group",)), ""
    except (TableError, FitError, np.linalg.LinAlgError) as error:
        return None, str(error)


# --- words --------------------------------------------------------------------------------------


def _depth_name(n_layer: int) -> str:
    if n_layer > DEEP:
        return f"> {DEEP} layers"
    return "1 layer" if n_layer == 1 else f"{n_layer} layers"


def _finding(
    models: list[_Model], fit: FitResult | None, found: Collapse | None, failure: str
) -> str:
    if found is None:
        return f"No verdict on depth yet: {failure}."
    ratio = with_interval(found.ratio, found.interval, "95% interval")
    text = (
        f"About one power law the models of {_depths(models)} scatter by {found.without:.1%} of "
        f"the loss where N leaves the embeddings out and by {found.including:.1%} where it counts "
        f"them, {ratio} times as much"
    )
    low, high = found.interval
    if low <= 1 <= high:
        text += ", so these models do not tell which count brings the depths together"
    return text + "."


def _depths(models: list[_Model]) -> str:
    deep = sorted({m.n_layer for m in models if m.n_layer >= LEAST_DEPTH})
    return listed(deep) + " layers"


def _paper() -> pd.DataFrame:
    """Kaplan's 39 models; embeddings are those of 50,257 tokens and 1024 positions."""
    table = points("kaplan2020_fig6_nonembed")
    return table.assign(n_total=table["N_nonembed"] + (50_257 + 1024) * table["d_model"])


def _details(
    models: list[_Model],
    fit: FitResult | None,
    found: Collapse | None,
    shift: tuple[float, tuple[float, float], int] | None,
) -> list[str]:
    paper = _paper()
    deep = paper[paper["n_layer"] >= LEAST_DEPTH]
    theirs = collapse(deep["N_nonembed"], deep["n_total"], deep["test_loss"])
    their_shift = single_layer_shift(paper["n_layer"], paper["N_nonembed"], paper["test_loss"])
    text = (
        f"Read in the same way, the models of two and more layers of Kaplan et al. 2020, Fig. 6, "
        f"scatter by {theirs.without:.1%} without and {theirs.including:.1%} with embeddings, "
        f"{with_interval(theirs.ratio, theirs.interval)} times as much; and their models of one "
        f"layer lie {their_shift[0]:.1%} above the others' line."
    )
    if shift is not None:
        value, (low, high), m = shift
        text += (
            f" Here {plural(m, 'model')} of one layer {'lies' if m == 1 else 'lie'} {value:+.1%} "
            f"from it (95% interval {low:+.1%} to {high:+.1%})."
        ).replace("-", "−")
    paragraphs = [text]
    noise = _seed_noise(models)
    if noise is not None and found is not None:
        paragraphs.append(f"Seeds alone scatter by {noise:.1%} of the loss.")
    if fit is not None:
        alpha = with_interval(fit.parameters["alpha_N"], fit.intervals.get("alpha_N"))
        paragraphs.append(
            f"The law of the models of two and more layers is L = (N_c / N)^α with α = {alpha}; "
            f"Kaplan et al. found {KAPLAN_ALPHA:g}, trained to convergence on another text."
        )
    return paragraphs


def _seed_noise(models: list[_Model]) -> float | None:
    """Standard deviation over seeds as a share of the loss, pooled over models."""
    spreads = [np.var(m.losses, ddof=1) / m.loss**2 for m in models if len(m.losses) > 1]
    return math.sqrt(float(np.mean(spreads))) if spreads else None


def _key_numbers(found: Collapse | None) -> list[KeyNumber]:
    if found is None:
        return []
    return [
        KeyNumber.of(
            "scatter about one L(N) with embeddings, over that without",
            found.ratio,
            found.interval,
            "×",
        )
    ]


def _measures(
    deep: list[_Model],
    fit: FitResult | None,
    failure: str,
    found: Collapse | None,
    shift: tuple[float, tuple[float, float], int] | None,
    young: str,
) -> dict[str, Measure]:
    seeds = _seeds(deep)
    on = f"{plural(len(deep), 'model')} of two or more layers, {seeds}"
    ratio = Measure(
        what=f"scatter about one power law with embeddings over that without, {on}",
        value=found.ratio if found else None,
        interval=found.interval if found else None,
        why=young if found else f"these results hold {on}",
    )
    single = Measure(
        what="share of the loss by which one-layer models lie above the line of the deeper ones"
        + (f", {plural(shift[2], 'model')}, {seeds}" if shift else ""),
        value=shift[0] if shift else None,
        interval=shift[1] if shift else None,
        why=young if shift else "no one-layer model lies among the sizes of deeper ones",
    )
    alpha = Measure(
        what=f"exponent α of L(N) without embeddings, {on}",
        value=fit.parameters["alpha_N"] if fit else None,
        interval=fit.intervals.get("alpha_N") if fit else None,
        why=young if fit else failure,
    )
    return {"collapse": ratio, "single_layer": single, "alpha_N": alpha}


def _seeds(models: list[_Model]) -> str:
    least = min((len(m.losses) for m in models), default=0)
    return plural(least, "seed") + " each" if least else "no seeds"


def _warnings(study: Study, models: list[_Model], fit: FitResult | None) -> list[str]:
    warnings = [f"{w[0].upper()}{w[1:]}." for w in fit.warnings] if fit else []
    tokens = {m.tokens for m in models}
    if max(tokens) > 1.05 * min(tokens):
        warnings.append(
            f"The models were trained for {si(min(tokens))} to {si(max(tokens))} tokens, so part "
            f"of the trend is that of the data."
        )
    return [*warnings, *study.lost_warning(), *study.lr_edge_warning()]


def _grid(models: list[_Model]) -> Grid:
    rows = [
        [
            str(m.n_layer),
            str(m.width),
            si(m.n_params),
            si(m.n_total),
            str(len(m.losses)),
            with_interval(m.loss, interval_of_mean(m.losses))
            if len(m.losses) > 1
            else f"{number(m.loss, 4)} (one seed)",
        ]
        for m in models
    ]
    return Grid(
        caption="Every model: N without and with the embeddings of tokens and positions, and its "
        "mean loss. In brackets the 95% interval of the mean (three or more seeds) or the range "
        "(two).",
        header=["layers", "width", "N", "N with embeddings", "seeds", "loss (nats)"],
        rows=rows,
        numeric=(0, 1, 2, 3, 4, 5),
    )


# --- figure -------------------------------------------------------------------------------------


def _chart(models: list[_Model], fit: FitResult | None) -> Chart:
    own = pd.DataFrame(
        {
            "n_layer": [m.n_layer for m in models],
            "without": [m.n_params for m in models],
            "including": [m.n_total for m in models],
            "loss": [m.loss for m in models],
        }
    )
    paper = _paper().rename(
        columns={"N_nonembed": "without", "n_total": "including", "test_loss": "loss"}
    )
    depths = sorted({min(n, DEEP + 1) for n in [*own["n_layer"], *paper["n_layer"]]})
    looks = dict(zip(depths, _looks(depths), strict=True))
    with style.canvas(7.2, 5.9) as figure:
        panels = figure.subplots(2, 2, sharey="row")
        for row, table in zip(panels, (own, paper), strict=True):
            for axes, x in zip(row, ("including", "without"), strict=True):
                for depth, part in table.groupby(table["n_layer"].clip(upper=DEEP + 1)):
                    part = part.sort_values(x)
                    axes.plot(part[x], part["loss"], lw=1.1, zorder=2, **looks[depth])
        for axes, x in zip(panels[0], ("n_total", "n_params"), strict=True):
            for m in models:
                interval = interval_of_mean(m.losses)
                if interval:
                    colour = looks[min(m.n_layer, DEEP + 1)]["color"]
                    axes.plot([getattr(m, x)] * 2, interval, color=colour, lw=1.4)
        if fit is not None:
            _draw_law(panels[0, 1], fit)
        panels[0, 0].set_title("These runs, with embeddings")
        panels[0, 1].set_title("These runs, without embeddings")
        panels[1, 0].set_title("Kaplan et al. 2020, with embeddings")
        panels[1, 1].set_title("Kaplan et al. 2020, without embeddings")
        for row in panels:
            row[0].set_ylabel("loss (nats per token)")
            style.log_axis(row[0].yaxis, "plain")
            for axes, which in zip(row, ("with", "without"), strict=True):
                axes.set_xlabel(f"N, parameters {which} embeddings")
                style.log_axis(axes.xaxis, "count")
        handles = [figure.axes[0].plot([], [], lw=1.1, **looks[d])[0] for d in depths]
        names = [_depth_name(d) for d in depths]
        figure.legend(handles, names, loc="outside upper center", ncols=len(depths))
        caption = (
            "Loss over model size by depth, N counted with the embeddings of tokens and positions "
            "(left) and without (right). Above: these runs, "
            + _bars([len(m.losses) for m in models])
            + (
                "; the dashed line is the power law of the models of two and more layers with its "
                "95% band"
                if fit is not None
                else ""
            )
            + ". Below: the 39 models of Kaplan et al. 2020, Fig. 6, on another text and vocabulary."
        )
        return style.render(
            figure,
            name=NAME,
            caption=caption,
            alt="Loss against parameters with and without embeddings, one curve a depth, for these "
            "runs and for those of Kaplan et al. 2020.",
        )


def _looks(depths: Sequence[int]) -> list[dict[str, Any]]:
    colours = style.ordered_colours(depths)
    markers = "osD^v<>P"
    return [
        {
            "color": colours[depth],
            "marker": markers[index % len(markers)],
            "ms": 4.5,
            "mec": style.PAPER,
            "mew": 0.4,
        }
        for index, depth in enumerate(depths)
    ]


def _draw_law(axes: Any, fit: FitResult) -> None:
    curve = fit.details["curve"]
    low, high = fit.ranges["params"]
    inside = (curve["x"] >= low / 1.2) & (curve["x"] <= high * 1.2)
    axes.plot(
        curve["x"][inside], curve["loss"][inside], color=style.INK, lw=1, ls=(0, (4, 2)), zorder=1
    )
    if "low" in curve:
        band = curve["low"][inside], curve["high"][inside]
        axes.fill_between(curve["x"][inside], *band, color=style.MUTED, alpha=0.18, lw=0, zorder=0)


def _bars(seeds: list[int]) -> str:
    if max(seeds) == 1:
        return "one seed each"
    if min(seeds) >= 3:
        return "means over seeds with their 95% intervals"
    return "means over seeds with 95% intervals (ranges for two seeds, nothing for one)"

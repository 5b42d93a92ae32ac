"""The recurrent Transformer against the plain one: Kaplan et al. 2020, Fig. 17.

Blocks that are applied several times are stored once. Against the parameters that a model stores it
does a little better than a plain Transformer, against the compute that it takes a little worse. The
plain losses between two measured sizes are interpolated, linear in log loss over log N, and never
extrapolated. Where both have several seeds, differences are taken seed by seed: runs of one seed see
the same text in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lmscale.report import caveats, style
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.studies.cells import unfinished
from lmscale.studies.estimate import LEAST_SEEDS, interval_of_mean
from lmscale.studies.papers import points
from lmscale.studies.results import Results
from lmscale.wording import family_name, flipped, listed, number, plural, si, with_interval

__all__ = ["analyse", "behind"]

NAME = "recurrent"
TITLE = "Reused layers against plain ones"
#: How a model's size is counted: column, in words, axis.
COUNTS = {
    "params": ("equal N", "N, stored parameters without embeddings"),
    "compute": ("equal compute", "N as used: training FLOPs a token / 6"),
}
COUNTED = {"params": "once", "compute": "as used"}
#: By which factor the points of one family lie beside the next one's in the figure, where many have
#: one size.
ASIDE = 1.04


def behind(
    size: Any, loss: Any, plain_size: Any, plain_loss: Any, *, slack: float = 0.02
) -> np.ndarray:
    """Loss of models above the plain ones of their size, in nats; NaN outside the plain sizes.

    Args:
      size, loss: [model].
      plain_size, plain_loss: [plain model], ascending in size.
      slack: by which share a size may lie outside and still count as the end one.
    """
    size, plain_size = np.asarray(size, float), np.asarray(plain_size, float)
    at = np.interp(np.log(size), np.log(plain_size), np.log(np.asarray(plain_loss, float)))
    inside = (size >= plain_size[0] * (1 - slack)) & (size <= plain_size[-1] * (1 + slack))
    return np.where(inside, np.asarray(loss, float) - np.exp(at), np.nan)


@dataclass(frozen=True)
class _Family:
    """One curve: sizes by both counts and losses [model, seed] of the seeds that all have."""

    name: str
    reuse: int
    sizes: dict[str, np.ndarray]
    losses: np.ndarray
    seeds: tuple[int, ...]

    @property
    def plain(self) -> bool:
        return self.name == "transformer"


@dataclass(frozen=True)
class _Gap:
    """Mean loss above the plain Transformer over the models of a family that it can be read for."""

    value: float
    interval: tuple[float, float] | None
    models: int
    seeds: int


def analyse(study: Results) -> Section:
    """Every reuse, and other families, against plain Transformers, at equal N and equal compute."""
    families = _families(study)
    plain = next((f for f in families if f.plain and len(f.losses) > 1), None)
    others = [f for f in families if not f.plain]
    if plain is None or not others:
        return Section(
            name=NAME,
            title=TITLE,
            finding="No comparison yet: it takes two plain Transformers and a model with reuse.",
            charts=[_chart(families)] if families else [],
        )
    gaps = {f.name: {count: _gap(plain, [f], count) for count in COUNTS} for f in others}
    reused = [f for f in others if f.reuse > 1]
    pooled = {count: _gap(plain, reused, count) for count in COUNTS}
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(pooled),
        conclusive=all(gap is not None for gap in pooled.values()),
        details=_details(),
        key_numbers=_key_numbers(pooled),
        charts=[_chart(families)],
        grids=[_gap_grid(gaps), _model_grid(plain, families)],
        measures={
            count: _measure(pooled[count], reused, count, unfinished(study.usable))
            for count in COUNTS
        },
        warnings=_warnings(study, families),
    )


def _families(study: Results) -> list[_Family]:
    usable = study.usable
    found = []
    for name in study.families if len(usable) else []:
        runs = usable[usable["family"] == name]
        if not len(runs):
            continue
        runs = runs.assign(applied=runs["flops_kaplan"] / runs["tokens"] / 6)
        table = runs.pivot_table(
            index=["params_kaplan", "applied"], columns="seed", values="loss"
        ).dropna(axis=1)
        if table.shape[1]:
            n_params, applied = (np.array(x, float) for x in zip(*table.index, strict=True))
            found.append(
                _Family(
                    name,
                    int(runs["reuse"].iloc[0]) if "reuse" in runs else 1,
                    {"params": n_params, "compute": applied},
                    table.to_numpy(float),
                    tuple(table.columns),
                )
            )
    return found


def _gap(plain: _Family, families: list[_Family], count: str) -> _Gap | None:
    """The mean over all models, per seed; the interval is Student's over seeds."""
    if not families:
        return None
    seeds = [s for s in plain.seeds if all(s in f.seeds for f in families)]
    per_seed, models = [], 0
    for seed in seeds:
        base = plain.losses[:, plain.seeds.index(seed)]
        values = np.concatenate(
            [
                behind(f.sizes[count], f.losses[:, f.seeds.index(seed)], plain.sizes[count], base)
                for f in families
            ]
        )
        models = int(np.isfinite(values).sum())
        if models:
            per_seed.append(float(np.nanmean(values)))
    if not per_seed:
        return None
    interval = interval_of_mean(per_seed) if len(per_seed) >= LEAST_SEEDS else None
    return _Gap(float(np.mean(per_seed)), interval, models, len(per_seed))


# --- words --------------------------------------------------------------------------------------


def _finding(pooled: dict[str, _Gap | None]) -> str:
    parts = []
    for count, (at, _) in COUNTS.items():
        gap = pooled[count]
        if gap is None:
            parts.append(f"at {at} no plain model is near enough to compare")
            continue
        shown = with_interval(*flipped(gap.value, gap.interval), "95% interval")
        amount, rest = shown.split(" (", 1)
        way = "above" if gap.value > 0 else "below"
        parts.append(f"at {at} {amount} nats per token {way} the plain one ({rest}")
    return f"A Transformer with reused layers ends {listed(parts)}."


def _details() -> list[str]:
    paper = _paper()
    plain, reused = paper[paper["family"] == "transformer"], paper[paper["series"].notna()]
    parts = []
    for count, (at, _) in COUNTS.items():
        gaps = behind(reused[count], reused["loss"], plain["params"], plain["loss"])
        means = pd.Series(gaps).groupby(reused["series"].to_numpy()).mean()
        parts.append(
            f"at {at} " + listed([f"{number(v, 2)} ({name})" for name, v in means.items()])
        )
    return [
        (
            f"Between the plotted points of Kaplan et al. 2020, Figs. 7 and 17, reuse changes the "
            f"loss by the following nats: {'; '.join(parts)}. They do not say in which order shared "
            f"blocks are applied, nor whether a step signal is added."
        )
    ]


def _paper() -> pd.DataFrame:
    """The models of the paper, with columns family, params, compute and loss."""
    plain = points("kaplan2020_fig7").rename(columns={"n_params": "params"})
    reused = points("kaplan2020_fig17").rename(
        columns={"n_params": "params", "n_params_unshared": "compute"}
    )
    return pd.concat(
        [
            plain.assign(compute=plain["params"]),
            reused.assign(family="transformer, reused " + reused["series"]),
        ]
    ).sort_values("params")


def _key_numbers(pooled: dict[str, _Gap | None]) -> list[KeyNumber]:
    return [
        KeyNumber.of(
            f"nats per token, reused over plain Transformer at {COUNTS[count][0]}",
            gap.value,
            gap.interval,
        )
        for count, gap in pooled.items()
        if gap is not None
    ]


def _measure(gap: _Gap | None, reused: list[_Family], count: str, young: str) -> Measure:
    what = f"nats per token above the plain Transformer at {COUNTS[count][0]}"
    if gap is None:
        why = "no model with reuse has ended well" if not reused else "the sizes do not overlap"
        return Measure(what=what, value=None, undecided_because=why)
    factors = listed([f"{f.reuse}×" for f in reused])
    return Measure(
        what=f"{what}, mean of {plural(gap.models, 'model')} with reuse {factors}, "
        f"{plural(gap.seeds, 'seed')} each",
        value=gap.value,
        interval=gap.interval,
        undecided_because=young
        if gap.interval
        else f"a difference needs {LEAST_SEEDS} seeds, not {gap.seeds}",
    )


def _warnings(study: Results, families: list[_Family]) -> list[str]:
    warnings = []
    for family in families:
        trained = study.table[study.table["family"] == family.name]["seed"].nunique()
        if len(family.seeds) < trained:
            lost = plural(trained - len(family.seeds), "seed")
            warnings.append(
                f"{family_name(family.name)}: {lost} left out, for not ending well at every size."
            )
    if any(len(f.seeds) < LEAST_SEEDS for f in families):
        warnings.append(f"Fewer than {LEAST_SEEDS} seeds: the differences have no interval.")
    return [*warnings, *caveats.search_edges(study)]


# --- tables -------------------------------------------------------------------------------------


def _gap_grid(gaps: dict[str, dict[str, _Gap | None]]) -> Grid:
    def shown(gap: _Gap | None) -> str:
        return with_interval(gap.value, gap.interval) if gap else "–"

    return Grid(
        caption="Loss above the plain Transformer (nats per token; 95% intervals over seeds), mean "
        "of the models within its sizes.",
        header=["family", *[f"at {at}" for at, _ in COUNTS.values()]],
        rows=[
            [family_name(name), *[shown(found[count]) for count in COUNTS]]
            for name, found in gaps.items()
        ],
        numeric=(1, 2),
    )


def _model_grid(plain: _Family, families: list[_Family]) -> Grid:
    rows = []
    for f in families:
        mean = f.losses.mean(axis=1)
        base = plain.losses.mean(axis=1)
        apart = {count: behind(f.sizes[count], mean, plain.sizes[count], base) for count in COUNTS}
        for i in range(len(mean)):
            rows.append(
                [
                    family_name(f.name),
                    si(f.sizes["params"][i]),
                    si(f.sizes["compute"][i]),
                    with_interval(mean[i], interval_of_mean(f.losses[i]))
                    if len(f.seeds) > 1
                    else f"{number(mean[i], 4)} (one seed)",
                    *(["", ""] if f.plain else [number(apart[c][i], 2) for c in COUNTS]),
                ]
            )
    return Grid(
        caption="Every model: what it stores, what it applies to a token, its loss, and how far that "
        "is from the plain Transformer's.",
        header=["family", "N", "N as used", "loss (nats)", *[at for at, _ in COUNTS.values()]],
        rows=rows,
        numeric=(1, 2, 3, 4, 5),
    )


# --- figure -------------------------------------------------------------------------------------


def _chart(families: list[_Family]) -> Chart:
    paper = _paper()
    own = [f.name for f in families]
    # The paper's plain and reused Transformers, and of its LSTMs those that were trained here too.
    shown = [n for n in sorted(set(paper["family"])) if n in own or n.startswith("transformer")]
    looks = style.family_styles(list(dict.fromkeys([*own, *shown])))
    with style.canvas(7.2, 5.9) as figure:
        panels = figure.subplots(2, 2, sharey="row")
        for axes, count in zip(panels[0], COUNTS, strict=True):
            for place, f in enumerate(reversed(families)):
                look = looks[f.name]
                order = np.argsort(f.sizes[count])
                sizes = f.sizes[count] * ASIDE ** (place - (len(families) - 1) / 2)
                x, mean = sizes[order], f.losses.mean(axis=1)[order]
                axes.plot(x, mean, lw=1.1, **look, mec=style.PAPER, mew=0.4)
                for at, losses in zip(sizes, f.losses, strict=True):
                    interval = interval_of_mean(losses)
                    if interval:
                        axes.plot([at] * 2, interval, color=look["color"], lw=1.4)
            axes.set_title(f"These runs, shared layers {COUNTED[count]}")
        for axes, count in zip(panels[1], COUNTS, strict=True):
            for name in shown:
                part = paper[paper["family"] == name].sort_values(count)
                look = looks[name]
                axes.plot(part[count], part["loss"], lw=1.1, **look, mec=style.PAPER, mew=0.4)
            axes.set_title(f"Kaplan et al. 2020, shared layers {COUNTED[count]}")
        for row in panels:
            row[0].set_ylabel("loss (nats per token)")
            style.log_axis(row[0].yaxis, "plain")
            for axes, (_, label) in zip(row, COUNTS.values(), strict=True):
                axes.set_xlabel(label)
                style.log_axis(axes.xaxis, "count")
        handles = [
            panels[0, 0].plot([], [], lw=1.1, **look, mec=style.PAPER, mew=0.4)[0]
            for look in looks.values()
        ]
        labels = [family_name(name) for name in looks]
        figure.legend(handles, labels, loc="outside upper center", ncols=min(3, len(labels)))
        many = min((len(f.seeds) for f in families), default=1)
        bars = {1: "one seed each", 2: "means of seeds with their range"}.get(
            many, "means over seeds with their 95% intervals"
        )
        return style.render(
            figure,
            name=NAME,
            caption="Loss of Transformers whose layers are applied several times, over the "
            "parameters that they store (left) and over those that a token passes, shared ones "
            f"as often as used (right). Above: these runs, {bars}; families are set {ASIDE - 1:.0%} "
            "apart to the side, so that bars of one size can be told apart. Below: Kaplan et al. 2020, "
            "Figs. 7 and 17, on another text and vocabulary.",
            alt="Loss against stored parameters and against compute for "
            + listed([family_name(f.name) for f in families])
            + ", above the same for Kaplan et al. 2020.",
        )

"""Tables of the analysis `position`: losses over spans of the context, laws, matched pairs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lmscale.report.section import Grid
from lmscale.studies.estimate import interval_of_mean
from lmscale.wording import family_name, number, si, with_interval

if TYPE_CHECKING:
    from lmscale.report.analyses.position import _Curve, _Pair

__all__ = ["curve_grid", "pair_grid", "span_grid", "spans", "stop_range"]

#: Ends of the first spans of positions; from there on every span doubles the context.
FIRST_SPANS = (16, 64, 128)


def spans(n_ctx: int) -> list[tuple[int, int]]:
    """First and last position of each span: 1-16, 17-64, 65-128, 129-256, ... up to the context."""
    ends = [end for end in FIRST_SPANS if end < n_ctx]
    while ends and ends[-1] >= FIRST_SPANS[-1] and 2 * ends[-1] < n_ctx:
        ends.append(2 * ends[-1])
    ends.append(n_ctx)
    return list(zip([1, *(end + 1 for end in ends[:-1])], ends, strict=True))


def span_grid(curves: list[_Curve]) -> Grid:
    """Mean loss over spans of positions, one row a curve."""
    cut = spans(max(c.n_ctx for c in curves))

    def shown(curve: _Curve, first: int, last: int) -> str:
        if last > curve.n_ctx:
            return "–"
        per_seed = curve.losses[:, first - 1 : last].mean(axis=1)
        interval = interval_of_mean(per_seed)
        mean = float(per_seed.mean())
        return with_interval(mean, interval) if interval else number(mean, 4)

    return Grid(
        caption="Mean loss over spans of positions (nats per token). In brackets the 95% interval of "
        "the mean over seeds (three or more) or the range (two).",
        header=["family", "N", "seeds", *[f"T = {first} to {last}" for first, last in cut]],
        rows=[
            [family_name(c.family), si(c.n_params), str(len(c.losses))]
            + [shown(c, first, last) for first, last in cut]
            for c in curves
        ],
        numeric=tuple(range(1, 3 + len(cut))),
    )


def stop_range(curve: _Curve) -> str:
    low, high = curve.stop_interval
    return f"{low} to {high}" if high < curve.n_ctx else f"{low} to the end"


def curve_grid(curves: list[_Curve]) -> Grid:
    rows = []
    for c in curves:
        law = ["–"] * 3
        if c.fit is not None:
            law = [
                with_interval(c.fit.parameters[name], c.fit.intervals.get(name))
                for name in ("a", "b", "c")
            ]
        rows.append(
            [
                family_name(c.family),
                si(c.n_params),
                str(len(c.losses)),
                f"{c.stop} ({stop_range(c)})"
                if c.stops
                else (f"never ({stop_range(c)})" if c.stop_interval[0] < c.n_ctx else "never"),
                *law,
                f"{c.misfit:.1%}" if math.isfinite(c.misfit) else "–",
            ]
        )
    return Grid(
        caption="Where each curve stops improving, and its law a + b T^−c (Kaplan et al. 2020, App. "
        "D.5), with 95% intervals; those of the law are over the plotted means, not over seeds.",
        header=["family", "N", "seeds", "stops at T", "a", "b", "c", "rms error"],
        rows=rows,
        numeric=(1, 2, 3, 4, 5, 6, 7),
    )


def pair_grid(pairs: list[_Pair]) -> list[Grid]:
    if not pairs:
        return []
    rows = [
        [
            f"{family_name(p.other.family)} {si(p.other.n_params)}",
            f"{family_name(p.base.family)} {si(p.base.n_params)}",
            f"{number(p.other.n_params / p.base.n_params)}",
            with_interval(*p.early[2:]),
            with_interval(*p.late[2:]),
            with_interval(p.widening, p.widening_interval),
        ]
        for p in pairs
    ]
    early, late = pairs[0].early, pairs[0].late
    return [
        Grid(
            caption="Loss above the Transformer's at matched size (nats per token, 95% intervals "
            "from seeds and positions).",
            header=[
                "model",
                "against",
                "ratio of N",
                f"T = {early[0]} to {early[1]}",
                f"T = {late[0]} to {late[1]}",
                "change",
            ],
            rows=rows,
            numeric=(2, 3, 4, 5),
        )
    ]

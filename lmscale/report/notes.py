"""What the points of a figure say of their runs when a reader points at them or steps through them.

A drawn artist is given one text a point (`annotate`). The SVG and PNG of the figure do not have them; on the page
each point carries its text, and `page.js` shows it.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lmscale.studies.cells import Cell
from lmscale.wording import listed, si

__all__ = ["annotate", "cell_note", "noted_artists", "run_note", "seeds_note", "with_notes"]

_ATTRIBUTE = "_lmscale_notes"


def annotate(artist: Any, notes: Sequence[str]) -> Any:
    """Gives a line with markers, or a scatter, a text for each of its points; returns it.

    A line without markers takes one text, for the whole line.
    """
    setattr(artist, _ATTRIBUTE, tuple(notes))
    return artist


def noted_artists(figure: Any) -> dict[str, tuple[str, ...]]:
    """Names the artists that have notes, for their elements in the SVG: name -> notes."""
    found = {}
    for artist in figure.findobj(lambda one: bool(getattr(one, _ATTRIBUTE, ()))):
        name = f"noted-{len(found)}"
        artist.set_gid(name)
        found[name] = getattr(artist, _ATTRIBUTE)
    return found


def with_notes(svg: str, notes: Mapping[str, Sequence[str]]) -> tuple[str, int]:
    """The SVG with a note at each point, and how many points have one.

    Artists of which a point was not drawn, because it lies outside of the figure, get none: it would not be
    known which.

    Args:
      svg: as matplotlib writes it; an artist is a `<g id="NAME">`.
      notes: name -> notes.
    """
    total = 0
    for name, texts in notes.items():
        start = svg.find(f'<g id="{name}">')
        if start < 0:
            continue
        end = svg.find('<g id="', start + 1)
        end = len(svg) if end < 0 else end
        part = svg[start:end]
        points = [match.start() for match in re.finditer(r"<use ", part)]
        if not points and len(texts) == 1:
            points = [match.start() for match in re.finditer(r"<path d=", part)]
        if len(points) != len(texts):
            continue
        for place, text in sorted(zip(points, texts, strict=True), reverse=True):
            cut = place + part[place:].index(" ")
            mark = f' class="point" data-note="{html.escape(text)}"'
            part = f"{part[:cut]}{mark}{part[cut:]}"
        svg = svg[:start] + part + svg[end:]
        total += len(texts)
    return svg, total


def run_note(row: Mapping[str, Any]) -> str:
    """'transformer-2x24-b2: N = 13.8k, D = 1.02M, loss 3.777, peak LR 0.0055, seed 0'."""
    return f"{_name(row['run'])}: {_recipe(row)}, loss {row['loss']:.4g}, seed {row['seed']}"


def cell_note(cell: Cell) -> str:
    """Of the runs that differ in seed only: their recipe, and every seed with its loss."""
    if len(cell.runs) == 1:
        return run_note({**cell.columns, "run": cell.runs[0], "loss": cell.losses[0]})
    name = _name(cell.runs[0]) if cell.runs else str(cell.columns.get("family", ""))
    losses = [
        f"{loss:.4g} (seed {seed})" for seed, loss in zip(cell.seeds, cell.losses, strict=True)
    ]
    return f"{name}: {_recipe(cell.columns)}, mean loss {cell.mean:.4g} of {listed(losses)}"


def seeds_note(x: float, values: Sequence[float]) -> str:
    """Of a mean over seeds: where it is, and what it is the mean of."""
    mean = math.fsum(values) / len(values)
    seeds = (
        f", the mean of {listed([f'{value:.4g}' for value in values])}" if len(values) > 1 else ""
    )
    return f"at {si(x)}: {mean:.4g}{seeds}"


def _name(run: str) -> str:
    """The name of a run without its hash, its seed and its steps, which are said in words."""
    return re.sub(r"(-s\d+)?(-seed\d+)?-[0-9a-f]{12}$", "", str(run))


def _recipe(row: Mapping[str, Any]) -> str:
    parts = [f"N = {si(row['params_kaplan'])}", f"D = {si(row['tokens'])}"]
    rate = row.get("peak_lr")
    if rate is not None and math.isfinite(rate):
        parts.append(f"peak LR {rate:.2g}")
    return ", ".join(parts)

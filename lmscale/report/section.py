"""What an analysis makes: a finding in words, figures, tables, fits and warnings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmscale.foreign_text import is_plain_name
from lmscale.laws import FitResult
from lmscale.studies.estimate import Estimate
from lmscale.wording import between, with_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Chart", "Grid", "KeyNumber", "Measure", "Section"]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawn figure, which a notebook shows as it is.

    Attributes:
      name: the stem of its files; a page has it once.
      caption: what the page says below it.
      alt: what it shows, for a blind reader.
      view: how this figure reads the runs, where others read them otherwise.
      other_view_of: name of the figure in whose place the page can show this one.
      svg, png: the drawing.
      pdf: the drawing of a figure for a paper (`style.paper`), otherwise empty.
      notes: name of an element of the SVG -> what each of its points says of its run (`lmscale.report.notes`).
      figure: what it was drawn from: `chart.figure.axes[0].set_title(..)`, then `chart.figure.savefig`.

    Raises:
      ValueError: when the name is not that of a file.
    """

    name: str
    caption: str
    alt: str
    view: str = ""
    other_view_of: str = ""
    svg: str = field(repr=False)
    png: bytes = field(repr=False)
    pdf: bytes = field(default=b"", repr=False)
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    figure: Figure | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not is_plain_name(self.name):
            raise ValueError(
                f"a figure is a file of figures/, and {self.name!r} is no name of a file there: give it a "
                "name such as 'gain'"
            )

    def save(self, path: str | os.PathLike) -> None:
        """Writes the drawing as .svg or .png.

        Raises:
          ValueError: the name has another ending; `figure.savefig` knows more of them.
        """
        path = Path(path)
        if path.suffix not in (".svg", ".png"):
            raise ValueError(f"a chart is saved as .svg or .png, not as {path.name!r}")
        path.write_bytes(self.svg.encode() if path.suffix == ".svg" else self.png)

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        """The drawing in a notebook, at its own size there."""
        return self.png, {} if self.figure is None else {
            "width": round(96 * self.figure.get_figwidth())
        }


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A small table of text; columns in `numeric` are set flush right and not broken."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class KeyNumber:
    """One number of the strip at the head of the page."""

    label: str
    value: str
    interval: str = ""

    @classmethod
    def of(
        cls, label: str, value: float, interval: tuple[float, float] | None, unit: str = ""
    ) -> KeyNumber:
        """A value to as many digits as its interval warrants."""
        return cls(
            label=label,
            value=with_interval(value, interval).split(" (")[0] + unit,
            interval=between(interval) if interval else "no interval",
        )

    @classmethod
    def of_estimate(cls, label: str, estimate: Estimate, unit: str = "") -> KeyNumber:
        return cls.of(label, estimate.value, estimate.interval, unit)

    @classmethod
    def of_known(cls, estimates: Mapping[str, Estimate]) -> list[KeyNumber]:
        """label -> estimate, without those that the results do not hold."""
        return [cls.of_estimate(label, one) for label, one in estimates.items() if one.is_known]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that claims are held against.

    Attributes:
      what: what was measured, with its unit, on which runs and how many seeds.
      value: None where the results do not hold it.
      interval: 95%, over seeds or bootstrap draws; None where there is no noise to judge it by.
      undecided_because: why it cannot decide a claim: what is missing, or how these runs lie outside
        of what the claim is about. Empty where it can.
    """

    what: str
    value: float | None
    interval: tuple[float, float] | None = None
    undecided_because: str = ""

    @classmethod
    def of(cls, what: str, estimate: Estimate) -> Measure:
        """An estimate of a study, said in words."""
        return cls(
            what=what,
            value=estimate.value,
            interval=estimate.interval,
            undecided_because=estimate.undecided_because,
        )

    @classmethod
    def of_each(
        cls, what: Mapping[str, str], estimates: Mapping[str, Estimate]
    ) -> dict[str, Measure]:
        """name -> the estimate of that name, said in words."""
        return {name: cls.of(what[name], one) for name, one in estimates.items()}


@dataclass(frozen=True, kw_only=True)
class Section:
    """One analysis of a store.

    Attributes:
      name: of the analysis.
      title: heading.
      finding: one sentence with numbers and interval, or why there is none.
      conclusive: whether the finding answers the analysis' question, so that it may head the page.
      details: further sentences, a paragraph each.
      fits: "family/convention" -> fit; they go to fits.json under "name/family/convention".
      measures: name -> number, for the experiment's claims ("ANALYSIS/NAME").
      warnings: what a reader must know before believing the finding.
      failure: why there is no finding, in a line that names the user's file; empty where there is one.
    """

    name: str
    title: str
    finding: str
    conclusive: bool = False
    details: Sequence[str] = ()
    key_numbers: Sequence[KeyNumber] = ()
    charts: Sequence[Chart] = ()
    grids: Sequence[Grid] = ()
    fits: dict[str, FitResult] = field(default_factory=dict)
    measures: dict[str, Measure] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    failure: str = ""

    def views_of(self, chart: Chart) -> list[Chart]:
        """A figure, and those that the page can show in its place."""
        return [chart, *(one for one in self.charts if one.other_view_of == chart.name)]

"""summary.json: what a report found, for those who do not open the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from lmscale.files import read_json
from lmscale.report.claims import WORDS, Verdict, tally
from lmscale.report.page import lead_section
from lmscale.report.section import Section
from lmscale.studies.results import Results
from lmscale.sweep.store import Store

__all__ = ["Summary", "read_summary", "summarise"]

#: What readers lean on.
_FIELDS = {"title": str, "finding": str, "runs": int, "seconds": float, "verdicts": list}


@dataclass(frozen=True)
class Summary:
    """What one store's report found.

    Attributes:
      title, finding: of the page.
      figure: name of its first chart, or None.
      runs: how many are declared.
      seconds: of training, summed over runs and restarts.
      verdicts: `Verdict.to_json` of every claim.
      failures: a line for each analysis of a user's file that failed.
    """

    title: str
    finding: str
    figure: str | None
    runs: int
    seconds: float
    verdicts: Sequence[dict[str, str]]
    failures: Sequence[str] = ()

    def lines(self) -> list[str]:
        """The finding and a line a verdict, for a terminal."""
        lines = [f"found: {self.finding}"] if self.finding else []
        if self.verdicts:
            lines.append(tally([verdict["word"] for verdict in self.verdicts]))
        width = max(map(len, WORDS))
        for word in WORDS:
            mine = [verdict for verdict in self.verdicts if verdict["word"] == word]
            lines += [f"  {word:<{width}}  {v['claim']} ({v['source']})" for v in mine]
        return lines

    def to_json(self) -> dict[str, Any]:
        values = {**vars(self), "verdicts": list(self.verdicts)}
        if not values.pop("failures"):
            return values
        return {**values, "failures": list(self.failures)}


def summarise(
    results: Results, sections: Sequence[Section], verdicts: Sequence[Verdict]
) -> Summary:
    """The summary of what a page is made of."""
    lead = lead_section(sections)
    charts = [chart for section in [lead, *sections] if section for chart in section.charts]
    table = results.table
    return Summary(
        title=results.title,
        finding=lead.finding if lead else "",
        figure=charts[0].name if charts else None,
        runs=len(table),
        seconds=float(table["seconds"].sum()) if len(table) else 0.0,
        verdicts=[verdict.to_json() for verdict in verdicts],
        failures=[section.failure for section in sections if section.failure],
    )


def read_summary(store: Store | epath.PathLike) -> Summary | None:
    """The summary that a store's report has written; None before its first report.

    Raises:
      DamagedError: when its file does not hold what was written.
    """
    path = store.path if isinstance(store, Store) else epath.Path(store)
    values = read_json(path / "summary.json", _FIELDS, f"`lmscale report {path}` writes it again")
    if values is None:
        return None
    # Reports of earlier versions name no failures.
    return Summary(
        figure=values.get("figure"),
        failures=values.get("failures", ()),
        **{name: values[name] for name in _FIELDS},
    )

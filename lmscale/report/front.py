"""The front page of several stores: what each found and how its claims stand, linked to its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etils import epath

from lmscale.files import DamagedError, write_atomically
from lmscale.remote import entries
from lmscale.report.claims import tally
from lmscale.report.page import render_page
from lmscale.report.summary import Summary, read_summary
from lmscale.terminal import say
from lmscale.wording import duration, plural

__all__ = ["write_front"]


def write_front(folder: epath.PathLike) -> epath.Path | None:
    """Writes index.html over the reports of the stores in a folder, read from their summary.json.

    Returns:
      The path of the page; None where no store has a report yet.
    """
    folder = epath.Path(folder)
    found = []
    for store in entries(folder):
        try:
            summary = read_summary(store) if store.is_dir() else None
        except DamagedError as error:
            say(str(error))
            continue
        if summary is not None:
            found.append((store.name, summary))
    if not found:
        return None
    found.sort(key=lambda item: (item[1].title, item[0]))
    studies = [_study(name, summary) for name, summary in found]
    page = render_page("front.html", "lmscale: all studies", lead=_lead(found), studies=studies)
    write_atomically(folder / "index.html", page)
    return folder / "index.html"


def _lead(found: Sequence[tuple[str, Summary]]) -> str:
    words = [v["word"] for _, summary in found for v in summary.verdicts]
    runs = sum(summary.runs for _, summary in found)
    seconds = sum(summary.seconds for _, summary in found)
    return (
        f"{plural(runs, 'run')} in {duration(seconds)} of training, held against the papers. "
        f"{tally(words)}"
    )


def _study(name: str, summary: Summary) -> dict[str, Any]:
    spent = f"{plural(summary.runs, 'run')} · {duration(summary.seconds)}"
    return {**vars(summary), "name": name, "spent": spent}

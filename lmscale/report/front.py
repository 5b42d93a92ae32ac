"""The front page of several stores: what each found and how its claims stand, linked to its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from etils import epath

from lmscale.files import DamagedError, read_json, write_atomically
from lmscale.report.page import render_page
from lmscale.terminal import say
from lmscale.wording import duration, plural

__all__ = ["write_front"]

#: What the page leans on of a summary.
_FIELDS = {"title": str, "finding": str, "runs": int, "seconds": float, "verdicts": list}


def write_front(folder: epath.PathLike) -> epath.Path | None:
    """Writes index.html over the reports of the stores in a folder, read from their summary.json.

    Returns:
      The path of the page; None where no store has a report yet.
    """
    folder = epath.Path(folder)
    found = []
    for store in sorted(folder.iterdir()):
        try:
            summary = read_json(store / "summary.json", _FIELDS) if store.is_dir() else None
        except DamagedError as error:
            say(f"{error}; `lmscale report {store}` writes it again")
            continue
        if summary:
            found.append((store.name, summary))
    if not found:
        return None
    found.sort(key=lambda item: (item[1]["title"], item[0]))
    studies = [_study(name, summary) for name, summary in found]
    page = render_page("front.html", "lmscale: all studies", lead=_lead(found), studies=studies)
    write_atomically(folder / "index.html", page)
    return folder / "index.html"


def _lead(found: Sequence[tuple[str, dict[str, Any]]]) -> str:
    words = Counter(v["word"] for _, summary in found for v in summary["verdicts"])
    claims = ", ".join(f"{words[word]} {word}" for word in ("agrees", "disagrees", "can't tell"))
    runs = sum(summary["runs"] for _, summary in found)
    seconds = sum(summary["seconds"] for _, summary in found)
    return (
        f"{plural(runs, 'run')} in {duration(seconds)} of training, held against "
        f"{plural(sum(words.values()), 'claim')} of the papers: {claims}."
    )


def _study(name: str, summary: dict[str, Any]) -> dict[str, Any]:
    spent = f"{plural(summary['runs'], 'run')} · {duration(summary['seconds'])}"
    return {**summary, "name": name, "spent": spent}

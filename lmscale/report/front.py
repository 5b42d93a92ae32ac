"""The front page of several stores: what each found and how its claims stand, linked to its report."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from typing import Any

from etils import epath

from lmscale.files import DamagedError, read_json, write_atomically
from lmscale.report.page import rich_text, verdict_class, verdict_mark, whole_page
from lmscale.report.wording import duration, plural
from lmscale.terminal import say

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
    write_atomically(folder / "index.html", whole_page("lmscale: all studies", _body(found)))
    return folder / "index.html"


def _body(found: Sequence[tuple[str, dict[str, Any]]]) -> str:
    words = Counter(v["word"] for _, summary in found for v in summary["verdicts"])
    claims = ", ".join(f"{words[word]} {word}" for word in ("agrees", "disagrees", "can't tell"))
    runs = sum(summary["runs"] for _, summary in found)
    seconds = sum(summary["seconds"] for _, summary in found)
    return "\n".join(
        [
            "<header>",
            '<p class="kicker">lmscale</p>',
            "<h1>All studies</h1>",
            (
                f'<p class="lead">{plural(runs, "run")} in {duration(seconds)} of training, held '
                f"against {plural(sum(words.values()), 'claim')} of the papers: "
                f"{html.escape(claims)}.</p>"
            ),
            "</header>",
            '<ul class="studies">',
            *[_study(name, summary) for name, summary in found],
            "</ul>",
        ]
    )


def _study(name: str, summary: dict[str, Any]) -> str:
    link = html.escape(f"{name}/report.html")
    figure = ""
    if summary["figure"]:
        source = html.escape(f"{name}/figures/{summary['figure']}.svg")
        figure = f'<a class="plate" href="{link}"><img src="{source}" alt="" loading="lazy"></a>'
    verdicts = "".join(
        f'<li class="{verdict_class(v["word"])}">'
        f'<span class="word">{verdict_mark(v["word"])}</span><p class="claim">'
        f"{rich_text(v['claim'])} <cite>{rich_text(v['source'])}</cite></p>"
        f'<p class="reason">{rich_text(v["found"])}</p></li>'
        for v in summary["verdicts"]
    )
    return (
        f'<li>{figure}<div><h2><a href="{link}">{rich_text(summary["title"])}</a></h2>'
        f'<p class="kicker">{html.escape(name)} · {plural(summary["runs"], "run")} · '
        f"{duration(summary['seconds'])} of training</p>"
        f"<p>{rich_text(summary['finding'])}</p>"
        + (f'<ul class="verdicts">{verdicts}</ul>' if verdicts else "")
        + "</div></li>"
    )

"""The pages about kept results, in Markdown: one for each experiment, and one that lists them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from lmscale.report.claims import WORDS, Verdict, tally
from lmscale.report.command import repeat_command
from lmscale.report.page import lead_section, rich_text
from lmscale.report.section import Chart, Section
from lmscale.report.summary import Summary
from lmscale.studies.results import Results
from lmscale.wording import duration, family_name, listed, plural, power_of_ten, si, statuses

__all__ = ["chosen_charts", "kept_index", "kept_page"]

#: Figures of a page.
_CHARTS = 3


def chosen_charts(sections: Sequence[Section]) -> list[Chart]:
    """The figures that matter most: the first of each section that answers its question, then others.

    Training curves come only where there is nothing else.
    """
    lead = lead_section(sections)
    ranked = sorted(sections, key=lambda s: (s is not lead, not s.conclusive, s.name == "curves"))
    drawn = [
        [chart for chart in section.charts if not chart.other_view_of]
        for section in ranked
        if section.name != "curves"
    ]
    rounds = zip_longest(*drawn)
    charts = [chart for one_each in rounds for chart in one_each if chart is not None]
    return (charts or [chart for section in ranked for chart in section.charts])[:_CHARTS]


def kept_page(
    name: str,
    results: Results,
    sections: Sequence[Section],
    verdicts: Sequence[Verdict],
    charts: Sequence[Chart],
    machine: str,
) -> str:
    """What was run, on what text and machine, when, the figures, the verdicts, the warnings, and how to repeat it."""
    lead = lead_section(sections)
    blocks = [f"# {_text(results.title)}"]
    if lead is not None:
        blocks.append(f"**{_text(lead.finding)}**")
    also = [section.finding for section in sections if section.conclusive and section is not lead]
    blocks += [_text(finding) for finding in also[:2]]
    blocks.append(_table(["", ""], _facts(results, machine)))
    blocks += [
        f"![{_alt(chart.alt)}]({chart.name}.svg)\n\n{_text(chart.caption)}" for chart in charts
    ]
    if verdicts:
        blocks += ["## What the papers say", _text(tally([v.word for v in verdicts]))]
        blocks.append(_table(["verdict", "claim", "these runs"], _verdict_rows(verdicts)))
    warnings = dict.fromkeys(text for section in sections for text in section.warnings)
    if warnings:
        blocks += ["## What to keep in mind", "\n".join(f"- {_text(text)}" for text in warnings)]
    blocks += ["## Repeat it", _repeat(name, results)]
    return "\n\n".join(blocks) + "\n"


def kept_index(found: Sequence[tuple[str, Summary]]) -> str:
    """The page over the kept experiments. Its text is the same for every folder of them."""
    runs = sum(summary.runs for _, summary in found)
    seconds = sum(summary.seconds for _, summary in found)
    words = [verdict["word"] for _, summary in found for verdict in summary.verdicts]
    rows = [
        [
            f"[{_text(summary.title)}]({name}/README.md) (`{name}`)",
            _text(summary.finding),
            _text(_short_tally(summary)),
        ]
        for name, summary in sorted(found, key=lambda one: (one[1].title, one[0]))
    ]
    blocks = [
        "# Results that can be fitted again",
        f"{plural(len(found), 'sweep')}, {plural(runs, 'run')}, {duration(seconds)} of training "
        f"summed over runs. {tally(words)}",
        "Each folder here holds the results of one finished experiment without its checkpoints. "
        "`lmscale report FOLDER` draws its figures and judges its claims again, `lmscale fit FOLDER` fits "
        "other laws, and `lmscale.load(FOLDER)` gives its tables; none of them trains. `lmscale keep` "
        "wrote these pages, and made every fit and verdict from both the full store and the kept one "
        "before it said that they are equal.",
        _table(["experiment", "what these runs found", "claims of the papers"], rows),
    ]
    return "\n\n".join(blocks) + "\n"


def _facts(results: Results, machine: str) -> list[list[str]]:
    experiment, table = results.experiment, results.table
    corpus, versions = experiment.get("corpus", {}), experiment.get("versions", {})
    done = table[table["status"] == "done"]
    families = listed([family_name(family) for family in results.families])
    facts = [["command", f"`{repeat_command(experiment)}`"]]
    facts += [["runs", f"{_text(statuses(table['status']))}: {_text(families)}"]]
    if len(done):
        n, tokens = done["params_kaplan"], done["tokens"]
        facts += [
            ["N, without embeddings", _span(si(n.min()), si(n.max()))],
            ["tokens", _span(si(tokens.min()), si(tokens.max()))],
            ["training FLOPs, exact", _text(power_of_ten(float(done["flops_exact"].sum())))],
        ]
    text = f"{corpus.get('name', 'unknown')}, {si(corpus.get('train_tokens', math.nan))} training tokens"
    text += f" of a vocabulary of {corpus.get('vocab_size', '–')}"
    facts.append(["text", f"{_text(text)}, fingerprint `{corpus.get('fingerprint', '–')}`"])
    devices = list(table["device"].dropna().unique()) if "device" in table else []
    facts.append(["machine", _text(", ".join(filter(None, [machine, *devices])) or "not recorded")])
    facts.append(["time", f"{duration(float(table['seconds'].sum()))}, summed over runs"])
    if when := _last_change(results):
        facts.append(["finished", when])
    used = ", ".join(f"{name} {versions[name]}" for name in ("lmscale", "jax") if name in versions)
    commit = str(experiment.get("git_commit") or "")[:12]
    facts.append(["program", _text(used) + (f", commit `{commit}`" if commit else "")])
    return facts


def _last_change(results: Results) -> str:
    """The day on which the last run ended."""
    if results.store is None:
        return ""
    dates = [str(run.status().get("updated") or "") for run, _ in results.store.declared()]
    return max(dates, default="")[:10]


def _verdict_rows(verdicts: Sequence[Verdict]) -> list[list[str]]:
    order = list(WORDS)
    return [
        [
            f"**{_text(verdict.word)}**",
            f"{_text(verdict.claim.text)} ({_text(verdict.claim.source)})",
            _text(f"{verdict.found} {verdict.reason}".strip()),
        ]
        for verdict in sorted(verdicts, key=lambda one: order.index(one.word))
    ]


def _repeat(name: str, results: Results) -> str:
    command = repeat_command(results.experiment)
    seconds = duration(float(results.table["seconds"].sum()))
    return (
        f"In the folder above, from the kept results, without training:\n\n```\nlmscale report {name}\n"
        f"```\n\nFrom the start, {seconds} of training summed over runs:\n\n```\n{command}\n```\n\n"
        "The text is that of the machine that trains unless `--data` names a corpus, so losses differ "
        "with it."
    )


def _short_tally(summary: Summary) -> str:
    words = [verdict["word"] for verdict in summary.verdicts]
    return ", ".join(f"{words.count(word)} {word}" for word in WORDS if word in words) or "none"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _text(value: Any) -> str:
    """Text from a store, which may hold anything, as Markdown says it, in one line."""
    safe = re.sub(r"([\\`*_\[\]|])", r"\\\1", str(rich_text(value)))
    return " ".join(safe.split())


def _alt(text: str) -> str:
    return re.sub(r"[\[\]\n]", " ", text)

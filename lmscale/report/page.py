"""The page: one file of HTML that needs nothing else, in light, in dark and on paper."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from importlib import resources
from string import Template
from typing import Any

import pandas as pd

from lmscale.report import style
from lmscale.report.checklist import checklist
from lmscale.report.claims import Verdict
from lmscale.report.section import Chart, Grid, KeyNumber, Section
from lmscale.report.study import Study, repeated_text
from lmscale.report.wording import (
    count,
    duration,
    family_name,
    listed,
    number,
    plural,
    power_of_ten,
    si,
    statuses,
)

__all__ = ["lead_section", "page", "rich_text", "verdict_class", "verdict_mark", "whole_page"]

#: What each convention counts, in two lines.
_CONVENTIONS = {
    "kaplan": "N counts the weight matrices without embeddings and head; C = 6ND. Neither counts "
    "the vocabulary, which dominates small models (Kaplan et al. 2020).",
    "chinchilla": "N counts the vocabulary's matrices too; C adds up the matrix products, attention "
    "and vocabulary forward, times three (Hoffmann et al. 2022, App. F).",
    "standard": "N counts the head but not the input embedding, so every parameter that a token is "
    "multiplied with; C = 6ND, without attention scores (Porian et al. 2024).",
    "exact": "N counts every stored scalar; C counts every operation, forward and backward, as the "
    "program computes it.",
}


def page(study: Study, sections: Sequence[Section], verdicts: Sequence[Verdict]) -> str:
    """The whole report as HTML."""
    title, lead = study.title, lead_section(sections)
    body = "\n".join(
        [
            _head(study, sections, verdicts, title, lead),
            *[_section(section, section is lead) for section in sections],
            _runs(study),
            _made(study),
            _anchor("checklist", "Checklist", _grid(checklist(study, sections))),
        ]
    )
    return whole_page(title, body)


def whole_page(title: str, body: str) -> str:
    """A file of HTML that loads nothing from elsewhere and runs no script but its own.

    Args:
      title: text.
      body: HTML.
    """
    files = resources.files("lmscale.report")
    template = (files / "page.html").read_text()
    script = template.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(template).substitute(
        script_digest=f"sha256-{digest}",
        page_title=rich_text(title),
        light=style.css_colours(dark=False),
        dark=style.css_colours(dark=True),
        css=(files / "page.css").read_text(),
        body=body,
    )


def lead_section(sections: Sequence[Section]) -> Section | None:
    """The section whose finding heads the page: the first that answers its question."""
    return next((s for s in sections if s.conclusive), sections[0] if sections else None)


# --- pieces -------------------------------------------------------------------------------------


def rich_text(value: Any) -> str:
    """Escaped; N_opt, k_N, N ∝ C^0.5, N^α and T^−c set with sub- and superscripts."""
    text = html.escape(str(value), quote=False)
    text = re.sub(r"\b([A-Zkα-ω])_(opt|c|min|crit|[A-Z])\b", r"<i>\1</i><sub>\2</sub>", text)
    text = re.sub(r"\b([NDCTLBS])(?=\^| [∝=]|\()", r"<i>\1</i>", text)
    text = re.sub(r"\^(−?(?:[\d.]*\d|[abcαβ]\b))", r"<sup>\1</sup>", text)
    return _powers(text)


def _powers(text: str) -> str:
    """10¹² with a true superscript: few fonts have all the digits."""
    digits = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789−", strict=True))
    return re.sub(
        "[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+",
        lambda match: f"<sup>{''.join(digits[c] for c in match.group())}</sup>",
        text,
    )


def _plain(value: Any) -> str:
    return html.escape(str(value))


def _anchor(name: str, title: str, *content: str) -> str:
    name = _plain(name)
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">\n'
        f'<h2 id="{name}-title">{rich_text(title)}</h2>\n' + "\n".join(content) + "\n</section>"
    )


def _head(
    study: Study,
    sections: Sequence[Section],
    verdicts: Sequence[Verdict],
    title: str,
    lead: Section | None,
) -> str:
    experiment = study.experiment
    finding = lead.finding if lead else "No analysis is declared for this experiment."
    numbers = [n for section in sections for n in section.key_numbers] + _run_numbers(study)
    links = [(s.name, s.title) for s in sections]
    links += [("runs", "All runs"), ("made", "How it was made"), ("checklist", "Checklist")]
    warnings = [w for w in (_unfinished(study), repeated_text(study)) if w]
    return "\n".join(
        [
            "<header>",
            (
                f'<p class="kicker">lmscale · {_plain(experiment.get("name", ""))} · '
                f"{_plain(experiment.get('scale', ''))} scale</p>"
            ),
            f"<h1>{rich_text(title)}</h1>",
            f'<p class="lead">{rich_text(finding)}</p>',
            _warnings(warnings),
            '<dl class="numbers">',
            *[_key_number(n) for n in numbers],
            "</dl>",
            _verdicts(verdicts),
            "<nav>"
            + "".join(f'<a href="#{_plain(a)}">{rich_text(b)}</a>' for a, b in links)
            + "</nav>",
            "</header>",
        ]
    )


#: A mark beside the word, so that colour is not alone in telling the verdicts apart.
_MARKS = {"agrees": "✓", "disagrees": "✗", "can't tell": "?"}


def verdict_mark(word: str) -> str:
    """A verdict's word with its mark."""
    return f'<span aria-hidden="true">{_MARKS.get(word, "?")}</span> {_plain(word)}'


def verdict_class(word: str) -> str:
    """A verdict's word as a class of the style sheet."""
    return _plain(word.replace("'", "").replace(" ", "-"))


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return ""
    items = []
    for verdict in verdicts:
        found = f"{verdict.found} " if verdict.found else ""
        items.append(
            f'<li class="{verdict_class(verdict.word)}"><span class="word">{verdict_mark(verdict.word)}</span>'
            f'<p class="claim">{rich_text(verdict.claim.text)} '
            f"<cite>{rich_text(verdict.claim.source)}</cite></p>"
            f'<p class="reason">{rich_text(found + verdict.reason)}</p></li>'
        )
    return (
        '<section id="claims" aria-labelledby="claims-title"><h2 id="claims-title">What the paper '
        f'claims, and what these runs say</h2><ul class="verdicts">{"".join(items)}</ul></section>'
    )


def _unfinished(study: Study) -> str:
    if not len(study.table):
        return "This experiment declares no runs."
    waiting = study.table[study.table["status"].isin(["pending", "running", "preempted"])]
    if not len(waiting):
        return ""
    return (
        f"The experiment is not finished: {statuses(waiting['status'])} of {plural(len(study.table), 'run')}. "
        f"What follows is drawn from the rest."
    )


def _run_numbers(study: Study) -> list[KeyNumber]:
    if not len(study.table):
        return []
    table = study.table
    done = table[table["status"] == "done"]
    numbers = [
        KeyNumber(
            label="runs trained to the end",
            value=count(len(done)),
            interval=f"of {len(table):,}",
        )
    ]
    if len(done):
        best = done.loc[done["loss"].idxmin()]
        bits = best["bits_per_byte"]
        numbers.append(
            KeyNumber(
                label=f"lowest loss, {family_name(best['family'])} of {si(best['params_kaplan'])}, "
                f"nats per token",
                value=f"{best['loss']:.3f}",
                interval=f"{bits:.3f} bits per byte" if math.isfinite(bits) else "",
            )
        )
        numbers.append(
            KeyNumber(
                label="training FLOPs spent (exact)",
                value=power_of_ten(float(done["flops_exact"].sum())),
                interval=f"{duration(float(table['seconds'].sum()))} of runs",
            )
        )
    return numbers


def _key_number(item: KeyNumber) -> str:
    return (
        f'<div><dt>{rich_text(item.label)}</dt><dd class="value">{rich_text(item.value)}</dd>'
        f'<dd class="interval">{_plain(item.interval)}</dd></div>'
    )


def _section(section: Section, is_lead: bool) -> str:
    return _anchor(
        section.name,
        section.title,
        *([] if is_lead else [f'<p class="finding">{rich_text(section.finding)}</p>']),
        *[_figure(chart) for chart in section.charts],
        *[f"<p>{rich_text(paragraph)}</p>" for paragraph in section.details],
        *[_grid(grid) for grid in section.grids],
        _warnings(section.warnings),
    )


def _figure(chart: Chart) -> str:
    svg = style.inline(chart).replace(
        "<svg", f'<svg role="img" aria-label="{_plain(chart.alt)}"', 1
    )
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg).group(1))
    # 72 points an inch; 1.4 makes 8-point labels as large as the caption.
    svg = svg.replace(
        "<svg", f'<svg style="width:{min(1080, width * 1.4):.0f}px;max-width:100%"', 1
    )
    stem = f"figures/{chart.name}"
    return (
        f'<figure id="figure-{chart.name}">\n<div class="plate">{svg}</div>\n'
        f"<figcaption>{rich_text(chart.caption)} "
        f'<span class="files"><a href="{stem}.png">PNG</a> <a href="{stem}.svg">SVG</a></span>'
        f"</figcaption>\n</figure>"
    )


def _warnings(warnings: Iterable[str]) -> str:
    unique = list(dict.fromkeys(warnings))
    if not unique:
        return ""
    items = "".join(f"<li>{rich_text(warning)}</li>" for warning in unique)
    return f'<ul class="warnings" aria-label="Warnings">{items}</ul>'


def _grid(grid: Grid) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        parts = []
        for index, cell in enumerate(row):
            kind = ' class="n"' if index in grid.numeric else ""
            scope = ' scope="col"' if tag == "th" else ""
            parts.append(f"<{tag}{kind}{scope}>{rich_text(cell)}</{tag}>")
        return "<tr>" + "".join(parts) + "</tr>"

    rows = "\n".join(cells("td", row) for row in grid.rows)
    return (
        f'<div class="sheet" tabindex="0" role="group"><table><caption>{rich_text(grid.caption)}'
        f"</caption>\n<thead>{cells('th', grid.header)}</thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


# --- runs ---------------------------------------------------------------------------------------

#: heading, flush right, sort value, shown text.
_COLUMNS = (
    ("status", False, lambda r: r["status"], None),
    ("family", False, lambda r: family_name(r["family"]), None),
    ("layers × width", True, lambda r: r["width"], lambda r: f"{r['n_layer']} × {r['width']}"),
    ("N", True, lambda r: r["params_kaplan"], lambda r: si(r["params_kaplan"])),
    ("budget", True, lambda r: r.get("budget"), lambda r: power_of_ten(r.get("budget"), 3)),
    ("tokens", True, lambda r: r["tokens"], lambda r: si(r["tokens"])),
    (
        "FLOPs (exact)",
        True,
        lambda r: r["flops_exact"],
        lambda r: power_of_ten(r["flops_exact"], 3),
    ),
    ("peak LR", True, lambda r: r["peak_lr"], lambda r: f"{r['peak_lr']:.2g}"),
    ("seed", True, lambda r: r["seed"], lambda r: str(r["seed"])),
    ("loss", True, lambda r: r["loss"], lambda r: _fixed(r["loss"])),
    ("bits/byte", True, lambda r: r["bits_per_byte"], lambda r: _fixed(r["bits_per_byte"])),
    ("time", True, lambda r: r["seconds"], lambda r: duration(r["seconds"])),
)


def _fixed(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "–"


def _runs(study: Study) -> str:
    table = study.table
    if not len(table):
        damage = _warnings(study.damage_warnings())
        return _anchor("runs", "All runs", "<p>None.</p>", damage)
    columns = [c for c in _COLUMNS if c[0] != "budget" or "budget" in table]
    head = "".join(
        f'<th scope="col"{" class=n" if right else ""}><button type="button">{name}</button></th>'
        for name, right, _, _ in columns
    )
    place = table["family"].map({name: i for i, name in enumerate(study.families)})
    order = ["place", *(["budget"] if "budget" in table else []), "params_kaplan", "seed"]
    ordered = table.assign(place=place).sort_values(order, kind="stable")
    rows = [_run(row, columns) for _, row in ordered.iterrows()]
    return _anchor(
        "runs",
        "All runs",
        f"<p>{plural(len(table), 'run')}: {statuses(table['status'])}. N counts no embeddings. Grey rows were set "
        f"aside for a better learning rate in the same cell, or have not ended well. Click a heading "
        f"to sort.</p>",
        f"<p>{study.spikes_sentence()}</p>" if study.spikes_sentence() else "",
        _warnings(study.damage_warnings()),
        '<div class="sheet tall" tabindex="0" role="group" aria-label="All runs">'
        f'<table class="sortable"><thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>",
    )


def _run(row: pd.Series, columns: Sequence[tuple]) -> str:
    cells = []
    for name, right, value, shown in columns:
        raw = value(row)
        missing = raw is None or (isinstance(raw, float) and not math.isfinite(raw))
        data = "" if missing else _plain(raw)
        if name == "status":
            text = f'<span class="chip {_plain(raw)}">{_plain(str(raw).replace("_", " "))}</span>'
            if isinstance(row["reason"], str) and row["reason"]:
                text += f' <span class="reason">{_plain(row["reason"])}</span>'
        else:
            text = _powers(_plain(shown(row) if shown else raw))
        cells.append(f'<td{" class=n" if right else ""} data-value="{data}">{text}</td>')
    aside = "" if row["best_lr"] else ' class="set-aside"'
    return f'<tr{aside} title="{_plain(row["run"])}">' + "".join(cells) + "</tr>"


# --- how it was made ----------------------------------------------------------------------------


def _made(study: Study) -> str:
    experiment = study.experiment
    corpus = experiment.get("corpus", {})
    command = experiment.get("command") or (
        f"lmscale run {experiment.get('name')} --scale {experiment.get('scale')}"
    )
    if isinstance(command, (list, tuple)):
        command = shlex.join(command)
    shown = f"<code>{_plain(command)}</code>"
    if "command" not in experiment:
        shown += ", with the fields declared below"
    facts = [("command", shown)]
    if corpus:
        text = f"{_plain(corpus.get('name'))}, {si(corpus.get('train_tokens'))} training tokens"
        text += f" of a vocabulary of {_plain(corpus.get('vocab_size'))}"
        if corpus.get("bytes_per_token"):
            text += f", {number(corpus['bytes_per_token'])} bytes per token"
        text += f", fingerprint <code>{_plain(corpus.get('fingerprint'))}</code>"
        facts.append(("corpus", text))
    bits = study.bits_per_nat
    facts.append(
        (
            "loss",
            "mean cross-entropy on held-out text, in nats per token"
            + (
                f" (set “{_plain(study.eval_name)}”; 1 nat per token is {number(bits, 4)} bits per byte)"
                if bits
                else ""
            ),
        )
    )
    if "device" in study.table:
        devices = study.table["device"].dropna().value_counts()
        if len(devices):
            facts.append(("device", _plain(listed(list(devices.index)))))
    versions = experiment.get("versions", {})
    facts.append(("versions", _plain(", ".join(f"{k} {v}" for k, v in versions.items()))))
    commit = experiment.get("git_commit")
    facts.append(("git commit", f"<code>{_plain(commit)}</code>" if commit else "not a checkout"))
    fields = experiment.get("fields", {})
    if fields:
        shown = "; ".join(f"{k} = {_field(v)}" for k, v in fields.items())
        facts.append(("declared", rich_text(shown)))
    rows = "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in facts)
    conventions = "".join(f"<dt>{k}</dt><dd>{_plain(v)}</dd>" for k, v in _CONVENTIONS.items())
    return _anchor(
        "made",
        "How it was made",
        f'<dl class="made">{rows}</dl>',
        "<p>Four conventions of counting parameters N and training FLOPs C:</p>",
        f'<dl class="made">{conventions}</dl>',
    )


def _field(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(_field(item) for item in value) + ")"
    if isinstance(value, float) and abs(value) >= 1e6:
        return power_of_ten(value, 3)
    return str(value)

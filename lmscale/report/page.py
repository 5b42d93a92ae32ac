"""The page: one file of HTML that needs nothing else, in light, in dark and on paper.

Its shape is in `templates/`, which escape whatever they are given; this module says what goes in.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from lmscale.report import caveats, style
from lmscale.report.checklist import checklist
from lmscale.report.claims import Verdict, grouped, tally
from lmscale.report.section import Chart, KeyNumber, Section
from lmscale.studies.results import WAITING, Results
from lmscale.sweep.own_code import code_in_words
from lmscale.wording import (
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

__all__ = ["lead_section", "page", "render_page", "rich_text"]

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

#: Pixels of a figure that fits a phone of 390.
_PHONE = 336


def page(
    results: Results,
    sections: Sequence[Section],
    verdicts: Sequence[Verdict],
    *,
    reload_seconds: float | None = None,
) -> str:
    """The whole report as HTML.

    Args:
      reload_seconds: after which the page loads itself again, at the place where it is read.
    """
    lead = lead_section(sections)
    links = [(section.name, section.title) for section in sections]
    links += [("runs", "All runs"), ("made", "How it was made"), ("checklist", "Checklist")]
    return render_page(
        "report.html",
        results.title,
        experiment=results.experiment,
        reload_seconds=reload_seconds,
        finding=lead.finding if lead else "No analysis is declared for this experiment.",
        warnings=[w for w in (_unfinished(results), caveats.repeated_text(results)) if w],
        numbers=[n for section in sections for n in section.key_numbers] + _run_numbers(results),
        also=[s.finding for s in sections if s.conclusive and s is not lead][:2],
        tally=tally([verdict.word for verdict in verdicts]),
        verdicts=grouped(verdicts),
        links=links,
        sections=sections,
        lead=lead,
        runs=_runs(results),
        facts=_facts(results),
        conventions=_CONVENTIONS,
        checklist=checklist(results, sections),
    )


def render_page(template: str, title: str, **values: Any) -> str:
    """A file of HTML that loads nothing from elsewhere and runs no script but its own.

    Args:
      template: name of a file in `templates/` that extends page.html. It escapes the values.
    """
    files = resources.files("lmscale.report") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files / name).read_text()),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "rich": rich_text,
        "powers": _powers,
        "drawing": _drawing,
        "frame": _frame,
    }
    script = "\n" + (files / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shell = {
        "script": Markup(script),
        "digest": f"sha256-{digest}",
        "light": Markup(style.css_colours(dark=False)),
        "dark": Markup(style.css_colours(dark=True)),
        "css": Markup((files / "page.css").read_text()),
    }
    return environment.get_template(template).render(title=title, shell=shell, **values)


def lead_section(sections: Sequence[Section]) -> Section | None:
    """The section whose finding heads the page: the first that answers its question.

    Where none does it is the first that has a finding, and a failure only where there is nothing else.
    """
    ranked = sorted(sections, key=lambda s: (not s.conclusive, bool(s.failure)))
    return ranked[0] if ranked else None


# --- text ---------------------------------------------------------------------------------------


def rich_text(value: Any) -> Markup:
    """Escaped; N_opt, k_N, N ∝ C^0.5, N^α and T^−c set with sub- and superscripts."""
    text = html.escape(str(value), quote=False)
    text = re.sub(r"\b([A-Zkα-ω])_(opt|c|min|crit|[A-Z])\b", r"<i>\1</i><sub>\2</sub>", text)
    text = re.sub(r"\b([NDCTLBS])(?=\^| [∝=]|\()", r"<i>\1</i>", text)
    text = re.sub(r"\^-(?=\d)", "^−", text)
    text = re.sub(r"\^(−?(?:[\d.]*\d|[abcαβ]\b))", r"<sup>\1</sup>", text)
    return _powers(Markup(text))


def _powers(text: str) -> Markup:
    """10¹² with a true superscript: few fonts have all the digits."""
    text = str(Markup.escape(text))
    digits = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789−", strict=True))
    return Markup(
        re.sub(
            "[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+",
            lambda match: f"<sup>{''.join(digits[c] for c in match.group())}</sup>",
            text,
        )
    )


def _drawing(chart: Chart) -> Markup:
    """A chart's SVG, named for blind readers and as large as its own type asks for."""
    size = f"--own:{_own_width(chart):.0f}px"
    named = f'<svg style="{size}" role="img" aria-label="{html.escape(chart.alt)}"'
    return Markup(style.inline(chart).replace("<svg", named, 1))


def _own_width(chart: Chart) -> float:
    """Pixels at which 8-point labels are as large as the caption; 72 points are an inch."""
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', chart.svg).group(1))
    return min(1080, 1.4 * width)


def _frame(chart: Chart) -> Markup:
    """The attributes of a chart's frame, which a keyboard reaches where its points have notes, or where a phone
    shows a part of it."""
    wide = " wide" if _own_width(chart) > _PHONE else ""
    attributes = Markup(' class="plate{}"').format(wide)
    if any(chart.notes.values()):
        label = f"{chart.alt} Arrow keys step through its points."
        role = ' tabindex="0" role="application" aria-roledescription="figure" aria-label="{}"'
        attributes += Markup(role).format(label)
    elif wide:
        attributes += Markup(' tabindex="0" role="group" aria-label="Figure"')
    return attributes


# --- head ---------------------------------------------------------------------------------------


def _unfinished(results: Results) -> str:
    if not len(results.table):
        return "This experiment declares no runs."
    waiting = results.table[results.table["status"].isin(WAITING)]
    if not len(waiting):
        return ""
    return (
        f"The experiment is not finished: {statuses(waiting['status'])} of {plural(len(results.table), 'run')}. "
        f"What follows is drawn from the rest."
    )


def _run_numbers(results: Results) -> list[KeyNumber]:
    if not len(results.table):
        return []
    table = results.table
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


# --- runs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """A column of the table of runs: what it is sorted by, and what it shows where that differs."""

    heading: str
    value: Callable[[Any], Any]
    show: Callable[[Any], str] | None = None
    numeric: bool = True

    def sort_value(self, row: Any) -> Any:
        raw = self.value(row)
        missing = raw is None or (isinstance(raw, float) and not math.isfinite(raw))
        return "" if missing else raw

    def shown(self, row: Any) -> str:
        return str(self.show(row) if self.show else self.value(row))


def _fixed(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "–"


_COLUMNS = (
    _Column("status", lambda r: r["status"], numeric=False),
    _Column("family", lambda r: family_name(r["family"]), numeric=False),
    _Column("layers × width", lambda r: r["width"], lambda r: f"{r['n_layer']} × {r['width']}"),
    _Column("N", lambda r: r["params_kaplan"], lambda r: si(r["params_kaplan"])),
    _Column("budget", lambda r: r.get("budget"), lambda r: power_of_ten(r.get("budget"), 3)),
    _Column("tokens", lambda r: r["tokens"], lambda r: si(r["tokens"])),
    _Column(
        "FLOPs (exact)", lambda r: r["flops_exact"], lambda r: power_of_ten(r["flops_exact"], 3)
    ),
    _Column("peak LR", lambda r: r["peak_lr"], lambda r: f"{r['peak_lr']:.2g}"),
    _Column("seed", lambda r: r["seed"]),
    _Column("loss", lambda r: r["loss"], lambda r: _fixed(r["loss"])),
    _Column("bits/byte", lambda r: r["bits_per_byte"], lambda r: _fixed(r["bits_per_byte"])),
    _Column("time", lambda r: r["seconds"], lambda r: duration(r["seconds"])),
)


def _runs(results: Results) -> dict[str, Any]:
    """What the template shows of every run."""
    table, damage = results.table, caveats.damaged_files(results)
    if not len(table):
        return {"summary": "None.", "spikes": "", "damage": damage, "rows": []}
    place = table["family"].map({name: i for i, name in enumerate(results.families)})
    order = ["place", *(["budget"] if "budget" in table else []), "params_kaplan", "seed"]
    ordered = table.assign(place=place).sort_values(order, kind="stable")
    return {
        "summary": f"{plural(len(table), 'run')}: {statuses(table['status'])}. N counts no "
        "embeddings. Grey rows were set aside for a better learning rate in the same cell, or have "
        "not ended well. Click a heading to sort.",
        "spikes": caveats.spikes(results),
        "damage": damage,
        "columns": [c for c in _COLUMNS if c.heading != "budget" or "budget" in table],
        "rows": [
            {
                "run": row["run"],
                "status": row["status"],
                "reason": row["reason"] if isinstance(row["reason"], str) else "",
                "set_aside": not row["best_lr"],
                "of": row,
            }
            for _, row in ordered.iterrows()
        ],
    }


# --- how it was made ----------------------------------------------------------------------------


def _facts(results: Results) -> list[tuple[str, Any]]:
    """What the runs were made with: name, and text or `Markup`."""
    experiment, corpus = results.experiment, results.experiment.get("corpus", {})
    command = experiment.get("command") or (
        f"lmscale run {experiment.get('name')} --scale {experiment.get('scale')}"
    )
    if isinstance(command, (list, tuple)):
        command = shlex.join(command)
    code = Markup("<code>{}</code>")
    rest = "" if "command" in experiment else ", with the fields declared below"
    facts = [("command", code.format(command) + rest)]
    if corpus:
        text = f"{corpus.get('name')}, {si(corpus.get('train_tokens'))} training tokens"
        text += f" of a vocabulary of {corpus.get('vocab_size')}"
        if corpus.get("bytes_per_token"):
            text += f", {number(corpus['bytes_per_token'])} bytes per token"
        facts.append(("corpus", f"{text}, fingerprint " + code.format(corpus.get("fingerprint"))))
    text, bits = "mean cross-entropy on held-out text, in nats per token", results.bits_per_nat
    if bits:
        text += f" (set “{results.eval_name}”; 1 nat per token is {number(bits, 4)} bits per byte)"
    facts.append(("loss", text))
    if "device" in results.table:
        devices = results.table["device"].dropna().value_counts()
        if len(devices):
            facts.append(("device", listed(list(devices.index))))
    versions = experiment.get("versions", {})
    facts.append(("versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    commit = experiment.get("git_commit")
    facts.append(("git commit", code.format(commit) if commit else "not a checkout"))
    if own := code_in_words(experiment):
        facts.append(("own files", code.format(own)))
    fields = experiment.get("fields", {})
    if fields:
        shown = "; ".join(f"{k} = {_field(v)}" for k, v in fields.items())
        facts.append(("declared", rich_text(shown)))
    return facts


def _field(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(_field(item) for item in value) + ")"
    if isinstance(value, float) and abs(value) >= 1e6:
        return power_of_ten(value, 3)
    return str(value)

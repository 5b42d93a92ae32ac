"""The declaration of a store: comparing two, naming a folder after one, extending one.

A store has one declaration: an experiment at a scale with its fields, on one corpus. Other fields are
another folder, or an extension that a user asks for (`--extend`), which adds runs and takes none away.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmscale.data import Corpus
from lmscale.sweep.experiment import Experiment, Run

__all__ = [
    "Declaration",
    "default_folder",
    "differences",
    "extended",
    "is_declaration",
    "recorded_declarations",
    "refusal",
]

#: The default corpus.
DEFAULT_CORPUS = "installed-python"
#: Most characters of the part of a folder's name that lists overrides, and of its hash.
_LONGEST, _DIGITS = 80, 8
#: How many differences, and how many values of a list, a message shows.
_NAMED, _VALUES = 6, 8
#: Fields of all experiments that stores of earlier versions lack, with what their runs did.
_EARLIER = {"mask_documents": False, "recipe": []}
#: Lists that are no axes of a grid, and numbers that only select which cells are trained. Runs that
#: differ in any other field (batch size, context) may not be joined: a fit would treat them as alike.
_NO_AXES = ("critical_batch", "eval_corpora", "d_embed", "recipe")
_GRID = ("sizes_per_budget", "tokens_per_param", "spread", "swept_budget")


@dataclass(frozen=True)
class Declaration:
    """What determines the runs of a store. `fields` are as JSON has them."""

    name: str
    scale: str
    fields: dict[str, Any]
    corpus: str
    fingerprint: str
    runs: tuple[dict[str, Any], ...]

    @classmethod
    def of(
        cls, name: str, scale: str, experiment: Experiment, corpus: Corpus, runs: Sequence[Run]
    ) -> Declaration:
        entries = [{"run": run.spec.run_id, "labels": run.labels} for run in runs]
        return cls(
            name,
            scale,
            _as_json(vars(experiment)),
            corpus.name,
            corpus.fingerprint,
            tuple(_as_json(entries)),
        )

    @property
    def run_ids(self) -> set[str]:
        return {entry["run"] for entry in self.runs}

    def record(self, command: str) -> dict[str, Any]:
        """The declaration as experiment.json keeps it, beside the union of all runs."""
        return {
            "scale": self.scale,
            "command": command,
            "fields": self.fields,
            "runs": sorted(self.run_ids),
        }


def _as_json(values: Any) -> Any:
    return json.loads(json.dumps(values, allow_nan=False))


def recorded_declarations(recorded: dict[str, Any]) -> list[Declaration]:
    """The declarations in an experiment.json, oldest first: one, or several after extensions."""
    entries = recorded["runs"]
    parts = recorded.get("declarations") or [
        {**recorded, "runs": [entry["run"] for entry in entries]}
    ]
    found = []
    for part in parts:
        own = set(part["runs"])
        found.append(
            Declaration(
                recorded["name"],
                part["scale"],
                _EARLIER | part.get("fields", {}),
                recorded["corpus"]["name"],
                recorded["corpus"]["fingerprint"],
                tuple(entry for entry in entries if entry["run"] in own),
            )
        )
    return found


def is_declaration(recorded: dict[str, Any]) -> bool:
    """Whether an experiment.json holds the fields that declarations are compared by."""

    def lists_runs(entries: Any) -> bool:
        return all(
            isinstance(entry, dict)
            and isinstance(entry.get("run"), str)
            and isinstance(entry.get("labels"), dict)
            for entry in entries
        )

    def is_part(part: Any) -> bool:
        return (
            isinstance(part, dict)
            and isinstance(part.get("scale"), str)
            and isinstance(part.get("fields"), dict)
            and isinstance(part.get("runs"), list)
            and all(isinstance(run, str) for run in part["runs"])
        )

    corpus, parts = recorded["corpus"], recorded.get("declarations", [])
    return (
        all(isinstance(corpus.get(name), str) for name in ("name", "fingerprint"))
        and isinstance(recorded.get("fields", {}), dict)
        and lists_runs(recorded["runs"])
        and isinstance(parts, list)
        and all(map(is_part, parts))
    )


def differences(there: Declaration, here: Declaration) -> list[str]:
    """The differences of two declarations, a phrase each: "budgets: 2e9 1e10 there, 3e9 here".

    A field that only one of them has is one that this version of an experiment added or dropped: it
    counts where the runs differ.
    """

    def say(what: str, theirs: Any, ours: Any) -> str:
        return f"{what}: {_shown(theirs)} there, {_shown(ours)} here"

    found = [
        say(what, theirs, ours)
        for what, theirs, ours in (
            ("experiment", there.name, here.name),
            ("scale", there.scale, here.scale),
            ("corpus", there.corpus, here.corpus),
            ("fingerprint of the corpus", there.fingerprint, here.fingerprint),
        )
        if theirs != ours
    ]
    if there.name == here.name:
        found += [
            say(name, there.fields[name], value)
            for name, value in here.fields.items()
            if name in there.fields and there.fields[name] != value
        ]
    if found or there.run_ids == here.run_ids:
        return found
    for name in sorted(set(there.fields) ^ set(here.fields)):
        theirs, ours = (fields.get(name, "absent") for fields in (there.fields, here.fields))
        found.append(say(name, theirs, ours))
    gone, new = len(there.run_ids - here.run_ids), len(here.run_ids - there.run_ids)
    found.append(
        f"runs: {gone} there that this version of {here.name} does not declare, {new} that only it does"
    )
    return found


def refusal(path: Any, there: Sequence[Declaration], here: Declaration, extend: bool) -> str | None:
    """Why a store with these declarations refuses another one, in a line; None if it accepts it."""
    each = [differences(one, here) for one in there]
    if not all(each):
        return None
    nearest = min(each, key=len)
    said = "; ".join(nearest[:_NAMED])
    if len(nearest) > _NAMED:
        said += f" and {len(nearest) - _NAMED} more"
    holds = f"{path} holds another declaration ({said})"
    first = there[0]
    if (first.name, first.corpus, first.fingerprint) != (here.name, here.corpus, here.fingerprint):
        return f"{holds}: give another --out"
    apart = ["scale"] * (first.scale != here.scale) + [
        name
        for name, value in here.fields.items()
        if value != first.fields.get(name, value) and not _joins(name, value)
    ]
    if apart:
        return (
            f"{holds}: runs of another {' and '.join(apart[:_NAMED])} cannot be fitted with those, so "
            "give another --out"
        )
    if extend:
        return None
    return f"{holds}: give another --out, or --extend to add these runs to those"


def _joins(field: str, value: Any) -> bool:
    """Whether runs with different values of a field belong to one grid."""
    return (isinstance(value, list) and field not in _NO_AXES) or field in _GRID


def extended(
    recorded: dict[str, Any], there: Sequence[Declaration], here: Declaration, command: str
) -> dict[str, Any]:
    """The parts of experiment.json that an accepted declaration changes.

    A declaration that the store has already changes nothing. Of a run that both
    declare, labels stay as they were, and those that only the new one has are added; where the two
    give a label different numbers (a run of two budgets) it has an entry for each.
    """
    if not all(differences(one, here) for one in there):
        # A later version may have more fields and labels.
        own = {"fields": {**recorded.get("fields", {}), **here.fields}, "runs": list(here.runs)}
        joined = ("fields", "runs", "declarations")
        return {k: recorded[k] for k in joined} if "declarations" in recorded else own
    old_parts = recorded.get("declarations")
    if not old_parts:
        old_parts = [there[0].record(recorded.get("command", ""))]
    return {
        "fields": _joined(recorded.get("fields", {}), here.fields),
        "runs": _union(recorded["runs"], here.runs),
        "declarations": [*old_parts, here.record(command)],
    }


def _joined(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """The fields of both: lists are joined, other fields keep their first value."""
    joined = {**theirs, **ours}
    for name, value in theirs.items():
        if isinstance(joined[name], list) and isinstance(value, list) and _joins(name, value):
            joined[name] = joined[name] + [item for item in value if item not in joined[name]]
    return joined


def _union(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    entries = [{"run": entry["run"], "labels": dict(entry["labels"])} for entry in ours]
    known: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        known.setdefault(entry["run"], []).append(entry["labels"])
    for entry in theirs:
        for labels in known.get(entry["run"], []):
            if not any(_differ(labels.get(k, v), v) for k, v in entry["labels"].items()):
                _add_labels(labels, entry["labels"])
                break
        else:
            entries.append(entry)
    return entries


def _differ(ours: Any, theirs: Any) -> bool:
    return not isinstance(ours, str) and ours != theirs


def _add_labels(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Adds new labels. Of a text that holds a list ("a; b") it adds the new members."""
    for name, value in theirs.items():
        if isinstance(ours.get(name), str) and isinstance(value, str):
            members = dict.fromkeys([*ours[name].split("; "), *value.split("; ")])
            ours[name] = "; ".join(members)
        else:
            ours.setdefault(name, value)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        more = f" and {len(value) - _VALUES} more" if len(value) > _VALUES else ""
        return (" ".join(map(_shown, value[:_VALUES])) or "none") + more
    if isinstance(value, bool) or value is None:
        return "none" if value is None else str(value)
    return _number(value) if isinstance(value, (int, float)) else str(value)


def _number(value: float) -> str:
    """The shortest text of a number, without the plus sign and leading zeros of an exponent."""
    for text in (f"{value:g}", repr(value)):
        if float(text) == value:
            return re.sub(r"e([+-])0*", lambda m: "e" + m[1].strip("+"), text)
    return repr(value)


# --- The folder's name ----------------------------------------------------------------------------


def default_folder(
    name: str, scale: str, experiment: Experiment, shipped: Experiment, corpus: str
) -> str:
    """NAME-SCALE, and what the user overrode: "isoflop-cpu-budgets-3e9-1e10".

    The name is safe in a shell, bounded in length, independent of the order of the options, and different
    for different declarations. Where the words would be too long or ambiguous, a hash is added.

    Args:
      experiment: with the user's overrides.
      shipped: as the experiment's file declares it.
      corpus: that it is trained on.
    """
    overrides: dict[str, Any] = {}
    if corpus != DEFAULT_CORPUS:
        overrides["data"] = corpus
    for field in dataclasses.fields(experiment):
        value = getattr(experiment, field.name)
        if value != getattr(shipped, field.name):
            overrides[field.name] = value
    if not overrides:
        return f"{name}-{scale}"
    names = {"data", *vars(experiment)}
    words = [_words(field, value, names) for field, value in overrides.items()]
    slug = "-".join(text for text, _ in words)
    if len(slug) > _LONGEST or not all(sure for _, sure in words):
        content = json.dumps(_as_json(overrides), sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:_DIGITS]
        slug = f"{slug[:_LONGEST].rstrip('-.')}-{digest}"
    return f"{name}-{scale}-{slug}"


def _words(field: str, value: Any, names: set[str]) -> tuple[str, bool]:
    """A field and its values as a part of a folder's name, and whether that part is unambiguous.

    Numbers are unambiguous, and so are plain words that are not names of fields. A word (the name of a
    corpus) may hold dashes, as long as no name of a field follows one.
    """
    values = value if isinstance(value, tuple) else (value,)
    said, sure = [field], bool(values)
    for item in values:
        if item is None or isinstance(item, (int, float)):
            said.append(_shown(item))
            continue
        said.append(re.sub(r"[^a-zA-Z0-9_.]+", "-", item).strip("-.")[:_LONGEST])
        plain = re.fullmatch(r"[a-z][a-z0-9_.]*(-[a-z0-9_.]+)*", item, re.ASCII)
        alone = "-" not in item or len(values) == 1
        sure &= bool(plain) and alone and item != "none" and names.isdisjoint(item.split("-"))
    return "-".join(word for word in said if word), sure

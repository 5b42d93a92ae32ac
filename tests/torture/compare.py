"""Whether two stores of one experiment hold the same results, to the bit."""

from __future__ import annotations

import csv
import json
from pathlib import Path

#: What depends on the clock: of a record of metrics.jsonl, a row of results.csv, a status.json.
CLOCK = {
    "metrics": {"tokens_per_second"},
    "table": {"seconds"},
    "status": {"seconds", "updated"},
}


def differences(found: Path, reference: Path) -> list[str]:
    """A line for everything in `found` that is not as in `reference`.

    result.json, fits.json: the bytes. metrics.jsonl, results.csv: all but the numbers of `CLOCK`, so
    also that every step was logged once. status.json: status, reason and step.
    """
    runs = {path.name for path in (reference / "runs").iterdir()}
    ours = {path.name for path in (found / "runs").iterdir()}
    wrong = [f"{name}: is no run of the reference" for name in sorted(ours - runs)]
    wrong += [f"{name}: is missing" for name in sorted(runs - ours)]
    for run in sorted(runs & ours):
        a, b = found / "runs" / run, reference / "runs" / run
        if _bytes(a / "result.json") != _bytes(b / "result.json"):
            wrong.append(f"{run}: result.json differs")
        wrong += [f"{run}: {line}" for line in _metrics(a, b)]
        if _status(a) != _status(b):
            wrong.append(f"{run}: status.json says {_status(a)}, not {_status(b)}")
    if _bytes(found / "fits.json") != _bytes(reference / "fits.json"):
        wrong.append("fits.json differs")
    if _table(found) != _table(reference):
        wrong.append("results.csv differs")
    return wrong


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _metrics(a: Path, b: Path) -> list[str]:
    ours, theirs = _records(a), _records(b)
    if ours == theirs:
        return []
    steps = [(record.get("step"), "eval" in record) for record in ours]
    wanted = [(record.get("step"), "eval" in record) for record in theirs]
    if steps != wanted:
        twice = sorted({step for step in steps if steps.count(step) > 1})
        lost = sorted(set(wanted) - set(steps))
        return [f"metrics.jsonl: (step, evaluation) twice: {twice}; lost: {lost}"]
    step = next(x["step"] for x, y in zip(ours, theirs, strict=True) if x != y)
    return [f"metrics.jsonl differs at step {step}"]


def _records(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    records = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            record = {"step": None, "damaged": line}
        records.append({k: v for k, v in record.items() if k not in CLOCK["metrics"]})
    return records


def _status(folder: Path) -> dict:
    values = json.loads((folder / "status.json").read_text())
    return {name: values.get(name) for name in ("status", "reason", "step", "steps")}


def _table(store: Path) -> list[dict[str, str]]:
    with (store / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in CLOCK["table"]} for row in rows]

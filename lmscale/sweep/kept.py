"""The results of a finished store in one small file, kept.json.xz, without checkpoints.

It holds what studies read of every run: its spec, its status, its result, and its records of metrics.jsonl
in columns. A folder with experiment.json and this file is read like any other store, so that figures, fits
and verdicts can be made again without training. Left out are what can be counted again from the spec
(parameters and operations), gradient norms and speeds, losses by window of evaluations during training, and
the losses by position and window of all evaluation sets but the first. Losses by position during training are
kept where a study reads them.
"""

from __future__ import annotations

import json
import lzma
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from lmscale.files import LARGEST_JSON, DamagedError, check_fields, parse_json, read_bytes, seal
from lmscale.spec import RunSpec, SpecError
from lmscale.training.run_folder import RunFolder

__all__ = ["KEPT", "KeptRun", "pack", "read_kept"]

#: Name of the file.
KEPT = "kept.json.xz"
_FORMAT = 1
_REMEDY = "`lmscale keep` writes it again from the full store"
#: What is kept of a record of metrics.jsonl.
_OF_RECORDS = (
    "step",
    "tokens",
    "flops",
    "loss",
    "lr",
    "steps_averaged",
    "grad_squared",
    "piece_grad_squared",
    "eval",
)
#: What is not kept of a result, because it is counted from the spec or read from the records.
_COUNTED = ("run", "params", "operations", "evaluations")
#: Significant digits of a learning rate where curves are rounded.
_RATE_DIGITS = 4


class KeptRun(RunFolder):
    """A run whose files are in memory. It is read like a folder and cannot be trained."""

    def __init__(self, path: epath.PathLike, spec: RunSpec, files: Mapping[str, bytes]):
        super().__init__(path, spec)
        self._files = dict(files)

    def content(self, name: str) -> bytes | None:
        return self._files.get(name)

    def eval_names(self) -> list[str]:
        names = [name for name in self._files if name.startswith("evals/")]
        return sorted(name.removeprefix("evals/").removesuffix(".json") for name in names)


def pack(folders: Sequence[RunFolder], decimals: int | None, positions: bool = False) -> bytes:
    """The content of kept.json.xz.

    Args:
      folders: runs that have ended, or failed.
      decimals: to which training losses between evaluations are rounded, and learning rates to four digits;
        None keeps them exactly. Results and evaluations are always exact.
      positions: whether to keep the losses by position of evaluations during training.
    """
    runs = {folder.path.name: _packed(folder, decimals, positions) for folder in folders}
    text = json.dumps(seal({"format": _FORMAT, "runs": runs}), separators=(",", ":"))
    return lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)


def read_kept(folder: epath.Path) -> dict[str, KeptRun] | None:
    """The runs in a folder's kept.json.xz by name; None where there is no such file.

    Raises:
      DamagedError: when it does not hold what was written.
    """
    path = folder / KEPT
    data = read_bytes(path)
    if data is None:
        return None
    try:
        text = lzma.LZMADecompressor().decompress(data, LARGEST_JSON + 1)
    except lzma.LZMAError:
        raise DamagedError(path, "it cannot be decompressed", _REMEDY) from None
    values = parse_json(text, path, {"format": int, "runs": dict}, _REMEDY)
    if values["format"] != _FORMAT:
        raise DamagedError(path, f"this version does not read its format {values['format']}")
    runs = {}
    for name, packed in values["runs"].items():
        place = folder / "runs" / name
        try:
            spec, files = _unpacked(name, packed)
        except (SpecError, TypeError, KeyError, AttributeError, ValueError, OverflowError) as error:
            raise DamagedError(path, f"its run {name!r:.80} is none ({error})", _REMEDY) from error
        if spec.run_id != name:
            raise DamagedError(path, f"its run {name!r:.80} has the spec of {spec.run_id}", _REMEDY)
        runs[name] = KeptRun(place, spec, files)
    return runs


def _packed(folder: RunFolder, decimals: int | None, positions: bool) -> dict[str, Any]:
    status, result = folder.state()
    status = {name: value for name, value in status.items() if name != "digests"}
    kept_sets = [evaluation.name for evaluation in folder.spec.evals[:1] if positions]
    records = [
        {name: _short_eval(record[name], kept_sets) for name in _OF_RECORDS if name in record}
        for record in folder.metrics()
    ]
    if decimals is not None:
        records = _rounded(records, decimals)
    scored = {
        name: {"evaluation": found["evaluation"], "scores": _losses(found["scores"])}
        for name, found in folder.evals().items()
    }
    return {
        "spec": folder.spec.to_dict(),
        "status": status,
        "result": None if result is None else _short_result(result),
        "records": _in_columns(records),
        "evals": scored,
        "damage": folder.damage_notes(),
    }


def _short_result(result: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in result.items() if name not in _COUNTED}
    first = next(iter(result.get("losses", {})), None)
    for name in ("loss_by_position", "loss_by_window"):
        if name in result:
            kept[name] = {key: value for key, value in result[name].items() if key == first}
    if "loss_by_position" in kept:
        kept["loss_by_position"] = {k: _column(v) for k, v in kept["loss_by_position"].items()}
    return kept


def _unpacked(name: str, packed: Mapping[str, Any]) -> tuple[RunSpec, dict[str, bytes]]:
    """The spec of a run, and its other files."""
    check_fields(packed, name, {"spec": dict, "status": dict, "records": dict})
    records = [_long_eval(record) for record in _in_rows(packed["records"])]
    files = {
        "status.json": _json(packed["status"]),
        "metrics.jsonl": b"".join(_json(record) + b"\n" for record in records),
    }
    if packed["result"] is not None:
        result = dict(packed["result"])
        if "loss_by_position" in result:
            result["loss_by_position"] = {
                key: _values(column, []) for key, column in result["loss_by_position"].items()
            }
        result["evaluations"] = [record for record in records if "eval" in record]
        files["result.json"] = _json(result)
    for key, found in packed.get("evals", {}).items():
        files[f"evals/{key}.json"] = _json(found)
    if packed.get("damage"):
        files["damage.log"] = ("\n".join(packed["damage"]) + "\n").encode()
    return RunSpec.from_dict(packed["spec"]), files


def _json(values: Any) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()


def _short_eval(value: Any, by_position: Sequence[str]) -> Any:
    """An evaluation's losses by set, those by position of the sets that are named, none by window; other values
    as they are."""
    if not isinstance(value, Mapping):
        return value
    short = {name: _losses(scores) for name, scores in value.items()}
    for name in by_position:
        if "by_position" in value.get(name, {}):
            short[name]["by_position"] = _column(value[name]["by_position"])
    return short


def _long_eval(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the lists of its losses by position, where `_short_eval` has kept them."""
    for scores in record.get("eval", {}).values():
        if "by_position" in scores:
            scores["by_position"] = _values(scores["by_position"], [])
    return record


def _losses(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {name: scores[name] for name in ("loss", "bits_per_byte") if name in scores}


def _rounded(records: Sequence[dict[str, Any]], decimals: int) -> list[dict[str, Any]]:
    """Records with rounded training losses, and learning rates cut to a few digits.

    The highest rate stays as it is and no other one is rounded up, so that the end of the warmup stays
    where it is.
    """
    peak = max((record["lr"] for record in records if record.get("lr") is not None), default=0.0)
    found = []
    for record in records:
        record = dict(record)
        if record.get("loss") is not None:
            record["loss"] = round(record["loss"], decimals)
        if record.get("lr") is not None and record["lr"] < peak:
            record["lr"] = _cut(record["lr"], _RATE_DIGITS)
        found.append(record)
    return found


def _cut(value: float, digits: int) -> float:
    """A number of 0 or more without its digits after the first few."""
    if value <= 0:
        return value
    places = digits - 1 - math.floor(math.log10(value))
    cut = round(math.floor(value * 10**places) / 10**places, places)
    return cut if cut <= value else value


# --- records in columns ------------------------------------------------------------------------


def _in_columns(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Records as columns, which are smaller; records with the same names make one table.

    {"order": [table of each record], "tables": [{name: column}]}
    """
    kinds = list(dict.fromkeys(tuple(record) for record in records))
    tables = []
    for names in kinds:
        mine = [record for record in records if tuple(record) == names]
        steps = [record["step"] for record in mine]
        table = {"step": _differences(steps)}
        for name in names:
            if name != "step":
                table[name] = _column([record[name] for record in mine], steps)
        # The order of names is that of the records.
        tables.append({name: table[name] for name in names})
    return {"order": [kinds.index(tuple(record)) for record in records], "tables": tables}


def _in_rows(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of `_in_columns`."""
    waiting = []
    for table in columns["tables"]:
        steps = np.cumsum(table["step"]).tolist()
        values = [steps if n == "step" else _values(c, steps) for n, c in table.items()]
        names = list(table)
        waiting.append(
            iter([dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)])
        )
    return [next(waiting[kind]) for kind in columns["order"]]


def _differences(values: Sequence[int]) -> list[int]:
    return [b - a for a, b in zip([0, *values], values, strict=False)]


def _column(values: Sequence[Any], steps: Sequence[int] = ()) -> Any:
    """The shortest of the forms that `_values` reads back as exactly these values.

    Tokens and FLOPs are linear in the step; losses by position are float32.
    """
    if values and len(steps) == len(values) and all(type(v) in (int, float) for v in values):
        form = {"first": values[0], "slope": _slope(values, steps)}
        if _same(_values(form, steps), values):
            return form
    if values and all(type(value) is float for value in values):
        form = {"float32": [float(str(np.float32(value))) for value in values]}
        if _same(_values(form, steps), values):
            return form
    return list(values)


def _values(column: Any, steps: Sequence[int]) -> list[Any]:
    """The values of a column."""
    if isinstance(column, list):
        return column
    if "float32" in column:
        return [float(np.float32(value)) for value in column["float32"]]
    first, slope = column["first"], column["slope"]
    return [first + (step - steps[0]) * slope for step in steps]


def _slope(values: Sequence[float], steps: Sequence[int]) -> float:
    rise, run = values[-1] - values[0], steps[-1] - steps[0]
    if not run:
        return 0
    return rise // run if isinstance(rise, int) and rise % run == 0 else rise / run


def _same(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """Whether numbers are equal, and of equal types."""
    return [(type(v), v) for v in ours] == [(type(v), v) for v in theirs]

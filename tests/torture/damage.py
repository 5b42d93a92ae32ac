"""Damage to a store and its corpus at rest: truncated files and flipped bits, as a bad disk or a crash leaves them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

#: Kind -> the files that it strikes, of a folder that holds a store and a data folder.
DAMAGE = {
    "checkpoint": "store/runs/*/checkpoints/*/**/*",
    "branch": "store/runs/*/branches/*/**/*",
    "metrics": "store/runs/*/metrics.jsonl",
    "result": "store/runs/*/result.json",
    "status": "store/runs/*/status.json",
    "spec": "store/runs/*/spec.json",
    "experiment": "store/experiment.json",
    "corpus": "data/tiny/*",
}
#: Of the files of a kind, only so many of the newest are struck.
NEWEST = 8


@dataclass(frozen=True)
class Blow:
    """What was done to a file."""

    path: Path
    how: str

    def __str__(self) -> str:
        return f"{self.how} of {self.path}"


def strike(folder: Path, kind: str, rng: random.Random) -> Blow | None:
    """Damages one of the newest files of a kind; None where there is none."""
    files = [path for path in folder.glob(DAMAGE[kind]) if path.is_file() and path.stat().st_size]
    if not files:
        return None
    files.sort(key=lambda path: path.stat().st_mtime_ns)
    path = rng.choice(files[-NEWEST:])
    data = bytearray(path.read_bytes())
    how = rng.choice(("truncation", "flipped bit", "missing file"))
    if how == "missing file":
        path.unlink()
    elif how == "truncation":
        length = rng.randrange(len(data))
        how = f"truncation to {length} bytes"
        path.write_bytes(data[:length])
    else:
        place, bit = rng.randrange(len(data)), rng.randrange(8)
        how = f"flipped bit {bit} at {place}"
        data[place] ^= 1 << bit
        path.write_bytes(data)
    return Blow(path, how)

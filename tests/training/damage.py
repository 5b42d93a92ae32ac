"""Damage to files, at random places: what disks, copies and killed programs leave behind."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path


def flip(path: Path, other: Path, rng: random.Random) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, other: Path, rng: random.Random) -> None:
    """The end is lost."""
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def zero(path: Path, other: Path, rng: random.Random) -> None:
    """A block of zeros, as after a crash of the machine."""
    data = bytearray(path.read_bytes())
    begin = rng.randrange(len(data))
    end = min(len(data), begin + rng.randint(1, 512))
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)


def delete(path: Path, other: Path, rng: random.Random) -> None:
    path.unlink()


def empty(path: Path, other: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def swap(path: Path, other: Path, rng: random.Random) -> None:
    """The same file of another run."""
    shutil.copyfile(other, path)


def digit(path: Path, other: Path, rng: random.Random) -> None:
    """A digit of a text file, changed to another."""
    data = bytearray(path.read_bytes())
    places = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
    place = rng.choice(places)
    data[place] = ord(rng.choice([c for c in "0123456789" if c != chr(data[place])]))
    path.write_bytes(data)


Damage = Callable[[Path, Path, random.Random], None]
KINDS: dict[str, Damage] = {
    kind.__name__: kind for kind in (flip, truncate, zero, delete, empty, swap)
}

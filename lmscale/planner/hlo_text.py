"""How XLA writes one instruction of a compiled program: its parts, shapes, numbers and groups of devices.

The text is not a stable interface. What is written in an unknown way raises AttributeError, IndexError,
KeyError, TypeError or ValueError; `lmscale.planner.hlo` names it and goes on.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

#: Bytes of an element whose kind does not name its bits.
_WIDTHS = {"pred": 1, "token": 0, "opaque": 0}


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      shape: of its result, with layouts, such as "f32[8,128]{1,0}"; of a tuple in brackets.
      operands: their names.
      rest: what follows the operands; of a constant or a parameter it begins with its value or number.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str

    def called(self, *attributes: str) -> str:
        """The computation that the first of these attributes names that the instruction has.

        Raises:
          ValueError: when it has none of them.
        """
        for attribute in attributes:
            if found := re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest):
                return found[1]
        raise ValueError(f"{self.opcode} {self.name} has no {' or '.join(attributes)}")


def parse_instruction(line: str) -> Instruction | None:
    """The instruction of a line, or None where the line has none."""
    head = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    start = head.end()
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    shape = line[start:end]
    call = re.match(r"\s*([\w\-]+)\(", line[end:])
    if not call:
        return None
    opened = end + call.end() - 1
    closed = _closing(line, opened)
    inside = line[opened + 1 : closed - 1]
    # A constant's value stands where operands would.
    operands = () if call[1] in ("constant", "parameter") else _operands(inside)
    rest = line[closed:]
    if call[1] in ("constant", "parameter"):
        rest = f"({inside}){rest}"
    return Instruction(head[1], shape, call[1], operands, rest)


def _operands(inside: str) -> tuple[str, ...]:
    """Names of operands. Some versions of XLA write the shape before each."""
    if "%" in inside:
        return tuple(re.findall(r"%([\w.\-]+)", inside))
    parts = (part.strip().rsplit(" ", 1)[-1] for part in inside.split(","))
    return tuple(part for part in parts if part)


def _closing(text: str, start: int) -> int:
    """The place after the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if not depth:
                return place + 1
    return len(text)


def number_of(constant: Instruction) -> int | None:
    """The value of an integer constant; None for any other."""
    found = re.match(r"\((-?\d+)\)", constant.rest)
    return int(found[1]) if found else None


def parameter_of(instruction: Instruction) -> int:
    """Which of its computation's parameters it is."""
    number = number_of(instruction)
    if number is None:
        raise ValueError(f"a parameter without a number: {instruction.name} {instruction.rest}")
    return number


def bytes_of(shape: str, main: bool = False) -> int:
    """Bytes of an array or of all arrays of a tuple; with `main` only of those in main memory."""
    total = 0.0
    for kind, sizes, layout in re.findall(r"([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?", shape):
        if main and re.search(r"S\([1-9]", layout):
            continue
        width: float | None = _WIDTHS.get(kind)
        if width is None:
            bits = re.search(r"\d+", kind)
            width = int(bits[0]) / 8 if bits else 0
        total += math.prod(int(size) for size in sizes.split(",") if size) * width
    return int(total)


def result_of(instruction: Instruction, kind: str) -> str:
    """The shape of a collective's result, without the operands that an asynchronous one repeats."""
    if not instruction.opcode.endswith("-start") or kind == "all-reduce":
        return instruction.shape
    parts, depth, start = [], 0, 1
    for place, char in enumerate(instruction.shape):
        depth += (char in "({[") - (char in ")}]")
        if (char == "," and depth == 1) or depth == 0:
            parts.append(instruction.shape[start:place].strip())
            start = place + 1
    # (operands, results, ...)
    return parts[1] if len(parts) > 1 else instruction.shape


def device_groups(instruction: Instruction) -> np.ndarray:
    """Devices that exchange with each other, [groups, devices]."""
    rest = instruction.rest
    if re.search(r"source_target_pairs=\{\s*\}", rest):
        # Nobody sends: XLA leaves such a permutation in place of one within a single device.
        return np.array([[0]])
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", rest)
    if pairs:
        found = re.findall(r"\{(\d+),(\d+)", pairs[1] + "}")
        return np.array([[int(a), int(b)] for a, b in found if a != b] or [[0]])
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota:
        shape, sizes = ([int(size) for size in iota[i].split(",")] for i in (1, 2))
        order = [int(axis) for axis in iota[3].split(",")] if iota[3] else list(range(len(sizes)))
        return np.arange(math.prod(sizes)).reshape(sizes).transpose(order).reshape(shape)
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](.*?) \{([^}]*)\}", rest)
    if mesh:
        axes = re.findall(r"'([^']+)'=(\d+)", mesh[1])
        sizes = [int(size) for _, size in axes]
        chosen = re.findall(r"'([^']+)'", mesh[3])
        names = [name for name, _ in axes]
        order = [i for i, n in enumerate(names) if n not in chosen]
        order += [names.index(n) for n in chosen]
        each = math.prod(sizes[names.index(n)] for n in chosen)
        return np.arange(math.prod(sizes)).reshape(sizes).transpose(order).reshape(-1, each)
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", rest)
    if listed:
        rows = re.findall(r"\{([\d,]+)\}", listed[1])
        return np.array([[int(i) for i in row.split(",")] for row in rows])
    # Without groups it is over all devices, whose number is not known here.
    raise ValueError(f"a collective without groups: {instruction.opcode} {rest[:200]}")

"""Collectives and memory traffic of a compiled program, read from its text (HLO after XLA's passes).

XLA's own cost analysis counts the body of a loop once. Here a loop's body counts as often as it
runs: as the compiler noted it, or by the loop's counter, bound and step. A loop whose bound is not in
the program counts once. In a train program that is the loop over its steps, so the counts are those
of one step.

The text is not a stable interface. An instruction that cannot be read is left out of the counts and
named in `Program.unknown`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lmscale.planner.hlo_text import (
    Instruction,
    bytes_of,
    device_groups,
    number_of,
    parameter_of,
    parse_instruction,
    result_of,
)

#: Bytes that each of g devices sends on a ring, by kind of collective, from the bytes of the result.
_SENT = {
    "all-gather": lambda size, g: size * (g - 1) / g,
    "reduce-scatter": lambda size, g: size * (g - 1),
    "all-reduce": lambda size, g: 2 * size * (g - 1) / g,
    "all-to-all": lambda size, g: size * (g - 1) / g,
    "ragged-all-to-all": lambda size, g: size * (g - 1) / g,
    "collective-permute": lambda size, g: size,
    "collective-broadcast": lambda size, g: size,
}
#: Instructions that move nothing.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("while", "call", "conditional", "async-start", "async-update", "async-done", "domain"),
    *("partition-id", "replica-id", "optimization-barrier", "add-dependency"),
}
#: Numbers that a block of XLA's sort on a GPU holds (`kTileSize` in its emitter).
_SORT_TILE = 2048
#: What reading an instruction raises that is written in another way than the ones that are known.
_UNREADABLE = (AttributeError, IndexError, KeyError, TypeError, ValueError)
#: Instructions that read a part of their first operand: as much as their result holds.
_SLICES = {"slice", "dynamic-slice", "gather"}


@dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: such as "all-gather", also where it is asynchronous.
      result: its result on a device, as HLO writes it.
      sent: bytes that a device sends on a ring each time.
      times: how often it runs.
      n_devices: in a group.
      span: from the first to the last device of a group, counting both: shows whether the group
        extends beyond a host.
      scope: the model's operation that it belongs to, as JAX names it.
    """

    kind: str
    result: str
    sent: float
    times: int
    n_devices: int
    span: int
    scope: str

    @property
    def total(self) -> float:
        """Bytes that a device sends in all."""
        return self.sent * self.times


class Program:
    """The computations of a compiled program, and how often each runs.

    Attributes:
      runs: computation -> how often it runs. Fused computations and a reduction's are not listed.
      unknown: instructions that could not be read, as "opcode name": without order or repetition, for
        all that was asked of the program so far. They are missing in the counts.
    """

    def __init__(self, text: str):
        self._unknown: dict[str, None] = {}
        self._computations: dict[str, dict[str, Instruction]] = {}
        self._roots: dict[str, Instruction] = {}
        self._entry = ""
        self._parse(text)
        self.runs: dict[str, int] = {}
        self._visit(self._entry, 1)

    @property
    def unknown(self) -> tuple[str, ...]:
        return tuple(self._unknown)

    def _read_or(self, otherwise: Any, what: str, read: Callable[[], Any]) -> Any:
        """What `read` returns; where it cannot be read, that is noted as `unknown`."""
        try:
            return read()
        except _UNREADABLE:
            self._unknown[what] = None
            return otherwise

    def _parse(self, text: str) -> None:
        current: dict[str, Instruction] | None = None
        name = ""
        for line in text.split("\n"):
            if current is None:
                header = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
                if header and not line.startswith("HloModule"):
                    name, current = header[2], {}
                    self._computations[name] = current
                    self._entry = name if header[1] else self._entry
            elif line == "}":
                # Notes on a kernel may take several lines, and some of them begin with a brace.
                current = None
            elif instruction := self._read_or(
                None, f"line {line.strip()[:40]}", functools.partial(parse_instruction, line)
            ):
                current[instruction.name] = instruction
                if line.lstrip().startswith("ROOT "):
                    self._roots[name] = instruction

    def _visit(self, name: str, times: int) -> None:
        if name not in self._computations:
            self._unknown[f"computation {name}"] = None
            return
        self.runs[name] = self.runs.get(name, 0) + times
        for instruction in self._computations[name].values():
            if instruction.opcode == "while":
                trips = self._read_or(
                    1, _name(instruction), functools.partial(self._trips, name, instruction)
                )
                self._visit_called(instruction, times * trips, "body")
            elif instruction.opcode == "conditional":
                # One branch runs. Which one costs most is not known, so the first is counted.
                branches = re.search(r"branch_computations=\{%?([\w.\-]+)", instruction.rest)
                if branches:
                    self._visit(branches[1], times)
                else:
                    self._visit_called(instruction, times, "true_computation")
            elif instruction.opcode in ("call", "async-start"):
                self._visit_called(instruction, times, "to_apply", "calls")

    def _visit_called(self, instruction: Instruction, times: int, *attributes: str) -> None:
        what = f"computation without a name, of {_name(instruction)}"
        called = self._read_or(None, what, functools.partial(instruction.called, *attributes))
        if called is not None:
            self._visit(called, times)

    def executed(self) -> Iterator[tuple[Instruction, str, int]]:
        """Every instruction that runs by itself, its computation, and how often it runs."""
        for name, times in self.runs.items():
            for instruction in self._computations[name].values():
                yield instruction, name, times

    def kernels(self) -> int:
        """Instructions that a device is told to run one by one: launches, on a GPU."""
        return sum(
            times * self._launches(instruction)
            for instruction, _, times in self.executed()
            if _runs(instruction)
        )

    def _launches(self, instruction: Instruction) -> int:
        """Kernels of an instruction: one, or those of a sort, of which each moves all that is sorted."""
        read = functools.partial(self._sorted, instruction)
        length = self._read_or(None, _name(instruction), read)
        return 1 if length is None else sort_kernels(length)

    def _sorted(self, instruction: Instruction) -> int | None:
        """How many numbers a sort puts in order; None where an instruction is not one."""
        if instruction.opcode == "fusion":
            root = self._roots[instruction.called("calls")]
            return self._sorted(root) if root.opcode == "sort" else None
        if instruction.opcode != "sort":
            return None
        (dimension,) = re.findall(r"dimensions=\{(\d+)\}", instruction.rest)
        shape = re.search(r"\[([\d,]+)\]", instruction.shape)
        if shape is None:
            raise ValueError(f"sort {instruction.name} of {instruction.shape}")
        return int(shape[1].split(",")[int(dimension)])

    # --- loops ---

    def _trips(self, caller: str, loop: Instruction) -> int:
        """How often a loop's body runs; 1 where the program does not say."""
        known = re.search(r'known_trip_count"?:\{"n":"?(\d+)', loop.rest)
        if known:
            return int(known[1])
        condition, body = loop.called("condition"), loop.called("body")
        test = self._root_of(condition)
        if test is None or test.opcode != "compare" or "direction=LT" not in test.rest:
            return 1
        index = self._state_index(condition, test.operands[0])
        bound = self._invariant(condition, test.operands[1], caller, loop)
        if index is None or bound is None:
            return 1
        first = self._initial(caller, loop, index)
        update = self._roots[body]
        step = self._step(body, update.operands[index], index)
        if first is None or not step:
            return 1
        return max(0, math.ceil((bound - first) / step))

    def _root_of(self, computation: str) -> Instruction | None:
        """The root of a computation, behind copies and bitcasts."""
        root = self._roots.get(computation)
        while root is not None and root.opcode in ("copy", "bitcast"):
            root = self._computations[computation].get(root.operands[0])
        return root

    def _state_index(self, computation: str, name: str) -> int | None:
        """Which part of the loop's state a value is."""
        instruction = self._look(computation, name)
        if instruction is None or instruction.opcode != "get-tuple-element":
            return None
        if index := re.search(r"index=(\d+)", instruction.rest):
            return int(index[1])
        raise ValueError(f"{instruction.opcode} {instruction.name} has no index")

    def _look(self, computation: str, name: str) -> Instruction | None:
        instruction = self._computations[computation].get(name)
        while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert"):
            instruction = self._computations[computation].get(instruction.operands[0])
        return instruction

    def _invariant(self, computation: str, name: str, caller: str, loop: Instruction) -> int | None:
        """A constant in a loop's condition, also where the loop's state carries it unchanged."""
        instruction = self._look(computation, name)
        if instruction is not None and instruction.opcode == "constant":
            return number_of(instruction)
        index = self._state_index(computation, name)
        if index is None:
            return None
        body = loop.called("body")
        if self._state_index(body, self._roots[body].operands[index]) != index:
            return None
        return self._initial(caller, loop, index)

    def _initial(self, caller: str, loop: Instruction, index: int) -> int | None:
        """The value of a part of a loop's state before the loop, if that is a constant."""
        state = self._look(caller, loop.operands[0])
        if state is None or state.opcode != "tuple":
            return None
        value = self._look(caller, state.operands[index])
        return number_of(value) if value is not None and value.opcode == "constant" else None

    def _step(self, computation: str, name: str, index: int) -> int | None:
        """By how much a loop's body advances a part of its state."""
        instruction = self._look(computation, name)
        if instruction is None:
            return None
        if instruction.opcode == "get-tuple-element":
            same = self._state_index(computation, name) == index
            source = self._computations[computation].get(instruction.operands[0])
            return 0 if same and source is not None and source.opcode == "parameter" else None
        if instruction.opcode == "fusion" and len(instruction.operands) <= 2:
            return self._fused_step(computation, instruction, index)
        if instruction.opcode != "add":
            return None
        parts = [self._look(computation, operand) for operand in instruction.operands]
        constants = [p for p in parts if p is not None and p.opcode == "constant"]
        others = [
            operand
            for operand, part in zip(instruction.operands, parts, strict=True)
            if part is None or part.opcode != "constant"
        ]
        if len(constants) != 1:
            return None
        before, added = self._step(computation, others[0], index), number_of(constants[0])
        return None if before is None or added is None else before + added

    def _fused_step(self, computation: str, fusion: Instruction, index: int) -> int | None:
        """`_step` where the addition is fused."""
        called = fusion.called("calls")
        total = 0
        instruction: Instruction | None = self._roots[called]
        while instruction is not None and instruction.opcode == "add":
            parts = [self._look(called, operand) for operand in instruction.operands]
            constant = next((p for p in parts if p is not None and p.opcode == "constant"), None)
            added = None if constant is None else number_of(constant)
            if added is None:
                return None
            total += added
            instruction = next((p for p in parts if p is not constant), None)
        if instruction is None or instruction.opcode != "parameter":
            return None
        before = self._step(computation, fusion.operands[parameter_of(instruction)], index)
        return None if before is None else before + total

    # --- traffic ---

    def hbm_bytes(self) -> float:
        """Bytes that a device reads and writes in its main memory.

        Each operand of a fused operation counts once. An operand that is only sliced counts as its
        slices, and one that is updated in place as the update. Arrays that the compiler keeps on the
        chip do not count.
        """
        total = 0.0
        for instruction, name, times in self.executed():
            if not _runs(instruction):
                continue
            read = functools.partial(self._hbm_bytes, name, instruction)
            size = self._read_or(0.0, _name(instruction), read)
            total += times * self._launches(instruction) * size
        return total

    def _hbm_bytes(self, computation: str, instruction: Instruction) -> float:
        local = self._computations[computation]
        size: float = bytes_of(instruction.shape, main=True)
        if instruction.opcode in _SLICES:
            return 2 * size
        if instruction.opcode == "dynamic-update-slice":
            return 2 * bytes_of(local[instruction.operands[1]].shape, main=True)
        if instruction.opcode.endswith("-start"):
            # The result of an asynchronous start repeats the operands.
            return size
        if '"AllocateBuffer"' in instruction.rest:
            return 0.0
        if instruction.opcode == "fusion":
            called = instruction.called("calls")
            if size:
                size = self._written(called, self._roots[called])
            for inner in self._computations[called].values():
                if inner.opcode == "parameter":
                    operand = local.get(instruction.operands[parameter_of(inner)])
                    whole = 0 if operand is None else bytes_of(operand.shape, main=True)
                    size += min(whole, self._read(called, inner.name))
            return size
        operands = {operand for operand in instruction.operands if operand in local}
        return size + sum(bytes_of(local[operand].shape, main=True) for operand in operands)

    def _written(self, computation: str, output: Instruction) -> float:
        """Bytes of a fused computation's output; of an output updated in place, the update's."""
        local = self._computations[computation]
        if output.opcode == "tuple":
            return sum(self._written(computation, local[name]) for name in output.operands)
        if output.opcode == "bitcast":
            return self._written(computation, local[output.operands[0]])
        if output.opcode == "dynamic-update-slice":
            return bytes_of(local[output.operands[1]].shape)
        if output.opcode == "fusion":
            called = output.called("calls")
            return self._written(called, self._roots[called])
        return 0.0 if output.opcode == "parameter" else bytes_of(output.shape)

    def _read(self, computation: str, name: str) -> float:
        """Bytes that a fused computation reads of a value, counted once for each reader."""
        total = 0.0
        for user in self._users(computation).get(name, ()):
            if user.opcode in ("bitcast", "get-tuple-element"):
                total += self._read(computation, user.name)
            elif user.opcode == "fusion":
                called = user.called("calls")
                for inner in self._computations[called].values():
                    if inner.opcode == "parameter" and user.operands[parameter_of(inner)] == name:
                        total += self._read(called, inner.name)
            elif user.opcode in _SLICES and user.operands[0] == name:
                total += bytes_of(user.shape)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                # In place.
                continue
            elif user.opcode != "tuple":
                total += bytes_of(self._computations[computation][name].shape)
        return total

    @functools.cache  # noqa: B019 (a program is read once and dropped)
    def _users(self, computation: str) -> dict[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {}
        for instruction in self._computations[computation].values():
            for operand in dict.fromkeys(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        return users

    # --- collectives ---

    @functools.cached_property
    def collectives(self) -> tuple[Collective, ...]:
        """Every collective of more than one device that runs."""
        found = []
        for instruction, _, times in self.executed():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in _SENT or times == 0:
                continue
            read = functools.partial(_collective, instruction, kind, times)
            found.append(self._read_or(None, _name(instruction), read))
        return tuple(collective for collective in found if collective is not None)


def sort_kernels(length: int) -> int:
    """Kernels by which XLA sorts so many numbers on a GPU.

    It is a bitonic sort. Comparisons of numbers that are further apart than a block holds are a kernel
    for each distance; those between are one kernel.
    """
    n_stages = max(1, (length - 1).bit_length())
    tile = min(_SORT_TILE, 1 << n_stages)
    kernels, inside = 0, False
    for stage in range(n_stages):
        for mask in ((2 << stage) - 1, *(1 << k for k in reversed(range(stage)))):
            kernels += (1 + inside) if mask >= tile else 0
            inside = mask < tile
    return kernels + inside


def _runs(instruction: Instruction) -> bool:
    """Whether an instruction does anything by itself."""
    return instruction.opcode not in _FREE and not instruction.opcode.endswith("-done")


def _name(instruction: Instruction) -> str:
    """An instruction in `Program.unknown`."""
    return f"{instruction.opcode} {instruction.name}"


def _collective(instruction: Instruction, kind: str, times: int) -> Collective | None:
    """A collective, or None where no device sends anything to another one.

    Raises:
      one of `_UNREADABLE`: it is written in a way that is not known.
    """
    groups = device_groups(instruction)
    n_devices = groups.shape[1]
    if n_devices == 1:
        return None
    result = result_of(instruction, kind)
    span = int((groups.max(axis=1) - groups.min(axis=1)).max()) + 1
    scope = re.search(r'op_name="([^"]*)"', instruction.rest)
    return Collective(
        kind=kind,
        result=re.sub(r"\{[^}]*\}", "", result),
        sent=_SENT[kind](bytes_of(result), n_devices),
        times=times,
        n_devices=n_devices,
        span=span,
        scope=scope[1] if scope else "",
    )

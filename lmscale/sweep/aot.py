"""What a plan's programs take and send, from the compiler of devices that are not here.

A pack's train program is compiled for stand-ins of the devices, each in a process of its own: the
compilers want an environment that must not reach this one, and one that crashes takes nothing with it.
What was read from it is kept as JSON, because XLA's cache of compiled programs cannot hold these.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from etils import epath

from lmscale.cache import cached, keep, usable_cache
from lmscale.parallel.topology import COMPILERS, ENVIRONMENT, compiler, topology_name
from lmscale.spec import RunSpec
from lmscale.sweep.devices import Devices
from lmscale.sweep.experiment import load_file, loaded_files
from lmscale.sweep.plan import Pack, Plan, default_attention, executed_flops, leaner

#: How hard the TPU compiler tries: seconds instead of minutes, or as it will for the training itself.
EFFORTS = ("low", "full")
#: Other plans of a pack that the compiler is asked about where its program does not fit.
ATTEMPTS = 3


class CompileError(ValueError):
    """Nothing to compile with; the message is one line."""


@dataclass(frozen=True)
class Compiled:
    """One compiled train program.

    Attributes:
      needs: bytes on each device at the most, arguments and the program itself included. Where the
        compiler gave up, what it said it needs.
      arguments: of these; None where the compiler gave up.
      tokens: of these the training tokens, where they lie on the devices.
      touched: bytes that a step reads and writes in a device's memory, see `lmscale.parallel.hlo`.
      sent: bytes that a step sends from a device, by kind of collective.
      network: of these what leaves its host or slice.
      largest: the collectives that send most: (kind, result, times, bytes, operation).
      seconds, cpu_seconds: that the compiler took.
      error: what it said where it gave up for another reason than memory.
    """

    needs: float
    arguments: float | None
    tokens: float
    touched: float
    sent: dict[str, float]
    network: float
    largest: tuple[tuple[str, str, int, float, str], ...]
    seconds: float
    cpu_seconds: float
    error: str | None = None

    def fits(self, devices: Devices) -> bool:
        return self.error is None and self.needs <= devices.memory


#: What is known when nothing was compiled.
_NOTHING = Compiled(math.inf, None, 0.0, 0.0, {}, 0.0, (), 0.0, 0.0)


@dataclass(frozen=True)
class Roofline:
    """Seconds that a step takes at least: each of a device's three resources at its peak."""

    compute: float
    memory: float
    links: float

    @property
    def step(self) -> float:
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        return max(dataclasses.asdict(self), key=lambda name: getattr(self, name))


@dataclass(frozen=True)
class Answer:
    """A pack, as it is after the compiler was asked, and what it said; None where it was not."""

    pack: Pack
    compiled: Compiled | None
    #: What was tried before, when that did not fit.
    refused: tuple[tuple[Pack, Compiled], ...] = ()


def require_compiler(devices: Devices) -> None:
    """Checks that there is a compiler for these devices, and that there are such devices.

    Raises:
      CompileError, TopologyError: when not.
    """
    if devices.platform == "cpu":
        raise CompileError("--compile is for TPUs and GPUs that are not here: give --device")
    if compiler(devices.platform) is None:
        extra = COMPILERS[devices.platform][1]
        raise CompileError(
            f"compiling for {devices.kind} needs its compiler: pip install 'lmscale[{extra}]'"
        )
    topology_name(devices.kind, devices.platform, devices.count, devices.linked)


def roofline(pack: Pack, devices: Devices, compiled: Compiled) -> Roofline:
    """A step of all slots of a pack."""
    spec = pack.runs[0].spec
    n_devices = math.prod(pack.mesh)
    inside = sum(compiled.sent.values()) - compiled.network
    work = executed_flops(spec, pack.execution) * pack.n_slots / n_devices
    return Roofline(
        compute=work / devices.peak_flops,
        memory=compiled.touched / devices.bandwidth,
        links=inside / devices.link + compiled.network / devices.network,
    )


def roofline_hours(pack: Pack, devices: Devices, compiled: Compiled) -> float:
    """Hours that all runs of a pack take at least."""
    steps = sum(run.spec.own_steps for run in pack.runs)
    return roofline(pack, devices, compiled).step * steps / pack.n_slots / 3600


def ask_compiler(
    plan: Plan,
    which: str,
    tokens: tuple[int, str],
    *,
    effort: str = "low",
    mesh: tuple[int, int, int] | None = None,
    tick: Callable[[float, str], None] = lambda done, note: None,
) -> list[Answer]:
    """Compiles packs of a plan, and where one does not fit what the planner would do instead.

    Args:
      plan: for TPUs or GPUs.
      which: see `chosen`.
      tokens: how many training tokens the corpus has, and their dtype. They lie on the devices where
        they take little enough of their memory.
      effort: of `EFFORTS`.
      mesh: the user's, instead of the planner's choice.
      tick: told how many compilations are done, and what goes on.

    Returns:
      The plan's packs in their order.

    Raises:
      CompileError: where the compiler is missing.
    """
    require_compiler(plan.devices)
    indices = chosen(plan, which)
    answers = []
    for index, pack in enumerate(plan.packs):
        if index not in indices:
            answers.append(Answer(pack, None))
            continue
        answers.append(_settle(pack, plan.devices, tokens, effort, mesh, tick))
        tick(1, "")
    return answers


def chosen(plan: Plan, which: str) -> set[int]:
    """Which packs to compile: "all", or the "largest": of memory, and of FLOPs."""
    indices = range(len(plan.packs))
    if which == "all":
        return set(indices)
    return {
        max(indices, key=lambda i: plan.packs[i].memory),
        max(indices, key=lambda i: plan.packs[i].flops),
    }


def _settle(
    pack: Pack,
    devices: Devices,
    tokens: tuple[int, str],
    effort: str,
    mesh: tuple[int, int, int] | None,
    tick: Callable[[float, str], None],
) -> Answer:
    """Compiles a pack, and then what the planner makes of it with a memory as much smaller as it was wrong."""
    refused: list[tuple[Pack, Compiled]] = []
    while True:
        tick(0, describe(pack))
        compiled = compile_pack(pack, devices, tokens, effort=effort)
        other = None
        if not (compiled.fits(devices) or compiled.error or len(refused) == ATTEMPTS):
            other = leaner(pack, devices, allowance(pack, devices, compiled), mesh=mesh)
        if other is None:
            return Answer(pack, compiled, tuple(refused))
        refused.append((pack, compiled))
        pack = other


def allowance(pack: Pack, devices: Devices, compiled: Compiled) -> float:
    """What a prediction may come to, when the last one was as wrong as the compiler says."""
    # A twentieth less, for that to be another plan.
    free = devices.memory - compiled.tokens
    return 0.95 * free * min(1.0, pack.memory / (compiled.needs - compiled.tokens))


def describe(pack: Pack) -> str:
    """How a pack is executed, in a line."""
    extra = ", remat" if pack.remat else ""
    extra += f", logits in {pack.logit_pieces}" if pack.logit_pieces > 1 else ""
    mesh = "x".join(map(str, pack.mesh))
    return f"{pack.key.model.label} on {mesh}, {pack.micro_batch} sequences at a time{extra}"


def compile_pack(
    pack: Pack, devices: Devices, tokens: tuple[int, str], *, effort: str = "low"
) -> Compiled:
    """Compiles a pack's train program in another process, or takes what is known of it.

    Args:
      pack: of a plan for these devices.
      devices: what to compile for.
      tokens: number of the corpus's training tokens, and their dtype.
      effort: of `EFFORTS`.
    """
    request = _request(pack, devices, tokens, effort)
    cache = usable_cache()
    place = None if cache is None else epath.Path(cache) / "plans" / f"{cache_key(request)}.json"
    if place is not None and (known := cached(place)) is not None:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            return _from_json(known)
    spec = pack.runs[0].spec.to_dict()
    done = subprocess.run(
        [sys.executable, "-m", "lmscale.sweep.aot"],
        input=json.dumps({**request, "spec": spec, "files": loaded_files()}),
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return replace(_NOTHING, error=f"the compiler: {lines[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    # Where the compiler did not say how much it lacks, there is no number to keep.
    if place is not None and math.isfinite(found["needs"]):
        keep(place, found)
    return _from_json(found)


def _from_json(values: dict[str, Any]) -> Compiled:
    return Compiled(**{**values, "largest": tuple(map(tuple, values["largest"]))})


def _request(pack: Pack, devices: Devices, tokens: tuple[int, str], effort: str) -> dict[str, Any]:
    """All that the result depends on."""
    key = dataclasses.asdict(pack.key) | {"kind": pack.key.model.kind}
    n_tokens, dtype = tokens
    return {
        "key": key,
        "n_slots": pack.n_slots,
        "mesh": pack.mesh,
        "micro_batch": pack.micro_batch,
        "remat": pack.remat,
        "logit_pieces": pack.logit_pieces,
        "chunk_steps": pack.chunk_steps,
        "device": dataclasses.asdict(devices),
        "tokens": n_tokens,
        "dtype": dtype,
        "effort": effort,
        "attention": default_attention(devices.platform, pack.key.model, pack.key.compute_dtype),
        "versions": [
            *(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax")),
            compiler(devices.platform),
            _sources(),
        ],
    }


def cache_key(request: Mapping[str, Any]) -> str:
    """Names a result."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def _sources() -> str:
    """A hash of the code that makes the programs and reads them."""
    root = Path(__file__).parents[1]
    files = [root / "spec.py", root / "serialize.py", Path(__file__)]
    for folder in ("architectures", "models", "parallel", "training"):
        files += sorted((root / folder).glob("*.py"))
    files += map(Path, loaded_files())
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


# --- in the other process -----------------------------------------------------------------------


def _compile(request: dict[str, Any]) -> Compiled:
    import jax

    from lmscale.parallel import hlo
    from lmscale.parallel.mesh import make_mesh
    from lmscale.parallel.topology import absent_devices
    from lmscale.training.feed import fits_on_device
    from lmscale.training.step import ProgramKey, build_program, device_bytes, train_arguments

    for path in request["files"]:
        load_file(Path(path))
    spec = RunSpec.from_dict(request["spec"])
    devices = Devices(**request["device"])
    mesh = tuple(request["mesh"])
    found = absent_devices(devices.kind, devices.platform, devices.count, devices.linked)
    program = build_program(
        ProgramKey.of(spec),
        n_slots=request["n_slots"],
        mesh=make_mesh(*mesh, devices=found[: math.prod(mesh)]),
        chunk_steps=request["chunk_steps"],
        micro_batch=request["micro_batch"],
        attention=request["attention"],
        logit_pieces=request["logit_pieces"],
        remat=request["remat"],
    )
    corpus = jax.ShapeDtypeStruct((request["tokens"],), request["dtype"])
    tokens = corpus.size * corpus.dtype.itemsize
    if not fits_on_device(corpus.size, tokens, devices.memory):
        corpus, tokens = None, 0
    platform = {"gpu": "cuda"}.get(devices.platform, devices.platform)
    lowered = program.lower_train(*train_arguments(program, spec, corpus), platform=platform)
    options = {}
    if devices.platform == "tpu" and request["effort"] == "low":
        # O0: a third of the time and less; memory comes out within a few percent.
        options = {"optimization_level": 9}
    start = time.monotonic(), time.process_time()

    def known() -> dict[str, Any]:
        return {
            "seconds": time.monotonic() - start[0],
            "cpu_seconds": time.process_time() - start[1],
        }

    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        needs = _needed(str(error))
        if needs is None:
            line = str(error).splitlines()[0]
            return replace(_NOTHING, **known(), error=f"the compiler: {line}")
        return replace(_NOTHING, **known(), needs=needs)
    took = known()
    text = hlo.Program(compiled.as_text())
    sizes = compiled.memory_analysis()
    ranked = sorted(text.collectives, key=lambda c: -c.total)
    sent: dict[str, float] = {}
    for collective in ranked:
        sent[collective.kind] = sent.get(collective.kind, 0.0) + collective.total
    # A TPU's temporaries are stated larger than the heap that its buffers are then laid out in, which
    # the peak is within a few percent of.
    peak = sizes.peak_memory_in_bytes if devices.platform == "tpu" else 0
    return Compiled(
        needs=(peak or device_bytes(compiled)) + sizes.generated_code_size_in_bytes,
        arguments=sizes.argument_size_in_bytes,
        tokens=tokens,
        touched=text.touched(),
        sent=sent,
        network=sum(c.total for c in ranked if c.span > devices.linked),
        largest=tuple((c.kind, c.result, c.times, c.total, c.scope) for c in ranked[:8]),
        **took,
    )


def _needed(message: str) -> float | None:
    """Bytes that a compiler says it lacks room for, or None for another failure."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"\(?([\d.]+)([KMGT])\)? exceeds", message)
    found = found or re.search(r"Used ([\d.]+)([KMGT]) of", message)
    if not found:
        return math.inf
    return float(found[1]) * 1024.0 ** ("KMGT".index(found[2]) + 1)


def main(argv: Sequence[str] = ()) -> int:
    """Reads a request from standard input and writes what came of it to standard output."""
    print(json.dumps(dataclasses.asdict(_compile(json.load(sys.stdin)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

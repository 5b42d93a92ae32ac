"""Compiles the programs of a plan for devices that are not here.

Each program is compiled for stand-ins of the devices in a process of its own, for two reasons: the
compilers need environment variables that must not reach this process, and a compiler that crashes
ends only its own process. What was read from a compiled program is kept as JSON, because XLA's cache
cannot hold programs for absent devices.
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
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from etils import epath

from lmscale.cache import cached, keep, usable_cache
from lmscale.compat import compile_for_capability, needed_bytes
from lmscale.planner.compiled import NOTHING, Compiled
from lmscale.planner.devices import Devices
from lmscale.planner.packs import Pack, Plan, replan_with_less_memory
from lmscale.planner.step_config import choose_head, default_attention
from lmscale.planner.topology import COMPILERS, ENVIRONMENT, compiler, topology_name
from lmscale.spec import RunSpec
from lmscale.user_files import load_file, loaded_files

#: How hard the TPU compiler tries: seconds instead of minutes, or as it does for training itself.
EFFORTS = ("low", "full")
#: Other plans of a pack that the compiler is asked about where its program does not fit.
ATTEMPTS = 3
#: Share of the allowed memory that is offered to the planner, so that it finds another plan.
_OFFERED = 0.95


class CompileError(ValueError):
    """Nothing to compile with; the message is one line."""


@dataclass(frozen=True)
class Answer:
    """A pack after the compiler was asked.

    Attributes:
      pack: as planned, or as planned again where that did not fit.
      compiled: what the compiler said; None where it was not asked.
      refused: what was tried before and did not fit.
    """

    pack: Pack
    compiled: Compiled | None
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


def ask_compiler(
    plan: Plan,
    which: str,
    tokens: tuple[int, str],
    *,
    effort: str = "low",
    mesh: tuple[int, int, int] | None = None,
    tick: Callable[[float, str], None] = lambda done, note: None,
) -> list[Answer]:
    """Compiles packs of a plan. One that does not fit is planned again and compiled again.

    Args:
      plan: for TPUs or GPUs.
      which: see `chosen`.
      tokens: how many training tokens the corpus has, and their dtype. They lie on the devices where
        they take little enough of their memory.
      effort: of `EFFORTS`.
      mesh: the user's, instead of the planner's choice.
      tick: is told how many compilations are done, and what goes on.

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
        answers.append(_compile_until_it_fits(pack, plan.devices, tokens, effort, mesh, tick))
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


def _compile_until_it_fits(
    pack: Pack,
    devices: Devices,
    tokens: tuple[int, str],
    effort: str,
    mesh: tuple[int, int, int] | None,
    tick: Callable[[float, str], None],
) -> Answer:
    """Compiles a pack; where it does not fit, plans it with less memory and tries again."""
    refused: list[tuple[Pack, Compiled]] = []
    while True:
        tick(0, describe(pack))
        compiled = compile_pack(pack, devices, tokens, effort=effort)
        other = None
        if not (compiled.fits(devices) or compiled.error or len(refused) == ATTEMPTS):
            memory = allowance(pack, devices, compiled)
            other = replan_with_less_memory(pack, devices, memory, mesh=mesh)
        if other is None:
            return Answer(pack, compiled, tuple(refused))
        refused.append((pack, compiled))
        pack = other


def allowance(pack: Pack, devices: Devices, compiled: Compiled) -> float:
    """Bytes that the next prediction may come to, if it is as wrong as the last one was."""
    free = devices.memory - compiled.tokens
    return _OFFERED * free * min(1.0, pack.memory / (compiled.peak_bytes - compiled.tokens))


def describe(pack: Pack) -> str:
    """How a pack is executed, in a line."""
    extra = ", remat" if pack.remat else ""
    extra += f", logits in {pack.logit_pieces}" if pack.logit_pieces > 1 else ""
    mesh = "x".join(map(str, pack.mesh))
    return f"{pack.key.model.label} on {mesh}, {pack.micro_batch} sequences at a time{extra}"


def compile_pack(
    pack: Pack, devices: Devices, tokens: tuple[int, str], *, effort: str = "low"
) -> Compiled:
    """Compiles a pack's train program in another process, or takes what the cache knows of it.

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
            return Compiled.from_json(known)
    spec = pack.runs[0].spec.to_dict()
    done = subprocess.run(
        [sys.executable, "-m", "lmscale.planner.aot"],
        input=json.dumps({**request, "spec": spec, "files": loaded_files()}),
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        # A crash below Python, as what Python raises comes back as a result.
        lines = done.stderr.strip().splitlines()
        ended = f"exit code {done.returncode}" if done.returncode > 0 else _signal(done.returncode)
        return replace(NOTHING, error=f"the compiler ended with {ended}: {(lines or [''])[-1]}")
    values = json.loads(done.stdout.splitlines()[-1])
    found = Compiled.from_json(values)
    # Where the compiler did not say how much it lacks, there is no number to keep.
    if place is not None and math.isfinite(found.peak_bytes):
        keep(place, values)
    return found


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
        "unroll": pack.unroll,
        "chunk_steps": pack.chunk_steps,
        "device": dataclasses.asdict(devices),
        "tokens": n_tokens,
        "dtype": dtype,
        "effort": effort,
        "attention": default_attention(
            devices.platform, pack.key.model, pack.key.compute_dtype, devices.kind
        ),
        "head": choose_head(
            devices.platform, pack.key.model, pack.key.compute_dtype, pack.mesh[1] * pack.mesh[2]
        ),
        "recurrence": pack.recurrence(devices.platform).form,
        "versions": [
            *(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax")),
            compiler(devices.platform),
            _sources(),
        ],
    }


def cache_key(request: Mapping[str, Any]) -> str:
    """The name of a result in the cache."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:32]


def _signal(code: int) -> str:
    """The name of the signal that ended a process, from its negative exit code."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


@functools.cache
def _sources() -> str:
    """A hash of the code that makes the programs and reads them."""
    root = Path(__file__).parents[1]
    names = ("spec.py", "serialize.py", "compat.py")
    ours = ("aot.py", "compiled.py", "hlo.py", "hlo_text.py", "topology.py")
    files = [*(root / name for name in names), *(root / "planner" / name for name in ours)]
    for folder in ("architectures", "models", "optimizers", "parallel", "training"):
        files += sorted((root / folder).glob("*.py"))
    files += map(Path, loaded_files())
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


# --- in the other process -----------------------------------------------------------------------


def _compile(request: dict[str, Any]) -> Compiled:
    """Builds the program of a request and compiles it."""
    import jax

    for path in request["files"]:
        load_file(Path(path))
    devices = Devices(**request["device"])
    lowered, tokens = _lower(request, devices)
    options = {}
    if devices.platform == "tpu" and request["effort"] == "low":
        # O0 takes a third of the time or less; memory comes out within a few percent.
        options = {"optimization_level": 9}
    start = time.monotonic(), time.process_time()

    def timed(compiled: Compiled) -> Compiled:
        seconds, cpu = time.monotonic() - start[0], time.process_time() - start[1]
        return replace(compiled, seconds=seconds, cpu_seconds=cpu)

    try:
        program = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        needed = needed_bytes(str(error))
        if needed is None:
            raise
        return timed(replace(NOTHING, peak_bytes=needed))
    # The time of reading the program's text, which is long, is not the compiler's.
    found = timed(NOTHING)
    read = _read(program, devices, tokens)
    return replace(read, seconds=found.seconds, cpu_seconds=found.cpu_seconds)


def _lower(request: dict[str, Any], devices: Devices) -> tuple[Any, int]:
    """The lowered train program, and the bytes of the training tokens on a device."""
    import jax

    from lmscale.parallel.mesh import make_mesh
    from lmscale.planner.topology import absent_devices, gpu_capability
    from lmscale.training.batch_source import fits_on_device
    from lmscale.training.program import build_program, train_arguments
    from lmscale.training.state import ProgramKey

    spec = RunSpec.from_dict(request["spec"])
    run_axis, data, model = request["mesh"]
    absent = absent_devices(devices.kind, devices.platform, devices.count, devices.linked)
    if devices.platform == "gpu":
        compile_for_capability(gpu_capability(devices.kind))
    program = build_program(
        ProgramKey.of(spec),
        n_slots=request["n_slots"],
        mesh=make_mesh(run_axis, data, model, devices=absent[: run_axis * data * model]),
        chunk_steps=request["chunk_steps"],
        micro_batch=request["micro_batch"],
        attention=request["attention"],
        logit_pieces=request["logit_pieces"],
        remat=request["remat"],
        unroll=request["unroll"],
        head=request["head"],
    )
    corpus = jax.ShapeDtypeStruct((request["tokens"],), request["dtype"])
    tokens = corpus.size * corpus.dtype.itemsize
    on_device = fits_on_device(corpus.size, tokens, devices.memory)
    platform = {"gpu": "cuda"}.get(devices.platform, devices.platform)
    arguments = train_arguments(program, spec, corpus if on_device else None)
    return program.lower_train(*arguments, platform=platform), tokens if on_device else 0


def _read(program: Any, devices: Devices, tokens: int) -> Compiled:
    """What a compiled program says of itself, without the time that compiling it took."""
    from lmscale.planner import hlo
    from lmscale.training.program import device_bytes

    text = hlo.Program(program.as_text())
    sizes = program.memory_analysis()
    ranked = sorted(text.collectives, key=lambda c: -c.total)
    sent: dict[str, float] = {}
    for collective in ranked:
        sent[collective.kind] = sent.get(collective.kind, 0.0) + collective.total
    # A TPU's compiler states temporaries that are larger than the heap that its buffers are laid out
    # in afterwards. Its peak is within a few percent of that heap.
    peak = sizes.peak_memory_in_bytes if devices.platform == "tpu" else 0
    # What is unknown is found on the way.
    hbm_bytes = text.hbm_bytes()
    return Compiled(
        peak_bytes=(peak or device_bytes(program)) + sizes.generated_code_size_in_bytes,
        arguments=sizes.argument_size_in_bytes,
        tokens=tokens,
        hbm_bytes=hbm_bytes,
        kernels=text.kernels(),
        sent=sent,
        network=sum(c.total for c in ranked if c.span > devices.linked),
        largest=tuple((c.kind, c.result, c.times, c.total, c.scope) for c in ranked[:8]),
        unknown=text.unknown,
        seconds=0.0,
        cpu_seconds=0.0,
    )


def main(argv: Sequence[str] = ()) -> int:
    """Reads a request from standard input and writes what came of it to standard output."""
    request = json.load(sys.stdin)
    try:
        found = _compile(request)
    except Exception as error:  # Whatever a compiler, a kernel or a reader raises is the answer.
        found = replace(NOTHING, error=f"the compiler: {_reason(error)}")
    print(json.dumps(found.to_json()))
    return 0


def _reason(error: Exception) -> str:
    """An error in a line. jax ends tracebacks with a note on frames that it hides: not that one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    return f"{name}: {lines[0]}" if lines else name


if __name__ == "__main__":
    sys.exit(main())

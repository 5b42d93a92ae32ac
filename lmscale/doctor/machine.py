"""What is installed, which devices jax sees, and where files can be written."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmscale.compat import OWN_VARIABLES, jax_variables, memory_limit, nvidia_gpu_present
from lmscale.cores import n_cores
from lmscale.doctor.check import Finding, Place
from lmscale.files import cache_folder
from lmscale.remote import is_remote, unreachable

#: Packages that lmscale needs -> the least version that it was tried with (pyproject.toml).
NEEDED = {
    "jax": "0.10.2",
    "jaxlib": "0.10.2",
    "flax": "0.12.8",
    "optax": "0.2.6",
    "orbax-checkpoint": "0.12.8",
    "grain": "0.2.18",
    "numpy": "2.0",
    "scipy": "1.14",
    "sentencepiece": "0.2.0",
}
#: Module of an optional package -> what it is for, and the extra that brings it.
EXTRAS = {
    "pyarrow": ("Parquet files", "data"),
    "zstandard": ("compressed text", "data"),
    "safetensors": ("lmscale export", "hf"),
    "tokenizers": ("lmscale export, with a tokeniser", "hf"),
    "tensorboardX": ("--track tensorboard", "tensorboard"),
    "wandb": ("--track wandb", "wandb"),
    "torch": ("lmscale bench --against torch", "parity"),
    "transformers": ("reading what lmscale export writes", "parity"),
    "libtpu": ("TPUs, and compiling for them", "tpu"),
    "jax_plugins.xla_cuda13": ("NVIDIA GPUs, and compiling for them", "cuda13"),
}
#: Environment variables of process groups, accelerators and compilers that change what a run does.
VARIABLES = re.compile(
    r"(JAX|XLA|LIBTPU|TPU|NCCL)_|CUDA_VISIBLE_DEVICES$|SLURM_(JOB_ID|NTASKS|PROCID)$|"
    r"OMPI_COMM_WORLD_(SIZE|RANK)$|KUBERNETES_SERVICE_HOST$|MEGASCALE_|LMSCALE_"
)
#: Names that may hold a secret, whose values are not shown.
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)
#: Bytes that a small study writes; less room is a warning.
ROOM = 2e9


def versions(place: Place) -> Finding:
    """Whether Python and all packages that are needed are there, and are not too old."""
    found: dict[str, Any] = {"python": platform.python_version(), "lmscale": _version("lmscale")}
    found |= {name: _version(name) for name in NEEDED}
    missing = [name for name in NEEDED if found[name] is None]
    old = [
        f"{name} {found[name]} (needs {least})"
        for name, least in NEEDED.items()
        if found[name] is not None and _numbers(found[name]) < _numbers(least)
    ]
    text = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    if missing or old:
        wrong = [*(f"{name} is missing" for name in missing), *(f"{one} is old" for one in old)]
        remedy = "pip install -U 'lmscale' in this environment, or the packages that are named"
        return Finding("failed", f"{'; '.join(wrong)} ({text})", remedy, found)
    return Finding("ok", text, None, found)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def extras(place: Place) -> Finding:
    """Which optional packages are installed."""
    there = {module: _importable(module) for module in EXTRAS}
    lines = [f"{module} ({EXTRAS[module][0]})" for module, found in there.items() if found]
    absent = [
        f"{module} for {what}: pip install 'lmscale[{extra}]'"
        for module, (what, extra) in EXTRAS.items()
        if not there[module]
    ]
    text = f"installed: {', '.join(lines) or 'none'}; all are optional"
    return Finding("ok", text, "; ".join(absent) or None, {"installed": there})


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def start(place: Place, seconds: float = 120.0) -> Finding:
    """Whether jax starts at all, in a process of its own: XLA ends a process that has an unknown flag.

    Args:
      seconds: after which it is taken to hang; then the check of the devices tells more.
    """
    code = "import jax; jax.devices()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding("warning", f"jax has not started in {seconds:g} s")
    if done.returncode == 0:
        return Finding("ok", "jax starts")
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reason = next((line for line in said if "Unknown flag" in line), said[-1] if said else "")
    # Without the time and place in XLA's sources.
    reason = re.sub(r"^F\d+ \S+ +\d+ \S+\] ", "", reason)
    if reason == "AssertionError":
        # What jax raises where a platform that was asked for has no devices.
        reason = f"no devices of JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
    suspects = jax_variables()
    remedy = f"unset or mend {', '.join(suspects)}" if suspects else "install jax again"
    if "cuda" in os.environ.get("JAX_PLATFORMS", "") and not nvidia_gpu_present():
        remedy += "; no NVIDIA GPU is here"
    facts = {"exit_code": done.returncode, "said": said[-30:]}
    return Finding("failed", f"jax does not start: {reason[:300]}", remedy, facts)


def devices(place: Place) -> Finding:
    """Which devices jax computes on, and whether it leaves out an accelerator that is here."""
    import jax

    found = jax.devices()
    first = found[0]
    limit = memory_limit(first)
    facts = {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": len(found),
        "processes": jax.process_count(),
        "memory_bytes": limit,
        "cores": n_cores(),
    }
    text = f"{len(found)} x {first.device_kind} ({first.platform})"
    text += f", {limit / 1e9:.1f} GB each for programs" if limit else ""
    if first.platform == "cpu" and nvidia_gpu_present():
        remedy = (
            "an NVIDIA GPU is here and jax does not use it: pip install 'lmscale[cuda13]', and leave "
            "JAX_PLATFORMS unset"
        )
        return Finding("warning", text, remedy, facts)
    return Finding("ok", text, None, facts)


def memory(place: Place) -> Finding:
    """How much memory the plan can fill: of a GPU the share that jax allocates, of a CPU all of it."""
    import jax

    from lmscale.planner.devices import KINDS, local_devices
    from lmscale.planner.packs import MEMORY_SHARE

    here = local_devices()
    usable = MEMORY_SHARE * here.memory
    facts = {"bytes": here.memory, "planned_bytes": usable, "share": MEMORY_SHARE}
    text = f"a plan fills up to {usable / 1e9:.3g} GB of {here.memory / 1e9:.3g} GB a device"
    known = KINDS.get(here.kind)
    if jax.devices()[0].platform == "gpu" and known is not None and here.memory < 0.8 * known[2]:
        remedy = (
            f"jax allocates {here.memory / known[2]:.0%} of this GPU: set "
            "XLA_CLIENT_MEM_FRACTION=0.9, and end what else runs on it"
        )
        return Finding("warning", text, remedy, facts)
    return Finding("ok", text, None, facts)


def processes(place: Place, environment: Mapping[str, str] = os.environ) -> Finding:
    """Variables of process groups, accelerators and compilers, and what they mean for a run."""
    found = {
        name: "(hidden)" if _SECRET.search(name) else value
        for name, value in sorted(environment.items())
        if VARIABLES.match(name) and name not in OWN_VARIABLES
    }
    several = {
        name: found[name]
        for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
        if found.get(name, "1") not in ("", "1")
    }
    text = ", ".join(f"{name}={value}" for name, value in found.items()) or "no variables set"
    if several:
        (name, value), *_ = several.items()
        remedy = (
            f"{name} says that {value} processes were started: they train together with "
            "lmscale run --distributed auto, or each a part with --shard I/N"
        )
        return Finding("ok", text, remedy, {"variables": found})
    return Finding("ok", text, None, {"variables": found})


def cache(place: Place) -> Finding:
    """Whether compiled programs can be kept."""
    return _folder(
        cache_folder(),
        "warning",
        "set LMSCALE_CACHE to a folder that can be written: otherwise every command compiles again",
    )


def output(place: Place) -> Finding:
    """Whether results can be written."""
    if is_remote(place.out):
        return _remote(str(place.out))
    return _folder(Path(place.out).absolute(), "failed", "give another folder with --out")


def _remote(folder: str) -> Finding:
    """Whether a file can be written, read and deleted in a remote folder."""
    from etils import epath

    probe, content = (
        epath.Path(folder) / f"lmscale-doctor-{os.getpid()}",
        "written by lmscale doctor",
    )
    facts = {"folder": folder}
    if (fault := unreachable(folder)) is not None:
        return Finding("failed", fault, "give another --out", facts)
    try:
        probe.write_text(content)
        same = probe.read_text() == content
        probe.unlink()
    except Exception as error:  # Each kind of storage raises errors of its own.
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "give another --out, or the rights to write there and the package for such paths"
        return Finding("failed", f"{folder} cannot be used: {first[:200]}", remedy, facts)
    if not same:
        return Finding("failed", f"{folder} returns other bytes than were written", None, facts)
    return Finding("ok", f"{folder} can be written and read", None, facts)


def _folder(folder: Path, fault: Any, remedy: str) -> Finding:
    """Whether a folder can be written and has room. It is not made if it is not there."""
    inside = folder
    while not inside.exists() and inside != inside.parent:
        inside = inside.parent
    facts: dict[str, Any] = {"folder": str(folder)}
    try:
        with tempfile.NamedTemporaryFile(dir=inside) as file:
            # A full disk takes a file's name, but not its content.
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        text = f"{folder} cannot be written: {error.strerror or error}"
        return Finding(fault, text, remedy, facts)
    free = shutil.disk_usage(inside).free
    facts["free_bytes"] = free
    text = f"{folder} can be written and has {free / 1e9:.3g} GB left"
    if free < ROOM:
        return Finding("warning", text, f"a study takes about {ROOM / 1e9:.0f} GB: {remedy}", facts)
    return Finding("ok", text, None, facts)

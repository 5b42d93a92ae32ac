"""What a compiler for the planned devices says of a plan's packs: the second table of `lmscale plan`."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from lmscale.cli.parser import Parser
from lmscale.terminal import plural, print_table

__all__ = [
    "add_compile",
    "compile_packs",
    "compiled_to_json",
    "print_compiled",
    "remedy",
    "what_to_compile",
]


def add_compile(parser: Parser) -> None:
    """--compile and --effort."""
    parser.add_argument(
        "--compile",
        choices=("largest", "all", "none"),
        help="compile the packs that need most memory and most FLOPs, all, or none (largest with "
        "--device, where the compiler is installed and one experiment is planned)",
    )
    parser.add_argument(
        "--effort",
        choices=("low", "full"),
        default="low",
        help="of the TPU compiler: seconds a pack, or as for the training itself (low)",
    )


def what_to_compile(args: argparse.Namespace, devices: Any) -> str:
    """--compile, or by what there is to compile with."""
    from lmscale.planner.aot import require_compiler
    from lmscale.planner.topology import compiler

    if args.compile is None:
        able = bool(args.device) and devices.platform != "cpu" and compiler(devices.platform)
        return "largest" if able and not args.many else "none"
    if args.compile != "none":
        require_compiler(devices)
    return args.compile


def compile_packs(args: argparse.Namespace, plan: Any, which: str, corpus: Any) -> list[Any]:
    """The compiler's answer for each pack of a plan; those that `which` leaves out are not compiled."""
    from lmscale.planner.aot import ask_compiler, chosen
    from lmscale.progress import progress

    with progress("compiling", len(chosen(plan, which))) as bar:
        return ask_compiler(
            plan,
            which,
            (corpus.n_tokens("train"), str(corpus.dtype)),
            effort=args.effort,
            mesh=args.mesh,
            tick=bar.update,
        )


def compiled_to_json(answer: Any, devices: Any) -> dict[str, Any] | None:
    """What --json says of a compiled pack; None for one that was not compiled."""
    from lmscale.planner.aot import describe
    from lmscale.planner.compiled import roofline, roofline_hours

    if answer.compiled is None:
        return None
    found = answer.compiled.to_json()
    known = answer.compiled.arguments is not None
    bounds = roofline(answer.pack, devices, answer.compiled) if known else None
    return found | {
        "needs": found["needs"] if found["needs"] < float("inf") else None,
        "fits": answer.compiled.fits(devices),
        "roofline": None if bounds is None else dataclasses.asdict(bounds),
        "hours": roofline_hours(answer.pack, devices, answer.compiled) if known else None,
        "refused": [describe(pack) for pack, _ in answer.refused],
    }


def print_compiled(of: str, devices: Any, answers: list[Any], effort: str) -> None:
    """A row for each compiled pack, then what each of them needs. `of` begins the first line."""
    from lmscale.planner.topology import compiler

    done = [answer for answer in answers if answer.compiled is not None]
    at = f" at {effort} effort" if devices.platform == "tpu" else ""
    print(
        f"\n{of}{len(done)} of {plural(len(answers), 'pack')} compiled by "
        f"{compiler(devices.platform)}{at}, a chip having {devices.memory / 1e9:.1f} GB"
    )
    header = ["model", "at once", "mesh", "micro", "GB", "planned", "compute", "memory", "links"]
    header += ["launch", "hours", "limit", ""]
    print_table([header, *(_row(answer.pack, answer.compiled, devices) for answer in done)])
    print("ms a step of all slots takes at least; hours by the longest of them (see plan --help)")
    for answer in done:
        _print_needs(answer, devices)


def _row(pack: Any, compiled: Any, devices: Any) -> list[str]:
    from lmscale.planner.compiled import roofline, roofline_hours

    row = [
        pack.key.model.label,
        str(pack.n_slots),
        "x".join(map(str, pack.mesh)),
        str(pack.micro_batch),
        "" if compiled.error else f"{compiled.peak_bytes / 1e9:.3g}",
        f"{(pack.memory + compiled.tokens) / 1e9:.3g}",
    ]
    if compiled.arguments is None:
        row += [""] * 6
    else:
        bounds = roofline(pack, devices, compiled)
        row += [f"{1e3 * seconds:.3g} ms" for seconds in dataclasses.astuple(bounds)]
        row += [f"{roofline_hours(pack, devices, compiled):.3g}", bounds.bound]
    verdict = "" if compiled.fits(devices) else "does not fit"
    return [*row, "failed" if compiled.error else verdict]


def _print_needs(answer: Any, devices: Any) -> None:
    """What a pack was refused for, what is wrong with it, and what a step moves."""
    from lmscale.planner.aot import allowance, describe

    pack, compiled = answer.pack, answer.compiled
    label = pack.key.model.label
    for tried, result in answer.refused:
        print(f"{describe(tried)}: needs {result.peak_bytes / 1e9:.3g} GB, so it was planned anew")
    if compiled.error:
        print(f"{label}: {compiled.error}")
    elif not compiled.fits(devices):
        memory = allowance(pack, devices, compiled)
        print(f"{describe(pack)}: does not fit; {remedy(pack, devices, memory)}")
    if compiled.arguments is not None:
        print(
            f"{label}: {compiled.arguments / 1e9:.3g} GB are state and tokens; "
            f"a step launches {plural(compiled.kernels, 'kernel')}, "
            f"reads and writes {compiled.hbm_bytes / 1e9:.3g} GB and {_sent(compiled)}; "
            f"compiled in {compiled.seconds:.0f} s"
        )
    if compiled.unknown:
        more = f" and {len(compiled.unknown) - 3} more" if len(compiled.unknown) > 3 else ""
        print(
            f"{label}: unknown, and not in these numbers: {', '.join(compiled.unknown[:3])}{more}"
        )


def remedy(pack: Any, devices: Any, memory: float | None = None) -> str:
    """What would help a pack that fits in none of the ways the planner knows."""
    from lmscale.planner.packs import enough_devices

    count = enough_devices(pack, devices, memory)
    if count is None:
        return "no number of these devices would do; take another kind"
    return f"it would on {devices.kind}:{count}"


def _sent(compiled: Any) -> str:
    """What a step sends from a chip, by kind of collective."""
    total = sum(compiled.sent.values())
    if not total:
        return "sends nothing"
    kinds = ", ".join(f"{kind} {size / 1e9:.3g}" for kind, size in compiled.sent.items())
    beyond = f", {compiled.network / 1e9:.3g} beyond its host" if compiled.network else ""
    return f"sends {total / 1e9:.3g} GB ({kinds}{beyond})"

"""`lmscale plan`: packs, memory, FLOPs and hours of an experiment, or of many."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmscale.cli.declared import (
    Declared,
    badly_centered_lines,
    declare,
    default_store_name,
    earlier_store,
    plan_line,
    prior_source,
    refusal,
    repeated_text,
)
from lmscale.cli.experiment_arguments import add_experiment, chosen_experiments
from lmscale.cli.parser import Parser
from lmscale.cli.plan_compiled import (
    add_compile,
    compile_packs,
    compiled_to_json,
    print_compiled,
    remedy,
    what_to_compile,
)
from lmscale.cli.shared_arguments import add_mesh, add_prior
from lmscale.terminal import print_json, print_table

__all__ = ["add_arguments", "run"]

_EPILOG = """\
With --device the machine need not be there. Where its compiler is installed (pip install
'lmscale[tpu]' for TPUs, 'lmscale[cuda13-aot]' for GPUs) the train programs are compiled for it, and the plan
says what they need of a chip's memory, what they send, and how long a step takes at least:

  lmscale plan isoflop --scale paper --device v5e:256
  lmscale plan isoflop --scale paper --device h100:64 --compile all
  lmscale plan isoflop --scale paper --device v5p:64 --mesh 1,32,2 --effort full

A step takes at least the longest of: its FLOPs (our count, with what is computed twice to save memory) at
the chip's bfloat16 peak; the bytes that it reads and writes at the memory's bandwidth, as if nothing stayed
on the chip between two operations (low effort keeps less there than full effort); the bytes that
it sends at the links' bandwidth; on a GPU, the kernels that it launches at 3 us each, however many runs are at
once. The first table counts the same without a compiler and assumes a share of each peak; its column limit says
which of them a step waits for.
"""


def add_arguments(parser: Parser, words: Sequence[str]) -> None:
    add_experiment(parser, words, _add_options)
    parser.set_defaults(extend=False)
    parser.epilog = f"{_EPILOG}\n{parser.epilog or ''}"


def _add_options(parser: Parser) -> None:
    """The options of every experiment."""
    parser.add_argument(
        "--device", metavar="KIND[:COUNT]", help="h100:8, v5e:256, ... (this machine)"
    )
    add_mesh(parser)
    add_prior(parser)
    add_compile(parser)
    parser.add_argument("--json", action="store_true")


class _Planned(NamedTuple):
    """One experiment and all that is said of it.

    Attributes:
      store: where `run` would keep it, unless told otherwise; `refused`: why it would not take it.
      off_center: a line for each badly centred budget.
      epochs: how often the runs pass over their text; `repeated`: a line where that is too often.
      answers: what the compiler said of the packs, or None where it was not asked.
    """

    declared: Declared
    store: Any
    refused: str | None
    off_center: list[str]
    plan: Any
    epochs: Any
    repeated: str | None
    answers: list[Any] | None


def run(args: argparse.Namespace) -> int:
    from lmscale.cli import start_jax

    start_jax()
    from lmscale.planner.devices import local_devices, parse_devices

    devices = parse_devices(args.device) if args.device else local_devices()
    which = what_to_compile(args, devices)
    prior = prior_source(args.prior)
    from lmscale.data.catalog import without_building

    with without_building():
        planned = [_planned(args, *one, devices, which, prior) for one in chosen_experiments(args)]
    if args.json:
        found = [_to_json(one, args.scale) for one in planned]
        print_json({"experiments": found} if args.many else found[0])
    else:
        _print(args, planned)
    return 0


def _planned(
    args: argparse.Namespace, name: str, experiment: Any, devices: Any, which: str, prior: Any
) -> _Planned:
    from lmscale.planner.packs import make_plan
    from lmscale.sweep.store import Store

    declared = declare(args, name, experiment)
    store = Store(Path("results") / default_store_name(args, name, experiment))
    refused = refusal(args, declared, store) if _is_built(declared.corpus) else None
    off_center = badly_centered_lines(prior, declared.runs, earlier_store(args, name, store))
    plan = make_plan(declared.runs, devices, mesh=args.mesh)
    epochs, repeated = repeated_text(declared)
    answers = None
    if which != "none":
        answers = compile_packs(args, plan, which, declared.corpus)
        plan = dataclasses.replace(plan, packs=tuple(answer.pack for answer in answers))
    return _Planned(declared, store, refused, off_center, plan, epochs, repeated, answers)


def _is_built(corpus: Any) -> bool:
    from lmscale.data.unbuilt import UnbuiltCorpus

    return not isinstance(corpus, UnbuiltCorpus)


def _to_json(planned: _Planned, scale: str) -> dict[str, Any]:
    plan, epochs = planned.plan, planned.epochs
    packs = [_pack_to_json(pack, plan.devices) for pack in plan.packs]
    for pack, answer in zip(packs, planned.answers or (), strict=False):
        pack["compiled"] = compiled_to_json(answer, plan.devices)
    return {
        "experiment": planned.declared.name,
        "scale": scale,
        "device": dataclasses.asdict(plan.devices),
        "runs": plan.n_runs,
        "flops": plan.flops,
        "seconds": plan.seconds,
        "float32_is_tf32": _rounds_float32(plan),
        "max_epochs": epochs.most,
        "runs_of_too_many_epochs": epochs.over,
        "train_tokens": epochs.tokens,
        "corpus": planned.declared.corpus.name,
        "corpus_is_built": _is_built(planned.declared.corpus),
        "mixture": planned.declared.corpus.mixture,
        "train_tokens_needed": epochs.needed,
        "packs": packs,
        "badly_centered": planned.off_center,
        "left_out": planned.declared.lines,
        "store": str(planned.store.path),
        "store_refuses": planned.refused,
    }


def _pack_to_json(pack: Any, devices: Any) -> dict[str, Any]:
    from lmscale.planner.packs import fits
    from lmscale.planner.programs import slow_attention
    from lmscale.planner.step_config import default_attention

    return {
        "model": pack.key.model.label,
        "runs": len(pack.runs),
        "slots": pack.n_slots,
        "mesh": dict(zip(("run", "data", "model"), pack.mesh, strict=True)),
        "micro_batch": pack.micro_batch,
        "remat": pack.remat,
        "logit_pieces": pack.logit_pieces,
        "chunk_steps": pack.chunk_steps,
        "attention": default_attention(
            devices.platform, pack.key.model, pack.key.compute_dtype, devices.kind
        )
        if pack.key.model.attention_width is not None
        else None,
        "slow_attention": slow_attention(pack.key, devices),
        "recurrence": pack.recurrence(devices.platform).form
        if pack.key.model.recurrent_width is not None
        else None,
        "memory_bytes": pack.memory,
        "fits": fits(pack, devices),
        "flops": pack.flops,
        "seconds": pack.seconds,
        "bound": pack.bound,
    }


def _print(args: argparse.Namespace, planned: Sequence[_Planned]) -> None:
    """The plan of one experiment, or a line for each of many, and what is wrong with them."""

    def of(one: _Planned) -> str:
        return f"{one.declared.name}: " if args.many else ""

    for one in planned:
        for line in one.declared.lines:
            print(f"{of(one)}{line}")
    if args.many:
        _print_plans(planned)
        for one in planned:
            if one.repeated:
                print(f"{of(one)}{one.repeated}")
    else:
        _print_packs(planned[0])
    _print_corpora({one.declared.corpus.name: one.declared.corpus for one in planned})
    print(
        f"time assumes {_assumed(planned[0].plan.devices)}; GB a device is an estimate from shapes"
    )
    if any(_rounds_float32(one.plan) for one in planned):
        print(
            "float32 means TF32 in matmuls on GPUs (10 bits of each factor's fraction, not 23); "
            "JAX_DEFAULT_MATMUL_PRECISION=highest is full float32, several times slower"
        )
    for one in planned:
        for line in one.off_center:
            print(f"{of(one)}{line}")
    for one in planned:
        print(of(one) + (one.refused or f"results go to {one.store.path}, without --out"))
    for one in planned:
        if one.answers is not None:
            print_compiled(of(one), one.plan.devices, one.answers, args.effort)


def _print_corpora(corpora: Mapping[str, Any]) -> None:
    """What a user must know of the text: that it is not built yet, or that it holds many copies."""
    from lmscale.data import copies_sentence, has_many_copies

    for name, corpus in sorted(corpora.items()):
        if not _is_built(corpus):
            print(
                f"{name} is not built yet (run builds it): its {corpus.n_tokens('train'):,} training tokens "
                "are an estimate"
            )
        if has_many_copies(corpus.copies):
            print(f"{name}: {copies_sentence(corpus.copies)}")


def _assumed(devices: Any) -> str:
    """What the predicted times assume of a device."""
    from lmscale.planner.roofline import BANDWIDTH_SHARE, CPU_SAVED_BYTE_SECONDS

    if devices.platform == "cpu":
        # Utilisation and bandwidth are of accelerators.
        saved = f"{1e9 * CPU_SAVED_BYTE_SECONDS:.3g} ns a byte that layers save"
        return f"{devices.peak_flops:.3g} FLOP/s and {saved}, a core"
    text = f"{devices.utilisation:.0%} of {devices.peak_flops:.3g} FLOP/s"
    if devices.launch:
        text += f", {BANDWIDTH_SHARE:.0%} of {devices.bandwidth:.3g} bytes/s"
        text += f" and {1e6 * devices.launch:.3g} us a kernel"
    return f"{text} a device"


def _rounds_float32(plan: Any) -> bool:
    """Whether packs of a plan compute in float32 on devices that round the factors of its matmuls."""
    float32 = any(pack.key.compute_dtype == "float32" for pack in plan.packs)
    return plan.devices.platform == "gpu" and float32


def _print_packs(planned: _Planned) -> None:
    """A row for each pack of one experiment, and what to do where one does not fit."""
    from lmscale.planner.packs import fits

    plan = planned.plan
    rows = [["model", "runs", "at once", "mesh", "micro", "GB", "FLOPs", "hours", "limit", ""]]
    for pack in plan.packs:
        marks = ["remat"] * pack.remat
        marks += [f"logits in {pack.logit_pieces}"] * (pack.logit_pieces > 1)
        rows.append(
            [
                pack.key.model.label,
                str(len(pack.runs)),
                str(pack.n_slots),
                "x".join(map(str, pack.mesh)),
                str(pack.micro_batch),
                f"{pack.memory / 1e9:.3g}",
                f"{pack.flops:.3g}",
                f"{pack.seconds / 3600:.3g}",
                pack.bound,
                ", ".join(marks),
            ]
        )
    print_table(rows, widths=(24, 5, 9, 10, 7, 9, 10, 10, 8))
    print(plan_line(plan) + "; mesh is run x data x model, limit what a step waits for")
    for pack in plan.packs:
        if not fits(pack, plan.devices):
            print(f"{pack.key.model.label} does not fit: {remedy(pack, plan.devices)}")
    for reason, labels in _slow_attention(plan).items():
        print(f"{', '.join(labels)}: attention computes all scores, as {reason}")
    for reason, labels in _packs_by(
        plan, lambda pack: pack.recurrence(plan.devices.platform).reason
    ).items():
        print(f"{', '.join(labels)}: time steps are kernels of their own, as {reason}")
    if planned.repeated:
        print(planned.repeated)
    if mixture := planned.declared.corpus.mixture:
        from lmscale.data import mixture_sentence

        print(f"the longest run sees {mixture_sentence(mixture, planned.epochs.most)}")


def _slow_attention(plan: Any) -> dict[str, list[str]]:
    """Why packs do not use the flash attention kernel of their devices, and which packs these are."""
    from lmscale.planner.programs import slow_attention

    return _packs_by(plan, lambda pack: slow_attention(pack.key, plan.devices))


def _packs_by(plan: Any, reason_of: Callable[[Any], str | None]) -> dict[str, list[str]]:
    """The models of packs that have a reason, by reason."""
    found: dict[str, list[str]] = {}
    for pack in plan.packs:
        if (reason := reason_of(pack)) is not None:
            found.setdefault(reason, []).append(pack.key.model.label)
    return found


def _print_plans(planned: Sequence[_Planned]) -> None:
    """A row for each experiment, the cheapest first, and their sum."""
    rows = [["experiment", "runs", "packs", "most GB", "FLOPs", "hours"]]
    plans = {one.declared.name: one.plan for one in planned}
    for name, plan in sorted(plans.items(), key=lambda item: item[1].flops):
        memory = max(pack.memory for pack in plan.packs)
        rows.append(
            [
                name,
                str(plan.n_runs),
                str(len(plan.packs)),
                f"{memory / 1e9:.3g}",
                f"{plan.flops:.3g}",
                f"{plan.seconds / 3600:.3g}",
            ]
        )
    flops = sum(plan.flops for plan in plans.values())
    hours = sum(plan.seconds for plan in plans.values()) / 3600
    rows.append(["all", "", "", "", f"{flops:.3g}", f"{hours:.3g}"])
    print_table(rows, widths=(24, 6, 7, 9, 10, 10))

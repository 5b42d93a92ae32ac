"""`lmscale bench`: the speed of this machine, against its own matmul peak and against torch."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from lmscale.cli.argument_types import positive_int
from lmscale.cli.errors import CommandError
from lmscale.cli.parser import Parser
from lmscale.terminal import print_json, print_table

if TYPE_CHECKING:
    from lmscale.architectures import ModelSpec
    from lmscale.bench.paths import Row
    from lmscale.bench.sweep import SweepResult
    from lmscale.planner.devices import Devices
    from lmscale.spec import ComputeDtype

__all__ = ["add_arguments", "run"]

#: (shapes, batch, context, vocabulary, dtype) where the user does not say.
_Defaults: TypeAlias = "tuple[tuple[tuple[int, int], ...], int, int, int, ComputeDtype]"
_CPU_DEFAULTS: _Defaults = (((2, 24), (3, 64), (4, 144)), 8, 128, 1024, "float32")
_ACCELERATOR_DEFAULTS: _Defaults = (((12, 768),), 32, 1024, 50_304, "bfloat16")

_EPILOG = """\
Where two defaults are given, the first is for a CPU and the second for an accelerator.

  lmscale bench                                      Transformers and LSTMs, what the planner chooses
  lmscale bench --pack 1 2 4 8 16 --model lstm       packed against one by one
  lmscale bench --shape 12x768 --against torch       GPT-2 small beside torch and torch.compile
  lmscale bench --path train evaluate data checkpoint
  lmscale bench --sweep --model transformer --against torch
"""


def add_arguments(parser: Parser, words: Sequence[str]) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "--model",
        nargs="+",
        metavar="NAME",
        default=["transformer", "lstm"],
        help="architectures, such as llama or one of your own (transformer lstm)",
    )
    parser.add_argument(
        "--shape",
        nargs="+",
        type=_layers_by_width,
        metavar="LxW",
        help="layers x width of the models (2x24 3x64 4x144 on a CPU, 12x768 on an accelerator)",
    )
    parser.add_argument(
        "--pack",
        nargs="+",
        type=_pack,
        metavar="R",
        default=["plan"],
        help="runs in one program: numbers, or plan for what the planner takes (plan)",
    )
    parser.add_argument(
        "--path",
        nargs="+",
        choices=("train", "evaluate", "data", "checkpoint"),
        default=["train"],
        help="what to time (train)",
    )
    parser.add_argument("--sweep", action="store_true", help="time a whole sweep from a cold start")
    parser.add_argument("--batch", type=positive_int, metavar="SEQUENCES", help="(8; 32)")
    parser.add_argument("--context", type=positive_int, metavar="TOKENS", help="(128; 1024)")
    parser.add_argument("--vocab", type=positive_int, metavar="V", help="(1024; 50304)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="(float32; bfloat16)")
    parser.add_argument("--steps", type=positive_int, default=1000, help="of each run of --sweep")
    parser.add_argument("--against", choices=("torch",), help="beside it, in turns (needs torch)")
    parser.add_argument("--repeat", type=positive_int, default=5, help="samples of each case")
    parser.add_argument("--json", action="store_true")


def _layers_by_width(text: str) -> tuple[int, int]:
    layers, times, width = text.partition("x")
    if not times:
        raise argparse.ArgumentTypeError(f"must be LAYERSxWIDTH such as 12x768, not {text!r}")
    return positive_int(layers), positive_int(width)


def _pack(text: str) -> int | str:
    return text if text == "plan" else positive_int(text)


def run(args: argparse.Namespace) -> int:
    if args.against and importlib.util.find_spec("torch") is None:
        raise CommandError("--against torch needs torch: pip install 'lmscale[parity]'")
    from lmscale.architectures import architecture
    from lmscale.cli import start_jax

    for kind in args.model:
        architecture(kind)
    if args.against:
        from lmscale.bench.torch_models import MODELS

        if strange := [kind for kind in args.model if kind not in MODELS]:
            raise CommandError(
                f"--against torch has no {' or '.join(strange)} to compare with: it has "
                f"{' and '.join(MODELS)} (--model)"
            )
    start_jax()
    found, table, note = _time_sweeps(args) if args.sweep else _time_paths(args)
    if args.json:
        print_json(found)
    else:
        print_table(table)
        print(note)
    return 0


#: What is printed: the object of --json, a table, and the line under it.
_Printed = tuple[dict[str, Any], list[list[str]], str]


def _time_paths(args: argparse.Namespace) -> _Printed:
    """Times the paths that the arguments ask for."""
    from lmscale.bench.paths import bench_spec, measure
    from lmscale.planner.devices import local_devices

    devices = local_devices()
    dtype: ComputeDtype
    shapes, batch, context, vocab, dtype = (
        _CPU_DEFAULTS if devices.kind == "cpu" else _ACCELERATOR_DEFAULTS
    )
    shapes, context = args.shape or shapes, args.context or context
    vocab, dtype = args.vocab or vocab, args.dtype or dtype
    specs = [
        bench_spec(
            _model(family, shape, context, vocab),
            batch_size=args.batch or batch,
            compute_dtype=dtype,
        )
        for family in args.model
        for shape in shapes
    ]
    against = ("torch", "torch.compile") if args.against else ()
    n_cases = len(specs) * (len(args.pack) * len(args.path) + len(against))
    with _ticks("benchmark", n_cases * (args.repeat + 1)) as tick:
        rows = measure(
            specs,
            devices,
            packs=args.pack,
            paths=args.path,
            against=against,
            repeat=args.repeat,
            tick=tick,
        )
    found = {
        "device": devices.kind,
        "devices": devices.count,
        "dtype": dtype,
        "batch": args.batch or batch,
        "context": context,
        "vocab": vocab,
        "flop_convention": "exact",
        "rows": [_json(row) for row in rows],
    }
    return found, *_table(rows, devices, dtype)


def _time_sweeps(args: argparse.Namespace) -> _Printed:
    """Times whole sweeps, one per architecture."""
    from lmscale.bench.sweep import TORCH_FORMS, measure_sweep
    from lmscale.bench.sweep_runs import SCALES
    from lmscale.data import open_corpus

    base = SCALES["cpu"]
    corpus = open_corpus("installed-python", vocab_size=args.vocab or base.vocab_size)
    forms = tuple(TORCH_FORMS) if args.against else ()
    results: dict[str, SweepResult] = {}
    with _ticks("sweeps", len(args.model) * (1 + len(forms)) * args.repeat) as tick:
        for family in args.model:
            fields = {
                "model": family,
                "steps": args.steps,
                "vocab_size": corpus.vocab_size,
                "batch_size": args.batch or base.batch_size,
                "n_ctx": args.context or base.n_ctx,
            }
            overrides = [
                part for k, v in fields.items() for part in (f"--{k.replace('_', '-')}", str(v))
            ]
            results[family] = measure_sweep(
                dataclasses.replace(base, **fields),
                overrides,
                corpus,
                against=forms,
                repeat=args.repeat,
                tick=tick,
            )
    found: dict[str, Any] = {
        "sweeps": [
            {
                "model": family,
                "framework": name,
                "seconds": dataclasses.asdict(timing),
                "times_ours": timing.median / result.seconds["lmscale"].median,
                "mean_loss": result.losses[name],
            }
            for family, result in results.items()
            for name, timing in result.seconds.items()
        ]
    }
    table = [["sweep", "by", "seconds", "range", "x ours", "mean loss"]]
    for line in found["sweeps"]:
        seconds = line["seconds"]
        table.append(
            [
                line["model"],
                line["framework"],
                f"{seconds['median']:.1f}",
                f"{seconds['low']:.1f}-{seconds['high']:.1f}",
                f"{line['times_ours']:.2f}",
                f"{line['mean_loss']:.3f}",
            ]
        )
    return found, table, f"median of {args.repeat}, taken in turns, from a cold start"


def _model(family: str, shape: tuple[int, int], n_ctx: int, vocab_size: int) -> ModelSpec:
    from lmscale.architectures import architecture

    return architecture(family).of_shape(*shape, n_ctx=n_ctx, vocab_size=vocab_size)


@contextmanager
def _ticks(title: str, total: int) -> Iterator[Any]:
    """A progress bar that moves on when the next case begins."""
    from lmscale.progress import progress

    with progress(title, total) as bar:
        begun = False

        def tick(name: str) -> None:
            nonlocal begun
            bar.update(1.0 if begun else 0.0, name)
            begun = True

        yield tick


def _json(row: Row) -> dict[str, Any]:
    return {
        **dataclasses.asdict(row),
        "tokens_per_second": row.tokens_per_second,
        "flops_per_second": row.flops_per_second,
        "fraction_of_peak": row.fraction_of_peak,
    }


def _runs(row: Row) -> str:
    """How many runs train at once: in one program, or programs x runs of each."""
    runs = str(row.pack) if row.workers == 1 else f"{row.workers} x {row.pack // row.workers}"
    return f"{runs} (plan)" if row.planned else runs


def _table(rows: list[Row], devices: Devices, dtype: str) -> tuple[list[list[str]], str]:
    table = [
        [
            "path",
            "by",
            "model",
            "N",
            "runs",
            "ms a call",
            "range",
            "tokens/s",
            "GFLOP/s",
            "of peak",
            "MiB",
            "plan",
        ]
    ]
    for row in rows:
        rate, share = row.flops_per_second, row.fraction_of_peak
        memory = row.memory
        table.append(
            [
                row.path,
                row.framework,
                row.model,
                f"{row.params['kaplan']:.3g}",
                _runs(row),
                f"{1e3 * row.seconds.median:.3g}",
                f"{1e3 * row.seconds.low:.3g}-{1e3 * row.seconds.high:.3g}",
                f"{row.tokens_per_second:,.0f}" if row.n_tokens else "",
                "" if rate is None else f"{rate / 1e9:,.1f}",
                "" if share is None else f"{share:.0%}",
                f"{memory['compiled'] / 2**20:,.0f}" if memory else "",
                f"{memory['plan'] / 2**20:,.0f}" if memory else "",
            ]
        )
    peak = rows[0].peak / devices.count / 1e9
    note = (
        f"{devices.count} x {devices.kind}, {dtype}; matmul peak measured here: {peak:,.0f} GFLOP/s "
        f"a device; FLOPs by the exact convention; medians of {rows[0].seconds.samples}, in turns"
    )
    return table, note

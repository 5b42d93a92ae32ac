"""What `lmscale bench` measures and how it says it."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lmscale.architectures import ModelSpec, architecture
from lmscale.bench.paths import Row, bench_spec, measure
from lmscale.bench.sweep import TORCH_FORMS, SweepResult, measure_sweep
from lmscale.bench.sweep_runs import SCALES
from lmscale.data import open_corpus
from lmscale.planner.devices import Devices, local_devices
from lmscale.progress import progress

#: (shapes, batch, context, vocabulary, dtype) where the user does not say.
CPU_DEFAULTS = (((2, 24), (3, 64), (4, 144)), 8, 128, 1024, "float32")
ACCELERATOR_DEFAULTS = (((12, 768),), 32, 1024, 50_304, "bfloat16")

#: What a command prints: the object of --json, and a table with the lines under it.
Printed = tuple[dict[str, Any], tuple[list[list[str]], list[str]]]


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def paths(args: argparse.Namespace) -> Printed:
    """Times the paths that the arguments ask for."""
    devices = local_devices()
    shapes, batch, context, vocab, dtype = (
        CPU_DEFAULTS if devices.kind == "cpu" else ACCELERATOR_DEFAULTS
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
    return found, _table(rows, devices, dtype)


def sweep(args: argparse.Namespace) -> Printed:
    """Times whole sweeps, one an architecture."""
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
    found = {
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
    return found, (table, [f"median of {args.repeat}, taken in turns, from a cold start"])


def _model(family: str, shape: tuple[int, int], n_ctx: int, vocab_size: int) -> ModelSpec:
    return architecture(family).of_shape(*shape, n_ctx=n_ctx, vocab_size=vocab_size)


@contextmanager
def _ticks(title: str, total: int) -> Iterator[Any]:
    """A progress bar that moves on when the next case begins."""
    with progress(title, total) as bar:
        begun = []

        def tick(name: str) -> None:
            bar.update(1.0 if begun else 0.0, name)
            begun.append(name)

        yield tick


def _json(row: Row) -> dict[str, Any]:
    return {
        **dataclasses.asdict(row),
        "tokens_per_second": row.tokens_per_second,
        "flops_per_second": row.flops_per_second,
        "fraction_of_peak": row.fraction_of_peak,
    }


def _runs(row: Row) -> str:
    """Runs at once: in one program, or so many programs of so many each."""
    runs = str(row.pack) if row.teams == 1 else f"{row.teams} x {row.pack // row.teams}"
    return f"{runs} (plan)" if row.planned else runs


def _table(rows: list[Row], devices: Devices, dtype: str) -> tuple[list[list[str]], list[str]]:
    table = [
        ["path", "by", "model", "N", "runs", "ms a call", "range", "tokens/s", "GFLOP/s", "of peak"]
        + ["MiB", "plan"]
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
    return table, [note]

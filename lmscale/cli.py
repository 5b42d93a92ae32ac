"""The `lmscale` command: a thin layer over the library.

Exit codes: 0 success; 2 bad usage, with one line that says what was wrong and what would be right;
1 failure; 42 preempted, everything saved (run the same command again). With --json a command prints
one JSON object on standard output and nothing else there; all else goes to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import json
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmscale.foreign_text import readable
from lmscale.stopping import PREEMPTED, Stop, Stopped
from lmscale.terminal import one_line
from lmscale.terminal import print_json as _print_json
from lmscale.terminal import print_table as _print_table
from lmscale.terminal import say as _say

_EPILOG = """\
a first study, on a laptop:
  lmscale run isoflop                        trains a grid on the Python sources of this machine
  lmscale advise results/isoflop-cpu --compute 1.1e12
  lmscale verify results/isoflop-cpu --compute 1.1e12     writes the forecast down, then trains it
on your own text:
  lmscale data build mytext --input ~/text --vocab-size 8192
  lmscale run isoflop --data mytext --out results/mytext
an architecture of your own, in a file with an experiment (every command takes --load):
  lmscale run mine.py --out results/mine
  lmscale report results/mine --load mine.py
"""

_PLAN_EPILOG = """\
With --device the machine need not be there. Where its compiler is installed (pip install
'lmscale[tpu]' for TPUs, 'lmscale[cuda13-aot]' for GPUs) the train programs are compiled for it, and the plan
says what they need of a chip's memory, what they send, and how long a step takes at least:

  lmscale plan isoflop --scale paper --device v5e:256
  lmscale plan isoflop --scale paper --device h100:64 --compile all
  lmscale plan isoflop --scale paper --device v5p:64 --mesh 1,32,2 --effort full

A step takes at least the longest of: its FLOPs (our count, with what is computed twice to save memory) at
the chip's bfloat16 peak; the bytes that it reads and writes at the memory's bandwidth, as if nothing stayed
on the chip between two operations (low effort keeps less there than full effort); the bytes that
it sends at the links' bandwidth. The column hours of the first table assumes a share of the peak instead.
"""

_BENCH_EPILOG = """\
Where two defaults are given, the first is for a CPU and the second for an accelerator.

  lmscale bench                                      both architectures, what the planner chooses
  lmscale bench --pack 1 2 4 8 16 --model lstm       packed against one by one
  lmscale bench --shape 12x768 --against torch       GPT-2 small beside torch and torch.compile
  lmscale bench --path train evaluate data checkpoint
  lmscale bench --sweep --model transformer --against torch
"""


_EVAL_EPILOG = """\
The windows lie at equal distances over the whole split. +- is the standard error that the choice of
documents gives a loss; the last two columns compare each run with the best on the same windows,
which is known far better. Scores go to DIR/runs/RUN/evals/ and, as a column, to DIR/results.csv:

  lmscale eval results/isoflop-cpu                            the test split of the runs' own corpus
  lmscale eval results/isoflop-cpu --data installed-prose --tokens 1e6
  lmscale fit results/isoflop-cpu --law isoflop --columns loss=loss_installed-python-v512-test
"""


_PREEMPTED = "preempted: every run is saved; the same command goes on from here"


class _CommandError(ValueError):
    """Bad usage that no library call would notice."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str):
        print(f"{self.prog}: {one_line(message)} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    argv, files = _files_to_load(list(sys.argv[1:] if argv is None else argv))
    # Before the imports, which take seconds: a worker may be stopped when it has only begun.
    stop = None
    # Processes that train as one stop as one: none of them may leave by itself.
    together = any(a.split("=")[0] == "--distributed" for a in argv)
    try:
        if argv[:1] in (["run"], ["verify"]):
            # From here on a signal raises `Stopped`, also in an import.
            stop = Stop(deferred=together)
            if not together and not {"-h", "--help"} & set(argv):
                from lmscale.parallel.processes import expect_processes

                expect_processes()
        for path in files:
            _load(path)
        args = _parse(argv)
        args.stop = stop
        return args.handler(args) or 0
    except Stopped:
        return _preempted()
    except KeyboardInterrupt:
        print("lmscale: interrupted", file=sys.stderr)
        return 1
    except ImportError as error:
        # A stop that comes while a library in C is loaded is told as its failure to load.
        if not isinstance(error.__cause__ or error.__context__, Stopped):
            raise
        return _preempted()
    except (OSError, RuntimeError, ValueError) as error:
        code, line = _code_and_line(error)
        if line is None:
            raise
        _say(f"lmscale {argv[0]}: {one_line(line)}")
        return code
    finally:
        if stop is not None:
            stop.close()


def _preempted() -> int:
    print(f"lmscale: {_PREEMPTED}", file=sys.stderr)
    return PREEMPTED


def _files_to_load(argv: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without every `--load FILE`, and these files.

    They come before everything else, because a store can be read only when its architectures are known.
    """
    rest, files, words = [], [], iter(argv)
    for word in words:
        if word == "--load":
            files.append(next(words, ""))
        elif word.startswith("--load="):
            files.append(word.removeprefix("--load="))
        else:
            rest.append(word)
    return rest, files


def _load(path: str) -> None:
    if not path.endswith(".py") or not Path(path).is_file():
        raise _CommandError(f"--load wants a Python file, and {path or 'nothing'} is none")
    from lmscale.sweep.experiment import load_file

    load_file(Path(path))


def entry_point() -> None:
    """What the installed command runs."""
    sys.exit(main())


def _code_and_line(error: BaseException) -> tuple[int, str | None]:
    """The exit code for an error, and the line that says it; no line for a fault of ours."""
    # Not with the module: it takes some time to load, and a worker may be stopped meanwhile.
    from lmscale.files import DamagedError, DiskError, say_os_error

    if isinstance(error, OSError):
        return 1, say_os_error(error)
    build = sys.modules.get("lmscale.data.errors")
    if isinstance(error, (DamagedError, DiskError, *((build.BuildError,) if build else ()))):
        return 1, str(error)
    teams = sys.modules.get("lmscale.sweep.teams")
    if teams is not None and isinstance(error, teams.TeamError):
        return 1, str(error)
    return (2, str(error)) if isinstance(error, _usage_errors()) else (1, None)


def _usage_errors() -> tuple[type[Exception], ...]:
    """The errors that tell a user what to do, of the modules that this command has loaded."""
    names = {
        "lmscale.spec": "SpecError",
        "lmscale.data": "DataError",
        "lmscale.laws": "TableError",
        "lmscale.laws.result": "FitError",
        "lmscale.parallel.mesh": "MeshError",
        "lmscale.sweep.fields": "ExperimentError",
        "lmscale.sweep.store": "StoreError",
        "lmscale.sweep.devices": "DeviceError",
        "lmscale.sweep.aot": "CompileError",
        "lmscale.parallel.topology": "TopologyError",
    }
    return _CommandError, *(
        getattr(sys.modules[module], name)
        for module, name in names.items()
        if module in sys.modules
    )


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="lmscale",
        description="Scaling-law experiments: declare, plan, train, fit, draw, recommend.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, handler: Callable, text: str, **kwargs) -> _Parser:
        sub = commands.add_parser(name, help=text, description=text, **kwargs)
        sub.set_defaults(handler=handler)
        return sub

    run = command("run", _run, "Train an experiment, then fit and draw it; resumes what is there.")
    _experiment_arguments(run, argv)
    run.add_argument(
        "--out",
        metavar="DIR",
        type=_folder_argument,
        help="store of the results (results/NAME-SCALE and what was overridden, as plan shows; of "
        "many experiments: their folder)",
    )
    run.add_argument(
        "--extend",
        action="store_true",
        help="add these runs to the store, where it holds others of the same experiment",
    )
    run.add_argument(
        "--shard", metavar="I/N", type=_shard, default=(0, 1), help="part I of N, from 0"
    )
    run.add_argument("--slots", type=_positive_int, help="runs trained side by side (planned)")
    _mesh_argument(run)
    _prior_argument(run)
    run.add_argument(
        "--checkpoint-seconds",
        type=_seconds,
        default=60.0,
        help="at most this much is lost to a kill",
    )
    run.add_argument(
        "--distributed",
        metavar="auto|HOST:PORT,COUNT,INDEX",
        type=_distributed,
        help="train together with other processes, all given this command: what JAX finds on a TPU "
        "pod, under srun or in Kubernetes, or process INDEX of COUNT whose first is at HOST:PORT",
    )

    plan = command("plan", _plan, "Show packs, memory, FLOPs and hours of an experiment.")
    _experiment_arguments(plan, argv)
    plan.set_defaults(extend=False)
    plan.epilog = f"{_PLAN_EPILOG}\n{plan.epilog or ''}"
    plan.add_argument(
        "--device", metavar="KIND[:COUNT]", help="h100:8, v5e:256, ... (this machine)"
    )
    _mesh_argument(plan)
    _prior_argument(plan)
    plan.add_argument(
        "--compile",
        choices=("largest", "all", "none"),
        help="compile the packs that need most memory and most FLOPs, all, or none (largest with "
        "--device, where the compiler is installed and one experiment is planned)",
    )
    plan.add_argument(
        "--effort",
        choices=("low", "full"),
        default="low",
        help="of the TPU compiler: seconds a pack, or as for the training itself (low)",
    )
    plan.add_argument("--json", action="store_true")

    status = command(
        "status",
        _status,
        "Show how far a store is: runs by status, the unfinished and the failed ones with their step and reason. Works while workers run.",
    )
    status.add_argument("dir", metavar="DIR")
    status.add_argument(
        "--check",
        action="store_true",
        help="read the checkpoints of runs that have ended, too: is every byte what was written?",
    )
    status.add_argument("--json", action="store_true")

    bench = command(
        "bench",
        _bench,
        "Measure speed on this machine: against its own matmul peak, and against torch.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_BENCH_EPILOG,
    )
    bench.add_argument(
        "--model",
        nargs="+",
        choices=("transformer", "lstm"),
        default=["transformer", "lstm"],
        help="architectures (both)",
    )
    bench.add_argument(
        "--shape",
        nargs="+",
        type=_layers_by_width,
        metavar="LxW",
        help="layers x width of the models (2x24 3x64 4x144 on a CPU, 12x768 on an accelerator)",
    )
    bench.add_argument(
        "--pack",
        nargs="+",
        type=_pack,
        metavar="R",
        default=["plan"],
        help="runs in one program: numbers, or plan for what the planner takes (plan)",
    )
    bench.add_argument(
        "--path",
        nargs="+",
        choices=("train", "evaluate", "data", "checkpoint"),
        default=["train"],
        help="what to time (train)",
    )
    bench.add_argument("--sweep", action="store_true", help="time a whole sweep from a cold start")
    bench.add_argument("--batch", type=_positive_int, metavar="SEQUENCES", help="(8; 32)")
    bench.add_argument("--context", type=_positive_int, metavar="TOKENS", help="(128; 1024)")
    bench.add_argument("--vocab", type=_positive_int, metavar="V", help="(1024; 50304)")
    bench.add_argument("--dtype", choices=("float32", "bfloat16"), help="(float32; bfloat16)")
    bench.add_argument("--steps", type=_positive_int, default=1000, help="of each run of --sweep")
    bench.add_argument("--against", choices=("torch",), help="beside it, in turns (needs torch)")
    bench.add_argument("--repeat", type=_positive_int, default=5, help="samples of each case")
    bench.add_argument("--json", action="store_true")

    fit = command(
        "fit",
        _fit,
        "Fit laws to a store or to any table of runs; several laws are set side by side.",
    )
    if argv[:1] == ["fit"]:
        # The laws take a second to load, and their options are arguments.
        from lmscale.fit_command import add_arguments

        add_arguments(fit)

    evaluate = command(
        "eval",
        _eval,
        "Score the finished runs of a store again, on any corpus and split, without training.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EVAL_EPILOG,
    )
    evaluate.add_argument("dir", metavar="DIR")
    evaluate.add_argument(
        "--data", metavar="CORPUS", help="the text to score on (the corpus of the runs)"
    )
    evaluate.add_argument(
        "--split",
        choices=("train", "valid", "test"),
        help="of the corpus (test, or valid where the corpus has no test documents)",
    )
    evaluate.add_argument(
        "--tokens", type=_whole_positive, metavar="N", help="in windows over the whole split (all)"
    )
    evaluate.add_argument("--json", action="store_true")

    report = command(
        "report",
        _report,
        "Draw what a store holds so far: report.html (one page that needs nothing else), figures/*.png and *.svg, fits.json, results.csv.",
    )
    report.add_argument("dir", metavar="DIR", help="a store, or a folder of stores")

    advise = command(
        "advise",
        _advise,
        "Recommend a model for a budget, from a store, any table of runs, or a published law.",
    )
    verify = command(
        "verify",
        _verify,
        "Write down what a store foretells for a budget, train the advised model with its half and "
        "its double on that budget, and compare. Resumes what is there; a forecast is never rewritten.",
    )
    if argv[:1] == ["advise"]:
        from lmscale.advise_command import add_arguments

        add_arguments(advise)
    if argv[:1] == ["verify"]:
        from lmscale.verify_command import add_arguments

        add_arguments(verify)

    sample = command("sample", _sample, "Continue a text with a trained run.")
    sample.add_argument("run", metavar="RUN_DIR")
    sample.add_argument("--prompt", metavar="TEXT", required=True)
    sample.add_argument("--tokens", type=_positive_int, default=100)
    sample.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest")
    sample.add_argument("--seed", type=int, default=0)

    data = command("data", _data_list, "Build, list, show and verify corpora.")
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="text -> tokeniser and token store")
    build.set_defaults(handler=_data_build)
    build.add_argument("name", metavar="NAME")
    build.add_argument(
        "--input",
        metavar="PATH",
        nargs="+",
        required=True,
        help="files, folders, globs: .txt .jsonl .json (also .xz .gz .zst) .parquet",
    )
    build.add_argument("--vocab-size", type=_positive_int, help="4096, or the other tokeniser's")
    for split in ("valid", "test"):
        build.add_argument(
            f"--{split}-fraction",
            metavar="SHARE",
            type=float,
            help=f"share of the documents that {split} is chosen from (1%% to 10%%, for 200 documents)",
        )
    build.add_argument(
        "--cut-documents",
        metavar="BYTES",
        type=_positive_int,
        help="store longer documents in pieces; all pieces of one stay in one split",
    )
    build.add_argument(
        "--split-pieces",
        action="store_true",
        help="take the pieces for documents: for text that is one long document",
    )
    build.add_argument("--text-field", default="text", help="of .jsonl and .parquet")
    build.add_argument(
        "--separator",
        metavar="LINE",
        help="line between the documents of a .txt (a form feed or <|endoftext|>); '' for an empty one",
    )
    build.add_argument(
        "--skip-bad",
        metavar="MOST",
        nargs="?",
        const=0.01,
        default=False,
        type=_bound_of_bad,
        help="leave out rows and documents that are no text, and count them by reason: at most 1%% of "
        "all, or so many (100), or another share (0.1%%), or any number (any)",
    )
    build.add_argument(
        "--tokenizer-from",
        metavar="CORPUS",
        help="take this corpus's tokeniser, for evaluation sets",
    )
    listing = actions.add_parser("list", help="the corpora of this machine")
    listing.add_argument("--json", action="store_true")
    show = actions.add_parser("show", help="one corpus: splits, held-out text, copies, settings")
    show.set_defaults(handler=_data_show)
    show.add_argument("name", metavar="NAME")
    show.add_argument("--json", action="store_true")
    check = actions.add_parser("verify", help="read all of a corpus: is it what was written?")
    check.set_defaults(handler=_data_verify)
    check.add_argument("name", metavar="NAME")
    check.add_argument("--json", action="store_true")
    args, unknown = parser.parse_known_args(argv)
    if unknown and args.handler is not _fit:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    # `fit` knows the options of the laws that it is asked for, and says which those are.
    args.unknown = unknown
    return args


def _mesh_argument(parser: _Parser) -> None:
    parser.add_argument(
        "--mesh",
        metavar="RUN,DATA,MODEL",
        type=_mesh,
        help="devices for runs side by side, for parts of each batch, for parts of each layer (planned)",
    )


def _prior_argument(parser: _Parser) -> None:
    parser.add_argument(
        "--prior",
        metavar="DIR|LAW",
        help="a store or a published law that tells where the minima of an isoflop grid will be: "
        "badly centred budgets are named (earlier results of this experiment)",
    )


def _experiment_arguments(parser: _Parser, argv: list[str]) -> None:
    """EXPERIMENT, --scale, --data, and an option for every field of the experiment named."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "experiment", metavar="EXPERIMENT", help="a name, a .py file, a folder of them, or all"
    )
    parser.set_defaults(many=[])
    parser.add_argument("--scale", default="cpu", help="cpu, gpu, paper")
    parser.add_argument("--data", metavar="CORPUS", default="installed-python")
    if argv[:1] != [parser.prog.split()[-1]]:
        return
    # A first look, to know which experiment's fields to offer.
    look = _Parser(prog=parser.prog, add_help=False)
    look.add_argument("experiment", nargs="?")
    look.add_argument("--scale", default="cpu")
    known, _ = look.parse_known_args([a for a in argv[1:] if a not in ("-h", "--help")])
    if known.experiment is None:
        from lmscale.sweep.experiment import experiment_names

        parser.epilog = "experiments: " + ", ".join(experiment_names())
        return
    from lmscale.sweep.experiment import ExperimentError, field_types, is_optional, load_scales

    if known.experiment == "all" or Path(known.experiment).is_dir():
        parser.description = "Runs every experiment, the cheapest first, and links their reports."
        parser.set_defaults(many=_load_many(known.experiment, known.scale))
        return
    name, doc, scales = load_scales(known.experiment)
    if known.scale not in scales:
        raise ExperimentError(
            f"{name} has no scale {known.scale!r}: choose from {', '.join(scales)}"
        )
    experiment = scales[known.scale]
    parser.description = doc
    parser.set_defaults(loaded=(name, experiment))
    group = parser.add_argument_group(f"fields of {name} at scale {known.scale}")
    helps = {field.name: field.metadata.get("help", "") for field in dataclasses.fields(experiment)}
    for field, (kind, many) in field_types(experiment).items():
        default = getattr(experiment, field)
        shown = (
            " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in default)
            if many
            else default
        )
        group.add_argument(
            f"--{field.replace('_', '-')}",
            dest=f"field_{field}",
            type=_field_value(kind, is_optional(experiment, field)),
            nargs="+" if many else None,
            metavar=kind.__name__.upper(),
            help=f"{helps[field]} [{shown}]".strip().replace("%", "%%"),
        )


def _load_many(folder: str, scale: str) -> list[tuple[str, Any]]:
    """The experiments of lmscale ("all") or of a folder that have this scale."""
    from lmscale.sweep.experiment import ExperimentError, experiment_names, load_scales

    files = sorted(str(file) for file in Path(folder).glob("[!_]*.py"))
    found = []
    for file in experiment_names() if folder == "all" else files:
        name, _, scales = load_scales(file)
        if scale in scales:
            found.append((name, scales[scale]))
    if not found:
        raise ExperimentError(f"{folder} holds no experiment with a scale {scale!r}")
    return found


def _experiments(args: argparse.Namespace) -> list[tuple[str, Any]]:
    """What to run: one experiment with the user's overrides, or many as they are."""
    return args.many or [_experiment(args)]


def _experiment(args: argparse.Namespace) -> tuple[str, Any]:
    """The experiment with the user's overrides."""
    from lmscale.sweep.fields import ExperimentError, FieldError

    name, experiment = args.loaded
    changes = {
        key.removeprefix("field_"): (
            tuple(value) if isinstance(value, list) else None if value is _NONE else value
        )
        for key, value in vars(args).items()
        if key.startswith("field_") and value is not None
    }
    try:
        return name, dataclasses.replace(experiment, **changes)
    except FieldError as error:
        flag = f"--{error.field.replace('_', '-')}"
        raise ExperimentError(f"{flag} {error.fault}") from error


class _NoValue:
    """What "none" on the command line stands for, as None says that an option was not given."""

    def __repr__(self) -> str:
        return "none"


_NONE = _NoValue()


def _field_value(kind: type, optional: bool) -> Callable[[str], Any]:
    """The parser of a field's value."""
    parse = _whole if kind is int else kind
    if not optional:
        return parse

    def value(text: str) -> Any:
        return _NONE if text.lower() == "none" else parse(text)

    value.__name__ = parse.__name__
    return value


def _whole(text: str) -> int:
    """An int, also in the notation 1e6."""
    value = float(text)
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}")
    return int(value)


_whole.__name__ = "whole number"


def _folder_argument(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("must name a folder")
    return text


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1e9 seconds, not {text!r}")
    return value


_seconds.__name__ = "number"


def _positive_int(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _whole_positive(text: str) -> int:
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return value


_whole_positive.__name__ = "whole number"


def _bound_of_bad(text: str) -> int | float:
    """A number of rows, a share of all written 0.1% or 0.001, or True for "any"."""
    if text == "any":
        return True
    with contextlib.suppress(ValueError):
        if text.isdecimal():
            return int(text)
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        if 0 < share < 1:
            return share
    raise argparse.ArgumentTypeError(
        f"must be a whole number of rows, a share of them such as 0.1%, or any, not {text!r}"
    )


def _layers_by_width(text: str) -> tuple[int, int]:
    layers, times, width = text.partition("x")
    if not times:
        raise argparse.ArgumentTypeError(f"must be LAYERSxWIDTH such as 12x768, not {text!r}")
    return _positive_int(layers), _positive_int(width)


def _pack(text: str) -> int | str:
    return text if text == "plan" else _positive_int(text)


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 0 to N - 1, not {text!r}")
    return int(index), int(count)


def _mesh(text: str) -> tuple[int, int, int]:
    sizes = tuple(int(part) if part.isdigit() else 0 for part in text.split(","))
    if len(sizes) != 3 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(
            f"must be RUN,DATA,MODEL, three whole numbers of at least 1, not {text!r}"
        )
    return sizes


def _distributed(text: str) -> str | tuple[str, int, int]:
    if text == "auto":
        return text
    address, *numbers = text.split(",")
    port = address.rpartition(":")[2]
    if not (":" in address and len(numbers) == 2 and all(n.isdigit() for n in (port, *numbers))):
        raise argparse.ArgumentTypeError(f"must be auto or HOST:PORT,COUNT,INDEX, not {text!r}")
    count, index = map(int, numbers)
    if index >= count:
        raise argparse.ArgumentTypeError(f"INDEX runs from 0 to COUNT - 1, but this is {text!r}")
    return address, count, index


# --- commands -----------------------------------------------------------------------------------


def _run(args: argparse.Namespace) -> int:
    """Trains alone, or as one process of several."""
    start_jax()
    if args.distributed is None:
        return _train_all(args, args.stop)
    from lmscale.parallel import distributed

    try:
        distributed.start(args.distributed, _identity(args))
        if args.stop():
            # From here on JAX hears the signal, for all processes.
            os.kill(os.getpid(), signal.SIGTERM)
        code = _train_all(args, distributed.preempted)
    except distributed.GangError as error:
        _say(f"lmscale run: {error}")
        code = error.code
    except BaseException as error:  # noqa: BLE001 (the other processes must hear of it)
        code, line = _code_and_line(error)
        if line is None:
            traceback.print_exc()
        else:
            _say(f"lmscale run: {line}")
    return distributed.finish(code)


def _identity(args: argparse.Namespace) -> str:
    """The command, as far as all processes that train together must have the same."""
    own = ("handler", "stop", "distributed", "loaded", "many")
    return json.dumps({k: repr(v) for k, v in vars(args).items() if k not in own}, sort_keys=True)


def _train_all(args: argparse.Namespace, stop: Callable[[], bool]) -> int:
    from lmscale.parallel.distributed import agree, check_same, is_first
    from lmscale.progress import progress
    from lmscale.sweep.devices import Devices, local_devices
    from lmscale.sweep.plan import make_plan
    from lmscale.sweep.shards import shard_runs
    from lmscale.sweep.store import Store, StoreError
    from lmscale.training.loop import Preempted

    grids, prior = [], _prior(args)
    stores = [
        Store(_out(args, folder)) for folder in (_folder(args, *one) for one in _experiments(args))
    ]
    for (name, experiment), store in zip(_experiments(args), stores, strict=True):
        # The first builds the corpora that are not there yet, the others read them.
        declared = _declare(args, name, experiment) if is_first() else None
        if declared:
            # Before anything is trained, and before many workers would each do it.
            declared.corpus.check()
        agree(lambda: None)
        grid = declared or _declare(args, name, experiment)
        if is_first() and (why := _refusal(args, grid, store)):
            raise StoreError(why)
        grids.append((grid, store))
    check_same("runs", " ".join(run.spec.hash for grid, _ in grids for run in grid.runs))
    # JAX looks for devices in all processes at once. Machines differ by some bytes of memory, but
    # plans must not.
    own = local_devices()
    devices, jobs = Devices(**agree(lambda: dataclasses.asdict(own))), []
    for grid, store in grids:
        plan = make_plan(
            shard_runs(grid.runs, *args.shard),
            devices,
            n_slots=args.slots,
            mesh=args.mesh,
            whole=args.distributed is not None,
        )
        jobs.append(
            _Job(
                grid.name,
                grid.experiment,
                grid.corpus,
                grid.runs,
                plan,
                store,
                grid.lines,
                args.extend,
            )
        )
    jobs.sort(key=lambda job: job.plan.flops)
    parent = Path(args.out or "results")
    ill, flops = False, sum(job.plan.flops for job in jobs)
    with progress("training", flops, silent=not is_first()) as bar:
        for number, job in enumerate(jobs):
            store = job.store
            for line in job.lines:
                bar.log(f"{job.name}: {line}")
            bar.log(f"{job.name}: {_plan_line(job.plan)} -> {store.path}")
            own = _earlier(args, job.name, store)
            for line in _centering(prior, job.runs, own) if is_first() else ():
                bar.log(f"{job.name}: {line}")
            if repeated := _repeated_text(job.experiment, job.corpus, job.runs)[1]:
                bar.log(f"{job.name}: {repeated}")
            earlier = [other.store for other in (*jobs[:number], *jobs[number + 1 :])]
            try:
                ill |= _train(args, job, store, earlier, bar, stop)
            except Preempted:
                if is_first():
                    store.write_table()
                    _say(_PREEMPTED)
                return PREEMPTED
            if args.many and is_first():
                from lmscale.report import write_front

                write_front(parent)
    if args.many and is_first():
        _say(f"all reports: {parent / 'index.html'}")
    # The others wait until the first has written its reports.
    return agree(lambda: 1 if ill else 0)


class _Job(NamedTuple):
    """One experiment of a `lmscale run`. `lines` say what of its grid is left out."""

    name: str
    experiment: Any
    corpus: Any
    runs: list[Any]
    plan: Any
    store: Any
    lines: list[str]
    extend: bool


class _Grid(NamedTuple):
    """An experiment on its corpus, and lines on what its grid leaves out and cannot support."""

    name: str
    experiment: Any
    corpus: Any
    runs: list[Any]
    lines: list[str]


def _declare(args: argparse.Namespace, name: str, experiment: Any) -> _Grid:
    """The runs of an experiment, with the user's corpus."""
    from lmscale.sweep.dropped import declared_runs
    from lmscale.sweep.support import unsupported

    corpus = _corpus(args.data, experiment)
    runs, dropped = declared_runs(name, experiment, corpus)
    return _Grid(
        name, experiment, corpus, runs, [*dropped, *unsupported(experiment.analyses, runs)]
    )


def _folder(args: argparse.Namespace, name: str, experiment: Any) -> str:
    """The name of an experiment's folder, if the user gives none."""
    from lmscale.sweep.declaration import default_folder

    shipped = experiment if args.many else args.loaded[1]
    return default_folder(name, args.scale, experiment, shipped, args.data)


def _out(args: argparse.Namespace, folder: str) -> Path | str:
    """Where `lmscale run` keeps an experiment."""
    if args.out is None:
        return Path("results") / folder
    if not args.many:
        return args.out
    return f"{args.out.rstrip('/')}/{folder}" if "://" in args.out else Path(args.out) / folder


def _refusal(args: argparse.Namespace, grid: _Grid, store: Any) -> str | None:
    """Why a store does not take these runs, in a line, or None if it does."""
    from lmscale.sweep.declaration import Declaration

    return store.refusal(
        Declaration.of(grid.name, args.scale, grid.experiment, grid.corpus, grid.runs), args.extend
    )


def _train(
    args: argparse.Namespace, job: _Job, store: Any, earlier: list[Any], bar: Any, stop: Callable
) -> bool:
    """Trains and reports one experiment; True where a run failed for another reason than its loss."""
    from lmscale.parallel.distributed import is_first
    from lmscale.sweep.execute import execute
    from lmscale.sweep.room import check_room
    from lmscale.sweep.slots import choices_of
    from lmscale.sweep.store import note_worker

    if is_first():
        check_room(job.plan, store)
        # Seconds of importing that no run needs to wait for.
        report = threading.Thread(
            target=importlib.import_module, args=("lmscale.report",), daemon=True
        )
        report.start()
        command = shlex.join(["lmscale", *sys.argv[1:]])
        store.declare(
            job.name,
            args.scale,
            job.experiment,
            job.corpus,
            job.runs,
            command,
            extend=job.extend,
        )
        note_worker(store, args.shard)
        for other in earlier:
            if taken := store.adopt(other, job.runs):
                bar.log(f"{job.name}: {taken} runs taken from {other.path.name}")
    # From here on there are states to save.
    with args.stop.deferred():
        execute(
            job.plan,
            store,
            functools.partial(_open_corpus, vocab_size=job.experiment.vocab_size),
            bar,
            choices=None if args.slots else choices_of(store, job.plan.devices),
            checkpoint_seconds=args.checkpoint_seconds,
            stop=stop,
        )
    if not is_first():
        return False
    from lmscale.report import write_report

    for line in store.damage():
        bar.log(f"left out: {line}; the same command makes it again")
    table = store.write_table()
    page = write_report(store)
    counts = table["status"].value_counts().to_dict()
    bar.log(", ".join(f"{count} {status}" for status, count in counts.items()))
    bar.log(f"report: {page}")
    return bool({"failed", "out_of_memory"} & set(counts))


def _plan(args: argparse.Namespace) -> int:
    start_jax()
    from lmscale.data import copies_sentence, has_many_copies
    from lmscale.sweep.devices import local_devices, parse_devices
    from lmscale.sweep.plan import make_plan
    from lmscale.sweep.store import Store

    devices = parse_devices(args.device) if args.device else local_devices()
    which = _what_to_compile(args, devices)
    plans, copied, off_center, grids, prior = {}, set(), {}, {}, _prior(args)
    for name, experiment in _experiments(args):
        grid = _declare(args, name, experiment)
        corpus, runs = grid.corpus, grid.runs
        if has_many_copies(corpus.copies):
            copied.add(f"{corpus.name}: {copies_sentence(corpus.copies)}")
        store = Store(Path("results") / _folder(args, name, experiment))
        grids[name] = (grid.lines, store, _refusal(args, grid, store))
        off_center[name] = _centering(prior, runs, _earlier(args, name, store))
        plan = make_plan(runs, devices, mesh=args.mesh)
        epochs = _repeated_text(experiment, corpus, runs)
        answers = _compile(args, plan, which, corpus) if which != "none" else None
        if answers is not None:
            plan = dataclasses.replace(plan, packs=tuple(answer.pack for answer in answers))
        plans[name] = (plan, epochs, answers)
    if args.json:
        found = [
            {
                "experiment": name,
                "scale": args.scale,
                **_plan_json(*plan),
                "badly_centered": off_center[name],
                "left_out": grids[name][0],
                "store": str(grids[name][1].path),
                "store_refuses": grids[name][2],
            }
            for name, plan in plans.items()
        ]
        _print_json({"experiments": found} if args.many else found[0])
        return 0
    for name, (lines, _, _) in grids.items():
        for line in lines:
            print(f"{name}: {line}" if args.many else line)
    if args.many:
        _print_plans({name: plan for name, (plan, *_) in plans.items()})
        for name, (_, (_, repeated), _) in plans.items():
            if repeated:
                print(f"{name}: {repeated}")
    else:
        _print_packs(*next(iter(plans.values()))[:2])
    for line in sorted(copied):
        print(line)
    some = next(iter(plans.values()))[0].devices
    print(
        f"time assumes {some.utilisation:.0%} of {some.peak_flops:.3g} FLOP/s a device; "
        "GB a device is an estimate from shapes"
    )
    for name, lines in off_center.items():
        for line in lines:
            print(f"{name}: {line}" if args.many else line)
    for name, (_, store, refused) in grids.items():
        of = f"{name}: " if args.many else ""
        print(f"{of}{refused}" if refused else f"{of}results go to {store.path}, without --out")
    for name, (plan, _, answers) in plans.items():
        if answers is not None:
            _print_compiled(name if args.many else None, plan.devices, answers, args.effort)
    return 0


def _prior(args: argparse.Namespace) -> Any:
    """--prior: a store, the name of a published law, or None."""
    from lmscale import laws
    from lmscale.sweep.store import Store

    if args.prior is None or args.prior in laws.PUBLISHED:
        return args.prior
    if not Path(args.prior).is_dir():
        raise _CommandError(
            f"--prior {args.prior} is neither a folder nor a published law "
            f"({', '.join(laws.PUBLISHED)})"
        )
    return Store.open(args.prior)


def _earlier(args: argparse.Namespace, name: str, store: Any) -> Any:
    """The store whose results tell where minima are: its own, or those of the experiment as shipped."""
    from lmscale.sweep.store import Store

    return store if store.holds_experiment() else Store(Path("results") / f"{name}-{args.scale}")


def _centering(prior: Any, runs: list[Any], own: Any) -> list[str]:
    """A line for each badly centred budget of an isoflop grid."""
    if all("budget" not in run.labels for run in runs):
        return []
    from lmscale.sweep.centering import badly_centered

    return badly_centered(runs, prior, own)


def _what_to_compile(args: argparse.Namespace, devices: Any) -> str:
    """--compile, or by what there is to compile with."""
    from lmscale.parallel.topology import compiler
    from lmscale.sweep.aot import require_compiler

    if args.compile is None:
        able = bool(args.device) and devices.platform != "cpu" and compiler(devices.platform)
        return "largest" if able and not args.many else "none"
    if args.compile != "none":
        require_compiler(devices)
    return args.compile


def _compile(args: argparse.Namespace, plan: Any, which: str, corpus: Any) -> list[Any]:
    from lmscale.progress import progress
    from lmscale.sweep.aot import ask_compiler, chosen

    tokens = corpus.tokens("train")
    with progress("compiling", len(chosen(plan, which))) as bar:
        return ask_compiler(
            plan,
            which,
            (len(tokens), str(tokens.dtype)),
            effort=args.effort,
            mesh=args.mesh,
            tick=bar.update,
        )


def _repeated_text(experiment: Any, corpus: Any, runs: Any) -> tuple[Any, str | None]:
    """How often an experiment's runs pass over their text, and a line where that is too often."""
    from lmscale.sweep.epochs import epochs_of_specs

    epochs = epochs_of_specs((run.spec for run in runs), corpus.n_tokens("train"))
    return epochs, epochs.line(corpus.name, experiment.repeats_text)


def _plan_json(
    plan: Any, epochs: tuple[Any, str | None], answers: list[Any] | None
) -> dict[str, Any]:
    from lmscale.sweep.plan import fits

    packs = [
        {
            "model": pack.key.model.label,
            "runs": len(pack.runs),
            "slots": pack.n_slots,
            "mesh": dict(zip(("run", "data", "model"), pack.mesh, strict=True)),
            "micro_batch": pack.micro_batch,
            "remat": pack.remat,
            "logit_pieces": pack.logit_pieces,
            "chunk_steps": pack.chunk_steps,
            "memory_bytes": pack.memory,
            "fits": fits(pack, plan.devices),
            "flops": pack.flops,
            "seconds": pack.seconds,
        }
        for pack in plan.packs
    ]
    for pack, answer in zip(packs, answers or (), strict=False):
        pack["compiled"] = _compiled_json(answer, plan.devices)
    return {
        "device": dataclasses.asdict(plan.devices),
        "runs": plan.n_runs,
        "flops": plan.flops,
        "seconds": plan.seconds,
        "max_epochs": epochs[0].most,
        "runs_of_too_many_epochs": epochs[0].over,
        "train_tokens": epochs[0].tokens,
        "train_tokens_needed": epochs[0].needed,
        "packs": packs,
    }


def _compiled_json(answer: Any, devices: Any) -> dict[str, Any] | None:
    from lmscale.sweep.aot import describe, roofline, roofline_hours

    if answer.compiled is None:
        return None
    found = dataclasses.asdict(answer.compiled)
    known = answer.compiled.arguments is not None
    bounds = roofline(answer.pack, devices, answer.compiled) if known else None
    return found | {
        "needs": found["needs"] if found["needs"] < float("inf") else None,
        "fits": answer.compiled.fits(devices),
        "roofline": dataclasses.asdict(bounds) if known else None,
        "hours": roofline_hours(answer.pack, devices, answer.compiled) if known else None,
        "refused": [describe(pack) for pack, _ in answer.refused],
    }


def _print_packs(plan: Any, epochs: tuple[Any, str | None]) -> None:
    from lmscale.sweep.plan import fits

    print(
        f"{'model':<24}{'runs':>5}{'at once':>9}{'mesh':>10}{'micro':>7}{'GB':>9}{'FLOPs':>10}{'hours':>10}"
    )
    for pack in plan.packs:
        mesh = "x".join(map(str, pack.mesh))
        marks = ["remat"] * pack.remat
        marks += [f"logits in {pack.logit_pieces}"] * (pack.logit_pieces > 1)
        print(
            f"{pack.key.model.label:<24}{len(pack.runs):>5}{pack.n_slots:>9}{mesh:>10}"
            f"{pack.micro_batch:>7}{pack.memory / 1e9:>9.3g}{pack.flops:>10.3g}"
            f"{pack.seconds / 3600:>10.3g}  {', '.join(marks)}".rstrip()
        )
    print(_plan_line(plan) + "; mesh is run x data x model")
    for pack in plan.packs:
        if not fits(pack, plan.devices):
            print(f"{pack.key.model.label} does not fit: {_remedy(pack, plan.devices)}")
    if epochs[1]:
        print(epochs[1])


def _remedy(pack: Any, devices: Any, memory: float | None = None) -> str:
    """What would make a pack fit that fits in none of the ways the planner knows."""
    from lmscale.sweep.plan import enough_devices

    count = enough_devices(pack, devices, memory)
    if count is None:
        return "no number of these devices would do; take another kind"
    return f"it would on {devices.kind}:{count}"


def _print_compiled(name: str | None, devices: Any, answers: list[Any], effort: str) -> None:
    from lmscale.parallel.topology import compiler
    from lmscale.sweep.aot import allowance, describe, roofline, roofline_hours

    done = [answer for answer in answers if answer.compiled is not None]
    at = f" at {effort} effort" if devices.platform == "tpu" else ""
    print(
        f"\n{name + ': ' if name else ''}{len(done)} of {len(answers)} packs compiled by "
        f"{compiler(devices.platform)}{at}, a chip having {devices.memory / 1e9:.1f} GB"
    )
    rows = [["model", "mesh", "micro", "GB", "planned", "compute", "memory", "links", "hours", ""]]
    for pack, compiled in ((answer.pack, answer.compiled) for answer in done):
        row = [
            pack.key.model.label,
            "x".join(map(str, pack.mesh)),
            str(pack.micro_batch),
            "" if compiled.error else f"{compiled.needs / 1e9:.3g}",
            f"{(pack.memory + compiled.tokens) / 1e9:.3g}",
        ]
        if compiled.arguments is None:
            row += [""] * 4
        else:
            bounds = roofline(pack, devices, compiled)
            times = (bounds.compute, bounds.memory, bounds.links)
            row += [f"{1e3 * t:.3g} ms" for t in times]
            row += [f"{roofline_hours(pack, devices, compiled):.3g}"]
        verdict = "" if compiled.fits(devices) else "does not fit"
        rows.append([*row, "failed" if compiled.error else verdict])
    _print_table(rows)
    print("ms a step of all slots takes at least; hours by the longest of them (see plan --help)")
    for answer in done:
        pack, compiled = answer.pack, answer.compiled
        label = pack.key.model.label
        for tried, result in answer.refused:
            print(f"{describe(tried)}: needs {result.needs / 1e9:.3g} GB, so it was planned anew")
        if compiled.error:
            print(f"{label}: {compiled.error}")
        elif not compiled.fits(devices):
            memory = allowance(pack, devices, compiled)
            print(f"{describe(pack)}: does not fit; {_remedy(pack, devices, memory)}")
        if compiled.arguments is None:
            continue
        print(
            f"{label}: {compiled.arguments / 1e9:.3g} GB are state and tokens; "
            f"a step reads and writes {compiled.touched / 1e9:.3g} GB and {_sent(compiled)}; "
            f"compiled in {compiled.seconds:.0f} s"
        )


def _sent(compiled: Any) -> str:
    """What a step sends from a chip, by kind of collective."""
    total = sum(compiled.sent.values())
    if not total:
        return "sends nothing"
    kinds = ", ".join(f"{kind} {size / 1e9:.3g}" for kind, size in compiled.sent.items())
    beyond = f", {compiled.network / 1e9:.3g} beyond its host" if compiled.network else ""
    return f"sends {total / 1e9:.3g} GB ({kinds}{beyond})"


def _print_plans(plans: dict[str, Any]) -> None:
    """One line an experiment, the cheapest first."""
    print(f"{'experiment':<24}{'runs':>6}{'packs':>7}{'most GB':>9}{'FLOPs':>10}{'hours':>10}")
    for name, plan in sorted(plans.items(), key=lambda item: item[1].flops):
        memory = max(pack.memory for pack in plan.packs)
        print(
            f"{name:<24}{plan.n_runs:>6}{len(plan.packs):>7}{memory / 1e9:>9.3g}{plan.flops:>10.3g}"
            f"{plan.seconds / 3600:>10.3g}"
        )
    total = [sum(values) for values in zip(*((p.flops, p.seconds) for p in plans.values()))]
    print(f"{'all':<46}{total[0]:>10.3g}{total[1] / 3600:>10.3g}")


def _status(args: argparse.Namespace) -> int:
    from lmscale.sweep.overview import overview

    stores, many = _stores(args.dir)
    found = {store.path.name: overview(store) for store in stores}
    damaged = {s.path.name: s.damaged_checkpoints() if args.check else None for s in stores}
    if args.json:
        objects = [
            {"store": name, **_status_json(one), "damaged_checkpoints": damaged[name]}
            for name, one in found.items()
        ]
        _print_json({"stores": objects} if many else objects[0])
    else:
        for number, (store, one) in enumerate(zip(stores, found.values(), strict=True)):
            if number:
                print()
            _print_status(str(store.path), one)
    for line in (line for lines in damaged.values() for line in lines or ()):
        _say(
            f"lmscale status: {line}; delete the run's result.json, then `lmscale run` makes it again"
        )
    return 1 if any(damaged.values()) else 0


def _status_json(found: Any) -> dict[str, Any]:
    runs = [dataclasses.asdict(run) for run in found.runs]
    for run in runs:
        run.update(run.pop("labels"))
    return {
        "runs": len(runs),
        "counts": found.whole.counts,
        "share": found.whole.share,
        "runs_of_unknown_share": found.whole.unknown,
        "seconds_left": found.whole.left,
        "shards": [dataclasses.asdict(shard) for shard in found.shards],
        "table": runs,
    }


def _print_status(name: str, found: Any) -> None:
    whole = found.whole
    counts = readable(", ".join(f"{n} {status}" for status, n in whole.counts.items()))
    filled = round(30 * whole.share)
    bar = "#" * filled + "." * (30 - filled)
    left = f", {_left(whole.left)}" if whole.left is not None else ""
    print(f"{name}: {counts}")
    runs = f"{whole.unknown} run{'s' * (whole.unknown > 1)}"
    unknown = f", without {runs} of unknown size" if whole.unknown else ""
    print(f"[{bar}] {whole.share:.0%} of {whole.flops:.3g} FLOPs{unknown}{left}")
    if found.shards:
        rows = [["shard", "worker", "share", "left", "runs"]]
        for part in found.shards:
            runs = ", ".join(f"{n} {status}" for status, n in part.counts.items())
            rows.append([part.name, part.host, f"{part.share:.0%}", _left(part.left), runs])
        print()
        _print_table(rows)
    rows = [["status", "step", "left", "run", "why"]]
    for run in found.runs:
        if run.status in ("done", "pending"):
            continue
        why = run.reason or ""
        if run.silent is not None:
            why = f"not heard of for {_duration(run.silent)}: its worker may be gone"
        elif run.worker:
            why = run.worker
        step = f"{run.step}/{run.steps}"
        rows.append([run.status, step, _left(run.left), run.run, why])
    if len(rows) > 1:
        print()
        _print_table(rows)


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"about {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _fit(args: argparse.Namespace) -> int:
    from lmscale import fit_command

    return fit_command.run(args, args.unknown)


def _advise(args: argparse.Namespace) -> int:
    from lmscale import advise_command

    return advise_command.run(args)


def _verify(args: argparse.Namespace) -> int:
    start_jax()
    from lmscale import verify_command

    return verify_command.run(args, functools.partial(_train_verification, args), _open_corpus)


def _train_verification(
    args: argparse.Namespace,
    experiment: Any,
    scale: str,
    corpus: Any,
    runs: list[Any],
    store: Any,
) -> bool:
    """Trains the runs that test a forecast; True where one failed."""
    from lmscale.progress import progress
    from lmscale.sweep.devices import local_devices
    from lmscale.sweep.plan import make_plan

    args.scale, args.shard, args.slots = scale, (0, 1), None
    plan = make_plan(runs, local_devices())
    with progress("training", plan.flops) as bar:
        bar.log(f"verify: {_plan_line(plan)} -> {store.path}")
        return _train(
            args,
            # More seeds later are an extension.
            _Job("verify", experiment, corpus, runs, plan, store, [], True),
            store,
            [],
            bar,
            args.stop,
        )


def _bench(args: argparse.Namespace) -> int:
    from lmscale.bench import command

    if args.against and not command.has_torch():
        raise _CommandError("--against torch needs torch: pip install 'lmscale[parity]'")
    start_jax()
    say = command.sweep if args.sweep else command.paths
    found, lines = say(args)
    if args.json:
        _print_json(found)
    else:
        _print_table(lines[0])
        print("\n".join(lines[1]))
    return 0


def _sample(args: argparse.Namespace) -> int:
    start_jax()
    from lmscale.data import open_corpus
    from lmscale.training.run_folder import RunFolder
    from lmscale.training.sample import sample_tokens

    path = Path(args.run).absolute()
    try:
        there = (path / "spec.json").exists()
    except OSError as error:
        raise _CommandError(f"{args.run} cannot be read: {error.strerror}") from error
    if not there:
        raise _CommandError(f"{args.run} holds no spec.json: give a folder of DIR/runs")
    folder = RunFolder.open(path)
    data = folder.spec.data
    tokenizer = open_corpus(data.corpus, fingerprint=data.fingerprint).tokenizer
    tokens = tokenizer.encode(args.prompt)
    if not len(tokens):
        raise _CommandError("--prompt must not be empty")
    continuation = sample_tokens(
        folder, tokens, n_tokens=args.tokens, temperature=args.temperature, seed=args.seed
    )
    print(tokenizer.decode([*tokens, *continuation]))
    return 0


def _report(args: argparse.Namespace) -> int:
    from lmscale.report import write_front, write_report

    stores, many = _stores(args.dir)
    for store in stores:
        for line in store.damage():
            _say(f"left out: {line}; `lmscale run` makes it again")
        store.write_table()
        print(write_report(store))
    if many:
        print(write_front(stores[0].path.parent))
    return 0


def _eval(args: argparse.Namespace) -> int:
    start_jax()
    from lmscale.data import open_corpus
    from lmscale.data.catalog import evaluation_corpus
    from lmscale.laws.windows import paired_difference, text_mean
    from lmscale.progress import progress
    from lmscale.sweep.devices import local_devices
    from lmscale.sweep.rescore import evaluation_set, rescore
    from lmscale.sweep.store import Store, StoreError

    store = Store.open(args.dir)
    declared = store.experiment()["corpus"]
    training = open_corpus(declared["name"])
    if training.fingerprint != declared["fingerprint"]:
        raise StoreError(
            f"the runs were trained on {declared['name']} with fingerprint "
            f"{declared['fingerprint']}, but the corpus here has {training.fingerprint}: give the "
            "machine that trained them, or build the corpus from the same text"
        )
    corpus = training if args.data is None else evaluation_corpus(args.data, training)
    evaluation = evaluation_set(corpus, args.split, args.tokens)
    n_runs = sum(1 for _ in store.declared())
    with progress("scoring", n_runs) as bar:
        found = rescore(store, evaluation, local_devices(), open_corpus, bar)
    store.write_table()
    best, rows = found[0].scores, []
    for one in found:
        own = text_mean(one.scores["by_window"], one.scores["document"])
        pair = paired_difference(one.scores["by_window"], best["by_window"], best["document"])
        rows.append((one, own, pair))
    if args.json:
        _print_json(
            {
                "evaluation": evaluation.to_dict(),
                "n_windows": rows[0][1].n_windows,
                "n_documents": rows[0][1].n_documents,
                "runs": [
                    {
                        "run": one.run,
                        "loss": one.scores["loss"],
                        "bits_per_byte": one.scores["bits_per_byte"],
                        "text_error": own.error,
                        "above_best": pair.mean,
                        "above_best_error": pair.error,
                    }
                    for one, own, pair in rows
                ],
            }
        )
        return 0
    table = [("loss", "+-", "bits/byte", "above best", "+-", "run")]
    for one, own, pair in rows:
        table.append(
            (
                f"{one.scores['loss']:.4f}",
                f"{own.error:.4f}",
                f"{one.scores['bits_per_byte']:.4f}",
                f"{pair.mean:.4f}",
                f"{pair.error:.4f}",
                one.run,
            )
        )
    _print_table(table)
    first = rows[0][1]
    print(
        f"{evaluation.name}: {first.n_windows:,} windows of {first.n_documents:,} documents; column "
        f"loss_{evaluation.name} of {store.path / 'results.csv'}"
    )
    return 0


def _stores(folder: str) -> tuple[list[Any], bool]:
    """The store in a folder, or those in its folders; and whether it is the latter."""
    from lmscale.sweep.store import Store

    place = Store(folder)
    inside = [] if place.holds_experiment() else place.inside()
    many = bool(inside)
    return (inside if many else [Store.open(folder)]), many


def _data_build(args: argparse.Namespace) -> int:
    from lmscale.data import build_corpus

    signal.signal(signal.SIGTERM, _interrupt)
    corpus = build_corpus(
        args.name,
        args.input,
        vocab_size=args.vocab_size,
        valid_fraction=args.valid_fraction,
        test_fraction=args.test_fraction,
        text_field=args.text_field,
        separator=args.separator,
        skip_bad=args.skip_bad,
        cut_documents=args.cut_documents,
        split_pieces=args.split_pieces,
        tokenizer_from=args.tokenizer_from,
    )
    _print_corpus(corpus)
    return 0


def _interrupt(number: int, frame: Any) -> None:
    """Ends a build as Ctrl-C does, so that it leaves nothing behind; once, or cleaning up is cut short."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _data_verify(args: argparse.Namespace) -> int:
    from lmscale.data import open_corpus

    corpus = open_corpus(args.name)
    found = dict(corpus.check_files())
    damaged = {name: str(error) for name, error in found.items() if error is not None}
    if args.json:
        _print_json(
            {
                "name": corpus.name,
                "path": str(corpus.path),
                "fingerprint": corpus.fingerprint,
                "damaged": damaged,
                "files": list(found),
            }
        )
    elif not damaged:
        print(f"{corpus.name}: {', '.join(found)} are what was written ({corpus.fingerprint})")
    for line in damaged.values():
        _say(f"lmscale data verify: {line}")
    return 1 if damaged else 0


def _data_show(args: argparse.Namespace) -> int:
    from lmscale.data import describe, open_corpus
    from lmscale.data.describe import settings_lines

    corpus = open_corpus(args.name)
    if args.json:
        _print_json(describe(corpus))
        return 0
    _print_corpus(corpus)
    print("\n".join(settings_lines(corpus)))
    return 0


def _print_corpus(corpus: Any) -> None:
    from lmscale.data.describe import summary_lines

    print(f"{corpus.name}: {corpus.path}, vocabulary {corpus.vocab_size}")
    print("\n".join(summary_lines(corpus)))


def _data_list(args: argparse.Namespace) -> int:
    from lmscale.data import data_root, list_corpora
    from lmscale.data.building import remove_leftovers

    corpora = list_corpora(lambda error: _say(f"lmscale data list: {error}"))
    if "://" not in str(data_root()):
        for name in remove_leftovers(Path(data_root())):
            _say(f"removed what a build of {name} that was killed had left")
    rows = [
        {
            "name": corpus.name,
            "vocab_size": corpus.vocab_size,
            "train_tokens": corpus.n_tokens("train"),
            "bytes_per_token": round(corpus.bytes_per_token("train"), 3),
            "fingerprint": corpus.fingerprint,
            "path": str(corpus.path),
        }
        for corpus in corpora
    ]
    if args.json:
        _print_json({"corpora": rows})
        return 0
    for row in rows:
        print(
            f"{row['name']:<24} vocabulary {row['vocab_size']:>6}  {row['train_tokens']:>13,} training "
            f"tokens  {row['bytes_per_token']:.2f} bytes a token  {row['path']}"
        )
    if not rows:
        print("no corpus yet; `lmscale run isoflop` builds installed-python by itself")
    return 0


# --- shared -------------------------------------------------------------------------------------


def start_jax() -> None:
    """Settings that must come before jax looks for devices.

    On a CPU every core becomes a device, so that the run axis can span the cores. Compiled programs
    are kept between processes, the small ones too.
    """
    import jax

    from lmscale.cache import quiet_compilation_cache, usable_cache

    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    if (cache := usable_cache()) is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))
    quiet_compilation_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _corpus(name: str, experiment: Any):
    return _open_corpus(name, experiment.vocab_size)


def _open_corpus(name: str, vocab_size: int):
    from lmscale.data import open_corpus

    # Only the built-in corpus is built to order; others bring the vocabulary they were built with.
    return open_corpus(name, vocab_size=vocab_size if name == "installed-python" else None)


def _plan_line(plan: Any) -> str:
    hours = plan.seconds / 3600
    time = f"{hours:.1f} h" if hours >= 1 else f"{plan.seconds / 60:.1f} min"
    return (
        f"{plan.n_runs} runs in {len(plan.packs)} packs, {plan.flops:.3g} FLOPs, about {time} on "
        f"{plan.devices.count} x {plan.devices.kind}"
    )


if __name__ == "__main__":
    entry_point()

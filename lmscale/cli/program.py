"""The program behind `lmscale`: it finds the command, hears signals, and turns errors into exit codes."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import select
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from lmscale import __version__
from lmscale.cli.completion import answer_shell, is_asked
from lmscale.cli.errors import CommandError, code_and_line
from lmscale.cli.parser import Parser
from lmscale.stopping import PREEMPTED, PREEMPTED_LINE, Stop, Stopped
from lmscale.terminal import one_line, say

__all__ = ["COMMANDS", "build_parser", "entry_point", "main"]

#: Command, which is also its module in this package -> what `lmscale --help` says of it.
COMMANDS = {
    "run": "Train an experiment, then fit and draw it; resumes what is there.",
    "plan": "Show packs, memory, FLOPs and hours of an experiment.",
    "doctor": "Tell whether lmscale works on this machine and how fast, and what to do where it does not.",
    "list": "List the experiments that come with lmscale.",
    "status": "Show how far a store is: runs by status, the unfinished and the failed ones with their "
    "step and reason. Works while workers run.",
    "bench": "Measure speed on this machine: against its own matmul peak, and against torch.",
    "fit": "Fit laws to a store or to any table of runs; several laws are set side by side.",
    "eval": "Score the finished runs of a store again, on any corpus and split, without training.",
    "report": "Draw what a store holds so far: report.html (one page that needs nothing else), "
    "figures/*.png and *.svg, fits.json, results.csv.",
    "keep": "Keep the results of finished stores without their checkpoints, small enough for a repository: "
    "`report`, `fit` and `advise` give the same from them.",
    "advise": "Recommend a model for a budget, from a store, any table of runs, or a published law.",
    "verify": "Write down what a store foretells for a budget, train the advised model with its half "
    "and its double on that budget, and compare. Resumes what is there; a forecast is never rewritten.",
    "sample": "Continue a text with a trained run.",
    "export": "Write a trained run for others: as a model of transformers, or as safetensors.",
    "data": "Build, list, show and verify corpora.",
}

#: Exit code of a command that ends because nobody reads what it prints: that of SIGPIPE, as in other tools.
READER_GONE = 128 + 13
#: Commands that train: they can be asked to stop, and save what they have.
TRAINING_COMMANDS = ("run", "verify")
#: With one of these a training command trains nothing.
_NO_TRAINING = {"-h", "--help", "--print-config", "--dry-run"}

#: With this variable an error that is told in a line shows its traceback too, for those who write own files.
_TRACEBACK = "LMSCALE_TRACEBACK"

_EPILOG = """\
a first study, on a laptop:
  lmscale run isoflop                        trains a grid on the Python sources of this machine
  lmscale advise results/isoflop-cpu --compute 1.92e12
  lmscale verify results/isoflop-cpu --compute 1.92e12    writes the forecast down, then trains it
on your own text:
  lmscale data build mytext --input ~/text --vocab-size 4096
  lmscale run isoflop --data mytext --out results/mytext
an architecture of your own, in a file with an experiment (every command takes --load):
  lmscale run mine.py --out results/mine
  lmscale report results/mine --load mine.py
"""


def entry_point() -> None:
    """What the installed command runs."""
    if is_asked():
        answer_shell()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # Text of any script is shown, in escapes where the terminal's encoding has not its characters.
        sys.stdout.reconfigure(errors="backslashreplace")
    code = main()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or READER_GONE
    if code == READER_GONE:
        # Python must not find that out once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _reader_is_gone() -> bool:
    """Whether the reader of what is printed, such as `head`, has seen enough and left."""
    try:
        poll = select.poll()
        poll.register(sys.stdout, 0)
        return bool(poll.poll(0))
    except (OSError, ValueError):
        # It is no file of the system's, or closed.
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    words, files = _take_load_options(list(sys.argv[1:] if argv is None else argv))
    stop = None
    # The processes of one distributed run stop together: none of them may leave by itself.
    together = any(word.split("=")[0] == "--distributed" for word in words)
    try:
        if words and words[0] in TRAINING_COMMANDS:
            # Before the imports, which take seconds: a worker may be stopped when it has only begun.
            # From here on a signal raises `Stopped`, after an import that is under way.
            stop = Stop(deferred=together)
            if not together and not _NO_TRAINING & set(words):
                from lmscale.parallel.processes import expect_processes

                expect_processes()
        for path in files:
            _load(path)
        args = build_parser(words).parse_args(words)
        args.stop = stop
        return args.handler(args) or 0
    except Stopped:
        return _preempted()
    except KeyboardInterrupt:
        print("lmscale: interrupted", file=sys.stderr)
        return 1
    except (Exception, SystemExit) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return READER_GONE
        # Bad usage of a command ends here as well, when its line has been said.
        code, line = code_and_line(error)
        if line is None:
            raise
        if os.environ.get(_TRACEBACK):
            traceback.print_exception(error)
        say(f"{' '.join(['lmscale', *words[:1]])}: {one_line(line)}")
        return code
    finally:
        if stop is not None:
            stop.close()


def build_parser(words: Sequence[str]) -> Parser:
    """The parser of a command line: every command with its line of help, one with its arguments.

    Args:
      words: the command line, whose first word is the command. Only that command's arguments are
        declared, since those of `run` come from an experiment and those of `fit` from the laws.
    """
    parser = Parser(
        prog="lmscale",
        description="Scaling-law experiments: declare, plan, train, fit, draw, recommend.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lmscale {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        if words and words[0] == name:
            module = importlib.import_module(f"lmscale.cli.{name}")
            sub.set_defaults(handler=module.run)
            module.add_arguments(sub, words[1:])
    return parser


def _take_load_options(argv: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without every `--load FILE`, and these files.

    They are loaded before anything else, because a store can be read only when its architectures are
    registered.
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
        raise CommandError(f"--load wants a Python file, and {path or 'nothing'} is none")
    from lmscale.user_files import load_file

    load_file(Path(path))


def _preempted() -> int:
    print(f"lmscale: {PREEMPTED_LINE}", file=sys.stderr)
    return PREEMPTED

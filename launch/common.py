"""What the launchers share: the worker's command line and its exit codes, and one-line errors."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

#: `lmscale run` was stopped with everything saved: the same command goes on from there.
PREEMPTED = 42

#: Exit codes of `lmscale run` that no repetition cures: a run failed; bad usage.
FINAL = (1, 2)

#: No number that an option takes has more digits.
_MOST_DIGITS = 300

#: What `lmscale status` says of a folder in which no worker has declared its runs yet.
_NO_STORE = "holds no experiment.json"

#: Exit codes by which `lmscale` itself says that it cannot answer. Any other is of a command that did not start.
_REFUSED = (1, 2)

_PROGRESS = f"""\
# The steps of all runs, or "unknown" where `lmscale status` refuses to answer.
steps_done() {{
  local answer code
  answer=$(STATUS 2>&1)
  code=$?
  case $code-$answer in
    0-*) grep -o '"step": *[0-9]*' <<<"$answer" | awk '{{sum += $2}} END {{print sum + 0}}' ;;
    [{_REFUSED[0]}{_REFUSED[1]}]-*"{_NO_STORE}"*) echo 0 ;;
    [{_REFUSED[0]}{_REFUSED[1]}]-*)
      echo "$answer" >&2
      echo unknown
      ;;
    *) echo 0 ;;
  esac
}}"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def __init__(self, prog: str, description: str, epilog: str):
        super().__init__(
            prog=f"python -m launch.{prog}",
            usage="%(prog)s EXPERIMENT --out DIR [options] [-- options of `lmscale run`]",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "experiment", metavar="EXPERIMENT", help="as `lmscale run` takes it: a name or a file"
        )
        self.add_argument(
            "--out",
            metavar="DIR",
            required=True,
            help="store of the results, shared by all workers",
        )
        self.add_argument("--scale", help="cpu, gpu, paper")
        self.add_argument("--data", metavar="CORPUS")
        self.add_argument(
            "--lmscale",
            metavar="COMMAND",
            help="the command on the workers; may have words before it, such as "
            "'apptainer exec --nv image.sif lmscale'",
        )
        self.add_argument(
            "--dry-run", action="store_true", help="print exactly what would run, and do nothing"
        )

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Options of the launcher before a `--`, those of `lmscale run` after it (`args.rest`)."""
        argv = list(sys.argv[1:] if argv is None else argv)
        for word in argv:
            # A line break would begin a line of a script, or a directive, of its own.
            if not word.isprintable():
                self.error(f"every option must be one line of plain text, not {word!r}")
        cut = argv.index("--") if "--" in argv else len(argv)
        args, unknown = self.parse_known_args(argv[:cut])
        if unknown:
            self.error(f"unknown: {shlex.join(unknown)}; options of `lmscale run` go after a --")
        if args.lmscale is not None:
            self._check_command(args.lmscale)
        args.rest = argv[cut + 1 :]
        for word in args.rest:
            if word.split("=")[0] in ("--out", "--shard", "--distributed", "--scale", "--data"):
                self.error(
                    f"{word} is the launcher's to give: put it before the --, or leave it out"
                )
        return args

    def _check_command(self, lmscale: str) -> None:
        try:
            words = shlex.split(lmscale)
        except ValueError as error:
            self.error(f"--lmscale must be words as a shell reads them, not {lmscale!r}: {error}")
        if not words or not words[0]:
            self.error(f"--lmscale must be a command, not {lmscale!r}")

    def check_file(self, args: argparse.Namespace) -> None:
        """An experiment's file must exist where the workers see this machine's files, or a copy."""
        if args.experiment.endswith(".py") and not Path(args.experiment).exists():
            self.error(f"there is no file {args.experiment}")

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see --help)", file=sys.stderr)
        raise SystemExit(2)


class Raw(str):
    """A word of a shell command that the shell is to expand."""


def shell(words: Sequence[str]) -> str:
    """The words as one shell command."""
    return " ".join(word if isinstance(word, Raw) else shlex.quote(word) for word in words)


def command_words(lmscale: str) -> list[str]:
    """The words of --lmscale; the shell is to expand their ~/ and nothing else."""
    return [
        Raw(f"~/{shlex.quote(word[2:])}") if word.startswith("~/") else word
        for word in shlex.split(lmscale)
    ]


def progress_function(args: argparse.Namespace) -> str:
    """`steps_done` in shell, for the store "$out"."""
    return _PROGRESS.replace("STATUS", shell(_status_command(args, Raw('"$out"'))))


def _status_command(args: argparse.Namespace, out: str) -> list[str]:
    """The words of `lmscale status`, with the files whose architectures and optimizers the store may hold."""
    files = [args.experiment] if args.experiment.endswith(".py") else []
    words = iter(args.rest)
    for word in words:
        if word == "--load":
            files.append(next(words, ""))
        elif word.startswith("--load="):
            files.append(word.removeprefix("--load="))
    loads = [word for file in files for word in ("--load", file)]
    return [*command_words(args.lmscale), "status", out, "--json", *loads]


def run_command(args: argparse.Namespace, lmscale: str, shard: str) -> list[str]:
    """The words of `lmscale run` for this shard ("I/N")."""
    words = [*command_words(lmscale), "run", args.experiment]
    for option in ("scale", "data"):
        if (value := getattr(args, option)) is not None:
            words += [f"--{option}", value]
    return [*words, "--out", args.out, "--shard", shard, *args.rest]


def lmscale_here(given: str | None) -> str:
    """The command for workers that see this machine's files: on PATH, or beside this Python."""
    if given or shutil.which("lmscale"):
        return given or "lmscale"
    beside = Path(sys.executable).parent / "lmscale"
    return shlex.quote(str(beside)) if os.access(beside, os.X_OK) else "lmscale"


def job_name(args: argparse.Namespace) -> str:
    """A name for the jobs that write to this store, and for no others: lmscale-isoflop-1a2b3c."""
    stem = re.sub(r"[^a-z0-9]+", "-", Path(args.experiment).stem.lower()).strip("-")[:24]
    out = args.out if "://" in args.out else os.path.abspath(args.out)
    return f"lmscale-{stem}-{hashlib.sha256(out.encode()).hexdigest()[:6]}"


def steps_done(args: argparse.Namespace) -> int | None:
    """The steps of all runs in the store: a measure of progress from one restart to the next.

    Returns:
      None where `lmscale status` refuses to answer, which says nothing about progress. 0 where there is no
      store yet, or no such command: a worker that ends before it declares its runs makes no progress.
    """
    command = _status_command(args, args.out)
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    if found.returncode in _REFUSED and _NO_STORE not in found.stderr:
        print(found.stderr.strip(), file=sys.stderr)
        return None
    try:
        answer = json.loads(found.stdout)
        # A folder of many stores answers with a list of them.
        stores = answer.get("stores", [answer])
        return sum(row["step"] for store in stores for row in store["table"])
    except (ValueError, KeyError, TypeError):
        return 0


def digits(text: str) -> int | None:
    """The number that decimal digits stand for; None for any other text. Python reads no more than 4300."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def positive(text: str) -> int:
    value = digits(text)
    if not value:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return value

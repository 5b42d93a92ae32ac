"""Runs a command in this process, and says what a bad input must never do.

`LMSCALE_EXAMPLES` multiplies the number of inputs: 1 is for the suite, 100 for a campaign.
"""

import atexit
import contextlib
import io
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import lmscale.planner.packs  # noqa: F401

# Loaded here, so that no input is charged with it.
from lmscale.cli import main

#: Seconds of work after which a command counts as hanging.
DEADLINE = 10
FACTOR = float(os.environ.get("LMSCALE_EXAMPLES", "1"))

#: What a number on the command line may look like, and what it must not.
NUMBERS = st.one_of(
    st.sampled_from(
        [
            "0",
            "-1",
            "1",
            "2",
            "3",
            "7",
            "64",
            "0.5",
            "1e-30",
            "1e3",
            "1e6",
            "1e9",
            "1e12",
            "1e15",
            "1e30",
            "1e308",
            "1e400",
            "-1e30",
            "nan",
            "inf",
            "-inf",
            "-0.0",
            "",
            " ",
            "1_000",
            "0x10",
            "١",
            "½",
            "²",
            "1e",
            "none",
            "true",
            "9" * 50,
            "9" * 5000,
            "1,5",
            "2x16",
            "--",
            "-",
            "a\nb",
            "☃",
        ]
    ),
    st.integers(-5, 300).map(str),
    st.integers().map(str),
    st.floats().map(repr),
    st.floats(1e-6, 1e12).map(lambda x: f"{x:.3g}"),
)
#: Text of any script, without what no argument can hold.
TEXTS = st.text(max_size=20).filter(lambda text: "\0" not in text)
WORDS = st.sampled_from(
    [
        "float32",
        "bfloat16",
        "adam",
        "adamw",
        "adafactor",
        "kaplan",
        "standard",
        "chinchila",
        "exact",
        "cosine",
        "cooldown",
        "constant",
        "inverse_sqrt",
        "stack",
        "layer",
        "sinusoidal",
        "none",
        "1x8",
        "2x16",
        "2x0",
        "0x16",
        "99999999x8",
        "2x99999999",
        "axb",
        "2x",
        "x",
        "../..",
        "/",
        ".",
        "s3://bucket/x",
        "gs://bucket/x",
        "https://host/x",
        "tiny",
        "no-such-corpus",
        "~",
        "~nobody",
    ]
)
VALUES = st.one_of(NUMBERS, TEXTS, WORDS)


def examples(count: int):
    """Settings for so many inputs, the same ones at every run of the suite."""
    return settings(
        max_examples=max(1, round(count * FACTOR)),
        derandomize=FACTOR == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


#: (what was tried, its exit code or what became of it) -> how many inputs.
COUNTS: Counter[tuple[str, int | str]] = Counter()


class TookTooLong(Exception):
    pass


@contextlib.contextmanager
def deadline(seconds: int = DEADLINE):
    """Raises `TookTooLong` after so many seconds of work, or six times as long on the clock."""

    def late(number, frame):
        raise TookTooLong(f"more than {seconds} s")

    # A busy machine is no hang, so the work of this process is what counts.
    timers = ((signal.SIGPROF, signal.ITIMER_PROF, 1), (signal.SIGALRM, signal.ITIMER_REAL, 6))
    before = [signal.signal(number, late) for number, _, _ in timers]
    for _, timer, factor in timers:
        signal.setitimer(timer, factor * seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def answer(argv, run=main, seconds: int = DEADLINE) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), deadline(seconds):
        try:
            code = run(list(argv))
        except SystemExit as exit:
            code = exit.code
    COUNTS[argv[0] if run is main else run.__module__, code] += 1
    return code, out.getvalue(), err.getvalue()


def check(argv, folder: Path, seconds: int = DEADLINE) -> int:
    """Runs a command with input that may be bad; `folder` is where it must write nothing.

    Args:
      seconds: that it may take the first time, as it may have to compile.
    """
    before = tree(folder)
    begun = time.process_time()
    code, out, err = answer(argv, seconds=seconds)
    if time.process_time() - begun > DEADLINE:
        # What it compiled is compiled now, and what is left must be quick.
        COUNTS[argv[0], "slow at first"] += 1
        code, out, err = answer(argv)
    assert code in (0, 2), (code, argv, err)
    if code == 2:
        assert out == "", (argv, out)
        assert len([line for line in err.splitlines() if line.strip()]) == 1, (argv, err)
        assert len(err) < 2000, (argv, len(err))
    assert tree(folder) == before, argv
    return code


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def flags(options: dict, least: int = 0, most: int = 3):
    """Random options: name -> strategy of its values (a list of words)."""

    def some(chosen):
        words = []
        for name, values in chosen:
            words += [name, *values]
        return words

    one = st.sampled_from(sorted(options)).flatmap(
        lambda name: st.tuples(st.just(name), options[name])
    )
    return st.lists(one, min_size=least, max_size=most).map(some)


def one_of(*words: str, values=VALUES):
    """One word: mostly of these, else anything."""
    return st.one_of(st.sampled_from(words or ("",)), values).map(lambda word: [word])


def _print_counts() -> None:
    for (what, became), count in sorted(COUNTS.items(), key=str):
        print(f"{count:6} {what}: {became}", file=sys.stderr)


if FACTOR != 1:
    atexit.register(_print_counts)

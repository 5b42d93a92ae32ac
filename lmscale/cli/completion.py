"""Completion in the shell, by argcomplete: commands, their options, experiments and files.

    pip install 'lmscale[completion]'
    eval "$(register-python-argcomplete lmscale)"

The shell starts `lmscale` with the line so far in its environment; this process answers and ends.
"""

from __future__ import annotations

import contextlib
import os

__all__ = ["answer_shell", "is_asked"]


def is_asked() -> bool:
    """Whether a shell asks what a line can be completed to."""
    return "_ARGCOMPLETE" in os.environ


def answer_shell() -> None:
    """Writes the completions and ends the process; returns where argcomplete is not installed."""
    try:
        import argcomplete
    except ImportError:
        return
    from lmscale.cli.program import build_parser

    line, point = os.environ["COMP_LINE"], int(os.environ["COMP_POINT"])
    # Without the name of the program; the options of `run` depend on the experiment.
    words = argcomplete.split_line(line, point)[3][1:]
    # The last word may be an option whose value is still being typed. Of an experiment that is, or that
    # cannot be read, the commands are known.
    for known in (words, words[:-1], []):
        with contextlib.suppress(Exception, SystemExit):
            parser = build_parser(known)
            break
    argcomplete.autocomplete(parser, validator=lambda word, prefix: word.startswith(prefix))

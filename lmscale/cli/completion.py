"""Completion in the shell, by argcomplete: commands, their options, experiments and files.

    pip install 'lmscale[completion]'
    eval "$(register-python-argcomplete lmscale)"

The shell starts `lmscale` with the line so far in its environment; this process answers and ends.
"""

from __future__ import annotations

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
    words = argcomplete.split_line(line, point)[3]
    try:
        # Without the name of the program; the options of `run` depend on the experiment.
        parser = build_parser(words[1:])
    except (Exception, SystemExit):
        # An experiment that is still being typed, or that cannot be read: its commands are known.
        parser = build_parser([])
    argcomplete.autocomplete(parser, validator=lambda word, prefix: word.startswith(prefix))

"""The argument parser of all commands: every error is one line, and no option is abbreviated."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from lmscale.terminal import one_line

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """Exits with code 2 and one line that names the command."""

    #: Whether arguments that no option takes are kept as `unknown`, for the command to explain.
    keeps_unknown = False

    def __init__(self, *args: Any, **kwargs: Any):
        # An abbreviation would change its meaning when an experiment or a law gets another option.
        kwargs["allow_abbrev"] = False
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Also called for each subcommand's parser, so that the error names the subcommand.
        found, unknown = super().parse_known_args(args, namespace)
        if self.keeps_unknown:
            found.unknown = unknown
        elif unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, []

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {one_line(message)} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)

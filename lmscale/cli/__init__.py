"""The `lmscale` command: one module per command, a thin layer over the library.

A command is a module of this package with two functions: `add_arguments(parser, words)` declares what
it takes, and `run(args)` does it and returns the exit code. Only the module of the command that was
typed is imported, and a module imports the library inside of `run`, so that a command that trains
nothing does not wait for jax. To add a command, write its module and add a line to `COMMANDS` in
`lmscale.cli.program`, which has the rest: the parser, signals, and errors turned into exit codes.

Exit codes: 0 success; 2 bad usage, with one line that says what was wrong and what would be right;
1 failure; 42 preempted, everything saved (run the same command again). `lmscale.cli.errors` has the
table. With --json a command prints one JSON object on standard output and nothing else there; all
else goes to standard error.
"""

# No code stands here: the modules `list` and `eval` hide the builtins of these names.
from lmscale.cli.jax_settings import start_jax
from lmscale.cli.program import build_parser, entry_point, main

__all__ = ["build_parser", "entry_point", "main", "start_jax"]

"""Variables of the environment that choose between two programs of one computation."""

from __future__ import annotations

import os

from lmscale.serialize import require


def choice(variable: str, choices: tuple[str, ...]) -> str:
    """The value of a variable of the environment; the first choice where it is not set.

    Raises:
      SpecError: when it has a value that is no choice.
    """
    value = os.environ.get(variable, choices[0])
    require(value in choices, f"{variable} must be {' or '.join(choices)}, not {value!r}")
    return value

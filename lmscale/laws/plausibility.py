"""Detects columns in different units: sizes in millions with tokens in billions, C in PF-days.

One count cannot be checked alone, but two can: nobody trains on a thousandth of a token per
parameter, and training takes about 6 FLOPs per parameter and token (Kaplan et al. 2020, sec. 2.1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping

import numpy as np

from lmscale.laws.cell_numbers import FLOPS_UNITS
from lmscale.laws.errors import TableError

__all__ = ["check_units"]

#: Tokens per parameter at the median row. Outside of the first range is a warning, outside of the
#: second an error.
PLAUSIBLE_RATIO = (0.05, 1e5)
POSSIBLE_RATIO = (1e-3, 1e8)
#: C / 6 N D: embeddings and attention change it, but hardly a hundredfold.
PLAUSIBLE_COUNT = (1 / 30, 100)
#: No table of language models has fewer parameters or tokens than these at its median row.
LEAST = {"params": 100.0, "tokens": 1e4}
#: A row whose ratio is implausible and differs from the median row's by this factor is named.
_STRAY = 1e4

_COUNTS = {"ones": 1.0, "millions": 1e6, "billions": 1e9, "thousands": 1e3, "trillions": 1e12}
_FLOPS = {"FLOPs": 1.0, **FLOPS_UNITS}


def check_units(
    columns: Mapping[str, np.ndarray],
    row: np.ndarray,
    derived: Collection[str],
    needs: Collection[str],
    sources: Mapping[str, str],
) -> list[str]:
    """Warnings about units that cannot be right.

    Args:
      columns: those of a table; nothing is checked without params and tokens.
      row: the rows' numbers, for naming them.
      derived: which of params, tokens and flops were computed from the other two.
      needs: what the law reads: a law of loss in params and tokens is refused, others warn.
      sources: our name -> the table's own, for naming a remedy.

    Raises:
      TableError: tokens per parameter are absurd.
    """
    if not all(name in columns for name in ("params", "tokens", "flops")):
        return []
    n, d, c = (columns[name] for name in ("params", "tokens", "flops"))
    ratio = d / n
    middle = float(np.median(ratio))
    given = [name for name in ("params", "tokens", "flops") if name not in derived]
    small = [name for name in given if name in LEAST and np.median(columns[name]) < LEAST[name]]
    warnings = []
    if not PLAUSIBLE_RATIO[0] <= middle <= PLAUSIBLE_RATIO[1] or small:
        what = f"the median row has {middle:.2g} tokens per parameter"
        if derived:
            what += f" ({', '.join(derived)} from C = 6 N D)"
        if small:
            what += f" and {np.median(columns[small[0]]):.3g} {small[0]}"
        text = f"{what}: check the units{_likely(columns, given, sources)}"
        possible = POSSIBLE_RATIO[0] <= middle <= POSSIBLE_RATIO[1]
        # Laws of N_opt(C) have the same exponents in any units, so for them it is only a warning.
        if not possible and {"params", "tokens"} <= set(needs) and "flops" not in needs:
            raise TableError(text)
        warnings.append(text)
    elif not derived:
        count = float(np.median(c / (6.0 * n * d)))
        if not PLAUSIBLE_COUNT[0] < count < PLAUSIBLE_COUNT[1]:
            warnings.append(
                f"flops are {count:.2g} times 6 params tokens at the median row; check the units"
                f"{_likely(columns, given, sources)}"
            )
    stray = (np.abs(np.log(ratio / middle)) > math.log(_STRAY)) & (
        (ratio < PLAUSIBLE_RATIO[0]) | (ratio > PLAUSIBLE_RATIO[1])
    )
    if stray.any() and stray.mean() < 0.5:
        first, many = int(np.argmax(stray)), int(stray.sum())
        warnings.append(
            f"{many} row{'s' * (many > 1)} may be in other units than the rest: row "
            f"{row[first]} has {ratio[first]:.2g} tokens per parameter, the median row {middle:.2g}"
        )
    return warnings


def _likely(
    columns: Mapping[str, np.ndarray], given: Collection[str], sources: Mapping[str, str]
) -> str:
    """The units under which the table looks most like one of language models, in words."""
    medians = {name: math.log(float(np.median(columns[name]))) for name in given}
    units = [list((_FLOPS if name == "flops" else _COUNTS).items()) for name in given]
    best = math.inf
    choice: tuple[tuple[str, float], ...] = ()
    for combination in itertools.product(*units):
        logs = {
            name: medians[name] + math.log(unit[1])
            for name, unit in zip(given, combination, strict=True)
        }
        score = _oddity(logs)
        # The usual units come first in their lists.
        score += 0.2 * sum(options.index(u) for options, u in zip(units, combination, strict=True))
        if score < best:
            best, choice = score, combination
    changed = [(name, *unit) for name, unit in zip(given, choice, strict=True) if unit[1] != 1.0]
    if not changed:
        return ""
    said = " and ".join(f"{name} look like {unit}" for name, unit, _ in changed)
    mapping = ",".join(
        f"{name}={sources.get(name, 'COL')}*{factor:g}".replace("e+", "e").replace("e0", "e")
        for name, _, factor in changed
    )
    return f"; {said}, and --columns '{mapping}' would scale {'them' if len(changed) > 1 else 'it'}"


def _oddity(logs: Mapping[str, float]) -> float:
    """How far these medians (ln of two or three counts) are from a table of language models."""
    known = dict(logs)
    score = 0.0
    if len(known) == 3:
        score += 2 * abs(known["flops"] - math.log(6) - known["params"] - known["tokens"])
    elif "params" not in known:
        known["params"] = known["flops"] - math.log(6) - known["tokens"]
    elif "tokens" not in known:
        known["tokens"] = known["flops"] - math.log(6) - known["params"]
    n, d = known["params"], known["tokens"]
    score += abs(d - n - math.log(20))
    # Units that are common to all columns leave the ratios as they are. Then a usual size decides.
    return score + 0.1 * abs(n - math.log(1e8))

"""What `lmscale fit` prints of the laws fitted to one table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from lmscale.terminal import plural, print_table, say

__all__ = ["FittedTable"]


@dataclasses.dataclass
class FittedTable:
    """The laws fitted to one table (`lmscale.sweep.fitting.Fits`), in words and in JSON."""

    fits: Any
    budgets: Sequence[float]

    def __post_init__(self):
        self.lines = self.fits.lines
        self.at = {
            law: [_answer(*pair) for pair in zip(self.budgets, answers, strict=True)]
            for law, answers in self.fits.at.items()
        }

    def to_json(self) -> dict[str, Any]:
        found = [
            line.to_json() | ({"at": self.at[line.law]} if line.law in self.at else {})
            for line in self.lines
        ]
        return found[0] if len(found) == 1 else {"laws": found}

    def print(self) -> None:
        if len(self.lines) > 1:
            _print_laws(self.lines)
        elif self.lines[0].fit is None:
            print(f"not fitted: {self.lines[0].problem}")
        else:
            _print_law(self.lines[0])
        for law, answers in self.at.items():
            _print_at(law if len(self.lines) > 1 else "", answers)

    def say_warnings(self, prefix: str) -> None:
        """Each warning once, with the laws that give it."""
        by: dict[str, list[str]] = {}
        for line in self.lines:
            own = line.fit.warnings if line.fit is not None else ()
            # Advice repeats the fit's warnings.
            asked = (w for item in self.at.get(line.law, ()) for w in item.get("warnings", ()))
            for warning in dict.fromkeys((*own, *asked)):
                by.setdefault(warning, []).append(line.law)
        for warning, laws in by.items():
            of = f"{', '.join(laws)}: " if len(self.lines) > 1 else ""
            say(f"warning: {prefix}{of}{warning}")


def _answer(budget: float, answer: Any) -> dict[str, Any]:
    """The best model and data at a budget as JSON has it, or why the law has none."""
    if isinstance(answer, Exception):
        return {"flops": budget, "error": str(answer)}
    advice = answer.to_json()
    keys = ("flops", "n_params", "n_tokens", "loss", "intervals", "warnings")
    return {key: advice[key] for key in keys}


def _print_at(law: str, answers: Sequence[dict[str, Any]]) -> None:
    """N_opt, D_opt and loss at each budget."""
    print()
    rows = [["FLOPs", "N_opt", "", "D_opt", "", "loss", ""]]
    for item in answers:
        if "error" in item:
            continue
        row = [f"{item['flops']:.3g}"]
        for key, digits in (("n_params", 3), ("n_tokens", 3), ("loss", 4)):
            value, interval = item[key], item["intervals"].get(key)
            row.append("-" if value is None else f"{value:.{digits}g}")
            row.append(_interval(interval, digits))
        rows.append(row)
    if law:
        print(f"{law}:")
    if len(rows) > 1:
        print_table(rows)
    for error in dict.fromkeys(item["error"] for item in answers if "error" in item):
        print(f"nothing at other budgets: {error}" if len(rows) > 1 else f"nothing: {error}")


def _print_law(line: Any) -> None:
    """One fitted law in full."""
    from lmscale.laws import LAWS

    fit = line.fit
    print(f"{fit.law}: {LAWS[fit.law].equation}")
    print(f"{fit.n_used} runs used, {len(fit.dropped)} dropped")
    state = "converged" if fit.converged else "not converged"
    if math.isfinite(fit.objective):
        # A law of a user's own may have none.
        print(f"objective {fit.objective:.6g}, {state} ({fit.objective_name})")
    if fit.parameters:
        head = f"{fit.level:.0%} interval ({fit.interval_method})" if fit.intervals else ""
        rows = [("parameter", "value", head)]
        for name, value in fit.parameters.items():
            rows.append((name, f"{value:.6g}", _interval(fit.intervals.get(name), 6)))
        print_table(rows)
    for convention, exponents in fit.exponents.items():
        intervals = fit.exponent_intervals.get(convention, {})
        for name, value in exponents.items():
            interval = _interval(intervals.get(name), 3)
            print(f"{name}_opt ~ C^{value:.3f}  {interval}  counted as {convention}")
    if line.rms_log_residual is not None:
        print(f"rms residual of log loss {line.rms_log_residual:.3g}")
    held = line.held_out
    if held is None:
        print(f"held out: nothing, since {line.held_out_problem}")
    else:
        print(
            f"held out: the {plural(len(held.row), 'largest run')} ({held.along} {held.at.min():.3g} to "
            f"{held.at.max():.3g}, {held.extrapolation:.3g} times the largest fitted): mean error "
            f"{held.mean_error:.2%}, worst {held.worst_error:+.2%}"
        )


def _print_laws(lines: Sequence[Any]) -> None:
    """Several laws side by side, then why some are missing or have gaps."""
    rows = [("law", "runs", "N_opt ~ C^a", "key parameters", "rms", "held out", "beyond fit")]
    for line in lines:
        if line.fit is None:
            continue
        held = line.held_out
        rows.append(
            (
                line.law,
                str(line.fit.n_used),
                _exponent(line.fit),
                _key_parameters(line.fit),
                "-" if line.rms_log_residual is None else f"{line.rms_log_residual:.2g}",
                "-" if held is None else f"{held.mean_error:.2%}",
                "-" if held is None else f"{held.extrapolation:.3g}x",
            )
        )
    print_table(rows)
    print(
        "rms: residual of log loss; held out: mean error on the largest budget, fitted without it; "
        "beyond fit: how far that was from the largest budget fitted"
    )
    for line in lines:
        if line.problem:
            print(f"{line.law} not fitted: {line.problem}")
        elif line.held_out_problem:
            print(f"{line.law} not tested on a held-out budget: {line.held_out_problem}")


def _exponent(fit: Any) -> str:
    for convention, exponents in fit.exponents.items():
        interval = fit.exponent_intervals.get(convention, {}).get("N")
        edges = "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
        return f"{exponents['N']:.3f}{edges}"
    return "-"


def _key_parameters(fit: Any) -> str:
    """The exponents of the loss, or what stands for them."""
    keys = ("alpha", "beta", "eta", "B_star", "c")
    shown = [name for name in fit.parameters if name in keys or name.startswith("alpha_")]
    if fit.law == "data-constrained":
        shown = ["R_D_star", "R_N_star"]
    return "  ".join(
        f"{name} {fit.parameters[name]:.3g} {_interval(fit.intervals.get(name), 3)}".strip()
        for name in shown
    )


def _interval(interval: tuple[float, float] | None, digits: int) -> str:
    return "" if interval is None else f"[{interval[0]:.{digits}g}, {interval[1]:.{digits}g}]"

"""A forecast that is written down before it is tested.

    STORE/verify/C1.08e12/
      forecast-SHA.json     the advice, its intervals and the runs that will test it; never rewritten
      experiment.json  runs/  ...    a store of its own with the advised model, its half and its double
      outcome.json          what became of the forecast

The name of a forecast contains the hash of its content, so that a later edit is noticed.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from lmscale import flops
from lmscale.files import DamagedError, parse_json, read_json, write_atomically
from lmscale.laws.advise import advise
from lmscale.laws.frontier_advice import run_noise
from lmscale.laws.result import FitError, FitResult, plain
from lmscale.laws.windows import paired_difference
from lmscale.spec import RunSpec
from lmscale.sweep.experiment import Experiment, Run
from lmscale.sweep.ownership import turn
from lmscale.sweep.recipe import read_recipe
from lmscale.sweep.recommend import advised_run, recommend, store_convention, store_law
from lmscale.sweep.store import Store, StoreError
from lmscale.terminal import say

__all__ = [
    "Verification",
    "compare",
    "forecast_of",
    "outcome_runs",
    "read_forecast",
    "verification_store",
    "verifications",
    "write_forecast",
]

#: Sizes of the trained models relative to the advised one. All take the same compute.
ROLES = (("advised", 1.0), ("half", 0.5), ("double", 2.0))
#: Digits of the hash in a forecast's name.
_DIGITS = 16
#: Fewest degrees of freedom for an estimate of a run's noise from seeds.
_LEAST_FREEDOM = 3
#: Standard errors that a difference must exceed to be more than noise.
_REACH = 1.96


@dataclass(frozen=True, kw_only=True)
class Verification(Experiment):
    """The runs that test a forecast, as an experiment: its store is trained and read like any."""

    title = "Forecast and outcome"
    analyses = ("curves",)

    #: Name of the forecast's file.
    forecast: str


def verification_store(store: Store, budget: float, family: str, law: str) -> Store:
    """The folder of one question to a store."""
    name = f"C{budget:.6g}".replace("e+", "e")
    if family != "transformer":
        name += "-" + "-".join("".join(c if c.isalnum() else " " for c in family).split())
    if law != "isoflop":
        name += f"-{law}"
    return Store(store.path / "verify" / name)


def forecast_of(
    store: Store,
    budget: float,
    *,
    law: str = "isoflop",
    family: str = "transformer",
    extrapolate: bool = False,
) -> dict[str, Any]:
    """A store's forecast for a budget, JSON-ready.

    Raises:
      FitError: when its law cannot answer, the budget lies too far beyond its runs, or they have no
        recipe in common.
    """
    advice = recommend(store, law=law, family=family, extrapolate=extrapolate, flops=budget)
    fitted, recipe = store_law(store, family, law), read_recipe(store, family)
    convention = store_convention(store)
    if advice.loss is None:
        raise FitError(f"there is no loss to foretell: {'; '.join(advice.warnings)}")
    runs = {role: advised_run(recipe, advice, convention, factor) for role, factor in ROLES}
    sizes = {role: flops.n_params(run.model, convention) for role, run in runs.items()}
    # A coarse ladder may give the same model for two of the sizes.
    roles = [role for i, role in enumerate(sizes) if sizes[role] not in list(sizes.values())[:i]]
    answers = advise(
        fitted, flops=budget, factors=[sizes[role] / advice.n_params for role in roles]
    ).off_optimum
    if len(answers) < len(roles):
        raise FitError("this law does not say what sizes off the best one cost")
    std, source = _noise_of_a_run(store, family, fitted)
    return plain(
        {
            "format": 1,
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "flops": budget,
            "convention": convention,
            "law": law,
            "family": family,
            "store": store.path.name,
            "results_sha256": results_hash(store),
            "smallest_budget": fitted.ranges["flops"][0],
            "largest_budget": fitted.ranges["flops"][1],
            "noise": {"std": std, "source": source},
            "advice": {k: v for k, v in advice.to_json().items() if k != "off_optimum"},
            "runs": [
                {
                    "role": role,
                    "n_params": sizes[role],
                    "n_tokens": runs[role].n_tokens,
                    "loss": answer.loss,
                    "interval": answer.loss_interval,
                    "spec": runs[role].to_dict(),
                }
                for role, answer in zip(roles, answers, strict=True)
            ],
        }
    )


def results_hash(store: Store) -> str:
    """The hash of all results in a store."""
    digest = hashlib.sha256()
    for folder, _ in sorted(store.declared(), key=lambda pair: pair[0].path.name):
        if (result := folder.content("result.json")) is not None:
            digest.update(folder.path.name.encode() + result)
    return digest.hexdigest()


def _noise_of_a_run(store: Store, family: str, fitted: FitResult) -> tuple[float | None, str]:
    """Standard deviation of one run's loss in nats, and where it was estimated."""
    table = store.table()
    best = table[table["best_lr"] & (table.get("family", family) == family)]
    cells = [name for name in ("budget", "n_layer", "width", "steps") if name in best]
    groups = [group["loss"].to_numpy() for _, group in best.groupby(cells, dropna=False)]
    std, freedom = _pooled(groups)
    if freedom >= _LEAST_FREEDOM:
        return std, "seeds of the sweep"
    std = run_noise(fitted)
    return (std, "residuals about the law") if math.isfinite(std) else (None, "")


def _pooled(groups: Sequence[np.ndarray]) -> tuple[float, int]:
    """Standard deviation within groups, and its degrees of freedom."""
    rest = [group - np.mean(group) for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in rest)
    if not freedom:
        return math.nan, 0
    return math.sqrt(sum(float(np.sum(group**2)) for group in rest) / freedom), freedom


# --- The file ---------------------------------------------------------------------------------


def write_forecast(folder: Store, values: dict[str, Any]) -> epath.Path:
    """Writes a forecast; a folder keeps its first one.

    Raises:
      StoreError: when the folder has one.
    """
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    path = folder.path / f"forecast-{_hash(text)}.json"
    folder.path.mkdir(parents=True, exist_ok=True)
    # Two commands that were started together would each write one.
    with turn(folder.path, say):
        if (known := _files(folder)) != []:
            raise StoreError(f"{folder.path} has a forecast already: {known[0].name}")
        write_atomically(path, text)
    return path


def read_forecast(folder: Store) -> tuple[dict[str, Any], epath.Path] | None:
    """The forecast of a folder, or None where there is none yet.

    Raises:
      StoreError: when it is not as it was written, is not the only one, or was deleted after runs had been
        declared to test it.
    """
    files = _files(folder)
    if not files:
        if folder.holds_experiment():
            raise StoreError(
                f"{folder.path} has lost its forecast: restore forecast-*.json, or move the folder away and "
                "make a new forecast"
            )
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise StoreError(f"{folder.path} has more than one forecast ({names}): keep the first")
    (path,) = files
    text = path.read_bytes()
    if path.name != f"forecast-{_hash(text)}.json":
        raise StoreError(
            f"{path} has been changed since it was written (its content hashes to {_hash(text)}): "
            "restore it, or move the folder away and make a new forecast"
        )
    return parse_json(text, path, {"runs": list, "flops": float}), path


def _files(folder: Store) -> list[epath.Path]:
    return sorted(folder.path.glob("forecast-*.json")) if folder.path.exists() else []


def _hash(text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    return hashlib.sha256(data).hexdigest()[:_DIGITS]


def outcome_runs(forecast: dict[str, Any], seeds: Sequence[int]) -> list[Run]:
    """The runs that test a forecast."""
    found = []
    for planned in forecast["runs"]:
        for seed in seeds:
            spec = RunSpec.from_dict({**planned["spec"], "seed": seed})
            labels = {"family": forecast["family"], "budget": forecast["flops"], "lr_factor": 1.0}
            found.append(Run(spec, {**labels, "role": planned["role"]}))
    return found


# --- The outcome ------------------------------------------------------------------------------


def compare(forecast: dict[str, Any], folder: Store) -> dict[str, Any]:
    """The outcome of a forecast, JSON-ready; `finding` states it in a sentence."""
    results: dict[str, list[dict[str, Any]]] = {planned["role"]: [] for planned in forecast["runs"]}
    for run, labels in folder.declared():
        result = run.result()
        if result is not None and result["status"] == "done":
            results[labels["role"]].append(result)
    runs = []
    for planned in forecast["runs"]:
        losses = [_loss(result) for result in results[planned["role"]]]
        mean = float(np.mean(losses)) if losses else None
        low, high = planned["interval"] or (-math.inf, math.inf)
        runs.append(
            {
                "role": planned["role"],
                "losses": losses,
                "loss": mean,
                "contained": None if mean is None else bool(low <= mean <= high),
            }
        )
    done = [run for run in runs if run["loss"] is not None]
    values: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "runs": runs,
        "contained": runs[0]["contained"],
        "best": min(done, key=lambda run: run["loss"])["role"] if done else None,
    }
    if done and runs[0]["loss"] is not None:
        best = min(done, key=lambda run: run["loss"])
        above = runs[0]["loss"] - best["loss"]
        error, source = _error_of_difference(forecast, runs, best, results)
        values |= {
            "advised_above_best": above,
            "error_of_difference": error,
            "noise_source": source,
            "within_noise": None if error is None else bool(above <= _REACH * error),
        }
    return plain({**values, "finding": _finding(forecast, values)})


def _loss(result: dict[str, Any]) -> float:
    return float(next(iter(result["losses"].values())))


def _error_of_difference(
    forecast: dict[str, Any],
    runs: list[dict[str, Any]],
    best: dict[str, Any],
    results: dict[str, list[dict[str, Any]]],
) -> tuple[float | None, str]:
    """Standard error of the advised loss minus the best one, and its parts."""
    advised = runs[0]
    if advised is best:
        return 0.0, ""
    std, freedom = _pooled([run["losses"] for run in runs])
    source = "seeds of these runs"
    if freedom < _LEAST_FREEDOM:
        std, source = forecast["noise"]["std"], forecast["noise"]["source"]
    if std is None:
        return None, ""
    variance = std**2 * (1 / len(advised["losses"]) + 1 / len(best["losses"]))
    text = _text_error(results["advised"], results[best["role"]])
    if text is not None:
        variance += text**2
        source += " and the held-out documents"
    return math.sqrt(variance), source


def _text_error(ours: list[dict[str, Any]], others: list[dict[str, Any]]) -> float | None:
    """Standard error that the choice of documents gives the difference of two models, seeds averaged."""
    windows = []
    for results in (ours, others):
        name = next(iter(results[0]["losses"]))
        found = [result.get("loss_by_window", {}).get(name) for result in results]
        if any(one is None for one in found):
            return None
        windows.append((np.mean([one["loss"] for one in found], axis=0), found[0]["document"]))
    if windows[0][1] != windows[1][1]:
        return None
    error = paired_difference(windows[0][0], windows[1][0], windows[0][1]).error
    return error if math.isfinite(error) else None


def _finding(forecast: dict[str, Any], outcome: dict[str, Any]) -> str:
    planned, run = forecast["runs"][0], outcome["runs"][0]
    at = (
        f"At {forecast['flops']:.3g} FLOPs, {forecast['flops'] / forecast['largest_budget']:.3g} times "
        f"the largest budget, the advised model of {planned['n_params']:.3g} parameters"
    )
    if run["loss"] is None:
        return f"{at} has no final loss: see the runs' status."
    said = f"{planned['loss']:.3f}"
    if planned["interval"]:
        low, high = planned["interval"]
        verdict = "inside" if outcome["contained"] else "outside"
        said += f" with the interval {low:.3f} to {high:.3f}, and the outcome lies {verdict} of it"
    text = f"{at} reached {run['loss']:.3f}; the forecast was {said}."
    n = sum(one["loss"] is not None for one in outcome["runs"])
    if n == 1:
        return f"{text} No other size has a final loss to compare it with."
    if outcome["best"] == "advised":
        return f"{text} It is the best of the {n} sizes."
    text += (
        f" The best of the {n} sizes is its {outcome['best']}, "
        f"{outcome['advised_above_best']:.3f} nats lower"
    )
    if outcome["within_noise"] is None:
        return f"{text}; the noise of a run is not known."
    within = "within" if outcome["within_noise"] else "more than"
    return (
        f"{text}, {within} the noise of {_REACH * outcome['error_of_difference']:.3f} "
        f"({outcome['noise_source']})."
    )


def verifications(store: Store) -> list[dict[str, Any]]:
    """Every forecast of a store with its outcome: {"forecast", "outcome" or None, "problem"}.

    For a forecast that was changed after it was written there is only the problem, not its content.
    """
    folder = store.path / "verify"
    found = []
    for path in sorted(folder.iterdir()) if folder.exists() else []:
        try:
            known = read_forecast(Store(path))
        except (StoreError, DamagedError) as error:
            found.append({"name": path.name, "forecast": None, "problem": str(error)})
            continue
        if known is not None:
            outcome, problem = None, ""
            try:
                outcome = read_json(path / "outcome.json", remedy="`lmscale verify` makes it again")
            except DamagedError as error:
                problem = str(error)
            found.append(
                {"name": path.name, "forecast": known[0], "outcome": outcome, "problem": problem}
            )
    return found

"""Compares the fits with published results: `python -m tests.laws.published_data PATH`.

PATH is a folder with the authors' own data, which are not part of this repository. It has one
subfolder per paper: porian2024, gadre2024, muennighoff2023, olmo_ladder2024. A data set that is
missing is named and skipped. The exit code is 0 when every check holds, 1 when one fails, and 2
when PATH holds no data set.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmscale.laws.data_constrained import MUENNIGHOFF, fit_data_constrained
from lmscale.laws.isoflop import fit_isoflop, window_spread
from lmscale.laws.over_training import fit_over_training
from lmscale.laws.parametric import fit_parametric

__all__ = ["Check", "run_checks"]


@dataclass(frozen=True)
class Check:
    """One published number against ours."""

    name: str
    expected: float
    found: float
    tolerance: float
    note: str = ""

    @property
    def holds(self) -> bool:
        return bool(abs(self.found - self.expected) <= self.tolerance)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _columns(rows: list[dict[str, str]], **names: str) -> dict[str, np.ndarray]:
    return {ours: np.array([float(row[theirs]) for row in rows]) for ours, theirs in names.items()}


def porian(folder: Path) -> Iterator[Check]:
    """Fifteen exponents a of N_opt ~ C^a from the raw IsoFLOP points, with the authors' method.

    Akima spline, seed noise of 0.002 nats (RefinedWeb) or 0.01 (OpenWebText2), medians of 1000
    draws, weighted by inverse variance. Of runs that share a size the best counts.
    """
    points, best = defaultdict(list), {}
    for row in _rows(folder / "isoflop_points.csv"):
        key = (row["config"], row["flops"], row["params"])
        if key not in best or float(row["loss"]) < float(best[key]["loss"]):
            best[key] = row
    for row in best.values():
        points[row["config"]].append(row)
    for row in _rows(folder / "published_fits.csv"):
        config = row["config"]
        table = _columns(
            points[config], params="params", tokens="tokens", flops="flops", loss="loss"
        )
        noise = 0.002 if config.startswith("rw") else 0.01
        fit = fit_isoflop(table, method="akima", noise=noise, min_points=3)
        spread = ", ".join(f"{k} {v['N']:.3f}" for k, v in window_spread(table).items())
        low, high = fit.intervals["a"]
        yield Check(
            f"porian2024 {config}: a",
            float(row["bs_median_weighted.n_exponent"]),
            fit.parameters["a"],
            0.003,
            f"[{low:.3f}, {high:.3f}]; windows: {spread}",
        )


def gadre(folder: Path) -> Iterator[Check]:
    """Five runs a data set give the law; the 1.4B and 6.9B runs are then predicted."""
    published = {
        "c4_original": (113.693, 189.516, -0.242472, 1.50826),
        "rpj": (166.211, 366.687, -0.272851, 1.83665),
        "rw_original": (125.096, 246.207, -0.254395, 1.73446),
    }
    errors = {("rpj", 640): 0.7103, ("rpj", 20): 0.7320}
    rows = _rows(folder / "runs_104.csv")
    for dataset, constants in published.items():
        own = [row for row in rows if row["dataset_name"] == dataset]
        sizes = sorted({float(row["params"]) for row in own})
        used = [
            row
            for row in own
            if (float(row["tok_mult"]) == 20 and float(row["params"]) <= sizes[3])
            or (float(row["tok_mult"]) == 320 and float(row["params"]) == sizes[0])
        ]
        names = {"params": "params", "tokens": "tokens", "loss": "loss_c4_val"}
        fit = fit_over_training(_columns(used, **names), bootstrap=0)
        p = fit.parameters
        found = (p["a"] / 6 ** p["eta"], p["b"], -2 * p["eta"], p["E"])
        for name, expected, value in zip(("a", "b", "e", "E"), constants, found, strict=True):
            # Four digits.
            yield Check(
                f"gadre2024 {dataset}: {name}", expected, value, 0.5e-3 * 10 ** _decade(expected)
            )
        for row in own:
            key = (dataset, int(float(row["tok_mult"])))
            if (
                key in errors
                and float(row["params"]) > 1e9
                and (key[1] == 640 or float(row["params"]) > 6e9)
            ):
                c = _columns([row], **names)
                predicted = fit.predict(params=c["params"], tokens=c["tokens"])[0]
                error = 100 * abs(predicted / c["loss"][0] - 1)
                yield Check(
                    f"gadre2024 {row['model_name']} at M = {key[1]}: error in %",
                    errors[key], float(error), 0.01,
                )  # fmt: skip


def muennighoff(folder: Path) -> Iterator[Check]:
    """The published decay constants are a local minimum; a lower one exists and is found."""
    table = _columns(
        _rows(folder / "runs_182.csv"),
        params="params",
        tokens="tokens",
        unique_tokens="unique_tokens",
        loss="val_loss",
    )
    fit = fit_data_constrained(table, base=MUENNIGHOFF, bootstrap=0)
    minima = fit.details["minima"]
    near = min(minima, key=lambda m: abs(np.log(m["R_D_star"] / 15.37176)))
    others = "; ".join(
        f"({m['R_D_star']:.4g}, {m['R_N_star']:.4g}) {m['objective']:.10f}" for m in minima
    )
    yield Check("muennighoff2023 published minimum: R_D*", 15.37176, near["R_D_star"], 5e-4)
    yield Check("muennighoff2023 published minimum: R_N*", 5.31513, near["R_N_star"], 5e-4)
    yield Check(
        "muennighoff2023 published minimum: objective", 0.01582593207, near["objective"], 1e-9
    )
    yield Check(
        "muennighoff2023 lower minimum: objective", 0.0158046625, fit.objective, 1e-9, others
    )
    yield Check("muennighoff2023 lower minimum: R_D*", 95.365, fit.parameters["R_D_star"], 0.01)
    yield Check("muennighoff2023 lower minimum: R_N*", 1.7059, fit.parameters["R_N_star"], 1e-3)


def olmo(folder: Path) -> Iterator[Check]:
    """Approach 3 on sixteen runs, and what it says of the 7B and 13B models."""
    rows = _rows(folder / "final_losses.csv")
    names = {"params": "params", "tokens": "tokens", "loss": "c4_en_ma5"}
    fit = fit_parametric(
        _columns([row for row in rows if row["mode"] == "train"], **names), bootstrap=0
    )
    expected = {"A": 12.4825, "B": 33.4765, "E": 0.93433, "alpha": 0.10360, "beta": 0.16197}
    for name, value in expected.items():
        tolerance = 0.5e-3 * 10 ** _decade(value)
        yield Check(f"olmo_ladder2024 {name}", value, fit.parameters[name], tolerance)
    yield Check("olmo_ladder2024 objective", 3.29982e-5, fit.objective, 1e-9)
    large = [row for row in rows if row["mode"] == "eval"]
    for row, error in zip(large, (-1.98, -3.83), strict=True):
        c = _columns([row], **names)
        predicted = fit.predict(params=c["params"], tokens=c["tokens"])[0]
        yield Check(
            f"olmo_ladder2024 {row['run']}: error in %",
            error,
            float(100 * (predicted / c["loss"][0] - 1)),
            0.01,
        )


def _decade(value: float) -> int:
    return int(np.floor(np.log10(abs(value))))


SETS: dict[str, Callable[[Path], Iterator[Check]]] = {
    "porian2024": porian,
    "gadre2024": gadre,
    "muennighoff2023": muennighoff,
    "olmo_ladder2024": olmo,
}


def run_checks(path: Any, say: Callable[[str], None] = print) -> list[Check]:
    """Runs the checks of every set found under `path`, saying each as it is done."""
    checks = []
    for name, function in SETS.items():
        folder = Path(path) / name
        if not folder.is_dir():
            say(f"skipped {name}: no such folder in {path}")
            continue
        for check in function(folder):
            checks.append(check)
            mark = "ok  " if check.holds else "FAIL"
            note = f"  {check.note}" if check.note else ""
            say(
                f"{mark} {check.name}: {check.found:.8g} (published {check.expected:.8g} "
                f"+- {check.tolerance:.2g}){note}"
            )
    return checks


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.laws.published_data", description=__doc__
    )
    parser.add_argument("path", help="folder that holds one folder a paper")
    path = parser.parse_args(arguments).path
    checks = run_checks(path)
    if not checks:
        print(f"{path} holds none of {', '.join(SETS)}", file=sys.stderr)
        return 2
    failed = sum(not check.holds for check in checks)
    print(f"{len(checks) - failed} of {len(checks)} checks hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""`import lmscale`: load, fit, advise, studies, figures; the same answers as the commands give."""

from __future__ import annotations

import json
import subprocess
import sys

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest

import lmscale
from lmscale import interface
from lmscale.laws import FitError, FitResult
from tests.cli.answers import answer
from tests.report import planted_store as planted


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("interface") / "store"
    planted.plant(
        path,
        planted.isoflop_runs(lstm=False, seeds=(0,), sizes=5),
        analyses=["isoflop"],
        noise=0.002,
    )
    lmscale.load(path).store.write_table()
    return path


@pytest.fixture(scope="module")
def results(store):
    return lmscale.load(store)


def test_importing_is_light():
    code = (
        "import sys, lmscale; dir(lmscale); "
        "print([m for m in ('jax', 'matplotlib', 'pandas', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in lmscale.__all__:
        assert getattr(lmscale, name) is not None
        assert name in dir(lmscale)
    assert lmscale.studies.isoflop.study is lmscale.studies.find("isoflop")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lmscale.nothing
    with pytest.raises(AttributeError, match="no study 'nothing'; there are compute"):
        _ = lmscale.studies.nothing


def test_runs_have_every_hyperparameter_and_label(results):
    runs = results.runs
    assert list(runs["run"]) == list(results.table["run"]) and runs["run"].is_unique
    for run, spec in results.specs.items():
        row = runs.set_index("run").loc[run]
        assert row["model.d_model"] == spec.model.d_model
        assert row["optimizer.peak_lr"] == spec.optimizer.peak_lr
        assert row["schedule.warmup_steps"] == spec.schedule.warmup_steps
        assert row["data.corpus"] == spec.data.corpus and row["evals"] == "valid"
    labels = {name for entry in results.experiment["runs"] for name in entry["labels"]}
    counts = {f"{what}_{c}" for what in ("params", "flops") for c in lmscale.laws.CONVENTIONS}
    assert labels | counts | {"loss", "loss_valid", "steps"} <= set(runs)


def test_curves_are_long_form(results):
    curves = results.curves
    assert list(curves.columns[:5]) == ["run", "step", "tokens", "flops", "loss"]
    assert set(curves["run"]) == set(results.metrics)
    assert not curves.duplicated(["run", "step"]).any()
    run, records = next(iter(results.metrics.items()))
    own = curves[curves["run"] == run]
    (last,) = (r for r in records if "eval" in r)
    assert own["loss_valid"].dropna().tolist() == [last["eval"]["valid"]["loss"]]
    losses = [r["loss"] for r in records if "loss" in r]
    assert own["loss"].dropna().tolist() == losses


def test_results_say_what_they_are(results):
    assert "20 done" in repr(results) and str(results.store.path) in repr(results)
    assert "<table" in results._repr_html_()


def test_a_fit_is_that_of_the_command(capsys, store, results):
    asked = ("--law", "isoflop", "--bootstrap", 50, "--at", 1e13, "--json")
    said = json.loads(answer(capsys, "fit", store, *asked)[1])
    for source in (store, results, results.runs, store / "results.csv"):
        fit = lmscale.fit(source, "isoflop", bootstrap=50, at=1e13)
        assert isinstance(fit, FitResult)
        assert fit.parameters == pytest.approx(said["parameters"], rel=1e-12)
        assert {k: list(v) for k, v in fit.intervals.items()} == said["intervals"]
        assert fit.at[0].n_params == pytest.approx(said["at"][0]["n_params"], rel=1e-12)


def test_several_laws_are_a_mapping(results):
    fits = lmscale.fit(results, ["isoflop", "data-constrained"], bootstrap=50)
    assert list(fits) == ["isoflop", "data-constrained"]
    assert fits["isoflop"].law == "isoflop"
    with pytest.raises(FitError, match="data-constrained cannot be fitted"):
        _ = fits["data-constrained"]
    with pytest.raises(KeyError, match="power was not asked for"):
        _ = fits["power"]


def test_a_table_of_ones_own_is_fitted(tmp_path):
    flops = np.repeat(np.geomspace(1e18, 1e21, 4), 5)
    params = np.sqrt(flops / 60) * np.tile(np.geomspace(0.4, 2.5, 5), 4)
    loss = 3 - 0.1 * np.log10(flops) + 0.05 * np.log(params / np.sqrt(flops / 60)) ** 2
    frame = pd.DataFrame({"size": params / 1e6, "C": flops, "c4": loss, "mode": "train"})
    frame.loc[len(frame)] = [1e2, 1e18, 9.0, "eval"]
    frame.to_csv(tmp_path / "runs.csv", index=False)
    reading = {"columns": {"params": "size*1e6", "loss": "c4"}, "where": "mode == train"}
    for source in (frame, frame.to_dict("list"), tmp_path / "runs.csv"):
        fit = lmscale.fit(source, "isoflop", **reading, bootstrap=20, at=[1e20, 2e21])
        assert fit.exponents["given"]["N"] == pytest.approx(0.5, abs=1e-6) and fit.n_used == 20
        assert [advice.flops for advice in fit.at] == [1e20, 2e21]
        assert fit.at[1].n_params == pytest.approx(np.sqrt(2e21 / 60), rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"law": "nothing"}, "there is no law 'nothing'; choose from"),
        ({"law": "isoflop", "windw": 2}, "no law has the option windw; isoflop takes"),
        (
            {"law": "isoflop", "smooth": 2},
            "^smooth belongs to law envelope; isoflop takes method, window",
        ),
        ({"law": "data-constrained"}, "unique_tokens"),
        ({"law": "power", "at": 1e13, "x": "params"}, "power"),
        ({"law": []}, "name a law, or several: "),
        ({"law": None}, "name a law, or several: "),
        ({"law": "isoflop", "level": 2}, "level must be between 0 and 1, not 2"),
        ({"law": "isoflop", "at": "much"}, "at must be a positive number, not 'much'"),
        ({"law": "isoflop", "level": "0.9"}, "level must be between 0 and 1, not '0.9'"),
        ({"law": "isoflop", "level": None}, "level must be between 0 and 1, not None"),
        ({"law": "isoflop", "seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"law": 5}, "there is no law 5; choose from"),
        ({"law": "isoflop", "columns": 5}, 'columns must name them, as "params=N,loss=L", not 5'),
        ({"law": "isoflop", "where": 5}, 'where must be a text, as "params >= 1e8", not 5'),
        ({"law": "isoflop", "at": 10**400}, "at must be a positive number, not 1e400 or so"),
        ({"law": "isoflop", "at": {}.get}, "at must be a positive number, not <built-in"),
        *(
            ({"law": "isoflop", "bootstrap": draws}, "bootstrap must be a whole number from 20")
            for draws in (1, 2.5, -5, 100_001, "100", None)
        ),
        ({"law": "isoflop", "at": [1e13, -1]}, "at must be a positive number, not -1"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(results, arguments, says):
    with pytest.raises(ValueError, match=says) as error:
        lmscale.fit(results, **{"bootstrap": 20, **arguments})
    assert "\n" not in str(error.value) and "--" not in str(error.value)


@pytest.mark.parametrize("at", [np.int64(10**13), np.float32(1e13), np.array([1e13]), [10**13]])
def test_a_budget_may_be_a_number_of_numpy(results, at):
    fit = lmscale.fit(results, "isoflop", bootstrap=0, at=at)
    assert [advice.flops for advice in fit.at] == pytest.approx([1e13])


def test_no_budget_is_asked_for_by_none(results):
    fit = lmscale.fit(results, "isoflop", bootstrap=0, at=None)
    assert fit.at == () and fit.intervals == {}


@pytest.mark.parametrize("tokens", ["1e12", -1, None, float("nan")])
def test_tokens_that_are_served_are_a_number(tokens):
    with pytest.raises(FitError, match="inference_tokens must be a number of at least 0, not "):
        lmscale.advise("besiroglu2024", compute=1e21, inference_tokens=tokens)


def test_errors_and_warnings_name_keyword_arguments_where_a_command_names_flags(results, tmp_path):
    with pytest.raises(FitError, match=r"take the extrapolation with extrapolate=True$"):
        lmscale.advise(results, compute=1e21)
    with pytest.raises(FitError, match=r"leave law, family and what a table is read by out"):
        lmscale.advise("besiroglu2024", compute=1e21, law="isoflop")
    # --out is none of ours: it is an option of the command that made the store.
    with pytest.raises(ValueError, match=r"give the --out of a `lmscale run`"):
        lmscale.load(tmp_path)
    fits = lmscale.fit(results, ["isoflop", "power"], bootstrap=20)
    with pytest.raises(FitError, match=r'say which with x="params" or "tokens" or "flops"$'):
        _ = fits["power"]
    fit = FitResult(law="isoflop", parameters={}, warnings=("or fit with --robust tukey",))
    assert interface._with_keywords(fit).warnings == ("or fit with robust tukey",)


def test_a_budget_or_a_loss_is_asked_for_by_its_keyword(results):
    for both_or_neither in ({}, {"compute": 1e13, "loss": 3.0}):
        with pytest.raises(FitError, match=r"^give either compute .* or loss"):
            lmscale.advise(results, **both_or_neither)


def test_figures_of_a_study_that_is_not_there_are_an_error(results):
    with pytest.raises(KeyError, match=r"no study 'isofl'; there are .*isoflop"):
        lmscale.figures.charts(results, "isofl")


def test_advice_is_that_of_the_command(capsys, store, results):
    said = json.loads(answer(capsys, "advise", store, "--compute", 5e13, "--json")[1])
    for source in (store, results, store / "results.csv"):
        assert lmscale.advise(source, compute=5e13).to_json() == said
    fit = lmscale.fit(results, "isoflop")
    assert lmscale.advise(fit, compute=5e13).n_params == pytest.approx(said["n_params"])
    assert lmscale.advise(results.runs, compute=5e13).n_params == pytest.approx(said["n_params"])
    assert lmscale.advise("besiroglu2024", compute=1e21).law
    with pytest.raises(FitError, match="no store, no table and no published law"):
        lmscale.advise("nowhere", compute=1e20)
    with pytest.raises(FitError, match="compute must be a positive number, not '5 PF-days'"):
        lmscale.advise(store, compute="5 PF-days")


def test_figures_are_drawn_on_axes_of_ones_own(results):
    figure = matplotlib.figure.Figure()
    left, right, below, last = figure.subplots(2, 2).ravel()
    fit = lmscale.fit(results, "isoflop", bootstrap=50)
    handles = lmscale.figures.profiles(left, fit)
    assert sorted(handles) == pytest.approx(sorted(p.flops for p in fit.details["profiles"]))
    assert left.get_xscale() == "log" and "loss" in left.get_ylabel()
    lmscale.figures.frontier(right, fit, "D")
    drawn = {tuple(line.get_xydata()[0]) for line in right.lines if line.get_marker() == "D"}
    assert drawn == {(p.flops, p.d_opt) for p in fit.details["profiles"] if p.ok}
    sizes = lmscale.figures.curves(below, results, "tokens")
    assert len(below.lines) == len(results.metrics) and len(sizes) > 4
    power = lmscale.fit(results, "power", x="flops", bootstrap=50)
    lmscale.figures.power_law(last, power, "tab:blue", label="mine")
    assert last.lines[0].get_label() == "mine" and last.collections
    with pytest.raises(FitError, match="profiles are of the law isoflop"):
        lmscale.figures.profiles(left, power)
    with pytest.raises(FitError, match="symbol must be N or D"):
        lmscale.figures.frontier(left, fit, "L")


@pytest.mark.slow
def test_the_reports_figures_can_be_taken(results, tmp_path):
    chart = lmscale.figures.charts(results, "isoflop")[0]
    chart.save(tmp_path / "a.svg")
    chart.save(tmp_path / "a.png")
    assert (tmp_path / "a.svg").read_text() == chart.svg
    assert chart._repr_png_()[0] == (tmp_path / "a.png").read_bytes()
    chart.figure.axes[0].set_title("mine")
    chart.figure.savefig(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"as \.svg or \.png, not as 'a.pdf'"):
        chart.save(tmp_path / "a.pdf")

"""Forecasts: written once, noticed when changed, and held against what the runs reached."""

import json
import threading

import pytest

from lmscale import flops
from lmscale.laws.result import FitError
from lmscale.report.forecast import forecast_section
from lmscale.report.write import write_report
from lmscale.studies.results import Results
from lmscale.sweep import verify
from lmscale.sweep.store import Store, StoreError
from lmscale.sweep.verify import (
    compare,
    forecast_of,
    outcome_runs,
    read_forecast,
    results_hash,
    verification_store,
    verifications,
    write_forecast,
)
from tests.report.planted_store import plant
from tests.sweep.test_recipe import BUDGETS, LAW, grid

BUDGET = 3 * BUDGETS[-1]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store")
    return plant(path, grid(), analyses=("isoflop",), law=LAW, noise=0.003)


@pytest.fixture(scope="module")
def forecast(store):
    return forecast_of(store, BUDGET)


def trained(store, forecast, law, *, seeds=(0,), folder=None, **options):
    """The verification's store, as if its runs had been trained to what a law gives."""
    place = folder or verification_store(store, BUDGET, "transformer", "isoflop").path
    return plant(place, outcome_runs(forecast, seeds), analyses=("curves",), law=law, **options)


def test_a_forecast_holds_three_sizes_on_one_budget_and_one_recipe(store, forecast):
    roles = {planned["role"]: planned for planned in forecast["runs"]}
    assert list(roles) == ["advised", "half", "double"]
    for role, factor in (("half", 0.5), ("double", 2.0)):
        ratio = roles[role]["n_params"] / roles["advised"]["n_params"]
        assert ratio == pytest.approx(factor, rel=0.35)
    for run in outcome_runs(forecast, (0, 1)):
        spent = flops.training_flops(run.spec, "standard")
        assert spent == pytest.approx(BUDGET, rel=0.01)
        assert run.spec.model.n_layer == 2 and run.spec.batch_size == 2
        assert run.spec.evals == grid()[0].spec.evals
    for planned in forecast["runs"]:
        low, high = planned["interval"]
        assert low < planned["loss"] < high
    # 0.003 nats were planted as noise.
    assert 0.0015 < forecast["noise"]["std"] < 0.006
    assert forecast["results_sha256"] == results_hash(store)
    json.dumps(forecast, allow_nan=False)


def test_a_law_that_holds_comes_true(store, forecast, tmp_path):
    outcome = compare(forecast, trained(store, forecast, LAW, folder=tmp_path))
    assert outcome["contained"] is True
    assert outcome["best"] == "advised" or outcome["within_noise"]
    assert "the outcome lies inside of it" in outcome["finding"]


def test_a_law_that_breaks_is_found_out(store, forecast, tmp_path):
    outcome = compare(forecast, trained(store, forecast, lambda spec: 9.0, folder=tmp_path))
    assert outcome["contained"] is False and "outside" in outcome["finding"]


def test_the_best_size_is_compared_with_the_noise(store, forecast, tmp_path):
    sizes = {p["role"]: p["n_params"] for p in forecast["runs"]}

    def better(spec, gain):
        half = flops.n_params(spec.model, "standard") == sizes["half"]
        return LAW(spec) - gain * half

    close = compare(
        forecast,
        trained(store, forecast, lambda s: better(s, 0.03), folder=tmp_path / "a", noise=0),
    )
    far = compare(
        forecast, trained(store, forecast, lambda s: better(s, 0.3), folder=tmp_path / "b", noise=0)
    )
    assert far["best"] == "half" and far["within_noise"] is False
    assert "more than the noise" in far["finding"]
    assert far["advised_above_best"] == pytest.approx(close["advised_above_best"] + 0.27, abs=1e-6)
    # Two runs' noise, of the sweep's residuals, and the documents that they were scored on.
    assert far["error_of_difference"] >= forecast["noise"]["std"] * 2**0.5


def test_seeds_of_the_verification_tell_the_noise_where_there_are_enough(store, forecast, tmp_path):
    place = trained(store, forecast, lambda spec: 3.0, folder=tmp_path, seeds=(0, 1, 2), noise=0.05)
    outcome = compare(forecast, place)
    assert [len(run["losses"]) for run in outcome["runs"]] == [3, 3, 3]
    if outcome["best"] != "advised":
        assert outcome["noise_source"].startswith("seeds of these runs")
        assert outcome["error_of_difference"] > 0.01


def test_a_run_without_a_loss_is_no_outcome(store, forecast, tmp_path):
    place = trained(
        store,
        forecast,
        LAW,
        folder=tmp_path,
        status=lambda i, run: "diverged" if i == 0 else "done",
    )
    outcome = compare(forecast, place)
    assert outcome["contained"] is None and "has no final loss" in outcome["finding"]


def test_a_forecast_is_written_once_and_a_change_is_noticed(store, forecast, tmp_path):
    place = verification_store(store, 123e10, "transformer", "isoflop")
    assert place.path.name == "C1.23e12" and read_forecast(place) is None
    path = write_forecast(place, forecast)
    assert read_forecast(place) == (forecast, path)
    with pytest.raises(StoreError, match="has a forecast already"):
        write_forecast(place, forecast)
    path.write_text(path.read_text().replace('"loss"', '"loss" '))
    with pytest.raises(StoreError, match="has been changed since it was written"):
        read_forecast(place)
    (found,) = verifications(store)
    assert found["forecast"] is None and "has been changed" in found["problem"]
    path.unlink()
    assert read_forecast(place) is None
    (place.path / "experiment.json").write_text("{}")
    with pytest.raises(StoreError, match="has lost its forecast"):
        read_forecast(place)
    (place.path / "experiment.json").unlink()
    place.path.rmdir()


def test_of_two_forecasts_that_are_made_at_once_one_is_written(tmp_path, monkeypatch):
    """The second begins between the first one's look at the folder and its writing."""
    place, refused, seen, real = (
        Store(tmp_path / "C1"),
        [],
        threading.Event(),
        verify.write_atomically,
    )

    def second():
        try:
            write_forecast(place, {"date": "10:01", "runs": [], "flops": 1.0})
        except StoreError as error:
            refused.append(str(error))
        seen.set()

    def write(path, text):
        if not thread.ident:
            thread.start()
            seen.wait()
        real(path, text)

    thread = threading.Thread(target=second)
    monkeypatch.setattr(verify, "say", lambda line: seen.set(), raising=False)
    monkeypatch.setattr(verify, "write_atomically", write)
    path = write_forecast(place, {"date": "10:00", "runs": [], "flops": 1.0})
    thread.join()
    assert read_forecast(place)[1] == path
    assert "has a forecast already" in refused[0]


def test_families_and_laws_have_folders_of_their_own(store):
    names = {
        verification_store(store, 1e12, family, law).path.name
        for family, law in (
            ("transformer", "isoflop"), ("lstm", "isoflop"), ("transformer", "parametric"),
        )
    }  # fmt: skip
    assert names == {"C1e12", "C1e12-lstm", "C1e12-parametric"}


def test_too_large_a_budget_is_refused_before_anything_is_trained(store):
    with pytest.raises(FitError, match="trusted up to 30 times"):
        forecast_of(store, 1000 * BUDGETS[-1])


@pytest.mark.slow
def test_the_report_shows_forecast_and_outcome(store, forecast):
    assert forecast_section(Results.read(store)) is None
    place = verification_store(store, BUDGET, "transformer", "isoflop")
    write_forecast(place, forecast)
    section = forecast_section(Results.read(store))
    assert "is written down and not tested yet" in section.finding
    trained(store, forecast, LAW)
    outcome = compare(forecast, place)
    (place.path / "outcome.json").write_text(json.dumps(outcome))
    after = write_report(store).read_text()
    assert "Forecast and outcome" in after and "the outcome lies inside of it" in after
    assert (store.path / "figures" / "forecast.png").exists()

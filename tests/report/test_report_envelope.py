"""What the page concludes from learning curves of a planted surface."""

import dataclasses

import numpy as np
import pytest

from lmscale.laws import FitResult
from lmscale.report import analyse
from lmscale.report.analyses.envelope import _held
from lmscale.studies.results import Results
from tests.report import planted_store as planted


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Every run's training loss follows L(N, D) at the tokens it has seen so far."""
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=7)
    store = planted.plant(tmp_path_factory.mktemp("e"), runs, analyses=["envelope"], noise=0.001)
    study, law = Results.read(store), planted.Law()
    rng, metrics = np.random.default_rng(0), {}
    for _, row in study.table.iterrows():
        tokens = np.linspace(row["tokens"] / 200, row["tokens"], 200)
        loss = law.E + law.A * row["params_standard"] ** -law.alpha + law.B * tokens**-law.beta
        loss = loss + 0.002 * rng.standard_normal(200)
        metrics[row["run"]] = [{"tokens": d, "loss": x} for d, x in zip(tokens, loss, strict=True)]
    return dataclasses.replace(study, metrics=metrics)


def test_the_envelope_finds_the_planted_exponent(study):
    section = analyse("envelope", study)
    a = section.measures["a"]
    assert a.value == pytest.approx(planted.Law().exponent, abs=0.06)
    assert a.interval[0] < a.value < a.interval[1]
    assert section.measures["b"].value == pytest.approx(1 - a.value, abs=0.02)
    gap = section.measures["a_minus_approach_2"]
    assert gap.interval[0] < 0 < gap.interval[1]
    assert gap.undecided_because == "a difference needs 3 seeds, not 1"
    assert [chart.name for chart in section.charts] == ["envelope-transformer"]
    assert "in the last 15% of a run" in section.details[0]


def test_noise_that_moves_the_exponent_more_than_it_scatters_it_leaves_no_interval():
    rng = np.random.default_rng(0)
    common = {"law": "envelope", "exponents": {"standard": {"N": 0.5, "D": 0.5}}}
    common["exponent_intervals"] = {"standard": {"N": (0.4, 0.6), "D": (0.4, 0.6)}}
    for shift, sound in ((0.02, True), (0.1, False)):
        draws = {"a": 0.5 + shift + 0.05 * rng.standard_normal(400)}
        fit = FitResult(parameters={"a": 0.5}, draws=draws, **common)
        assert (_held(fit, "N")[1] is not None) == sound


def test_runs_without_curves_are_told(study):
    section = analyse("envelope", dataclasses.replace(study, metrics={}))
    assert "no run has a training curve" in section.finding
    assert section.measures["a"].value is None and not section.conclusive


def test_two_sizes_are_no_envelope(study):
    sizes = sorted(set(study.table["width"]))[:2]
    few = study.table[study.table["width"].isin(sizes)].reset_index(drop=True)
    section = analyse("envelope", dataclasses.replace(study, table=few))
    assert "an envelope needs 3" in section.finding

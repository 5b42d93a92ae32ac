"""What the page concludes from learning curves of a planted surface."""

import dataclasses

import numpy as np
import pytest

from lmscale.report import analyse
from lmscale.studies.results import Results
from tests.report import planted_store as planted


def planted_curves(path):
    """Every run's training loss follows L(N, D) at the tokens it has seen so far."""
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=7)
    store = planted.plant(path, runs, analyses=["envelope"], noise=0.001)
    study, law = Results.read(store), planted.Law()
    rng, metrics = np.random.default_rng(0), {}
    for _, row in study.table.iterrows():
        tokens = np.linspace(row["tokens"] / 200, row["tokens"], 200)
        loss = law.E + law.A * row["params_standard"] ** -law.alpha + law.B * tokens**-law.beta
        loss = loss + 0.002 * rng.standard_normal(200)
        metrics[row["run"]] = [{"tokens": d, "loss": x} for d, x in zip(tokens, loss, strict=True)]
    return dataclasses.replace(study, metrics=metrics)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return planted_curves(tmp_path_factory.mktemp("e"))


@pytest.mark.slow
def test_the_section_tells_and_draws_the_envelope(study, drawn):
    section = analyse("envelope", study)
    assert section.finding.startswith(
        "Along the envelope of the Transformer's training curves N ∝ C^0."
    )
    assert section.conclusive and section.measures["a"].interval
    assert [chart.name for chart in section.charts] == ["envelope-transformer"]
    assert "in the last 15% of a run" in section.details[0]


def test_runs_without_curves_are_told(study):
    section = analyse("envelope", dataclasses.replace(study, metrics={}))
    assert "no run has a training curve" in section.finding
    assert section.measures["a"].value is None and not section.conclusive


def test_two_sizes_are_no_envelope(study):
    sizes = sorted(set(study.table["width"]))[:2]
    few = study.table[study.table["width"].isin(sizes)].reset_index(drop=True)
    section = analyse("envelope", dataclasses.replace(study, table=few))
    assert "an envelope needs 3" in section.finding

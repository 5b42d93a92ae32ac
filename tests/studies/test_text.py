"""The text's own error in the report, on planted losses by window."""

import numpy as np
import pytest

from lmscale.report import analyse
from lmscale.report.checklist import checklist
from lmscale.studies.results import Results
from lmscale.studies.text import pair_error, text_error, text_spread, windows_of
from tests.report.planted_store import (
    OWN_STD,
    TEXT_STD,
    WINDOWS,
    WINDOWS_A_DOCUMENT,
    isoflop_runs,
    plant,
    size_runs,
)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    runs = isoflop_runs(lstm=False, seeds=(0,))
    return Results.read(plant(tmp_path_factory.mktemp("store"), runs, analyses=["isoflop"]))


def test_errors_of_a_loss_and_of_a_difference(study):
    found = text_error(study)
    n_documents = WINDOWS // WINDOWS_A_DOCUMENT
    assert (found.n_windows, found.n_documents) == (WINDOWS, n_documents)
    # One draw of 20 documents has a spread of its own.
    hard = np.random.default_rng(0).normal(0, TEXT_STD, n_documents)
    assert found.loss == pytest.approx(hard.std(ddof=1) / np.sqrt(n_documents), rel=0.05)
    assert found.difference == pytest.approx(np.sqrt(2 / WINDOWS) * OWN_STD, rel=0.25)
    answers = {question: answer for _, question, answer in checklist(study, []).rows}
    assert "80 windows of 20 documents" in answers["windows evaluated on"]


def test_runs_on_other_windows_are_not_paired(study):
    first, second = study.usable["run"][:2]
    assert windows_of(study, [first, second])[0].shape == (2, WINDOWS)
    other = dict(study.ended[second])
    other["loss_by_window"] = {"valid": {"loss": [1.0], "document": [0]}}
    changed = Results(study.experiment, study.table, {**study.ended, second: other})
    assert windows_of(changed, [first, second]) is None
    older = {run: {**r, "loss_by_window": {}} for run, r in study.ended.items()}
    assert text_error(Results(study.experiment, study.table, older)) is None


@pytest.mark.slow
def test_what_is_common_to_all_models_does_not_move_an_exponent(study):
    runs = study.usable["run"].tolist()
    of_level = text_spread(study, runs, lambda losses: losses.mean(axis=1))
    of_contrast = text_spread(study, runs, lambda losses: losses[:, 0] - losses[:, 1])
    assert of_level == pytest.approx(text_error(study).loss, rel=0.15)
    assert of_contrast < 0.1 * of_level
    section = analyse("isoflop", study)
    assert "Scored on other documents of the same kind" in " ".join(section.details)


def test_families_are_compared_window_by_window(tmp_path):
    planted = plant(tmp_path, size_runs(layers=(1,)), analyses=["size"])
    study = Results.read(planted)
    error = pair_error(study, "lstm, 1 layer", "transformer")
    # Three seeds a side, each with noise of its own on every window; what is hard for both cancels.
    assert error == pytest.approx(np.sqrt(2 / 3 / WINDOWS) * OWN_STD, rel=0.3)
    assert "window by window" in " ".join(analyse("size", study).details)
    assert pair_error(study, "transformer", "no such family") is None

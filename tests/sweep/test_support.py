"""What a grid is too small for is what the analyses themselves refuse."""

import dataclasses

import pytest

from lmscale.sweep.experiment import experiment_names, load_scales
from lmscale.sweep.support import unsupported
from tests.fake_corpus import fake_corpus
from tests.report.planted_store import isoflop_runs, plant


@pytest.mark.parametrize("name", [n for n in experiment_names() if n not in ("transfer",)])
def test_the_grids_that_ship_support_their_fits(name):
    corpus = fake_corpus(512)
    corpus.n_tokens = lambda split: 4 * 10**7
    for experiment in load_scales(name)[2].values():
        assert unsupported(experiment.analyses, experiment.runs(corpus)) == []


@pytest.mark.parametrize(("budgets", "sizes"), [(2, 7), (3, 3), (3, 4), (4, 7)])
def test_the_report_has_an_exponent_exactly_where_none_was_denied(tmp_path, budgets, sizes):
    from lmscale.studies.isoflop import approach_2
    from lmscale.studies.results import Results

    runs = isoflop_runs([2e10 * 4**i for i in range(budgets)], sizes=sizes, lstm=False, seeds=(0,))
    denied = any("no exponent" in line for line in unsupported(("isoflop",), runs))
    assert denied == (budgets < 3 or sizes < 4)
    study = Results.read(plant(tmp_path / "store", runs, analyses=("isoflop",)))
    fit = approach_2(study, "transformer")
    usable = sum(profile.ok for profile in fit.details.get("profiles", ()))
    assert (usable < 3) == denied


def test_other_fields_are_told_apart_by_what_they_lack():
    experiment = load_scales("isoflop")[2]["cpu"]
    few = dataclasses.replace(experiment, sizes_per_budget=3)
    runs = few.runs(fake_corpus(512))
    assert any("3 sizes at 2e+10" in line for line in unsupported(few.analyses, runs))

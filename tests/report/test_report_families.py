"""The section on loss against size by depth: what it says, and what it says where it cannot."""

import pytest

from lmscale.report import analyse
from lmscale.report.sections import families
from lmscale.studies import Results
from tests.report import planted_store as planted
from tests.report.fixtures import undrawn_section
from tests.studies.test_families import law, runs

undrawn = undrawn_section(families)


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    path = tmp_path_factory.mktemp("families")
    planted.plant(path, runs(), analyses=["families"], law=law, noise=0.005)
    return analyse("families", Results.read(path))


@pytest.mark.slow
def test_the_finding_and_its_measures_name_the_models(section):
    assert "the models of 2, 3 and 6 layers scatter by" in section.finding
    assert "12 models of two or more layers, 3 seeds each" in section.measures["collapse"].what
    assert "3 models, 3 seeds each" in section.measures["single_layer"].what
    assert section.conclusive and len(section.charts) == 1
    assert len(section.grids[0].rows) == 16


def test_the_paper_stands_beside(section):
    assert "2.4" in section.details[0] and "Kaplan et al. 2020, Fig. 6" in section.details[0]
    assert "Here 3 models of one layer lie +" in section.details[0]


def test_few_models_give_no_verdict(tmp_path, undrawn):
    store = planted.plant(tmp_path, runs(depths=(1, 2), seeds=(0,)), analyses=["families"], law=law)
    section = analyse("families", Results.read(store))
    assert section.finding.startswith("No verdict on depth yet: 4 models")
    assert not section.conclusive and section.charts
    assert all(m.value is None and m.undecided_because for m in section.measures.values())


def test_nothing_trained_yet(tmp_path):
    store = planted.plant(
        tmp_path, runs(), analyses=["families"], status=lambda index, run: "pending"
    )
    assert "No run" in analyse("families", Results.read(store)).finding

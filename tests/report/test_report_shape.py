"""What the page says of scans of shape whose costs were planted."""

import dataclasses

import numpy as np
import pytest

from lmscale.report import analyse
from lmscale.report.sections import shape as shape_section
from lmscale.studies.results import Results
from lmscale.sweep import load_scales
from tests.fake_corpus import fake_corpus
from tests.report import planted_store as planted
from tests.report.fixtures import undrawn_section

COST = 0.02


def law(spec):
    """Two percent for a log-unit of d_ff / d_model away from 4; aspect and heads are free."""
    model = spec.model
    return planted.SizeLaw()(spec) * (1 + COST * abs(np.log(model.d_ff / model.d_model / 4)))


def study(path, *, noise=0.003, scale="cpu", status=lambda index, run: "done", **fields):
    experiment = dataclasses.replace(load_scales("shape")[2][scale], **fields)
    runs = experiment.runs(fake_corpus(512))
    return Results.read(
        planted.plant(path, runs, analyses=["shape"], law=law, noise=noise, status=status)
    )


undrawn = undrawn_section(shape_section)


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    return analyse("shape", study(tmp_path_factory.mktemp("shape")))


def test_the_section_is_conclusive_and_drawn(section):
    assert "3 seeds each" in section.measures["aspect"].what
    assert section.finding.startswith("At N = ") and "for an aspect ratio of" in section.finding
    assert section.conclusive and len(section.charts) == 1


def test_a_seed_that_failed_once_leaves_the_scan(tmp_path, undrawn):
    section = analyse(
        "shape", study(tmp_path, status=lambda index, run: "diverged" if index == 0 else "done")
    )
    assert any("1 seed of the aspect ratio left out" in w for w in section.warnings)


def test_nothing_trained_yet(tmp_path):
    section = analyse("shape", study(tmp_path, status=lambda index, run: "pending"))
    assert "No scan" in section.finding

"""Whatever is given for the fields of an experiment: it plans, or one line says what is wrong."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscale.sweep.experiment import experiment_names, field_types, load_scales
from tests.property.harness import NUMBERS, VALUES, check, examples

EXPERIMENTS = {
    (name, scale): experiment
    for name in experiment_names()
    for scale, experiment in load_scales(name)[2].items()
}


@pytest.fixture(autouse=True)
def nothing_there(tmp_path, monkeypatch, corpus):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)


@st.composite
def overrides(draw):
    """A command line with one to three fields of any experiment overridden."""
    (name, scale), experiment = draw(st.sampled_from(sorted(EXPERIMENTS.items(), key=str)))
    kinds = field_types(experiment)
    words = []
    if name == "transfer":
        # Its own evaluation sets would be built first.
        words += ["--eval-corpora", "tiny"]
    for field in draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=3)):
        kind, many = kinds[field]
        value = VALUES if kind is str else st.one_of(NUMBERS, NUMBERS, VALUES)
        count = (0, 5) if many else (1, 1)
        words.append(f"--{field.replace('_', '-')}")
        words += draw(st.lists(value, min_size=count[0], max_size=count[1]))
    return ["plan", name, "--scale", scale, "--data", "tiny", "--device", "cpu:2", "--json", *words]


@examples(40)
@given(argv=overrides())
def test_a_field_of_any_value_plans_or_is_refused_in_a_line(argv):
    check(argv, Path.cwd())

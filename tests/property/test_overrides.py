"""Whatever is given for the fields of an experiment: it plans, or one line says what is wrong."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscale.sweep.experiment import bounds_of, experiment_names, field_types, load_scales
from tests.property.harness import NUMBERS, VALUES, check, examples

EXPERIMENTS = {
    (name, scale): experiment
    for name in experiment_names()
    for scale, experiment in load_scales(name)[2].items()
}

#: Whose ends are tried by the fast tests.
QUICK = (("compute", "gpu"),)


@pytest.fixture(autouse=True)
def nothing_there(tmp_path, monkeypatch, corpus):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)


def command(name, scale):
    words = ["plan", name, "--scale", scale, "--data", "tiny", "--device", "cpu:2", "--json"]
    # The evaluation sets of transfer would be built first.
    return words + ["--eval-corpora", "tiny"] * (name == "transfer")


@st.composite
def overrides(draw):
    """A command line with one to three fields of any experiment overridden."""
    (name, scale), experiment = draw(st.sampled_from(sorted(EXPERIMENTS.items(), key=str)))
    kinds = field_types(experiment)
    words = command(name, scale)
    for field in draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=3)):
        kind, many = kinds[field]
        value = VALUES if kind is str else st.one_of(NUMBERS, NUMBERS, VALUES)
        count = (0, 5) if many else (1, 1)
        words.append(f"--{field.replace('_', '-')}")
        words += draw(st.lists(value, min_size=count[0], max_size=count[1]))
    return words


def at_an_end(choice):
    """Command lines with one numeric field at the lowest or the highest value that it takes."""
    (name, scale), experiment = choice
    for field, (kind, _) in field_types(experiment).items():
        if kind in (int, float):
            bounds = bounds_of(experiment, field)
            for end in (bounds.low, bounds.high):
                yield [*command(name, scale), f"--{field.replace('_', '-')}", f"{end:.17g}"]


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param(
            choice, marks=[] if choice[0] in QUICK else pytest.mark.slow, id="-".join(choice[0])
        )
        for choice in EXPERIMENTS.items()
    ],
)
def test_a_field_at_the_ends_of_its_bounds_plans_or_is_refused_in_a_line(choice):
    for argv in at_an_end(choice):
        check(argv, Path.cwd())


@examples(40)
@given(argv=overrides())
def test_a_field_of_any_value_plans_or_is_refused_in_a_line(argv):
    check(argv, Path.cwd())

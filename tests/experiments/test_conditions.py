"""What the scale cpu can decide: the claims whose conditions its grids do not meet, and what they cost."""

from types import SimpleNamespace

import pytest
from lmscale_experiments import transfer

from lmscale.planner.devices import parse_devices
from lmscale.planner.packs import make_plan
from lmscale.sweep.experiment import experiment_names, load_scales
from tests.experiments.conditions import Grid, unmet
from tests.experiments.fake_corpus import of_tokens

#: Training tokens of the built-in text.
TOKENS = 50_000_000
#: Claims that no grid of some minutes on two cores meets, or that a user must ask for, and what they need.
UNMET = {
    # Numbers of a batch far above the critical one.
    "compute": {"compute/alpha_C", "compute/size_exponent"},
    # A factor of 10,000 between sizes.
    "sample_efficiency": {"efficiency/ratio"},
    # Sizes of 3 million parameters.
    "lstm_vs_transformer": {"size/widening"},
    # Models of 10 million parameters.
    "learning_rate": {
        "learning_rate/steplaw_n",
        "learning_rate/steplaw_d",
        "learning_rate/steplaw_batch",
    },
    # A text of the user's own that is near the training text.
    "transfer": {"transfer/slope"},
}


@pytest.fixture(scope="module")
def grids():
    def fake(name, training):
        return SimpleNamespace(name=f"installed-{name}", fingerprint="f" * 16)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "evaluation_corpus", fake)
        found = {}
        for name in experiment_names():
            experiment = load_scales(name)[2]["cpu"]
            runs = experiment.runs(of_tokens(experiment.vocab_size, TOKENS))
            found[name] = Grid(experiment, runs, TOKENS)
        return found


def test_every_other_claim_has_its_conditions_met(grids):
    found = {name: set(unmet(grid)) for name, grid in grids.items()}
    assert {name: claims for name, claims in found.items() if claims} == UNMET


def test_at_cpu_scale_each_takes_minutes_and_all_take_three_hours(grids):
    devices = parse_devices("cpu:2")
    minutes = {name: make_plan(grid.runs, devices).seconds / 60 for name, grid in grids.items()}
    assert max(minutes.values()) < 22
    assert sum(minutes.values()) < 185
    # The README's first command.
    assert minutes["isoflop"] < 5


def test_a_condition_that_fails_is_said(grids):
    few = Grid(
        grids["shape"].experiment,
        [run for run in grids["shape"].runs if run.spec.seed == 0],
        TOKENS,
    )
    assert unmet(few)["shape/ff_ratio"] == "a difference needs 3 seeds, not 1"

"""The command that a page tells its reader to type is the one that made the store."""

from __future__ import annotations

import pytest

from lmscale.report.command import repeat_command


@pytest.mark.parametrize(
    ("recorded", "repeated"),
    [
        ("lmscale run isoflop", "lmscale run isoflop"),
        (
            "lmscale run isoflop --optimizer muon --out muon",
            "lmscale run isoflop --optimizer muon",
        ),
        ("lmscale run all --scale cpu --out '/a b/all'", "lmscale run isoflop --scale cpu"),
        ("lmscale run isoflop shape --out=x --slots 2", "lmscale run isoflop"),
        (
            "lmscale run --out x isoflop --track wandb --seeds 0 1",
            "lmscale run isoflop --seeds 0 1",
        ),
        ("lmscale run mine.py --load my.py --extend", "lmscale run mine.py --load my.py"),
        (None, "lmscale run isoflop --scale cpu"),
    ],
)
def test_what_was_trained_stays_and_where_it_went_does_not(recorded, repeated):
    experiment = {"name": "isoflop", "scale": "cpu"} | ({"command": recorded} if recorded else {})
    assert repeat_command(experiment) == repeated


@pytest.mark.parametrize(
    "recorded",
    [
        "lmscale run isoflop --optimizer muon",
        "lmscale run isoflop --seeds 0 --optimizer muon",
        "lmscale run isoflop --optimizer muon --seeds=0",
        "lmscale run isoflop --seeds 0 1 2 --optimizer muon --out x",
    ],
)
def test_a_field_is_replaced_by_other_values(recorded):
    experiment = {"name": "isoflop", "scale": "cpu", "command": recorded}
    command = repeat_command(experiment, {"--seeds": ["0", "1"]})
    assert command == "lmscale run isoflop --optimizer muon --seeds 0 1"

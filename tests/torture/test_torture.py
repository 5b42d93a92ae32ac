"""A short torture; `python -m tests.torture` is the long one."""

import json

import pytest

from tests.torture.damage import DAMAGE
from tests.torture.processes import KILLS
from tests.torture.torture import Options, Torture

pytestmark = pytest.mark.slow
SEED = 17
PARENT_KILLS = tuple(kind for kind in KILLS if kind != "worker")


def tortured(out, kills, **options):
    torture = Torture(out, SEED, Options(per_sweep=6, **options))
    torture.prepare()
    counts = torture.run(kills)
    assert counts.n_kills() >= kills
    assert not counts.failures, json.dumps(counts.to_json(), indent=1)
    return counts


def test_sweeps_killed_anywhere_end_bit_identical(tmp_path):
    tortured(tmp_path, 6, kinds=PARENT_KILLS, damage=(), scales=("cpu", "workers"))


def test_sweeps_whose_workers_are_killed_end_bit_identical(tmp_path):
    tortured(tmp_path, 6, kinds=("worker",), damage=(), scales=("workers",))


def test_damage_is_mended_or_named_and_never_changes_a_result(tmp_path):
    counts = tortured(tmp_path, 8, kinds=("group",), damage=tuple(DAMAGE), scales=("cpu",))
    assert counts.damage

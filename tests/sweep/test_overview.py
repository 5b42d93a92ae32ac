"""How far a store is, from the files that its workers leave."""

import json
import os
import platform
import time

import pytest

from lmscale.cli import main
from lmscale.sweep.experiment import Run
from lmscale.sweep.overview import overview
from lmscale.sweep.ownership import Claims
from lmscale.sweep.shards import shard_runs
from lmscale.sweep.store import Store, note_worker
from tests.report import planted_store as planted
from tests.training.specs import run_spec


@pytest.fixture
def store(tmp_path):
    """Eight runs of equal cost: two done, two half way, one diverged, three to come."""
    runs = [Run(run_spec(seed=seed, steps=100), {"family": "transformer"}) for seed in range(8)]
    planted.plant(tmp_path / "store", runs, analyses=[], status=lambda index, run: "pending")
    store = Store(tmp_path / "store")
    folders = [folder for folder, _ in store.declared()]
    for folder in folders[:2]:
        folder.write_result({"status": "done"})
        folder.write_status("done", step=100, seconds=60.0)
    for folder in folders[2:4]:
        folder.write_status("running", step=50, seconds=30.0)
    folders[4].write_result({"status": "diverged"})
    folders[4].write_status("diverged", step=0, seconds=0.0, reason="the training loss is nan")
    return store


def test_the_whole_counts_flops_and_predicts_from_the_speed_so_far(store):
    found = overview(store)
    assert found.whole.counts == {"pending": 3, "done": 2, "running": 2, "diverged": 1}
    # Seven runs are to train, as the diverged one costs nothing more; three of them are done.
    assert found.whole.share == pytest.approx(3 / 7)
    # 60 s a run, two at a time: four runs are left.
    assert found.whole.left == pytest.approx(120)
    assert [run.left for run in found.runs[2:4]] == pytest.approx([30, 30])
    assert found.shards == ()


def test_a_worker_that_is_gone_is_told_and_does_not_count(store):
    found = overview(store, now=time.time() + 3600)
    assert found.runs[2].silent == pytest.approx(3600, abs=5)
    assert found.whole.left is None


def test_who_trains_a_run_is_told_and_that_it_is_dead(store):
    folder = store.path / "runs" / overview(store).runs[2].run
    with Claims() as claims:
        claims.take(folder)
        assert overview(store).runs[2].worker == f"process {os.getpid()} on {platform.node()}"
        # Hours later by the clock of this process it has not been renewed.
        late = overview(store, now=time.time() + 3600).runs[2]
        assert late.worker is None and late.gone is None
        assert late.doubt == "not heard of for 60 min: its worker may be gone"
        path = folder / "claim.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"started": "1"}))
        found = overview(store).runs[2]
        assert found.silent is not None and found.worker is None
        assert found.gone == f"process {os.getpid()} on {platform.node()}"
        assert found.doubt.startswith(f"its worker, {found.gone}, has ended")


def test_shards_end_when_their_own_runs_do(store):
    for index in range(2):
        note_worker(store, (index, 2))
    found = overview(store)
    assert [shard.name for shard in found.shards] == ["0/2", "1/2"]
    assert all(shard.host for shard in found.shards)
    runs = [Run(folder.spec, labels) for folder, labels in store.declared()]
    for index, shard in enumerate(found.shards):
        assert sum(shard.counts.values()) == len(shard_runs(runs, index, 2)) == 4
    assert found.whole.left == max(shard.left for shard in found.shards if shard.left is not None)
    note_worker(store, (0, 1))
    assert overview(store).shards == ()


def test_the_command_shows_it_at_a_glance(store, capsys):
    for index in range(2):
        note_worker(store, (index, 2))
    assert main(["status", str(store.path)]) == 0
    out = capsys.readouterr().out
    assert "3 pending, 2 done, 2 running, 1 diverged" in out
    assert "43% of" in out and "the training loss is nan" in out and "50/100" in out
    assert main(["status", str(store.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["done"] == 2 and len(found["shards"]) == 2
    assert found["table"][4]["reason"] == "the training loss is nan"


def test_a_run_whose_spec_is_damaged_is_not_taken_for_done(store, capsys):
    whole = overview(store).whole
    (
        store.folder(next(Run(f.spec, {}) for f, _ in store.declared())).path / "spec.json"
    ).write_text("{")
    found = overview(store).whole
    assert (whole.unknown, found.unknown) == (0, 1)
    # One of the two that are done, of eight equal runs.
    assert found.flops == pytest.approx(whole.flops * 6 / 7)
    assert found.share == pytest.approx((3 / 7 - 1 / 7) * 7 / 6)
    assert main(["status", str(store.path)]) == 0
    assert "FLOPs, without 1 run of unknown size" in capsys.readouterr().out
    for folder in store.path.glob("runs/*"):
        (folder / "spec.json").write_text("{")
    assert overview(store).whole.share == 0
    assert main(["status", str(store.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs_of_unknown_share"] == 8


def test_a_folder_of_stores_is_shown_store_by_store(store, capsys):
    planted.plant(store.path.parent / "other", [Run(run_spec(), {})], analyses=[])
    assert main(["status", str(store.path.parent), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["stores"]
    assert {one["store"]: one["share"] for one in found} == pytest.approx(
        {"other": 1, "store": 3 / 7}
    )
    assert main(["status", str(store.path.parent)]) == 0
    assert capsys.readouterr().out.count("FLOPs") == 2

"""The torture's own instruments see what they are there to see."""

import json
import os
import random

import pytest

from tests.torture.compare import differences
from tests.torture.damage import DAMAGE, strike
from tests.torture.phases import Watch
from tests.torture.together import SHARDS, Look, combinations, is_whole


def write_store(around):
    """A store of one ended run, as far as the torture looks, beside a corpus."""
    folder = around / "store"
    (around / "data" / "tiny").mkdir(parents=True)
    (around / "data" / "tiny" / "train.bin").write_bytes(bytes(range(64)))
    run = folder / "runs" / "a"
    (run / "checkpoints" / "2" / "state").mkdir(parents=True)
    (run / "branches" / "1" / "state").mkdir(parents=True)
    for kind in ("checkpoints/2", "branches/1"):
        (run / kind / "state" / "array").write_bytes(bytes(range(64)))
    (run / "spec.json").write_text(json.dumps({"steps": 2}))
    records = [{"step": 1, "loss": 3.0, "tokens_per_second": 9.0}, {"step": 2, "loss": 2.0}]
    records.append({"step": 2, "eval": {"valid": {"loss": 2.5}}})
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (run / "result.json").write_text(json.dumps({"losses": {"valid": 2.5}}))
    status = {"status": "done", "reason": None, "step": 2, "steps": 2, "seconds": 1.0}
    (run / "status.json").write_text(json.dumps(status))
    (folder / "results.csv").write_text("run,loss,seconds\na,2.5,1.0\n")
    for name in ("fits.json", "experiment.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def stores(tmp_path):
    return write_store(tmp_path / "ours"), write_store(tmp_path / "theirs")


def test_the_clock_makes_no_difference(stores):
    ours, theirs = stores
    for name, old, new in (
        ("runs/a/metrics.jsonl", "9.0", "8.0"),
        ("runs/a/status.json", "1.0", "7.0"),
        ("results.csv", "1.0", "7.0"),
    ):
        text = (ours / name).read_text()
        assert old in text
        (ours / name).write_text(text.replace(old, new))
    assert differences(ours, theirs) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("runs/a/result.json", "2.5", "2.6", "result.json differs"),
        ("runs/a/metrics.jsonl", "3.0", "3.1", "metrics.jsonl differs at step 1"),
        (
            "runs/a/metrics.jsonl",
            '"step": 1',
            '"step": 2',
            "twice: [(2, False)]; lost: [(1, False)]",
        ),
        ("runs/a/status.json", "done", "failed", "status.json says"),
        ("results.csv", "2.5", "2.6", "results.csv differs"),
        ("fits.json", "{}", "[]", "fits.json differs"),
    ],
)
def test_any_other_change_is_a_difference(stores, name, old, new, told):
    ours, theirs = stores
    text = (ours / name).read_text()
    (ours / name).write_text(text.replace(old, new, 1))
    (found,) = differences(ours, theirs)
    assert told in found


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_blow_changes_one_file_of_its_kind(stores, kind):
    def content(store):
        return {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}

    store, hows = stores[0].parent, set()
    for seed in range(20):
        before = content(store)
        blow = strike(store, kind, random.Random(seed))
        after = content(store)
        changed = {path for path in before if before[path] != after.get(path)}
        assert changed == {blow.path}
        hows.add(blow.how.split()[0])
        blow.path.write_bytes(before[blow.path])
    assert hows == {"truncation", "flipped", "missing"}


def test_the_phase_is_that_of_this_process_alone(stores, tmp_path):
    store, log = stores[0], tmp_path / "log.txt"
    run = store / "runs" / "a"
    metrics, result = run / "metrics.jsonl", run / "result.json"
    lines = metrics.read_text().splitlines(keepends=True)
    (run / "checkpoints" / "1.tmp").mkdir()
    result.unlink()
    log.write_text("")
    watch = Watch(store, log)
    assert watch.phase() == "start-up"
    log.write_text("tiny: 1 runs -> here\n")
    assert watch.phase() == "compiling"
    for count, phase in ((1, "training"), (2, "evaluating"), (3, "ending")):
        metrics.write_text("".join(lines[:count]))
        assert watch.phase() == phase
    (run / "checkpoints" / "2.tmp").mkdir()
    # The last checkpoint belongs to the end of a run.
    assert watch.phase() == "ending"
    metrics.write_text(lines[0])
    assert watch.phase() == "checkpointing"
    (run / "checkpoints" / "2.tmp").rmdir()
    result.write_text("{}")
    assert watch.phase() == "report"


def test_commands_at_once_have_all_kinds_of_shards():
    chosen = combinations(random.Random(1), 50)
    assert [sum(len(shards) == count for shards in chosen) for count in (2, 4)] == [25, 25]
    assert {shard for shards in chosen for shard in shards} == set(SHARDS)
    assert len({tuple(sorted(shards)) for shards in chosen if len(shards) == 2}) == 25


@pytest.mark.parametrize(
    ("shards", "whole"),
    [
        ("0/1 2/3", True),
        ("1/2 0/4 0/2", True),
        ("0/2 1/3 2/3 0/4", False),
        ("0/3 1/3 2/3 2/3", True),
    ],
)
def test_shards_that_leave_nothing_out(shards, whole):
    assert is_whole(shards.split()) is whole


def test_a_run_that_is_trained_twice_is_seen(stores):
    store, _ = stores
    look = Look(store)
    look.wait(0.0)
    assert set(look.results) == {"a"} and not look.wrong
    metrics, result = (store / "runs" / "a" / name for name in ("metrics.jsonl", "result.json"))
    metrics.write_text(metrics.read_text() + "{}\n")
    look.wait(0.0)
    assert not look.wrong
    metrics.write_text("{}\n")
    os.utime(result, ns=(0, 0))
    look.wait(0.0)
    assert ["fell from" in line for line in look.wrong] == [True, False]
    assert "result was written again" in look.wrong[1]

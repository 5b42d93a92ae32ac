"""kept.json.xz gives back what studies read of every run, exactly or with rounded curves."""

from __future__ import annotations

import json
import lzma

import pytest

from lmscale.files import DamagedError
from lmscale.studies.results import Results
from lmscale.studies.text import windows_of
from lmscale.sweep.kept import KEPT, pack, read_kept
from lmscale.sweep.store import Store
from tests.report import planted_store as planted

OF_RECORDS = ("step", "tokens", "flops", "loss", "lr", "steps_averaged")
LEFT_OUT = {"params", "operations", "evaluations", "run"}


def statuses(index, run):
    return {1: "diverged", 3: "failed", 5: "out_of_memory"}.get(index, "done")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    runs = planted.isoflop_runs((1e12, 3e12), seeds=(0,), sizes=3)
    path = tmp_path_factory.mktemp("kept") / "store"
    # With all records that training logs: it is their size that rounding reduces.
    return planted.plant(path, runs, analyses=["isoflop"], status=statuses, thinned=1)


def kept_store(store, folder, decimals):
    folder.mkdir()
    (folder / "experiment.json").write_bytes((store.path / "experiment.json").read_bytes())
    (folder / KEPT).write_bytes(pack([run for run, _ in store.declared()], decimals))
    return Store.open(folder)


@pytest.fixture(scope="module")
def exact(store, tmp_path_factory):
    return kept_store(store, tmp_path_factory.mktemp("exact") / "store", None)


def test_tables_results_and_records_are_those_of_the_full_store(store, exact):
    ours, theirs = Results.read(exact), Results.read(store)
    assert ours.table.equals(theirs.table)
    assert ours.specs == theirs.specs and ours.runs.equals(theirs.runs)
    runs = list(theirs.ended)
    assert runs == list(ours.ended) and len(runs) == len(ours.table) - 2
    for run in runs:
        for name in theirs.ended[run].keys() - LEFT_OUT:
            assert ours.ended[run][name] == theirs.ended[run][name], name
    assert list(ours.metrics) == list(theirs.metrics)
    for run, records in theirs.metrics.items():
        assert [[r.get(name) for name in OF_RECORDS] for r in ours.metrics[run]] == [
            [r.get(name) for name in OF_RECORDS] for r in records
        ]
        assert [list(r.get("eval", {})) for r in ours.metrics[run]] == [
            list(r.get("eval", {})) for r in records
        ]
    done = theirs.usable["run"].tolist()
    for a, b in zip(windows_of(ours, done), windows_of(theirs, done), strict=True):
        assert (a == b).all()


def test_rounding_touches_training_curves_alone(store, exact, tmp_path):
    rounded = kept_store(store, tmp_path / "rounded", 3)
    assert len((rounded.path / KEPT).read_bytes()) < 0.8 * len((exact.path / KEPT).read_bytes())
    ours, theirs = Results.read(rounded), Results.read(store)
    assert ours.table.equals(theirs.table)
    losses = [r["loss"] for records in ours.metrics.values() for r in records if "loss" in r]
    assert losses == [
        round(r["loss"], 3) for records in theirs.metrics.values() for r in records if "loss" in r
    ]
    for run, result in theirs.ended.items():
        assert ours.ended[run]["losses"] == result["losses"]
        assert ours.ended[run]["train_loss"] == result["train_loss"]


def test_the_end_of_the_warmup_stays_where_it_is(store, tmp_path):
    """Rates next to the highest one would equal it if they were rounded."""
    rates = [0.00123456, 0.00999999, 0.01000001, 0.01000002, 0.01000001, 0.0]
    folder = next(run for run, _ in store.declared() if run.result() is not None)
    copy = type(folder)(tmp_path / folder.path.name, folder.spec)
    copy.create()
    copy.append_metrics([{"step": k + 1, "tokens": k + 1, "lr": r} for k, r in enumerate(rates)])
    copy.write_status("failed", step=1, seconds=1.0)
    (tmp_path / KEPT).write_bytes(pack([copy], 3))
    (run,) = read_kept(tmp_path).values()
    found = [record["lr"] for record in run.metrics()]
    assert found.index(max(found)) == 3 and found[3] == rates[3]
    assert all(a <= b and a > 0.999 * b for a, b in zip(found, rates, strict=True) if b)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda data: data[:-40], "cannot be decompressed|no JSON"),
        (lambda data: b"text", "cannot be decompressed"),
        (lambda data: lzma.compress(lzma.decompress(data).replace(b"12.5", b"12.4")), "digest"),
    ],
)
def test_damage_is_named(exact, tmp_path, spoil, fault):
    (tmp_path / KEPT).write_bytes(spoil((exact.path / KEPT).read_bytes()))
    with pytest.raises(DamagedError, match=fault):
        read_kept(tmp_path)


@pytest.mark.parametrize("values", [{}, {"spec": {}, "status": {}, "records": {}}, None, 3])
def test_what_is_no_run_is_named(tmp_path, values):
    text = json.dumps({"format": 1, "runs": {"a": values}})
    (tmp_path / KEPT).write_bytes(lzma.compress(text.encode()))
    with pytest.raises(DamagedError, match="its run 'a' is none"):
        read_kept(tmp_path)


def test_a_folder_without_the_file_trains_as_ever(tmp_path):
    assert read_kept(tmp_path) is None

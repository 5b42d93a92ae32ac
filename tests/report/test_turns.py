"""Processes that end together write one report, and the one that stays is of the last results."""

import json
import threading

import pytest

from lmscale.files import parse_json, read_json, seal, write_json
from lmscale.hparams import read_fits
from lmscale.report import read_summary, write, write_report
from lmscale.sweep.ownership import Claims, find_claim
from tests.report import planted_store as planted
from tests.waiting import PATIENCE


@pytest.fixture
def store(tmp_path):
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=3)
    return planted.plant(tmp_path / "isoflop", runs, analyses=["curves"])


@pytest.fixture
def read(monkeypatch):
    """How many runs each reading found done, in order; a reading blocks while `free` is not set."""

    class Readings(list):
        free, began = threading.Event(), threading.Event()

    readings = Readings()
    readings.free.set()

    def read_results(results):
        readings.append(int((results.table["status"] == "done").sum()))
        readings.began.set()
        assert readings.free.wait(PATIENCE)
        return [], []

    monkeypatch.setattr(write, "read_results", read_results)
    return readings


def written(store):
    csv = (store.path / "results.csv").read_text()
    return csv.count(",done,")


def one_ends(store):
    """One more run has failed."""
    folder, _ = next(one for one in store.declared() if one[0].status()["status"] == "done")
    folder.write_status("failed", step=1, seconds=1.0, reason="Killed.")


def test_a_report_of_earlier_results_never_replaces_a_later_one(store, read):
    total = len(store.table())
    read.free.clear()
    said = []
    first = threading.Thread(target=write_report, args=(store,))
    first.start()
    assert read.began.wait(PATIENCE)
    one_ends(store)
    others = [threading.Thread(target=write_report, args=(store, said.append)) for _ in range(3)]
    for other in others:
        other.start()
    while len(said) < len(others):
        others[0].join(0.01)
    read.free.set()
    for thread in [first, *others]:
        thread.join(60)
    # The first of those that waited reads again; the others find its report.
    assert read == [total, total - 1]
    assert written(store) == total - 1
    assert all("waiting for process" in line and str(store.path) in line for line in said)
    assert find_claim(store.path) is None


def test_one_that_waited_in_vain_draws_the_report_itself(store, read):
    """Its predecessor ended before it had written all of its files."""
    write_report(store)
    for hurt in (lambda path: path.unlink(), lambda path: path.write_text("{")):
        hurt(store.path / "summary.json")
        with Claims() as other:
            assert other.take(store.path) is None
            waiting = threading.Thread(target=write_report, args=(store,))
            waiting.start()
            waiting.join(0.5)
            assert waiting.is_alive()
        waiting.join(60)
        assert read_summary(store) is not None
    assert len(read) == 3


def test_without_others_it_is_drawn_every_time(store, read):
    write_report(store)
    write_report(store)
    assert len(read) == 2


def test_the_fits_are_checked_by_themselves(store):
    path = store.path / "fits.json"
    write_json(path, {"isoflop/transformer/standard": seal({"exponents": {"a": 0.5}})})
    (store.path / "summary.json").unlink(missing_ok=True)
    assert read_fits(path) == {"isoflop/transformer/standard": {"exponents": {"a": 0.5}}}
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(ValueError, match=r"its digest doesn't match.*`lmscale report`"):
        read_fits(path)
    # Those of earlier versions have no digest.
    path.write_text(json.dumps({"a/b/c": {}}))
    assert read_fits(path) == read_json(path) == parse_json(path.read_text(), path) == {"a/b/c": {}}


def test_a_store_that_cannot_be_written_is_named(store, read, monkeypatch):
    def refuse(self, data):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    with pytest.raises(PermissionError) as error:
        write_report(store)
    assert error.value.filename == str(store.path)

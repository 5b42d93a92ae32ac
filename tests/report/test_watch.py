"""`lmscale report --watch`: a page of a store that trains, until nothing is left to train."""

from __future__ import annotations

import dataclasses
import os
import re

import pytest

from lmscale.report import watch as watching
from lmscale.report.live import live_line, live_section
from lmscale.report.section import Section
from lmscale.report.watch import wait_for_store, watch
from lmscale.studies.results import Results
from lmscale.sweep.overview import overview
from tests.cli.answers import answer, refused
from tests.report import planted_store as planted


def store_of(path, states):
    runs = planted.size_runs(layers=(), seeds=(0,))
    return planted.plant(
        path, runs, analyses=["curves"], status=lambda k, run: states.get(k, "done")
    )


@pytest.fixture
def store(tmp_path):
    return store_of(tmp_path / "store", {3: "running", 4: "pending"})


def test_it_says_so_where_nothing_trains(store):
    found = overview(store)
    (running,) = [run for run in found.runs if run.status == "running"]

    def line(silent):
        runs = [
            dataclasses.replace(run, silent=silent) if run is running else run for run in found.runs
        ]
        return live_line(dataclasses.replace(found, runs=runs))

    assert "nothing trains" not in line(None) and "nothing trains at the moment" in line(17.0)
    ended = [run for run in found.runs if run.status == "done"]
    assert "nothing trains" not in live_line(dataclasses.replace(found, runs=ended))


class Training:
    """Ends one run whenever the watcher sleeps."""

    def __init__(self, store, stop_at=None):
        self.store, self.looks, self.stop_at = store, 0, stop_at
        self.pages, self.lines = [], []

    def sleep(self, seconds):
        self.pages.append((self.store.path / "report.html").read_text())
        self.looks += 1
        if self.looks == self.stop_at:
            raise KeyboardInterrupt
        states = {3: "done", 4: "running"} if self.looks == 1 else {}
        store_of(self.store.path, states)

    def watch(self, **options):
        watch(self.store, 7.0, self.lines.append, sleep=self.sleep, **options)


def test_it_follows_the_runs_and_ends_with_them(store):
    training = Training(store)
    training.watch()
    assert training.looks == 2
    first, second = training.pages
    assert 'data-reload="7.0"' in first and 'data-reload="7.0"' in second
    assert "3 done, 1 running and 1 pending" in first and "4 done and 1 running" in second
    assert "Curves" in first or "Training curves" in first
    last = (store.path / "report.html").read_text()
    assert "data-reload" not in last and 'id="live"' not in last
    assert len(training.lines) == 3 and training.lines[0].startswith("3 done, 1 running")
    assert training.lines[-1].endswith("report.html is complete")


@pytest.mark.parametrize(
    # Seconds between two looks on the watcher's clock -> times that fits were made in five looks.
    ("between", "times"),
    [(0.0, 1), (1000.0, 4)],
)
def test_fits_wait_for_ended_runs_and_leave_the_cores_to_training(
    tmp_path, monkeypatch, between, times
):
    made, moment = [], [0.0]

    def read(results):
        made.append(1)
        moment[0] += 1.0
        return [], []

    states = {1: "running", 2: "pending", 3: "pending", 4: "pending"}
    store, looks = store_of(tmp_path / "store", states), []

    def sleep(seconds):
        looks.append(1)
        moment[0] += between
        # A run ends between two looks.
        for k in range(1, min(len(looks), 5)):
            states[k] = "done"
        store_of(store.path, states)

    monkeypatch.setattr(watching, "read_results", read)
    monkeypatch.setattr(watching, "write_report", lambda store: "the page")
    monkeypatch.setattr(
        watching, "analyse", lambda name, results: Section(name=name, title="", finding="")
    )
    watch(store, 7.0, lambda line: None, sleep=sleep, clock=lambda: moment[0])
    # The first look shows curves alone, and the last one is the report.
    assert len(looks) == 5 and len(made) == times


def test_after_ctrl_c_the_page_stays_and_reloads_no_more(store):
    training = Training(store, stop_at=1)
    with pytest.raises(KeyboardInterrupt):
        training.watch()
    page = (store.path / "report.html").read_text()
    assert "data-reload" not in page and 'id="live"' in page


def test_a_store_that_is_not_declared_yet_is_waited_for(tmp_path):
    waited, lines = [], []

    def sleep(seconds):
        waited.append(seconds)
        place = tmp_path / "new"
        place.mkdir(exist_ok=True)
        if len(waited) == 2:
            (place / "claims.lock").touch()
        if len(waited) == 3:
            (place / "experiment.json").touch()

    wait_for_store(str(tmp_path / "new"), 7.0, lines.append, sleep=sleep)
    assert waited == [7.0] * 3
    assert len(lines) == 1 and "new holds nothing yet: waiting for `lmscale run`" in lines[0]
    # What is there is not waited for, whatever it is.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    for folder in ("new", "other", "other/notes.txt"):
        wait_for_store(str(tmp_path / folder), 7.0, lines.append, sleep=sleep)
    assert len(waited) == 3 and len(lines) == 1


def test_the_section_has_what_is_under_way_and_to_come(store):
    results, found = Results.read(store), overview(store)
    section = live_section(found, results)
    assert live_line(found) in section.finding
    under_way, to_come = section.grids
    (row,) = under_way.rows
    assert row[0] == results.table["run"][3] and re.match(r"2,400 of 4,000", row[2])
    losses = [r["loss"] for r in results.metrics[row[0]]]
    assert row[3] == f"{losses[-1]:.3f}"
    assert [r[2:] for r in to_come.rows] == [["1", "0", "1", "0", "0"], ["1", "0", "0", "1", "0"]]


def test_the_command_ends_with_0_when_all_is_done_and_after_ctrl_c(tmp_path, capsys, monkeypatch):
    niced = []
    monkeypatch.setattr(os, "nice", niced.append)
    done = store_of(tmp_path / "done", {})
    code, out, err = answer(capsys, "report", done.path, "--watch", "--every", 1)
    assert code == 0 and out.strip().endswith(os.path.join("done", "report.html")), err

    assert niced == [10]

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(watching, "watch", interrupted)
    code, out, err = answer(capsys, "report", done.path, "--watch")
    assert code == 0 and "stopped watching" in err
    store_of(tmp_path / "other", {})
    assert "--watch wants one store" in refused(capsys, "report", tmp_path, "--watch")
    assert "--every" in refused(capsys, "report", done.path, "--watch", "--every", "0")

"""Kept results make the page of the full store, and a page about them."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from etils import epath

from lmscale.report import write_report
from lmscale.report.keep import keep, write_index
from lmscale.report.kept_page import chosen_charts
from lmscale.report.section import Chart, Section
from lmscale.studies import context, position
from lmscale.studies.results import Results
from lmscale.sweep.claims import Claim
from lmscale.sweep.declaration import recorded_declarations
from lmscale.sweep.kept import KEPT
from lmscale.sweep.store import Store, StoreError
from tests import memory_bucket
from tests.cli.answers import answer, refused
from tests.report import planted_evaluations
from tests.report import planted_store as planted
from tests.studies.test_context import EXPERIMENT as CONTEXT
from tests.studies.test_context import evaluations

CLAIMS = [
    Claim(
        text="A | *star* costs <b>",
        source="A paper",
        measure="size/gap_ratio",
        low=0.0,
        high=9.0,
        would_tell="x",
    )
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("full") / "sizes"
    found = planted.plant(
        path,
        planted.size_runs(layers=(), seeds=(0, 1)),
        analyses=["size"],
        law=planted.SizeLaw(),
        name="model_size",
        claims=CLAIMS,
        status=lambda index, run: "diverged" if index == 4 else "done",
    )
    experiment = json.loads((path / "experiment.json").read_text())
    experiment["command"] = "lmscale run all --scale cpu --out /some/where"
    (path / "experiment.json").write_text(json.dumps(experiment))
    return found


@pytest.fixture(scope="module")
def kept(store, tmp_path_factory):
    return keep(store, tmp_path_factory.mktemp("kept") / "sizes", "two cores")


def test_the_report_of_kept_results_is_that_of_the_store(store, kept):
    write_report(store)
    write_report(Store.open(kept.path))
    for name in ("fits.json", "summary.json", "figures/size.svg"):
        assert (store.path / name).read_bytes() == (kept.path / name).read_bytes(), name
    store.write_table()
    assert (store.path / "results.csv").read_bytes() == (kept.path / "results.csv").read_bytes()
    assert kept.runs == len(Results.read(store).table) and kept.verdicts == 1 and kept.fits > 0


def test_it_is_small_and_has_no_path_of_the_machine(store, kept):
    assert not kept.exact_curves
    full = sum(path.stat().length for path in store.path.glob("runs/*/*"))
    assert kept.bytes < 0.25 * full
    for path in kept.path.glob("*.*"):
        assert b"/some/where" not in path.read_bytes(), path.name


def test_a_number_that_reads_curves_keeps_them_exactly(store, tmp_path, monkeypatch):
    def read(results):
        losses = [r["loss"] for rows in results.metrics.values() for r in rows if "loss" in r]
        return [Section(name="sum", title="", finding=repr(sum(losses)))], []

    monkeypatch.setattr("lmscale.report.keep.read_results", read)
    assert keep(store, tmp_path / "kept").exact_curves


@pytest.mark.slow
def test_losses_by_position_during_training_are_kept_where_a_study_reads_them(tmp_path):
    """It was left without them, and what the study said of the steps could not be made again."""
    experiment = dataclasses.replace(CONTEXT, sizes=(8e5, 3.2e6, 1.3e7))
    runs = experiment.runs(planted_evaluations.CORPUS)
    store = planted_evaluations.plant(tmp_path / "full", runs, evaluations, experiment=experiment)
    assert keep(store, tmp_path / "kept").verdicts == len(experiment.claims)
    ours, theirs = (
        context.study(Results.read(path)) for path in (tmp_path / "kept", tmp_path / "full")
    )
    assert ours.estimates["long_range_delay"].value == theirs.estimates["long_range_delay"].value
    for a, b in zip(ours.long, theirs.long, strict=True):
        assert list(a.steps) == list(b.steps) and len(a.steps) > 3
        assert all((a.steps[step] == b.steps[step]).all() for step in b.steps)


@pytest.mark.slow
def test_losses_by_stretch_are_kept(tmp_path):
    runs = planted.overlapping(planted.size_runs(layers=(1,), seeds=(0, 1)))
    store = planted.plant(tmp_path / "full", runs, analyses=["position"], law=planted.SizeLaw())
    keep(store, tmp_path / "kept")
    ours, theirs = (
        position.study(Results.read(path)) for path in (tmp_path / "kept", tmp_path / "full")
    )
    for a, b in zip(ours.curves, theirs.curves, strict=True):
        np.testing.assert_array_equal(a.by_stretch, b.by_stretch)
        assert a.by_stretch.shape[1] > 1


def test_a_study_that_reads_what_is_never_kept_is_said_in_a_line(store, tmp_path, monkeypatch):
    def read(results):
        norms = [r for rows in results.metrics.values() for r in rows if "grad_norm" in r]
        return [Section(name="norms", title="", finding=str(len(norms)))], []

    monkeypatch.setattr("lmscale.report.keep.read_results", read)
    with pytest.raises(StoreError, match="is not kept: norms would say another thing"):
        keep(store, tmp_path / "kept")
    assert not list(tmp_path.iterdir())


def test_the_page_says_what_was_run_found_and_typed(kept):
    page = (kept.path / "README.md").read_text()
    for part in (
        "two cores",
        "| command | `lmscale run model_size --scale cpu` |",
        "9 done and 1 diverged",
        "lmscale run model_size --scale cpu\n",
    ):
        assert part in page, part
    # What a store holds is text on the page, not markup.
    assert r"A \| \*star\* costs &lt;b&gt;" in page
    assert "](size.svg)" in page and (kept.path / "size.svg").exists()
    index = write_index(kept.path.parent).read_text()
    assert "(sizes/README.md)" in index and "1 sweep, 10 runs" in index


def test_three_figures_of_what_answers_and_no_curves():
    def section(name, charts, conclusive):
        drawn = [Chart(name=c, caption="", alt="", svg="", png=b"") for c in charts]
        return Section(name=name, title="", finding="", conclusive=conclusive, charts=drawn)

    sections = [
        section("curves", ["c"], True),
        section("open", ["o"], False),
        section("first", ["f1", "f2"], True),
        section("second", ["s1"], True),
    ]
    assert [chart.name for chart in chosen_charts(sections)] == ["f1", "s1", "o"]
    assert [chart.name for chart in chosen_charts(sections[:1])] == ["c"]


def test_unfinished_stores_and_folders_that_train_are_refused(store, kept, tmp_path):
    runs = planted.size_runs(layers=(), seeds=(0,))
    waiting = planted.plant(
        tmp_path / "waiting",
        runs,
        analyses=["curves"],
        status=lambda index, run: "pending" if index == 1 else "done",
    )
    with pytest.raises(StoreError, match="not finished"):
        keep(waiting, tmp_path / "kept")
    with pytest.raises(StoreError, match="store that trains"):
        keep(store, waiting.path)
    other = planted.plant(tmp_path / "other", runs, analyses=["curves"], name="other")
    with pytest.raises(StoreError, match="kept results of model_size"):
        keep(other, kept.path)
    assert not (tmp_path / "kept").exists()


def test_the_command_keeps_many_and_writes_an_index(tmp_path, capsys):
    runs = planted.size_runs(layers=(), seeds=(0,))
    for name in ("a", "b"):
        planted.plant(tmp_path / "all" / name, runs, analyses=["curves"], name=name)
    code, out, err = answer(capsys, "keep", tmp_path / "all", "--out", tmp_path / "kept", "--json")
    assert code == 0, err
    found = json.loads(out)["kept"]
    assert [one["runs"] for one in found] == [5, 5]
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"a", "b", "README.md"}
    assert (tmp_path / "kept" / "a" / KEPT).exists()
    line = refused(capsys, "keep", tmp_path / "nothing", "--out", tmp_path / "kept")
    assert "holds no experiment.json" in line


def test_no_store_is_kept_in_the_place_of_another(tmp_path, capsys):
    """Two stores of one experiment and one name: both were "kept", and only the second was there."""
    runs = planted.size_runs(layers=(), seeds=(0, 1))
    for parent, some in (("a", runs[:5]), ("b", runs[5:])):
        planted.plant(tmp_path / parent / "sizes", some, analyses=["curves"])
    out = tmp_path / "kept"
    line = refused(capsys, "keep", tmp_path / "a", tmp_path / "b", "--out", out)
    assert "have one name, and would be kept in one place" in line and not out.exists()

    both = ("keep", tmp_path / "a", tmp_path / "a" / "sizes", "--out", out)
    assert answer(capsys, *both)[0] == 0
    before = (out / "sizes" / KEPT).read_bytes()
    line = refused(capsys, "keep", tmp_path / "b", "--out", out)
    assert "kept results of planted with 5 runs that the store has not: give another --out" in line
    assert (out / "sizes" / KEPT).read_bytes() == before


def test_an_extended_store_is_kept_again_and_other_text_is_not(tmp_path):
    runs = planted.size_runs(layers=(), seeds=(0, 1))
    keep(planted.plant(tmp_path / "few", runs[:5], analyses=["curves"]), tmp_path / "kept")
    store = planted.plant(tmp_path / "all", runs, analyses=["curves"])
    assert keep(store, tmp_path / "kept").runs == len(runs)
    experiment = json.loads((store.path / "experiment.json").read_text())
    experiment["corpus"]["fingerprint"] = "0" * 16
    (store.path / "experiment.json").write_text(json.dumps(experiment))
    with pytest.raises(StoreError, match="kept results of planted on other text"):
        keep(store, tmp_path / "kept")


def test_kept_results_are_not_trained_on(kept):
    there = Store.open(kept.path)
    (declaration,) = recorded_declarations(there.experiment())
    assert "kept results, which cannot be trained on" in there.refusal(declaration, extend=True)


@pytest.mark.slow
def test_what_is_kept_is_whole_or_not_there(tmp_path, monkeypatch):
    runs = planted.size_runs(layers=(), seeds=(0,))
    store = planted.plant(tmp_path / "full", runs, analyses=["curves"])
    forecast = store.path / "verify" / "C1e10" / "forecast-0123456789abcdef.json"
    forecast.parent.mkdir(parents=True)
    forecast.write_text("{}")
    with pytest.raises(StoreError, match="has been changed since it was written"):
        keep(store, tmp_path / "kept")
    shutil.rmtree(store.path / "verify")
    place = keep(store, tmp_path / "kept").path
    (place / "notes.txt").write_text("mine")
    (place / "old.svg").write_text("a figure of before")
    before = (place / KEPT).read_bytes()
    monkeypatch.setattr("lmscale.report.keep.kept_page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        keep(store, place)
    assert (place / KEPT).read_bytes() == before
    monkeypatch.undo()
    keep(store, place)
    assert (place / "notes.txt").read_text() == "mine" and not (place / "old.svg").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".kept")] == []


@pytest.mark.parametrize("command", [["report"], ["fit", "--law", "power"], ["status"]])
def test_damaged_kept_results_are_named_with_what_mends_them(command, tmp_path, capsys):
    runs = planted.size_runs(layers=(), seeds=(0,))
    store = planted.plant(tmp_path / "full", runs, analyses=["curves"])
    path = keep(store, tmp_path / "kept").path
    (path / KEPT).write_bytes((path / KEPT).read_bytes()[:-100])
    code, _, err = answer(capsys, command[0], path, *command[1:])
    assert code != 0
    assert KEPT in err and "`lmscale keep` writes it again" in err and "lmscale run" not in err


def test_verify_does_not_train_kept_results(kept, capsys):
    line = refused(capsys, "verify", kept.path, "--compute", "1e10")
    assert "cannot be trained on" in line


def test_a_time_between_looks_needs_watching(kept, capsys):
    assert "--watch" in refused(capsys, "report", kept.path, "--every", "5")


def test_a_store_in_a_bucket_is_kept_with_its_forecasts(tmp_path, monkeypatch):
    memory_bucket.mount(monkeypatch)
    runs = planted.size_runs(layers=(), seeds=(0,))
    store = planted.plant(epath.Path("s3://bucket/full"), runs, analyses=["curves"])
    forecast = store.path / "verify" / "C1e10" / "notes.json"
    forecast.parent.mkdir(parents=True)
    forecast.write_text("{}")
    kept = keep(store, tmp_path / "kept")
    assert (kept.path / "verify" / "C1e10" / "notes.json").read_text() == "{}"


@pytest.mark.parametrize("out", ["s3://bucket/kept", "foo://bar"])
def test_results_are_kept_on_this_machine(store, out, capsys):
    line = refused(capsys, "keep", store.path, "--out", out)
    assert f"results are kept in a folder of this machine, not in {out}" in line

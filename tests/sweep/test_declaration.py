"""A store has one declaration: names of folders, differences, extensions."""

import dataclasses
import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscale.files import write_json
from lmscale.sweep import store as store_module
from lmscale.sweep.declaration import default_folder
from lmscale.sweep.dropped import declared_runs
from lmscale.sweep.experiment import load_scales
from lmscale.sweep.store import Store, StoreError
from tests.property.harness import examples

SHIPPED = load_scales("isoflop")[2]["cpu"]
SMALL = dataclasses.replace(SHIPPED, budgets=(2e9, 1e10), sizes=(1536.0, 3456.0))


def declare(store, corpus, extend=False, name="isoflop", scale="cpu", **fields):
    experiment = dataclasses.replace(SMALL, **fields)
    runs = declared_runs(name, experiment, corpus)[0]
    store.declare(name, scale, experiment, corpus, runs, f"lmscale run {name}", extend=extend)
    return {run.spec.run_id for run in runs}


def folder(corpus="installed-python", **fields):
    changed = dataclasses.replace(SHIPPED, **fields)
    return default_folder("isoflop", "cpu", changed, SHIPPED, corpus)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "isoflop-cpu"),
        ({"budgets": SHIPPED.budgets, "n_ctx": 128}, "isoflop-cpu"),
        ({"budgets": (3e9, 1e10)}, "isoflop-cpu-budgets-3e9-1e10"),
        ({"corpus": "mytext"}, "isoflop-cpu-data-mytext"),
        ({"corpus": "my-text"}, "isoflop-cpu-data-my-text"),
        ({"seeds": (0, 1), "n_ctx": 64}, "isoflop-cpu-seeds-0-1-n_ctx-64"),
        ({"init_std": None}, "isoflop-cpu-init_std-none"),
        ({"convention": "kaplan"}, "isoflop-cpu-convention-kaplan"),
    ],
)
def test_a_folder_is_named_for_what_was_overridden(fields, name):
    assert folder(**fields) == name


def test_a_long_name_is_cut_and_a_doubtful_one_has_a_hash():
    names = {folder(budgets=tuple(1e9 + i for i in range(n))) for n in range(50, 60)}
    assert len(names) == 10
    assert all(len(name) < 120 for name in names)
    # The corpus "a" with two seeds, and the corpus "a-seeds-0-1".
    assert folder("a", seeds=(0, 1)) != folder("a-seeds-0-1")
    assert folder("../b c$(x)").startswith("isoflop-cpu-data-b-c-x")


@examples(100)
@given(
    cases=st.lists(
        st.tuples(
            st.sampled_from(["installed-python", "a", "a-1", "a-seeds-0", "\u00e4", "A", "none"]),
            st.fixed_dictionaries(
                {},
                optional={
                    "seeds": st.lists(st.integers(0, 20), min_size=1, unique=True).map(tuple),
                    "budgets": st.lists(st.floats(1, 1e30), min_size=1, unique=True).map(tuple),
                    "n_ctx": st.integers(1, 2000),
                    "init_std": st.none() | st.floats(1e-6, 1e3),
                    "convention": st.sampled_from(["kaplan", "standard"]),
                },
            ),
        ),
        min_size=2,
        max_size=5,
    )
)
def test_no_two_declarations_share_a_folder(cases):
    for (corpus, fields), (other, others) in itertools.combinations(cases, 2):
        same = corpus == other and dataclasses.replace(SHIPPED, **fields) == dataclasses.replace(
            SHIPPED, **others
        )
        names = folder(corpus, **fields), folder(other, **others)
        assert (names[0] == names[1]) == same
        for name in names:
            assert set(name) <= set(
                "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
            )
            assert len(name) < 120


def test_another_declaration_is_refused_with_its_differences_and_nothing_changes(tmp_path, corpus):
    store = Store(tmp_path / "out")
    declare(store, corpus)
    before = (store.path / "experiment.json").read_bytes()
    with pytest.raises(StoreError, match=r"budgets: 2e9 1e10 there, 3e9 here.*--extend"):
        declare(store, corpus, budgets=(3e9,))
    with pytest.raises(StoreError, match=r"experiment: isoflop there, other here.*another --out"):
        declare(store, corpus, name="other")
    with pytest.raises(StoreError, match=r"n_ctx: 128 there, 64 here.*cannot be fitted"):
        declare(store, corpus, n_ctx=64, extend=True)
    with pytest.raises(StoreError, match="scale: cpu there, gpu here"):
        declare(store, corpus, scale="gpu", extend=True)
    assert (store.path / "experiment.json").read_bytes() == before
    declare(store, corpus)
    assert (store.path / "experiment.json").read_bytes() == before


def test_an_extension_holds_the_runs_of_both_and_takes_each_again(tmp_path, corpus):
    store = Store(tmp_path / "out")
    first = declare(store, corpus)
    second = declare(store, corpus, budgets=(1e10, 3e10), seeds=(0, 1), extend=True)
    recorded = store.experiment()
    assert [entry["run"] for entry in recorded["runs"]][: len(first)]
    assert {entry["run"] for entry in recorded["runs"]} == first | second
    assert len(recorded["runs"]) == len(first | second)
    assert recorded["fields"]["budgets"] == [2e9, 1e10, 3e10]
    assert recorded["fields"]["seeds"] == [0, 1]
    assert [part["fields"]["budgets"] for part in recorded["declarations"]] == [
        [2e9, 1e10],
        [1e10, 3e10],
    ]
    assert len(store.table()) == len(first | second)
    # Each of them goes on as before, with and without --extend.
    declare(store, corpus)
    declare(store, corpus, budgets=(1e10, 3e10), seeds=(0, 1), extend=True)
    assert store.experiment()["runs"] == recorded["runs"]
    assert store.experiment()["declarations"] == recorded["declarations"]
    with pytest.raises(StoreError, match="another declaration"):
        declare(store, corpus, budgets=(5e10,))


def test_a_store_of_an_earlier_version_is_taken_where_its_runs_are_the_same(tmp_path, corpus):
    store = Store(tmp_path / "out")
    declare(store, corpus)
    old = store.experiment()
    old["fields"].pop("spread")
    write_json(store.path / "experiment.json", old)
    declare(store, corpus)
    assert store.experiment()["fields"]["spread"] is None
    # Its defaults were others: the runs differ, and the line says in what.
    old["runs"] = old["runs"][1:]
    write_json(store.path / "experiment.json", old)
    with pytest.raises(StoreError, match="runs: 0 there that this version of isoflop does not"):
        declare(store, corpus)


def test_what_is_dropped_is_said_with_the_reason(corpus):
    experiment = dataclasses.replace(SHIPPED, budgets=(5e8, 1e10))
    runs, lines = declared_runs("isoflop", experiment, corpus)
    assert {run.labels["budget"] for run in runs} <= {5e8, 1e10}
    assert any(
        line.startswith("budget 5e+08") and "fewer than 50 updates" in line for line in lines
    )


def test_a_grid_of_which_nothing_is_left_says_why(corpus):
    experiment = dataclasses.replace(SHIPPED, budgets=(1e6,))
    with pytest.raises(
        ValueError, match=r"declares no runs.*budget 1e.06 is dropped: fewer than 50"
    ):
        declared_runs("isoflop", experiment, corpus)


def test_extensions_that_are_made_at_once_are_both_kept(corpus, tmp_path, monkeypatch):
    """The second begins between the first one's reading and writing, and ends before or waits for it."""
    first = declare(Store(tmp_path), corpus)
    others, seen, real = [], threading.Event(), store_module.write_json

    def extend(seed):
        runs = declare(Store(tmp_path), corpus, extend=True, seeds=(seed,))
        seen.set()
        return runs

    def write(path, values, **options):
        if not others:
            thread = threading.Thread(target=lambda: others.append(extend(8)))
            others.append(thread)
            thread.start()
            seen.wait()
        real(path, values, **options)

    monkeypatch.setattr(store_module, "say", lambda line: seen.set())
    monkeypatch.setattr(store_module, "write_json", write)
    mine = extend(7)
    others[0].join()
    there = {entry["run"] for entry in Store(tmp_path).experiment()["runs"]}
    assert there == first | mine | others[1]
    assert not list(tmp_path.glob("claim*"))

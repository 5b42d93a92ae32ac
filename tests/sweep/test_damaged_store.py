"""One damaged file of a store stops no command for the others, and is never believed."""

import json
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmscale.cli import main
from lmscale.files import DamagedError, read_json, write_json
from lmscale.laws.result import FitError
from lmscale.spec import RunSpec, SpecError
from lmscale.studies.results import Results
from lmscale.sweep.experiment import Run
from lmscale.sweep.overview import overview
from lmscale.sweep.recipe import read_recipe
from lmscale.sweep.store import Store
from lmscale.sweep.tables import table_of_runs
from lmscale.sweep.verify import verifications
from lmscale.training.metrics_log import MetricsLog
from lmscale.training.run_folder import RunFolder
from tests.report import planted_store as planted
from tests.training.specs import run_spec

#: Contents tried on each file; many by hand.
EXAMPLES = int(os.environ.get("LMSCALE_DAMAGED_JSON", "12"))
FILES = ("spec.json", "status.json", "result.json", "metrics.jsonl", "evals/other.json")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Runs with results, one of which is scored on another text."""
    path = tmp_path_factory.mktemp("damaged") / "store"
    runs = planted.isoflop_runs(planted.BUDGETS[:3], lstm=False, seeds=(0,), sizes=6)
    store = planted.plant(path, runs, analyses=["isoflop", "curves"])
    for folder, _ in store.declared():
        mark = MetricsLog(folder.log_path, folder.log_path.read_bytes()).mark()
        folder.end(folder.result(), mark, step=folder.spec.steps, seconds=12.5)
    first = next(store.declared())[0]
    first.write_eval("other", {"evaluation": {}, "scores": {"loss": 2.5}})
    return path


@pytest.fixture
def store(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "store")
    return Store(tmp_path / "store")


def small_copy(finished, tmp_path_factory):
    """Two of the runs."""
    store = Store(tmp_path_factory.mktemp("any") / "store")
    experiment = Store(finished).experiment()
    experiment["runs"] = experiment["runs"][:2]
    for entry in experiment["runs"]:
        shutil.copytree(finished / "runs" / entry["run"], store.path / "runs" / entry["run"])
    write_json(store.path / "experiment.json", experiment, sealed=True)
    return store


def first_run(store):
    return store.path / "runs" / store.experiment()["runs"][0]["run"]


@pytest.mark.parametrize(
    "name", [pytest.param(f, marks=[] if f == "result.json" else pytest.mark.slow) for f in FILES]
)
def test_every_command_goes_on_without_the_damaged_run(name, store, capsys):
    path = first_run(store) / name
    path.write_text("{}")
    run = path.parent.name if "/" not in name else path.parent.parent.name
    n = len(store.experiment()["runs"])
    assert main(["status", str(store.path), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert counts == ({"done": n} if "evals" in name else {"failed": 1, "done": n - 1})
    assert main(["status", str(store.path)]) == 0
    shown = capsys.readouterr().out
    assert "evals" in name or f"{name} is damaged: " in shown
    assert main(["fit", str(store.path), "--law", "isoflop", "--json"]) == 0
    fit = json.loads(capsys.readouterr().out)
    assert fit["n_used"] == (n if "evals" in name else n - 1)
    assert any("left out as damaged" in w and f"runs/{run}/{name}" in w for w in fit["warnings"])
    assert main(["report", str(store.path)]) == 0
    assert f"left out: runs/{run}/{name}" in capsys.readouterr().err
    page = (store.path / "report.html").read_text()
    assert f"runs/{run}/{name}" in page and "until “lmscale run” makes it again" in page
    assert main(["advise", str(store.path), "--compute", "2e13"]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_a_damaged_experiment_is_one_line_with_its_path_and_a_remedy(store, capsys, monkeypatch):
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)
    (store.path / "experiment.json").write_bytes(b'{"name": "x", "runs"')
    for command in (
        ["status"],
        ["fit", "--law", "isoflop"],
        ["report"],
        ["advise", "--compute", "1e13"],
        ["eval"],
        ["verify", "--compute", "1e13"],
    ):
        assert main([command[0], str(store.path), *command[1:]]) == 1, command
        err = capsys.readouterr().err.strip()
        assert "\n" not in err and str(store.path / "experiment.json") in err
        assert err.endswith("the `lmscale run` that made the store writes it again")


def test_a_store_of_which_no_spec_can_be_read_still_has_its_commands(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "store")
    for path in (tmp_path / "store" / "runs").glob("*/spec.json"):
        path.write_text("{}")
    assert main(["status", str(tmp_path / "store")]) == 0
    assert main(["report", str(tmp_path / "store")]) == 0
    assert main(["fit", str(tmp_path / "store"), "--law", "isoflop"]) == 2
    assert "has no finished run" in capsys.readouterr().err


def test_a_changed_digit_is_not_believed(store):
    """A loss that is 1 nat lower than what was written."""
    folder = next(store.declared())[0]
    text = (folder.path / "result.json").read_text()
    loss = json.loads(text)["losses"]["valid"]
    (folder.path / "result.json").write_text(text.replace(str(loss), str(loss - 1)))
    assert folder.result() is None and folder.status()["status"] == "failed"
    assert "its digest in status.json doesn't match" in folder.status()["reason"]
    table = store.table().set_index("run")
    assert table.loc[folder.path.name, "status"] == "failed"
    assert not table.loc[folder.path.name, "best_lr"]


def test_another_runs_result_is_not_believed(store):
    """With its status and metrics too, so that the digests fit."""
    (a, _), (b, _) = list(store.declared())[:2]
    for name in ("result.json", "status.json", "metrics.jsonl"):
        shutil.copyfile(b.path / name, a.path / name)
    assert a.result() is None and "it is of another run" in a.status()["reason"]
    shutil.copyfile(b.path / "spec.json", a.path / "spec.json")
    with pytest.raises(DamagedError, match="of another run"):
        RunFolder.open(a.path)


def test_a_store_of_an_earlier_version_is_read_as_it_was(store):
    """Files without digests, and metrics with the NaN that was once written."""
    for folder, _ in store.declared():
        status = read_json(folder.path / "status.json")
        del status["digests"], status["run"]
        write_json(folder.path / "status.json", status)
        with folder.log_path.open("a") as file:
            file.write('{"step": 1, "loss": 2.0, "grad_norm": Infinity}\n')
    assert store.damage() == []
    assert set(store.table()["status"]) == {"done"}
    assert folder.metrics()[-1]["grad_norm"] is None


def test_a_result_of_an_earlier_version_that_holds_nan_is_made_again(store):
    folder = next(store.declared())[0]
    status, result = folder.state()
    del status["digests"], status["run"]
    write_json(folder.path / "status.json", status)
    (folder.path / "result.json").write_text(json.dumps(result | {"train_loss": float("nan")}))
    assert folder.result() is None and "it holds NaN" in folder.status()["reason"]
    # Like any damaged run, which the report leaves out.
    assert Results.read(store).table["status"].tolist().count("failed") == 1


def test_results_that_are_taken_over_keep_their_digests(store, tmp_path):
    runs = [Run(folder.spec, labels) for folder, labels in store.declared()]
    second = Store(tmp_path / "second")
    for run in runs:
        second.folder(run).create()
    hurt = store.folder(runs[0])
    (hurt.path / "result.json").write_text("{}")
    assert second.adopt(store, runs) == len(runs) - 1
    assert second.folder(runs[0]).result() is None
    assert all(second.folder(run).status()["digests"]["result"] for run in runs[1:])


def test_a_learning_rate_study_that_is_damaged_is_left_out_with_a_line(store, capsys):
    beside = store.path.parent / "study"
    beside.mkdir()
    (beside / "fits.json").write_text("[" * 100_000)
    (store.path / "fits.json").write_text('{"learning_rate/transformer/kaplan": {"parameters": 3}}')
    try:
        read_recipe(store)
    except FitError as error:
        pytest.fail(str(error))
    err = capsys.readouterr().err
    assert "nested too deeply" in err and err.count("no learning rates from") == 2


def contents(valid: bytes):
    """Of a damaged file: cut, with bits turned, with other bytes in it, or something else."""

    def turned(places):
        data = bytearray(valid)
        for place, bit in places:
            data[place % len(data)] ^= 1 << bit
        return bytes(data)

    place = st.integers(0, max(0, len(valid) - 1))
    values = json.loads(valid.split(b"\n")[0] if valid.count(b"}\n{") else valid)
    return st.one_of(
        place.map(lambda n: valid[:n]),
        st.lists(st.tuples(place, st.integers(0, 7)), min_size=1, max_size=4).map(turned),
        st.tuples(place, st.binary(max_size=20)).map(
            lambda p: valid[: p[0]] + p[1] + valid[p[0] :]
        ),
        st.binary(max_size=50),
        JSON.map(lambda x: json.dumps(x).encode()),
        # One value of another type.
        st.tuples(st.sampled_from(sorted(values)), JSON).map(
            lambda p: json.dumps({**values, p[0]: p[1]}).encode()
        ),
        st.integers(1, 100_000).map(lambda n: b"[" * n),
    )


@pytest.mark.parametrize("name", FILES)
def test_no_content_of_a_run_file_stops_a_reader(name, finished, tmp_path_factory):
    store = small_copy(finished, tmp_path_factory)
    file = first_run(store) / name
    valid = file.read_bytes()
    rows = {r["run"]: r for r in store.table().to_dict("records")}
    run = next(iter(rows))

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(contents(valid))
    def check(content):
        file.write_bytes(content)
        named = [line for line in store.damage() if run in line]
        table = store.table()
        found = {r["run"]: r for r in table.to_dict("records")}
        overview(store)
        assert named or str(found[run]) == str(rows[run])
        if not named and name == "metrics.jsonl":
            assert content == valid
        table_of_runs(store)

    check()


@pytest.mark.parametrize(
    "name", ["experiment.json", "slots/x.json", "shards/0-of-1.json", "summary.json", "forecast"]
)
def test_no_content_of_a_store_file_stops_a_reader(name, finished, tmp_path_factory, capsys):
    """It is read as it was, or said to be damaged in one line, or not needed."""
    store = small_copy(finished, tmp_path_factory)
    path = store.path
    write_json(path / "summary.json", {"table": "x"}, sealed=True)
    valid = (path / "experiment.json").read_bytes()
    if name == "forecast":
        name = "verify/C1e13/forecast-0123456789abcdef.json"
    file = path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    reference = store.experiment()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(contents(valid))
    def check(content):
        file.write_bytes(content)
        code = main(["status", str(path)])
        err = capsys.readouterr().err.strip()
        assert code in (0, 1) and "\n" not in err and "Traceback" not in err
        assert (code == 1) == ("is damaged" in err)
        if code == 0 and name == "experiment.json" and content != valid:
            sealed = "digest" in json.loads(content)
            assert not sealed or store.experiment() == reference
        if code == 0:
            verifications(store)

    check()


@settings(max_examples=EXAMPLES, deadline=None)
@given(contents(run_spec().to_json().encode()))
def test_no_content_is_a_spec_that_it_was_not(content):
    try:
        spec = RunSpec.from_json(content.decode(errors="replace"))
    except SpecError as error:
        assert "\n" not in str(error).strip()
    else:
        assert isinstance(spec.run_id, str)

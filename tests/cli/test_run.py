"""`lmscale run --print-config` and `--dry-run`: what would be trained, without training it."""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import yaml
from etils import epath

from lmscale.cli import training
from lmscale.cli.argument_types import NONE, field_value
from lmscale.files import write_json
from lmscale.sweep.experiment import experiment_names, load_scales
from tests import memory_bucket
from tests.cli.answers import answer, refused
from tests.report import planted_store as planted

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny_experiment.py"
SMALL = ("run", "isoflop", "--data", "tiny", "--budgets", "1e10", "3e10", "--sizes", "1536", "3456")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", experiment_names())
def test_the_printed_config_holds_every_field(capsys, name):
    for scale, experiment in load_scales(name)[2].items():
        code, out, err = answer(capsys, "run", name, "--scale", scale, "--print-config")
        assert (code, err) == (0, "")
        found = yaml.safe_load(out)
        assert found.pop("fields") == json.loads(json.dumps(dataclasses.asdict(experiment)))
        assert found == {"experiment": name, "scale": scale, "data": "installed-python"}
        for field in dataclasses.fields(experiment):
            assert field.metadata.get("help", "") in out


def test_the_printed_config_has_the_overrides(capsys, own_folder):
    overrides = ("--budgets", "1e16", "2.5e9", "--n-layer", "none", "--data", "mine")
    code, out, _ = answer(capsys, "run", "isoflop", *overrides, "--print-config")
    found = yaml.safe_load(out)
    assert code == 0 and found["data"] == "mine"
    assert found["fields"]["budgets"] == [1e16, 2.5e9]
    assert found["fields"]["n_layer"] is None
    assert not list(own_folder.iterdir())


@pytest.mark.parametrize(
    ("flags", "value"),
    [([], False), (["--mask-documents"], True), (["--no-mask-documents"], False)],
)
def test_a_switch_takes_no_value(capsys, flags, value):
    code, out, _ = answer(capsys, "run", *flags, "isoflop", "--print-config")
    assert code == 0 and yaml.safe_load(out)["fields"]["mask_documents"] is value
    line = refused(capsys, "run", "isoflop", *(flags or ["--mask-documents"]), "false")
    assert "unrecognized arguments: false" in line


def test_options_may_come_before_the_experiment(capsys, corpus):
    """The first look took their values for EXPERIMENT."""
    before = ("--out", "mine", "--slots", "2", "--data", "tiny", "--dry-run", "--keep-every", "5")
    code, out, err = answer(capsys, "run", *before, "isoflop", *SMALL[4:])
    assert (code, err) == (0, "")
    assert out == answer(capsys, "run", "isoflop", *SMALL[4:], *before)[1]
    code, out, _ = answer(capsys, "plan", "--device", "cpu:2", "--data", "tiny", *SMALL[1:2])
    assert code == 0 and "2 x cpu" in out


@pytest.mark.parametrize("port", ["0", "65536", "99999999999"])
def test_a_port_that_does_not_exist_is_refused(capsys, port):
    line = refused(capsys, *SMALL, "--distributed", f"localhost:{port},2,0")
    assert "PORT must be from 1 to 65535" in line


def test_a_switch_that_may_be_none_takes_the_words():
    parse = field_value(bool, True)
    assert (parse("false"), parse("True"), parse("none")) == (False, True, NONE)
    with pytest.raises(argparse.ArgumentTypeError, match="must be true or false, not '1'"):
        parse("1")


def test_masked_documents_go_to_a_folder_of_their_own(capsys, own_folder, corpus):
    code, out, _ = answer(capsys, *SMALL, "--mask-documents", "--dry-run")
    assert code == 0 and "isoflop: 4 runs in 2 packs, " in out
    assert "mask_documents-True" in out


def test_an_architecture_that_cannot_mask_documents_is_named(capsys, corpus):
    own = str(Path(__file__).parents[1] / "architectures" / "convolution.py")
    line = refused(capsys, "run", own, "--data", "tiny", "--mask-documents", "--dry-run")
    assert "the architecture convolution cannot hide documents from each other" in line


def test_many_configs_are_documents_of_one_stream(capsys):
    code, out, _ = answer(capsys, "run", "all", "--print-config")
    assert code == 0
    assert [one["experiment"] for one in yaml.safe_load_all(out)] == experiment_names()


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(capsys, own_folder, corpus):
    code, out, err = answer(capsys, *SMALL, "--dry-run")
    assert (code, err) == (0, "")
    assert "isoflop: 4 runs in 2 packs, " in out
    assert (
        str(own_folder / "results/isoflop-cpu-data-tiny-budgets-1e10-3e10-sizes-1536-3456") in out
    )
    assert not list(own_folder.iterdir())


def test_a_dry_run_counts_the_runs_that_are_done(capsys, own_folder, corpus):
    sizes = {"budgets": (1e10, 3e10), "sizes": (1536.0, 3456.0)}
    experiment = dataclasses.replace(load_scales("isoflop")[2]["cpu"], **sizes)
    store = planted.plant(
        own_folder / "planted", experiment.runs(corpus), analyses=(), law=planted.Law()
    )
    first = next(store.declared())[0].path
    shutil.copytree(first, own_folder / "mine" / "runs" / first.name)
    code, out, _ = answer(capsys, *SMALL, "--out", "mine", "--dry-run")
    assert code == 0 and out.splitlines()[-1] == "isoflop: 1 of 4 runs done already"


def test_a_dry_run_is_of_one_process(capsys):
    line = refused(capsys, *SMALL, "--dry-run", "--distributed", "auto")
    assert "--dry-run is of this machine alone" in line


def test_what_to_type_next_is_three_times_the_largest_budget(tmp_path):
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=4)
    store = planted.plant(tmp_path / "budgets", runs, analyses=["isoflop"])
    largest = max(run.labels["budget"] for run in runs)
    write_json(store.path / "fits.json", {"isoflop/transformer/standard": {"exponents": {}}})
    assert training._next_step(store, store.table()) == "", "there is no law to ask"
    found = {"exponents": {"standard": {"N": 0.5, "D": 0.5}}}
    write_json(store.path / "fits.json", {"isoflop/transformer/standard": found})
    line = training._next_step(store, store.table())
    assert line.startswith(f"next: lmscale advise {store.path} --compute {3 * largest:.3g}; ")
    other = planted.plant(tmp_path / "sizes", planted.size_runs(layers=()), analyses=["size"])
    assert training._next_step(other, other.table()) == ""


@pytest.fixture
def trained(monkeypatch):
    """In place of training: the stores that would be trained, and the folders that get a front page."""
    stores, fronts = [], []
    monkeypatch.setattr("lmscale.parallel.processes.expect_processes", lambda: None)
    monkeypatch.setattr(
        "lmscale.cli.run.train_job", lambda job, *_, **__: bool(stores.append(str(job.store.path)))
    )
    monkeypatch.setattr("lmscale.report.write_front", lambda folder: fronts.append(str(folder)))
    return stores, fronts


def test_many_experiments_go_to_a_bucket(capsys, own_folder, corpus, monkeypatch, trained):
    """`pathlib` made s3:/b/all of the bucket, and the first front page ended the command."""
    memory_bucket.mount(monkeypatch)
    (own_folder / "mine").mkdir()
    for name in ("one", "two"):
        shutil.copy(TINY, own_folder / "mine" / f"{name}.py")
    code, _, err = answer(capsys, "run", "mine", "--data", "tiny", "--out", "s3://bucket/all/")
    assert code == 0, err
    assert sorted(trained[0]) == [
        f"s3://bucket/all/{name}-cpu-data-tiny" for name in ("one", "two")
    ]
    assert trained[1] == ["s3://bucket/all"] * 2
    assert "all reports: s3://bucket/all/index.html" in err


def test_a_kind_of_path_that_there_is_not_is_told(capsys, own_folder):
    (own_folder / "mine").mkdir()
    shutil.copy(TINY, own_folder / "mine")
    line = refused(capsys, "run", "mine", "--out", "foo://bar")
    assert "foo://bar/tiny_experiment-cpu is not read in place" in line


def test_a_prior_may_be_in_a_bucket(capsys, corpus, monkeypatch):
    memory_bucket.mount(monkeypatch)
    planted.plant(
        epath.Path("s3://bucket/isoflop"), planted.isoflop_runs(lstm=False), analyses=["isoflop"]
    )
    prior = ("--prior", "s3://bucket/isoflop")
    code, out, err = answer(capsys, *SMALL, "--dry-run", *prior)
    assert code == 0 and "isoflop: 4 runs in 2 packs, " in out, err
    line = refused(capsys, *SMALL, "--dry-run", "--prior", "s3://bucket/other")
    assert "--prior s3://bucket/other is neither a folder nor a published law" in line
    assert "foo://bar is not read in place" in refused(
        capsys, *SMALL, "--dry-run", "--prior", "foo://bar"
    )

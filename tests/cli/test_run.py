"""`lmscale run --print-config` and `--dry-run`: what would be trained, without training it."""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import yaml

from lmscale.cli import training
from lmscale.cli.argument_types import NONE, field_value
from lmscale.files import write_json
from lmscale.sweep.experiment import experiment_names, load_scales
from tests.cli.answers import answer, refused
from tests.report import planted_store as planted

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

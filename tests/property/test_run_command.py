"""Whatever is given to `lmscale run`: it would train, or one line says what is wrong."""

import argparse
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscale.cli import argument_types
from tests.property.harness import VALUES, answer, check, examples


class Unstopped:
    """In place of `lmscale.stopping.Stop`, whose signal handlers are the process's."""

    def __init__(self, **_):
        pass

    def __call__(self):
        return False

    def close(self):
        pass


@pytest.fixture(autouse=True)
def trained(tmp_path, monkeypatch, corpus):
    """Declares the store where training would begin; says what was declared."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)
    monkeypatch.setattr("lmscale.cli.program.Stop", Unstopped)
    monkeypatch.setattr("lmscale.parallel.processes.expect_processes", lambda: None)
    jobs = []

    def train(job, *_, **__):
        jobs.append(job)
        return False

    monkeypatch.setattr("lmscale.cli.run.train_job", train)
    return jobs


def _no_group(text):
    """A value of --distributed that is not taken, as others would wait for other processes."""
    try:
        argument_types.distributed(text)
    except (argparse.ArgumentTypeError, ValueError):
        return True
    return False


OPTIONS = {
    "--out": st.one_of(
        st.sampled_from(
            ["file", "file/x", "new", "a/b/c", "s3://b/x", "gs://", "/dev/null", "x" * 300]
        ),
        VALUES,
    ),
    "--shard": st.one_of(
        st.sampled_from(["0/1", "1/2", "3/2", "0/0", "-1/2", "0/99999999"]), VALUES
    ),
    "--slots": VALUES,
    "--mesh": st.one_of(st.sampled_from(["1,1,1", "2,1,1", "1,99,1", "0,1,1", "1,1"]), VALUES),
    "--checkpoint-seconds": VALUES,
    "--prior": st.one_of(st.sampled_from(["chinchilla", "file", "nowhere"]), VALUES),
    "--distributed": st.one_of(st.sampled_from(["h:1,2,3", "h:1,0,0"]), VALUES).filter(_no_group),
    "--scale": st.one_of(st.sampled_from(["cpu", "gpu", "paper"]), VALUES),
    "--data": VALUES,
    "--budgets": VALUES,
}


@st.composite
def command_lines(draw):
    words = ["run", "isoflop", "--data", "tiny"]
    for name in draw(st.lists(st.sampled_from(sorted(OPTIONS)), min_size=1, max_size=3)):
        words += [name, draw(OPTIONS[name])]
    words += draw(st.lists(st.sampled_from(["--dry-run", "--print-config"]), max_size=1))
    return words + ["--extend"] * draw(st.booleans())


@examples(25)
@given(argv=command_lines())
def test_flags_of_any_value_train_or_are_refused_in_a_line(argv):
    check(argv, Path.cwd())


def small(*more):
    return ["run", "isoflop", "--data", "tiny", "--sizes", "1536", "3456", *more]


def declare(job):
    name, experiment, corpus, runs, _ = job.declared
    return job.store.declare(name, "cpu", experiment, corpus, runs, "x", extend=job.extend)


def test_so_many_shards_that_making_them_takes_long_are_refused():
    code, out, err = answer(small("--shard", "0/99999999"))
    assert (code, out) == (2, "") and "N at most 10,000, not '0/99999999'" in err


def test_another_run_goes_to_a_folder_of_its_own(trained):
    assert answer(small("--budgets", "1e10"))[0] == 0
    assert answer(small("--budgets", "1e10", "3e10"))[0] == 0
    assert (
        answer(["run", "isoflop", "--budgets", "1e10", "--sizes", "1536", "3456", "--data=tiny"])[0]
        == 0
    )
    names = [job.store.path.name for job in trained]
    assert names[0] == names[2] == "isoflop-cpu-data-tiny-budgets-1e10-sizes-1536-3456"
    assert names[1] == "isoflop-cpu-data-tiny-budgets-1e10-3e10-sizes-1536-3456"


def test_a_folder_of_another_declaration_is_refused_before_anything_is_written(trained):
    assert answer(small("--budgets", "1e10", "--out", "mine"))[0] == 0
    declare(trained[0])
    before = {path: path.read_bytes() for path in Path("mine").rglob("*") if path.is_file()}
    code, out, err = answer(small("--budgets", "3e10", "--out", "mine"))
    assert (code, out) == (2, "")
    assert "budgets: 1e10 there, 3e10 here" in err and "--extend" in err
    assert len(err.splitlines()) == 1
    assert before == {path: path.read_bytes() for path in Path("mine").rglob("*") if path.is_file()}
    assert answer(small("--budgets", "3e10", "--out", "mine", "--extend"))[0] == 0
    declare(trained[1])
    recorded = json.loads(Path("mine/experiment.json").read_text())
    assert {entry["labels"]["budget"] for entry in recorded["runs"]} == {1e10, 3e10}


def test_what_is_left_out_and_cannot_be_fitted_is_said_first(trained):
    code, _, err = answer(small("--budgets", "5e8", "1e10"))
    assert code == 0
    first = [line for line in err.splitlines() if line.startswith("isoflop: ")]
    assert "budget 5e+08" in first[0] and "fewer than 50 updates" in first[0]
    assert any("no exponent, which needs 3" in line for line in first)
    assert "runs in" in first[-1]


def test_plan_says_the_same_and_which_folder_run_would_use(trained):
    code, out, _ = answer(["plan", *small("--budgets", "5e8", "1e10")[1:], "--json"])
    found = json.loads(out)
    assert code == 0
    assert found["store"].endswith("results/isoflop-cpu-data-tiny-budgets-5e8-1e10-sizes-1536-3456")
    assert found["store_refuses"] is None
    assert any("fewer than 50 updates" in line for line in found["left_out"])
    assert any("no IsoFLOP minimum there, which needs 4" in line for line in found["left_out"])

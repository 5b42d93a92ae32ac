"""`lmscale bench` on models of a few hundred parameters: what it reports, not how fast they are."""

import dataclasses
import functools
import json

import pytest

from lmscale import flops
from lmscale.bench import paths as bench_paths
from lmscale.bench import timing
from lmscale.bench.paths import Row
from lmscale.bench.sweep_runs import SCALES
from lmscale.bench.timing import Timing
from lmscale.bench.torch_sweep import learning_rate
from lmscale.cli import main
from lmscale.cli.bench import _model, _table
from lmscale.planner.devices import parse_devices
from lmscale.training.schedule import schedule_hyperparameters
from tests.fake_corpus import fake_corpus

TINY = ["--shape", "1x8", "--batch", "2", "--context", "16", "--vocab", "64", "--repeat", "2"]


@pytest.fixture
def briefly(monkeypatch):
    """Timed for moments: what is reported of a time does not depend on how long it was taken."""
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 0.02)
    brief = functools.partial(bench_paths.matmul_peak, seconds=0.02)
    monkeypatch.setattr(bench_paths, "matmul_peak", brief)


@pytest.mark.slow
def test_every_path_is_measured(capsys, briefly):
    paths = ["train", "evaluate", "data", "checkpoint"]
    command = ["bench", "--model", "lstm", *TINY, "--pack", "2", "--path", *paths, "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in found["rows"]] == paths
    train = found["rows"][0]
    assert train["pack"] == 2 and train["seconds"]["samples"] == 2
    spec = _model("lstm", (1, 8), 16, 64)
    per_token = flops.training_flops_per_token(spec, "exact")
    assert train["n_flops"] == pytest.approx(per_token * train["n_tokens"])
    assert train["tokens_per_second"] == train["n_tokens"] / train["seconds"]["median"]
    assert 0 < train["fraction_of_peak"] < 1
    assert train["memory"]["compiled"] > 4 * 3 * 2 * flops.n_params(spec, "exact")


def test_the_table_tells_what_was_planned_from_what_was_asked_for():
    def row(pack, workers, planned):
        timing = Timing(0.5, 0.4, 0.6, 5)
        return Row(
            "train", "lmscale", "m", {"kaplan": 9}, pack, workers, planned, 8, 1.0, timing, 4.0, {}
        )

    rows = [row(2, 2, True), row(2, 1, False), row(8, 1, True)]
    header, *lines = _table(rows, parse_devices("cpu:2"), "float32")[0]
    column = header.index("runs")
    assert [line[column] for line in lines] == ["2 x 1 (plan)", "2", "8 (plan)"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "12"], "LAYERSxWIDTH"),
        (["--pack", "0"], "0"),
        (["--path", "sleep"], "train"),
    ],
)
def test_bad_arguments_are_told_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", *arguments])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.mark.slow
def test_every_architecture_is_timed_and_others_are_refused(capsys, briefly, monkeypatch):
    # Eight virtual devices would be planned as eight processes.
    monkeypatch.setattr("lmscale.planner.devices.local_devices", lambda: parse_devices("cpu:1"))
    assert main(["bench", "--model", "llama", *TINY, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["planned"] and row["workers"] == 1
    assert row["model"] == "llama-1x8" and row["tokens_per_second"] > 0
    assert main(["bench", "--model", "lama", *TINY]) == 2
    assert "no architecture 'lama'; there are" in capsys.readouterr().err


def test_a_sweep_of_any_architecture_spans_the_same_sizes():
    runs = dataclasses.replace(SCALES["cpu"], model="llama").runs(fake_corpus(vocab_size=1024))
    sizes = sorted({flops.n_params(run.spec.model, "kaplan") for run in runs})
    assert len(runs) == 16 and len(sizes) == 4 and sizes[0] < 2e4 and sizes[-1] > 2.5e5


def test_torch_is_missed_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["bench", *TINY, "--against", "torch"]) == 2
    assert "pip install" in capsys.readouterr().err


def test_torch_trains_by_the_same_schedule():
    import jax.numpy as jnp

    from lmscale.training import schedule

    spec = SCALES["cpu"].runs(fake_corpus(vocab_size=1024))[0].spec
    hyper = {k: jnp.asarray(v) for k, v in schedule_hyperparameters(spec).items()}
    for step in (0, spec.schedule.warmup_steps, spec.steps // 2, spec.steps - 1):
        ours = float(schedule.learning_rate(jnp.asarray(step), hyper))
        assert learning_rate(spec, step) == pytest.approx(ours, rel=1e-4)


def test_the_sweep_spans_more_than_a_decade_of_sizes():
    corpus = fake_corpus(vocab_size=1024)
    transformers = SCALES["cpu"].runs(corpus)
    sizes = sorted({flops.n_params(run.spec.model, "kaplan") for run in transformers})
    assert len(transformers) == 16 and len(sizes) == 4
    assert 10e3 < sizes[0] < 20e3 and 250e3 < sizes[-1] < 350e3

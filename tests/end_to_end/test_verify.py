"""A forecast is written down before anything is trained, and no kill and no later call changes it."""

import json
import signal
import time
from pathlib import Path

import pytest

from lmscale.architectures import transformer_ladder
from lmscale.files import read_json, write_json
from lmscale.spec import DataSpec, EvalSpec
from lmscale.sweep.grids import isoflop_grid, width_rule
from tests.report.planted_store import Law, plant

pytestmark = pytest.mark.slow
BUDGETS = (4e8, 8e8, 1.6e9, 3.2e9)
BUDGET = 6.4e9


@pytest.fixture
def store(corpus, tmp_path):
    """Results of a planted law on the corpus `tiny`, which real runs will not follow."""
    where = {"corpus": corpus.name, "fingerprint": corpus.fingerprint}
    widths = (8, 12, 16, 20, 24, 28, 32, 40, 48)
    models = transformer_ladder(
        [24.0 * width**2 for width in widths], n_layer=2, n_ctx=16, vocab_size=corpus.vocab_size
    )
    runs = isoflop_grid(
        BUDGETS,
        models,
        data=DataSpec(**where),
        evals=(EvalSpec(name="valid", tokens=1024, sampling="spread", **where),),
        batch_size=4,
        learning_rate=width_rule(),
    )
    store = plant(tmp_path / "store", runs, analyses=("isoflop",), law=Law(A=30.0, B=64.0))
    experiment = store.experiment()
    experiment["corpus"] |= {
        "name": corpus.name,
        "fingerprint": corpus.fingerprint,
        "vocab_size": corpus.vocab_size,
        "train_tokens": corpus.n_tokens("train"),
    }
    write_json(store.path / "experiment.json", experiment)
    return store


def steps_logged(folder):
    return sum(len(path.read_text().splitlines()) for path in folder.glob("runs/*/metrics.jsonl"))


def test_a_forecast_survives_a_kill_and_is_held_against_the_outcome(
    lmscale, finish, store, tmp_path
):
    arguments = ("verify", store.path, "--compute", BUDGET, "--checkpoint-seconds", "0.01")
    folder = Path(store.path) / "verify" / "C6.4e09"
    process = lmscale(*arguments)
    while process.poll() is None and steps_logged(folder) == 0:
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read()
    # Training has begun, so the forecast has been there before.
    (path,) = folder.glob("forecast-*.json")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    written, changed = path.read_bytes(), path.stat().st_mtime_ns

    code, out, err = finish(*arguments)
    assert code == 0, err
    assert f"the forecast of {json.loads(written)['date']} stands" in err
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (written, changed)
    assert list(folder.glob("forecast-*.json")) == [path]
    outcome = read_json(folder / "outcome.json")
    assert all(len(run["losses"]) == 1 for run in outcome["runs"])
    # The planted law is not that of this text: a finding, and no failure.
    assert outcome["contained"] is False and outcome["finding"] in out
    page = (store.path / "report.html").read_text()
    assert "Forecast and outcome" in page and "outside" in page

    results = {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/result.json")}
    code, out, err = finish(*arguments, "--seeds", "0", "1", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["forecast"] == json.loads(written)
    assert all(len(run["losses"]) == 2 for run in found["outcome"]["runs"])
    assert {p: p.stat().st_mtime_ns for p in results} == results

    code, _, err = finish("keep", store.path, "--out", tmp_path / "kept")
    assert code == 0, err
    there = tmp_path / "kept" / folder.relative_to(tmp_path)
    assert (there / path.name).read_bytes() == written
    for kept in (tmp_path / "kept").rglob("*.json"):
        assert str(tmp_path) not in kept.read_text(), kept

    path.write_bytes(written.replace(b'"law"', b'"law" '))
    code, out, err = finish(*arguments)
    assert code == 2 and "has been changed since it was written" in err
    assert len(err.strip().splitlines()) == 1


def test_a_dry_run_writes_nothing_and_other_text_is_refused(finish, store):
    code, out, err = finish("verify", store.path, "--compute", BUDGET, "--dry-run")
    assert code == 0 and "advised" in out, err
    assert not (store.path / "verify").exists()
    experiment = store.experiment()
    experiment["corpus"]["fingerprint"] = "0" * 12
    write_json(store.path / "experiment.json", experiment)
    code, _, err = finish("verify", store.path, "--compute", BUDGET)
    assert code == 2 and "build the corpus from the same text" in err
    assert not (store.path / "verify").exists()

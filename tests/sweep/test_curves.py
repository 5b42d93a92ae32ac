"""`lmscale fit STORE --law envelope` reads the curves that the store's runs recorded."""

import json

import numpy as np
import pytest

from lmscale.cli import main
from lmscale.training.metrics_log import MetricsLog
from tests.report import planted_store as planted


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=7)
    store = planted.plant(tmp_path_factory.mktemp("e"), runs, analyses=["envelope"], noise=0.001)
    rows = {row["run"]: row for _, row in store.write_table().iterrows()}
    law = planted.Law()
    for folder, _ in store.declared():
        row = rows[folder.path.name]
        tokens = np.linspace(row["tokens"] / 200, row["tokens"], 200)
        loss = law.E + law.A * row["params_standard"] ** -law.alpha + law.B * tokens**-law.beta
        MetricsLog(folder.log_path).append(
            [
                {"step": k, "tokens": float(d), "loss": float(x)}
                for k, (d, x) in enumerate(zip(tokens, loss, strict=True), 1)
            ]
        )
    return store


@pytest.mark.slow
def test_the_envelope_of_a_store_is_that_of_its_curves(store, capsys):
    argv = [
        "fit",
        str(store.path),
        "--law",
        "power",
        "envelope",
        "--x",
        "flops",
        "--bootstrap",
        "20",
    ]
    assert main([*argv, "--json"]) == 0
    power, envelope = json.loads(capsys.readouterr().out)["laws"]
    assert (power["law"], envelope["law"]) == ("power", "envelope")
    assert envelope["parameters"]["a"] == pytest.approx(planted.Law().exponent, abs=0.03)
    assert envelope["n_used"] == power["n_used"]
    assert not any("fitted as one law" in warning for warning in envelope["warnings"])
    # A filter chooses among the curves as well.
    assert main([*argv, "--where", "params < 3e5", "--json"]) == 0
    fewer = json.loads(capsys.readouterr().out)["laws"][1]
    assert fewer["n_used"] < envelope["n_used"]


def test_results_alone_hold_no_curves(store, capsys):
    assert main(["fit", str(store.path / "results.csv"), "--law", "envelope"]) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert "holds the last loss of each run" in said and "the folder of the store" in said

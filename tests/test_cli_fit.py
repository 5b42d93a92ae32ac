"""`lmscale fit`: one law is the contract, several are set side by side, a bad table is one line."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest

from lmscale import laws
from lmscale.cli import main
from lmscale.laws.parametric import chinchilla_loss, optimal_allocation

EPOCH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
CONTRACT = {
    "law", "parameters", "intervals", "objective", "converged", "n_used", "dropped", "exponents",
    "warnings",
}  # fmt: skip


def profiles(budgets=5):
    """An exact IsoFLOP grid."""
    rows = {"params": [], "tokens": [], "loss": []}
    for c in np.geomspace(1e18, 1e21, budgets):
        n = optimal_allocation(EPOCH, c).n_params * np.geomspace(1 / 4, 4, 7)
        rows["params"].extend(n)
        rows["tokens"].extend(c / (6 * n))
        rows["loss"].extend(chinchilla_loss(EPOCH, params=n, tokens=c / (6 * n)))
    rng = np.random.default_rng(0)
    rows["loss"] = np.array(rows["loss"]) * np.exp(0.002 * rng.normal(size=len(rows["loss"])))
    return pd.DataFrame(rows)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "runs.csv"
    profiles().to_csv(path, index=False)
    return path


def run(capsys, *argv) -> tuple[int, str, str]:
    """Exit code, standard output, standard error; a warning of numpy is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            code = main(["fit", *(str(item) for item in argv)])
        except SystemExit as exit:
            code = exit.code
    return code, *capsys.readouterr()


def refused(capsys, *argv) -> str:
    code, out, err = run(capsys, *argv)
    assert code == 2, err
    assert out == "" and len(err.strip().splitlines()) == 1, err
    return err


# --- Output -------------------------------------------------------------------------------------


def test_one_law_as_json_is_the_contract_and_a_held_out_budget(capsys, table):
    code, out, _ = run(capsys, table, "--law", "kaplan-nd", "--bootstrap", 20, "--json")
    fit = json.loads(out)
    assert code == 0 and set(fit) >= CONTRACT | {"held_out"}
    held = fit["held_out"]
    assert held["along"] == "flops" and held["n_held_out"] == 7 and held["n_fitted"] == 28
    assert held["extrapolation"] == pytest.approx(10**0.75)
    assert 0 < held["mean_error"] <= abs(held["worst_error"])


@pytest.mark.parametrize(
    ("law", "budgets", "reason"),
    [("over-training", 1, "no larger budget"), ("isoflop", 5, "predicts no run's loss")],
)
def test_without_a_held_out_budget_the_reason_stands_there(capsys, tmp_path, law, budgets, reason):
    frame = profiles(budgets)
    frame["tokens"] *= np.linspace(0.99, 1.01, len(frame))
    frame.to_csv(tmp_path / "runs.csv", index=False)
    argv = (tmp_path / "runs.csv", "--law", law, "--bootstrap", 20)
    code, out, _ = run(capsys, *argv, "--json")
    fit = json.loads(out)
    assert code == 0 and fit["held_out"] is None and reason in fit["held_out_reason"]
    assert f"held out: nothing, since {fit['held_out_reason']}" in run(capsys, *argv)[1]


def test_one_law_as_text(capsys, table):
    code, out, _ = run(capsys, table, "--law", "kaplan-nd", "--bootstrap", 20)
    lines = out.splitlines()
    assert code == 0 and lines[0] == f"kaplan-nd: {laws.LAWS['kaplan-nd'].equation}"
    head = next(line for line in lines if line.startswith("parameter"))
    for name in ("alpha_N", "N_c", "alpha_D", "D_c"):
        row = next(line for line in lines if line.startswith(f"{name} "))
        assert row[head.index("95% interval")] == "["
    assert "N_opt ~ C^" in out and "held out: the 7 largest runs" in out


def test_laws_side_by_side(capsys, table):
    argv = (table, "--law", "kaplan-nd", "isoflop", "position", "power", "--bootstrap", 20)
    code, out, _ = run(capsys, *argv)
    lines = out.splitlines()
    assert code == 0 and lines[1].startswith("----")
    assert [line.split()[0] for line in lines[2:4]] == ["kaplan-nd", "isoflop"]
    # Aligned: the column after the names starts where its header does.
    assert all(line[lines[0].index("runs") :].startswith("35") for line in lines[2:4])
    assert "position not fitted: the table has no column position" in out
    assert "power not fitted: a power law is in one variable; say which with x=" in out
    assert "isoflop not tested on a held-out budget: " in out
    code, out, _ = run(capsys, *argv, "--x", "params", "--json")
    found = json.loads(out)["laws"]
    assert code == 0 and [fit["law"] for fit in found] == list(argv[2:6])
    assert set(found[0]) >= CONTRACT and set(found[2]) == {"law", "error"}
    assert "alpha_N" in found[3]["parameters"]


@pytest.mark.slow
def test_all_laws(capsys, table):
    code, out, _ = run(capsys, table, "--law", "all", "--x", "flops", "--bootstrap", 20, "--json")
    found = {fit["law"]: fit for fit in json.loads(out)["laws"]}
    assert code == 0 and list(found) == list(laws.LAWS)
    assert found["parametric"]["held_out"]["mean_error"] < 0.01
    fitted = {name for name, fit in found.items() if "error" not in fit}
    assert fitted == {"isoflop", "parametric", "power", "kaplan-nd", "over-training"}


def test_the_table_may_come_last_and_a_law_twice(capsys, table):
    code, out, _ = run(capsys, "--bootstrap", 20, "--json", "--law", "isoflop", "isoflop", table)
    assert code == 0 and json.loads(out)["law"] == "isoflop"


def test_compute_is_adjusted_to_the_critical_batch(capsys, tmp_path):
    least = np.geomspace(1e13, 1e19, 20)
    loss = (2.68e28 / least) ** 0.05
    batch = np.tile([2e4, 1e6], 10)
    frame = pd.DataFrame({"loss": loss, "batch_tokens": batch})
    frame["flops"] = least * (1 + batch / laws.critical_batch(loss))
    frame.to_csv(tmp_path / "runs.csv", index=False)
    argv = (tmp_path / "runs.csv", "--law", "power", "--critical-batch", "2.1e8,0.21", "--json")
    fit = json.loads(run(capsys, *argv)[1])
    assert fit["parameters"]["alpha_C_min"] == pytest.approx(0.05)
    assert fit["held_out"]["mean_error"] < 1e-6


def test_help_lists_every_law_with_its_equation_and_columns(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for law in laws.LAWS.values():
        assert law.name in out and law.equation in out
        assert f"reads {', '.join(law.needs)}" in out


# --- Bad usage and bad tables -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--law", "parabolic"], "there is no law 'parabolic'; choose from isoflop"),
        (
            ["--law", "isoflop", "--x", "params"],
            "--x belongs to --law power; isoflop takes --method",
        ),
        (["--law", "isoflop", "--offset"], "--offset belongs to --law power; isoflop takes"),
        (["--law", "isoflop", "--critical-batch", "1e8,0.2"], "--critical-batch belongs to"),
        (["--law", "power", "--critical-batch", "1e8"], "two positive numbers"),
        (["--law", "power", "--bootstrap", "0"], "whole number of at least 1"),
        (["--law", "power"], "say which with x=params|tokens|flops"),
        (["--law", "power", "--columns", "loss=nope"], "'nope', which is not a column"),
        (["--law", "power", "--columns", "loss"], "columns must read params=COL"),
        (["--law", "position", "envelope"], "none of these laws can be fitted; position: "),
        ([], "--law"),
    ],
)
def test_bad_usage_is_one_line(capsys, table, argv, says):
    assert says in refused(capsys, table, *argv)


def test_a_law_without_a_table_is_one_line(capsys):
    assert "give a table and a law" in refused(capsys, "--law", "isoflop")


GOOD = "1e6,4\n2e6,3.8\n4e6,3.6\n8e6,3.4\n1.6e7,3.2\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("params,tokens\n1,2\n1,3\n1,4\n", "no column loss"),
        ("params,loss\n1e6,3\n2e6,2\n", "only 2 usable rows; this law needs at least 3"),
        ("params,loss\n1e6,3\n1e6,2\n1e6,4\n", "all 3 rows have params 1e+06"),
        ("params,loss\n1e6,3\n2e6,3\n3e6,3\n", "all 3 rows have loss 3"),
        ("params,loss\n1e6,3\n1e6,3\n1e6,3\n", "only 1 usable row"),
        ("params,loss\n1e6,3\n2e6,-2\n3e6,-1\n", "row 2: loss is -2; it must be positive"),
        ("params,loss\n1e400,3\n2e6,x\n3e6,nan\n", "row 1: params is 1e400, which is not finite"),
        ("params,loss\n", "no rows below its header"),
        ("", "is empty"),
    ],
)
def test_a_table_that_cannot_be_fitted_is_one_line(capsys, tmp_path, text, says):
    (tmp_path / "runs.csv").write_text(text)
    for more in ((), ("--json",)):
        argv = (tmp_path / "runs.csv", "--law", "power", "--x", "params", *more)
        assert says in refused(capsys, *argv)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("3e6,four", "loss is 'four', not a number"),
        ("3e6,-3.7", "loss is -3.7; it must be positive"),
        ("3e6,nan", "loss is NaN"),
        ("3e6,", "loss is blank"),
        ("1e400,3.7", "params is 1e400, which is not finite"),
        ("1e6,4", "is a duplicate of row 1"),
        ("3e6,3,7", "has 3 fields where the header has 2"),
    ],
)
def test_a_bad_row_is_dropped_with_a_warning(capsys, tmp_path, row, reason):
    (tmp_path / "runs.csv").write_text(f"params,loss\n{GOOD}{row}\n")
    code, out, err = run(capsys, tmp_path / "runs.csv", "--law", "power", "--json")
    fit = json.loads(out)
    assert code == 0 and fit["n_used"] == 5
    assert fit["dropped"] == [{"row": 6, "reason": reason}]
    assert f"warning: 1 of 6 rows dropped (row 6: {reason})" in err


def test_what_is_no_table_is_one_line(capsys, tmp_path):
    assert "there is no file" in refused(capsys, tmp_path / "none.csv", "--law", "power")
    assert "holds no experiment.json" in refused(capsys, tmp_path, "--law", "power")
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe")
    assert "is not text in UTF-8" in refused(capsys, tmp_path / "picture.csv", "--law", "power")


@pytest.mark.parametrize("law", list(laws.LAWS))
def test_no_law_ends_in_a_traceback_on_a_poor_table(capsys, tmp_path, law):
    """Everything that any law reads is there, and all runs are of one size."""
    rng = np.random.default_rng(0)
    names = ("params", "tokens", "unique_tokens", "steps", "batch_tokens", "position", "loss")
    for rows in (2, 6):
        frame = pd.DataFrame({name: rng.uniform(1, 2, rows) for name in names})
        frame["params"] = 1e6
        frame.to_csv(tmp_path / "runs.csv", index=False)
        argv = (tmp_path / "runs.csv", "--law", law, "--bootstrap", 10, "--json")
        code, out, err = run(capsys, *argv)
        assert "Traceback" not in err
        if code == 0:
            assert json.loads(out)["law"] == law
        else:
            assert code == 2 and out == "" and len(err.strip().splitlines()) == 1

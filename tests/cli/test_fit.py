"""`lmscale fit`: one law is the contract, several are set side by side, a bad table is one line."""

import inspect
import json
import warnings

import numpy as np
import pandas as pd
import pytest

from lmscale import laws
from lmscale.cli import main
from lmscale.laws.chinchilla import chinchilla_loss, optimal_allocation

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
    assert "power not fitted: a power law is in one variable; say which with --x" in out
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


# --- Options of the laws, filters, budgets -------------------------------------------------------


def test_every_option_of_every_law_is_a_flag_with_its_meaning(capsys):
    out = " ".join(run(capsys, "--help")[1].split())
    for law in laws.LAWS.values():
        parameters = inspect.signature(law.fit).parameters
        # Losses that were drawn for several fits come from Python alone.
        for name in set(parameters) - {"table", "columns", "redrawn"}:
            flag = "--" + name.replace("_", "-")
            assert flag in out, f"{law.name} {flag}"
    assert "--window NUMBER|none isoflop: the parabola takes the sizes within this factor" in out


@pytest.mark.slow
def test_options_reach_their_laws(capsys, table):
    argv = (table, "--law", "isoflop", "parametric", "--bootstrap", 20, "--json")
    argv += ("--window", "2", "--method", "varpro", "--level", "0.5", "--seed", "3")
    isoflop, parametric = json.loads(run(capsys, *argv)[1])["laws"]
    options = {"bootstrap": 20, "level": 0.5, "seed": 3}
    # varpro is no method of isoflop, which keeps its own.
    for found, law, own in (
        (isoflop, "isoflop", {"window": 2.0}),
        (parametric, "parametric", {"method": "varpro"}),
    ):
        expected = laws.fit(table, law, **own, **options).to_json()
        assert found["parameters"] == expected["parameters"] and found["level"] == 0.5
        assert found["intervals"] == expected["intervals"]
    argv = (table, "--law", "isoflop", "--bootstrap", 20, "--json", "--window", "none")
    assert all(all(p["used"]) for p in json.loads(run(capsys, *argv)[1])["details"]["profiles"])


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["isoflop", "--windw", "4"], "no option --windw for isoflop: did you mean --window? (iso"),
        (
            ["parametric", "--window", "4"],
            "--window belongs to --law isoflop; parametric takes --m",
        ),
        (["isoflop", "--method", "akma"], "--method of isoflop must be parabola or akima, not 'ak"),
        (["parametric", "--delta", "big"], "--delta of parametric must be a number of at least 0"),
        (["isoflop", "--budget-tolerance", "-1"], "must be a number of at least 0, not '-1'"),
        (["isoflop", "--min-points", "2.5"], "must be a whole number of at least 1, not '2.5'"),
        (["data-constrained", "--base", "E=x"], "--base of data-constrained must be NAME=NUMBER"),
        (["isoflop", "--level", "95"], "--level: must be between 0 and 1, not '95'"),
        (["isoflop", "--window", "0.5"], "window must be a factor above 1"),
        (["power", "--x", "flops", "--at", "1e22"], "the law power says nothing on how to split"),
        (["isoflop", "--at", "-1"], "--at: must be a positive number, not '-1'"),
        (["isoflop", "--where", "parms > 1"], "there is no column 'parms'; did you mean params?"),
        (["isoflop", "--where", "params > 1e99"], "no row is left by the filter 'params > 1e99'"),
        (["isoflop", "--split", "mode"], "the table has no column mode; its columns are params"),
        (["isoflop", "--cells", "worst"], "--cells: invalid choice: 'worst'"),
        (["isoflop", "--convention", "kaplan"], "columns that only a store's results have"),
        (
            ["isoflop", "--columns", "loss=los"],
            "'los', which is not a column; did you mean 'loss'?",
        ),
    ],
)
def test_a_wrong_option_is_one_line(capsys, table, argv, says):
    assert says in refused(capsys, table, "--law", *argv)


@pytest.mark.slow
def test_optima_at_asked_budgets(capsys, tmp_path):
    frame = profiles(8)
    frame["loss"] = chinchilla_loss(EPOCH, params=frame["params"], tokens=frame["tokens"])
    frame.to_csv(tmp_path / "runs.csv", index=False)
    argv = (tmp_path / "runs.csv", "--law", "parametric", "isoflop", "kaplan-nd", "--bootstrap", 20)
    argv += ("--at", "1e21", "1.2e21")
    code, out, _ = run(capsys, *argv, "--json")
    parametric, isoflop, kaplan = json.loads(out)["laws"]
    assert code == 0
    for found, tolerance in ((parametric, 1e-3), (isoflop, 0.1)):
        assert [item["flops"] for item in found["at"]] == [1e21, 1.2e21]
        for item in found["at"]:
            best = optimal_allocation(EPOCH, item["flops"])
            assert set(item) == {"flops", "n_params", "n_tokens", "loss", "intervals", "warnings"}
            assert item["n_params"] == pytest.approx(best.n_params, rel=tolerance)
            assert item["n_tokens"] == pytest.approx(best.n_tokens, rel=tolerance)
            assert item["loss"] == pytest.approx(best.loss, rel=1e-3)
            low, high = item["intervals"]["n_params"]
            assert low <= item["n_params"] * 1.001 and high >= item["n_params"] * 0.999
    assert all("says nothing on how to split" in item["error"] for item in kaplan["at"])
    lines = run(capsys, *argv)[1].splitlines()
    at = lines.index("parametric:")
    assert lines[at + 1].split() == ["FLOPs", "N_opt", "D_opt", "loss"]
    assert lines[at + 3].startswith("1e+21  ") and lines[at + 4].startswith("1.2e+21")


@pytest.mark.slow
def test_a_filter_and_a_split(capsys, tmp_path):
    frame = pd.concat(
        [profiles().assign(mode="train"), profiles().assign(mode="valid"), profiles()[:2]]
    )
    frame.loc[frame["mode"] == "valid", "loss"] += 0.5
    frame.to_csv(tmp_path / "runs.csv", index=False)
    argv = (tmp_path / "runs.csv", "--law", "parametric", "--bootstrap", 20, "--starts", "coarse")
    train = json.loads(run(capsys, *argv, "--where", "mode == train", "--json")[1])
    assert train["n_used"] == 35 and train["dropped"] == []
    code, out, _ = run(capsys, *argv, "--split", "mode", "--json")
    split = json.loads(out)
    assert code == 0 and split["split"] == "mode"
    assert [item["value"] for item in split["values"]] == ["train", "valid", ""]
    assert split["values"][0]["parameters"] == train["parameters"]
    gap = split["values"][1]["parameters"]["E"] - train["parameters"]["E"]
    assert gap == pytest.approx(0.5, abs=1e-3)
    assert "only 2 usable rows" in split["values"][2]["error"]
    out = run(capsys, *argv, "--split", "mode")[1]
    assert "mode train:" in out and "mode valid:" in out and "not fitted: only 2 usable" in out


def test_a_search_is_not_taken_for_seeds(capsys, tmp_path):
    parts = [
        profiles().assign(lr=rate, loss=profiles()["loss"] + 0.01 * np.log2(rate / 1e-3) ** 2)
        for rate in (5e-4, 1e-3, 2e-3)
    ]
    pd.concat(parts).to_csv(tmp_path / "runs.csv", index=False)
    argv = (tmp_path / "runs.csv", "--law", "kaplan-nd", "--bootstrap", 20, "--json")
    code, out, err = run(capsys, *argv)
    assert code == 0 and json.loads(out)["n_used"] == 35
    assert "differ in lr: the best of each is fitted, and 70 of 105 rows are left out" in err
    assert json.loads(run(capsys, *argv, "--cells", "all")[1])["n_used"] == 105


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
        (["--law", "power", "--bootstrap", "0"], "a whole number from 20"),
        (["--law", "power"], "say which with --x params|tokens|flops"),
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
@pytest.mark.slow
def test_no_law_ends_in_a_traceback_on_a_poor_table(capsys, tmp_path, law):
    """Everything that any law reads is there, and all runs are of one size."""
    rng = np.random.default_rng(0)
    names = ("params", "tokens", "unique_tokens", "steps", "batch_tokens", "position", "loss")
    for rows in (2, 6):
        frame = pd.DataFrame({name: rng.uniform(1, 2, rows) for name in names})
        frame["params"] = 1e6
        frame.to_csv(tmp_path / "runs.csv", index=False)
        argv = (tmp_path / "runs.csv", "--law", law, "--bootstrap", 20, "--json")
        code, out, err = run(capsys, *argv)
        assert "Traceback" not in err
        if code == 0:
            assert json.loads(out)["law"] == law
        else:
            assert code == 2 and out == "" and len(err.strip().splitlines()) == 1


# --- Profiles that cannot be used -----------------------------------------------------------------


def test_profiles_of_few_sizes_are_one_line(capsys, tmp_path):
    frame = profiles(4).groupby(np.repeat(np.arange(4), 7)).head(3)
    frame.to_csv(tmp_path / "runs.csv", index=False)
    said = refused(capsys, tmp_path / "runs.csv", "--law", "isoflop", "--bootstrap", 20)
    assert "no budget has 4 sizes (of 4 budgets, the most has 3)" in said
    assert "--budget-tolerance" in said and "law parametric" in said
    code, out, _ = run(
        capsys,
        tmp_path / "runs.csv",
        "--law",
        "isoflop",
        "power",
        "--x",
        "flops",
        "--bootstrap",
        20,
    )
    assert code == 0 and "isoflop not fitted: no budget has 4 sizes" in out


def test_a_profile_of_three_points_has_no_interval_unless_the_noise_is_known(capsys, tmp_path):
    frame = profiles(4).groupby(np.repeat(np.arange(4), 7)).nth([1, 3, 5])
    frame.to_csv(tmp_path / "runs.csv", index=False)
    argv = [tmp_path / "runs.csv", "--law", "isoflop", "--bootstrap", 50, "--json"]
    code, out, err = run(capsys, *argv, "--min-points", 3)
    fit = json.loads(out)
    assert code == 0 and fit["parameters"]["a"] > 0 and not fit["intervals"]
    assert "nothing tells the noise of the runs" in err and "--noise" in err
    _, out, err = run(capsys, *argv, "--min-points", 3, "--noise", 0.005)
    low, high = json.loads(out)["intervals"]["a"]
    assert high - low > 0.005 and "nothing tells" not in err
    assert "at least 3, not 1" in refused(capsys, *argv, "--min-points", 1)


def test_an_empty_argument_is_one_line(capsys, table):
    assert "there is no option '' for parametric" in refused(
        capsys, table, "", "--law", "parametric"
    )


def test_an_interval_of_one_draw_is_refused(capsys, table):
    said = refused(capsys, table, "--law", "power", "--x", "flops", "--bootstrap", 1)
    assert "a whole number from 20" in said


def test_fit_of_any_table_as_json(capsys, tmp_path):
    rows = ["size,tok,final"]
    for n in (1e6, 3e6, 1e7, 3e7, 1e8):
        rows.append(f"{n},1e9,{(8.8e13 / n) ** 0.076}")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(rows))
    argv = [
        "fit",
        path,
        "--law",
        "power",
        "--columns",
        "params=size,tokens=tok,loss=final",
        "--x",
        "params",
        "--json",
    ]
    assert main([str(a) for a in argv]) == 0
    fit = json.loads(capsys.readouterr().out)
    assert fit["parameters"]["alpha_N"] == pytest.approx(0.076, rel=1e-3)
    assert fit["n_used"] == 5

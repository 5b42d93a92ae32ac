"""Reading tables: every malformed row is named, every unusable table refused in one line."""

import json

import numpy as np
import pandas as pd
import pytest

from lmscale import laws
from lmscale.laws.table import Table, TableError

GOOD = {
    "params": [1e6, 2e6, 4e6, 8e6],
    "tokens": [1e8, 1e8, 2e8, 4e8],
    "loss": [4.0, 3.8, 3.5, 3.2],
}


def write(tmp_path, text):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    return path


def test_the_third_of_params_tokens_and_flops_follows():
    runs = Table.read(GOOD).runs("params", "flops", "loss")
    np.testing.assert_allclose(runs["flops"], 6 * runs["params"] * runs["tokens"])
    halves = {"params": GOOD["params"], "flops": runs["flops"], "loss": GOOD["loss"]}
    np.testing.assert_allclose(Table.read(halves).runs("tokens")["tokens"], GOOD["tokens"])
    given = Table.read({**GOOD, "flops": [1.0, 2.0, 3.0, 4.0]}).runs("flops")
    np.testing.assert_allclose(given["flops"], [1, 2, 3, 4])


def test_csv_dataframe_and_dict_read_alike(tmp_path):
    path = tmp_path / "runs.csv"
    pd.DataFrame(GOOD).to_csv(path, index=False)
    for source in (str(path), path, pd.DataFrame(GOOD), GOOD):
        runs = Table.read(source).runs("params", "tokens", "loss")
        np.testing.assert_array_equal(runs["params"], GOOD["params"])
        assert runs.dropped == () and runs.warnings == ()


def test_columns_are_mapped_and_common_names_found():
    raw = {"Model Size": GOOD["params"], "n_tokens": GOOD["tokens"], "c4": GOOD["loss"]}
    runs = Table.read(raw, "loss=c4").runs("params", "tokens", "loss")
    np.testing.assert_array_equal(runs["loss"], GOOD["loss"])
    np.testing.assert_array_equal(runs["params"], GOOD["params"])
    # A mapped column is not also taken under its own name.
    both = {**GOOD, "val_loss": [9.0, 8.0, 7.0, 6.0]}
    assert Table.read(both, {"loss": "val_loss"}).runs("loss")["loss"][0] == 9.0


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        ("loss", "3.1 nats", "loss is '3.1 nats', not a number"),
        ("loss", "-3.1", "loss is -3.1; it must be positive"),
        ("loss", "nan", "loss is NaN"),
        ("loss", "", "loss is blank"),
        ("loss", "inf", "loss is inf, which is not finite"),
        ("params", "1e400", "params is 1e400, which is not finite"),
        ("tokens", "0", "tokens is 0; it must be positive"),
    ],
)
def test_a_bad_cell_drops_its_row_with_the_reason(tmp_path, column, cell, reason):
    frame = pd.DataFrame(GOOD).astype(str)
    frame.loc[1, column] = cell
    frame.to_csv(tmp_path / "runs.csv", index=False)
    runs = Table.read(tmp_path / "runs.csv").runs("params", "flops", "loss")
    assert [(d.row, d.reason) for d in runs.dropped] == [(2, reason)]
    assert runs.row.tolist() == [1, 3, 4]
    assert f"1 of 4 rows dropped (row 2: {reason})" in runs.warnings


def test_duplicate_and_ragged_rows_are_dropped(tmp_path):
    path = write(tmp_path, "params,loss\n1e6,4\n2e6,3.5\n1e6,4\n4e6,3,7\n8e6,2.8\n")
    runs = Table.read(path).runs("params", "loss")
    assert [(d.row, d.reason) for d in runs.dropped] == [
        (3, "is a duplicate of row 1"),
        (4, "has 3 fields where the header has 2"),
    ]


def test_equal_losses_of_two_seeds_are_no_duplicates():
    table = {"params": [1e6, 1e6, 2e6], "loss": [4.0, 4.0, 3.0], "seed": [0, 1, 0]}
    assert len(Table.read(table).runs("params", "loss")) == 3


def test_a_blank_in_a_column_that_is_not_read_costs_nothing():
    table = {**GOOD, "unique_tokens": [1e8, None, 1e8, 1e8]}
    assert len(Table.read(table).runs("params", "loss")) == 4
    assert len(Table.read(table).runs("params", "loss", "unique_tokens")) == 3


@pytest.mark.parametrize(
    ("text", "law", "says"),
    [
        ("params,tokens\n1,2\n1,3\n1,4\n", "power", "no column loss"),
        ("params,loss\n1e6,3\n2e6,2\n", "isoflop", "no column flops"),
        ("params,loss\n1e6,3\n2e6,2\n", "power", "only 2 usable rows; this law needs at least 3"),
        ("params,loss\n1e6,3\n1e6,2\n1e6,4\n", "power", "all 3 rows have params 1e+06"),
        ("params,loss\n", "power", "no rows below its header"),
        ("", "power", "is empty"),
        ("params,params,loss\n1,2,3\n", "power", "names params twice"),
        ("params,loss\n1e6,x\n2e6,2\n3e6,y\n", "power", "(2 dropped, the first because row 1: "),
    ],
)
def test_an_unusable_table_is_refused_in_one_line(tmp_path, text, law, says):
    with pytest.raises(TableError) as error:
        laws.fit(write(tmp_path, text), law)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_other_refusals(tmp_path):
    with pytest.raises(TableError, match="there is no file"):
        Table.read(tmp_path / "none.csv")
    with pytest.raises(TableError, match="'nope', which is not a column; the columns are params"):
        Table.read(GOOD, "loss=nope")
    with pytest.raises(TableError, match="no column 'lose' to map"):
        Table.read(GOOD, "lose=loss")
    with pytest.raises(TableError, match="must read params=COL"):
        Table.read(GOOD, "loss")
    with pytest.raises(TableError, match="different lengths"):
        Table.read({"params": [1, 2], "loss": [1]})
    with pytest.raises(laws.FitError, match="no law 'parabolic'; choose from"):
        laws.fit(GOOD, "parabolic")


def test_where_keeps_row_numbers_and_reports_no_others():
    table = Table.read({**GOOD, "group": ["lstm", "transformer", "lstm", "lstm"]})
    runs = table.where("group", "lstm").runs("params", "loss")
    assert runs.row.tolist() == [1, 3, 4] and runs.dropped == ()
    with pytest.raises(TableError, match="no row has group 'gru'; there are lstm, transformer"):
        table.where("group", "gru")


def test_units_that_cannot_be_are_pointed_out():
    table = {**GOOD, "flops": 6e9 * np.array(GOOD["params"]) * GOOD["tokens"]}
    (warning,) = Table.read(table).runs("loss", "flops").warnings
    assert "1e+09 times 6 params tokens" in warning


def test_json_has_the_contract_keys_and_no_nan():
    result = laws.fit({**GOOD, "loss": [4.0, 3.8, 3.5, -1]}, "power", x="params")
    text = json.dumps(result.to_json(), allow_nan=False)
    assert set(json.loads(text)) >= {
        "law", "parameters", "intervals", "objective", "converged", "n_used", "dropped",
        "exponents", "warnings",
    }  # fmt: skip
    assert json.loads(text)["dropped"] == [{"row": 4, "reason": "loss is -1; it must be positive"}]


def test_equal_losses_of_rows_that_differ_elsewhere_are_no_duplicates():
    table = {
        "params": [1e6, 1e6, 1e6, 2e6],
        "loss": [4.0, 4.0, 4.0, 3.0],
        "run": ["a", "b", "b", "c"],
    }
    runs = Table.read(table).runs("params", "loss")
    assert [(d.row, d.reason) for d in runs.dropped] == [(3, "is a duplicate of row 2")]


# --- Conventions ----------------------------------------------------------------------------------


def test_a_budget_label_of_another_count_is_not_used():
    table = {
        "params": np.tile([1e6, 2e6, 4e6, 8e6], 2),
        "flops": np.repeat([1e15, 1e16], 4),
        "loss": np.linspace(4, 3, 8),
        "budget": np.repeat([1.05e15, 0.95e16], 4),
    }
    runs = Table.read(table).runs("params", "flops", "loss", "tokens")
    assert "budget" in runs.labels and runs.warnings == ()
    other = {**table, "flops": table["flops"] * np.tile([0.5, 0.6, 0.75, 0.9], 2)}
    runs = Table.read(other, convention="kaplan").runs("params", "flops", "loss", "tokens")
    (warning,) = runs.warnings
    assert "budget" not in runs.labels
    assert warning.startswith("the column budget is not used: 7 of 8 runs have other flops counted")
    words = {**other, "budget": np.repeat(["small", "large"], 4)}
    assert "budget" in Table.read(words).runs("params", "flops", "loss", "tokens").labels


def test_params_and_flops_of_two_conventions_are_said():
    table = {
        "params_kaplan": [1e6, 2e6, 4e6],
        "flops_standard": [1e15] * 3,
        "loss": [4.0, 3.9, 3.8],
    }
    mapping = "params=params_kaplan,flops=flops_standard"
    (warning,) = Table.read(table, mapping).runs("params", "flops", "loss").warnings
    assert "params are counted as kaplan (params_kaplan) and flops as standard" in warning


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (("N (M)", "D (B)", "loss"), "--columns 'params=N (M)*1e6,tokens=D (B)*1e9'"),
        (("params [M]", "tokens", "loss"), "--columns 'params=params [M]*1e6'"),
        (("N, millions", "tokens", "loss"), "--columns 'params=\"N, millions\"*1e6'"),
        (("size", "steps", "loss"), "--columns params=COL"),
    ],
)
def test_a_header_with_a_unit_is_suggested_by_name(header, says):
    tokens = [1.0, 2.0] if "(B)" in header[1] else [1e9, 2e9]
    rows = dict(zip(header, ([10.0, 20.0], tokens, [4.0, 3.0]), strict=True))
    with pytest.raises(TableError) as error:
        Table.read(rows).runs("params", "tokens", "loss", least=1)
    assert str(error.value).endswith(says)
    if "COL" not in says:
        mapping = says.removeprefix("--columns ").strip("'")
        runs = Table.read(rows, mapping).runs("params", "tokens", "loss", least=1)
        assert list(runs["params"]) == [1e7, 2e7]

"""Groups and rows of a table: in order, typed, without the rows that have no value."""

import numpy as np
import pandas as pd

from lmscale.studies.groups import by_name, by_number, first_row, rows_of

TABLE = pd.DataFrame(
    {"size": [20, 10, np.nan, 10], "family": ["b", "a", "b", None], "loss": [1.0, 2.0, 3.0, 4.0]}
)


def test_groups_ascend_and_leave_out_what_has_no_value():
    assert [(n, list(rows["loss"])) for n, rows in by_number(TABLE, "size")] == [
        (10.0, [2.0, 4.0]),
        (20.0, [1.0]),
    ]
    assert [(n, list(rows["loss"])) for n, rows in by_name(TABLE, "family")] == [
        ("a", [2.0]),
        ("b", [1.0, 3.0]),
    ]


def test_a_table_without_rows_has_no_groups():
    empty = pd.DataFrame(columns=["size", "family"])
    assert not list(by_number(empty, "size")) and not list(by_name(empty, "family"))
    assert rows_of(empty) == []


def test_rows_keep_the_types_of_their_columns():
    table = pd.DataFrame({"n": [3], "name": ["x"], "loss": [0.5]})
    assert first_row(table) == {"n": 3, "name": "x", "loss": 0.5}
    assert isinstance(first_row(table)["n"], int)

"""Row filters: what they keep, that they execute nothing, and errors that show the place."""

import numpy as np
import pytest

from lmscale.laws.table import Table, TableError

TABLE = {
    "n_params": [1e6, 2e6, 4e6, 8e6, 16e6, 32e6],
    "tokens": ["1M", "2M", "4M", "8M", "16M", ""],
    "loss": [4.0, 3.8, 3.6, 3.4, 3.2, 3.0],
    "mode": ["train", "valid", "train", "train", "valid", "190M-1xC"],
    "N, total": [1, 2, 3, 4, 5, 6],
    "ok": [True, True, False, False, True, True],
}


def kept(expression):
    return Table.read(TABLE).filter(expression).runs("params", "loss", least=0).row.tolist()


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("mode == train", [1, 3, 4]),
        ("mode == 'train'", [1, 3, 4]),
        ('mode != "train"', [2, 5, 6]),
        ("mode == 190M-1xC", [6]),
        ("train == mode", [1, 3, 4]),
        ("n_params > 4e6", [4, 5, 6]),
        ("params >= 4M", [3, 4, 5, 6]),
        ("tokens < 4e6", [1, 2]),
        ("2e6 <= params < 16e6", [2, 3, 4]),
        ("16e6 > params >= 2e6", [2, 3, 4]),
        ("flops > 1e14", [4, 5]),
        ("tokens == ''", [6]),
        ("ok == true", [1, 2, 5, 6]),
        ("`N, total` > 4 and mode != valid", [6]),
        ("mode in (train, 'valid')", [1, 2, 3, 4, 5]),
        ("loss in (4, 3.20)", [1, 5]),
        ("mode not in (train)", [2, 5, 6]),
        ("mode == train and params > 1e6 or loss == 3", [3, 4, 6]),
        ("mode == train and (params > 1e6 or loss == 3)", [3, 4]),
        ("not mode == train and not (loss > 3.5)", [5, 6]),
        ("NOT mode == train OR loss > 3.7", [1, 2, 5, 6]),
    ],
)
def test_the_rows_that_a_filter_keeps(expression, rows):
    assert kept(expression) == rows


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("mod == train", "there is no column 'mod'; did you mean mode?"),
        ("qqq == 1", "there is no column 'qqq'; they are n_params, tokens"),
        ("mode = train", "equality is written == (at >>> in 'mode >>>= train')"),
        ("mode ==", "a column or a value is missing before the end"),
        ("mode", "a comparison is missing: =="),
        ("mode == train params > 3", "'params' is not expected here; join comparisons by and, or"),
        ("(mode == train", "a closing ) is missing"),
        ("mode == 'train", 'a quote is not closed (at >>> in "mode == >>>\'train")'),
        ("mode < train", "< compares with a number, not 'train'"),
        ("mode > 3 and ok == true", "column mode holds no numbers to compare by >"),
        ("ok > 3", "column ok holds no numbers to compare by >"),
        ("mode in train", "in takes values in parentheses"),
        ("mode in (train", "separated by commas and closed by )"),
        ("mode == ok", "ok is a column too; put quotes round a value"),
        ("1 < 2 < 3", "there is no column '2'"),
        ("mode not train", "not must be followed by in (..)"),
        ("", "must say which rows to keep"),
        ("params > 1e9", "no row is left by the filter 'params > 1e9'"),
        ("__import__('os').system('false') == 0", "a comparison is missing"),
        ("params.__class__ == 0", "there is no column 'params.__class__'"),
        ("@params == 0", "there is no column '@params'"),
    ],
)
def test_what_cannot_be_a_filter_is_one_line(expression, says):
    with pytest.raises(TableError) as error:
        kept(expression)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_rows_that_are_filtered_out_are_not_reported_as_dropped():
    table = {**TABLE, "loss": [4.0, -1, 3.6, 3.4, 3.2, 3.0]}
    runs = Table.read(table).filter("mode == train").runs("params", "loss")
    assert runs.dropped == () and runs.warnings == ()
    np.testing.assert_array_equal(runs["params"], [1e6, 4e6, 8e6])


def test_a_table_is_split_by_the_values_of_a_column():
    parts = Table.read(TABLE).filter("loss > 3").split("mode")
    assert list(parts) == ["train", "valid"]
    assert parts["valid"].runs("params", "loss", least=0).row.tolist() == [2, 5]
    with pytest.raises(TableError, match="no column family; its columns are n_params"):
        Table.read(TABLE).split("family")

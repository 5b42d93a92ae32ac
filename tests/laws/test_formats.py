"""Every way of writing a table down gives the same table; what can't be read is named."""

import bz2
import gzip
import json
import lzma

import numpy as np
import pytest

from lmscale.laws import formats
from lmscale.laws.cell_numbers import NumberStyle, parse_number, read_number
from lmscale.laws.table import Table, TableError
from tests.laws import planted

FRAME = planted.runs()
CSV = FRAME.to_csv(index=False)
RECORDS = FRAME.to_dict("records")


def lines(form, header="params,tokens,loss", part=","):
    """The runs as text, each written by `form(params, tokens, loss)`."""
    rows = (part.join(form(int(n), int(d), loss)) for n, d, loss in FRAME.to_numpy())
    return "\n".join((header.replace(",", part), *rows))


def grouped(mark):
    return lambda number: f"{number:,}".replace(",", mark)


def read(path, content, **options):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Table.read(path, **options).runs("params", "tokens", "loss", least=1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("runs.csv", CSV),
        ("bom.csv", "\ufeff" + CSV),
        ("utf16.txt", CSV.replace(",", "\t").encode("utf-16")),
        ("runs.tsv", CSV.replace(",", "\t")),
        ("semicolons.csv", CSV.replace(",", ";")),
        ("bars.txt", CSV.replace(",", "|")),
        ("spaces.txt", CSV.replace(",", "   ")),
        ("comments.csv", "# exported 2026, in nats\n\n" + CSV.replace("\n", "\n# a note\n", 3)),
        ("commented_header.txt", "#" + CSV.replace(",", " ")),
        ("runs.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
        ("runs.csv.xz", lzma.compress(CSV.encode())),
        ("runs.csv.bz2", bz2.compress(CSV.encode())),
        ("records.json", json.dumps(RECORDS)),
        ("columns.json", json.dumps(FRAME.to_dict("list"))),
        ("data.json", json.dumps({"made": "2026", "data": RECORDS})),
        ("split.json", FRAME.to_json(orient="split")),
        ("by_row.json", FRAME.to_json()),
        ("runs.jsonl", "\n".join(map(json.dumps, RECORDS))),
        ("runs.jsonl.gz", gzip.compress("\n".join(map(json.dumps, RECORDS)).encode())),
        ("powers.csv", lines(lambda n, d, loss: (f"{n / 1e6:.6f}e6", f"{d:.16e}", str(loss)))),
        ("underscores.csv", lines(lambda n, d, loss: (f"{n:_}", f"{d:_}", str(loss)))),
        ("quoted.csv", lines(lambda n, d, loss: (f'"{n:,}"', f'"{d:,}"', str(loss)))),
        ("suffix.csv", lines(lambda n, d, loss: (f"{n / 1e6:.6f}M", f"{d / 1e9:.9f}B", str(loss)))),
        ("words.csv", lines(lambda n, d, loss: (f"{n / 1e6:.6f} million", f"{d}", str(loss)))),
        (
            "decimal_commas.csv",
            lines(lambda n, d, loss: (str(n), str(d), str(loss).replace(".", ",")), part=";"),
        ),
        (
            "points_and_commas.csv",
            lines(
                lambda n, d, loss: (grouped(".")(n), grouped(".")(d), str(loss).replace(".", ",")),
                part=";",
            ),
        ),
        (
            "thin_spaces.csv",
            lines(lambda n, d, loss: (grouped("\u202f")(n), grouped("'")(d), str(loss))),
        ),
    ],
)
def test_every_dialect_is_the_same_table(tmp_path, name, content):
    runs = read(tmp_path / name, content)
    assert runs.dropped == () and runs.warnings == ()
    for column in ("params", "tokens", "loss"):
        np.testing.assert_allclose(runs[column], FRAME[column], rtol=1e-12)


@pytest.mark.parametrize(
    ("cells", "losses"),
    [
        (["2,85", "3,1", "2,901"], [2.85, 3.1, 2.901]),
        # One group of three digits: no loss is in the thousands.
        (["2,850", "3,100"], [2.85, 3.1]),
        (["2.850", "3.1"], [2.85, 3.1]),
    ],
)
def test_a_loss_with_a_decimal_comma_is_never_an_integer(tmp_path, cells, losses):
    text = "params;loss\n" + "\n".join(f"{i + 1}e6;{cell}" for i, cell in enumerate(cells))
    (tmp_path / "runs.csv").write_text(text)
    runs = Table.read(tmp_path / "runs.csv").runs("params", "loss", least=1)
    np.testing.assert_array_equal(runs["loss"], losses)


def test_a_count_that_reads_two_ways_is_named(tmp_path):
    (tmp_path / "runs.csv").write_text("params;loss\n1,234;3\n20;2\n30;2.5\n")
    runs = Table.read(tmp_path / "runs.csv").runs("params", "loss", least=1)
    (dropped,) = runs.dropped
    assert dropped.row == 1
    assert dropped.reason == (
        "params is '1,234', which may be 1234 or 1.234; write it without the comma"
    )


def test_other_cells_of_a_column_decide_how_one_is_read(tmp_path):
    (tmp_path / "runs.csv").write_text("params;loss\n1,234;3\n1,234,567;2\n8.500;2.5\n")
    runs = Table.read(tmp_path / "runs.csv").runs("params", "loss", least=1)
    np.testing.assert_array_equal(runs["params"], [1234, 1234567, 8.5])
    (tmp_path / "runs.csv").write_text("params;loss\n1.234;3\n1.234.567;2\n8,5;2.5\n")
    runs = Table.read(tmp_path / "runs.csv").runs("params", "loss", least=1)
    np.testing.assert_array_equal(runs["params"], [1234, 1234567, 8.5])


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("10M", 1e7), ("1.3B", 1.3e9), ("410m", 4.1e8), ("7 bn", 7e9), ("2T", 2e12), ("5k", 5e3),
        ("110,678,115", 110678115), ("1_000", 1e3), ("1e9", 1e9), ("3 PF-days", 2.592e20),
        ("12 GFLOPs", 1.2e10), ("1.5 EFLOP", 1.5e18), ("0.4B", 4e8),
    ],
)  # fmt: skip
def test_suffixes_and_separators(cell, value):
    assert parse_number(cell) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("cell", ["1.3Q", "~10M", "1x10^9", "10 apples", "1,2,3", "M", "--5", ""])
def test_what_is_no_number_is_none(cell):
    assert parse_number(cell) is None


def test_a_loss_has_no_suffix_and_only_compute_has_flops():
    for cell, style in (("3M", NumberStyle(counts=False)), ("3 GFLOPs", NumberStyle())):
        with pytest.raises(ValueError, match="not a number"):
            read_number(cell, style)


def test_bad_json_rows_are_named_and_the_rest_is_read(tmp_path):
    text = "\n".join(
        [*map(json.dumps, RECORDS), '{"params": 1e7,', "[1, 2]", '{"params": true, "loss": [3]}']
    )
    runs = read(tmp_path / "runs.jsonl", text)
    assert len(runs) == 48
    assert [(item.row, item.reason) for item in runs.dropped] == [
        (49, "line 49 is not JSON: Expecting property name enclosed in double quotes"),
        (50, "is not an object {name: value, ..}"),
        (51, "params is True, not a number"),
    ]


def test_nested_json_has_dotted_columns(tmp_path):
    nested = [{"config": {"n": row["params"]}, "loss": row["loss"]} for row in RECORDS]
    (tmp_path / "runs.json").write_text(json.dumps(nested))
    runs = Table.read(tmp_path / "runs.json", "params=config.n").runs("params", "loss", least=1)
    assert runs["params"][0] == 1e7


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("1e7,4e8,5.08\n1e7,1e9,4.6\n", "the first line of .* holds numbers .*name the columns"),
        (b"PAR1\x00", "is a Parquet file; save it as CSV or JSON"),
        (b"PK\x03\x04", "is a spreadsheet or zip archive"),
        (b"\x28\xb5\x2f\xfd", "is compressed by zstd"),
        (b"\x1f\x8b\x00", "is a damaged archive"),
        ('{"runs": 3, "list": [1]}', "holds no table; give a list of objects"),
        ("[1, 2]", "its rows must be objects"),
        ("{nonsense\n", "is not JSON"),
        ("# only\n# comments\n", "is empty"),
    ],
)
def test_what_is_no_table_is_one_line(tmp_path, content, says):
    path = tmp_path / "runs"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TableError, match=says) as error:
        Table.read(path)
    assert "\n" not in str(error.value)


# --- Columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns",
    [
        'params="N, total",tokens=D',
        "params='N, total', tokens=D",
        "params=N, total,tokens=D",
        ["params=N, total", "tokens=D"],
        {"params": "N, total", "tokens": "D"},
    ],
)
def test_a_comma_in_a_columns_name_can_be_mapped(columns):
    frame = FRAME.rename(columns={"params": "N, total", "tokens": "D"})
    runs = Table.read(frame, columns).runs("params", "tokens", "loss")
    np.testing.assert_array_equal(runs["params"], FRAME["params"])


def test_an_equals_sign_in_a_columns_name_stands_in_quotes():
    frame = FRAME.rename(columns={"loss": "loss, d=96"})
    runs = Table.read(frame, 'loss="loss, d=96"').runs("loss", "params")
    np.testing.assert_array_equal(runs["loss"], FRAME["loss"])


def test_a_column_in_millions_is_scaled():
    runs = Table.read(FRAME.assign(params=FRAME["params"] / 1e6), "params=params*1e6").runs(
        "params"
    )
    np.testing.assert_allclose(runs["params"], FRAME["params"])


def test_a_mapped_column_that_is_not_there_comes_with_its_neighbours():
    frame = FRAME.rename(columns={"loss": "c4_en"})
    with pytest.raises(TableError, match=r"'c4-en', which is not a column; did you mean 'c4_en'\?"):
        Table.read(frame, "loss=c4-en")


def test_lines_may_end_in_carriage_returns(tmp_path):
    text = "params,tokens,loss\n1e7,4e8,5.08\n1e7,1e9,4.6\n"
    for end in ("\r", "\r\n", "\n"):
        (tmp_path / "runs.csv").write_bytes(text.replace("\n", end).encode())
        runs = Table.read(tmp_path / "runs.csv").runs("params", "tokens", "loss", least=1)
        assert list(runs["loss"]) == [5.08, 4.6]


def test_a_bad_line_is_named_by_its_number_in_the_file(tmp_path):
    good = '{"params": 1e7, "loss": 4.0}'
    (tmp_path / "runs.jsonl").write_text(f"{good}\nnot json\n\n{good[:-1]}\n{good}\n")
    runs = Table.read(tmp_path / "runs.jsonl").runs("params", "loss", least=1)
    first, second = (item.reason for item in runs.dropped[:2])
    assert first.startswith("line 2 is not JSON") and second.startswith("line 4 is not JSON")


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, bz2.compress])
def test_more_than_a_table_can_hold_is_not_read(tmp_path, monkeypatch, pack):
    """Devices never end, and a small archive can hold more than the memory does."""
    monkeypatch.setattr(formats, "_LARGEST", 1 << 20)
    with pytest.raises(TableError, match="holds more than"):
        read(tmp_path / "zeros", pack(bytes((1 << 20) + 1)))


def test_a_device_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(formats, "_LARGEST", 1 << 20)
    with pytest.raises(TableError, match="'/dev/zero' holds more than"):
        Table.read("/dev/zero")

"""--where: rows by the values of their fields."""

import json
from decimal import Decimal

import numpy as np
import pytest
from etils import epath

from lmscale.data import DataError, build_corpus, describe
from lmscale.data.describe import summary_lines
from lmscale.data.sources import read_documents
from lmscale.data.where import RowFilter
from tests.cli.answers import refused
from tests.data.prose import documents, write_text

ROW = {
    "score": 0.9,
    "lang": "en",
    "n": 3,
    "meta": {"source": "a b", "ok": True},
    "none": None,
    "digits": "3",
    "id": 9007199254740993,
    "a.b": 1,
    "c.d": 2,
    "c": {"d": 3},
    "ten": 10,
}


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("score>=0.9", True), ("score > 0.9", False), ("score<1", True), ("score <= 0.5", False),
        ("lang=en", True), ("lang == 'en'", True), ("lang != en", False), ("lang=de", False),
        ("n=3", True), ("n!=3", False), ("meta.source = a b", True), ("meta.ok=true", True),
        ("meta.source.deeper=1", False), ("none=1", False), ("none!=1", False), ("absent>=0", False),
        ("lang>=1", False), ("score=en", False),
        ("meta.ok=True", False), ("meta.ok==true", True), ("none=null", False), ("digits=3", False),
        ("id!=9007199254740993", False), ("id=9007199254740992", False), ("id>9007199254740992", True),
        ("id<=9007199254740992", False), ("n=3.0", True), ("n>2.5", True), ("n=3e0", True), ("n<3.1", True),
        ("a.b=1", True), ("c.d=2", True), ("c.d=3", False), ("ten=1_0", False), ("n=nan", False),
        ('digits="3"', True), ("absent!=1", False), ("lang!=1", False), ("n!=en", False),
    ],
)  # fmt: skip
def test_conditions(condition, kept):
    where = RowFilter([condition])
    assert where.keeps(ROW) == kept and where.left_out == (not kept)


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.setenv("LMSCALE_DATA", str(tmp_path / "data"))
    return [
        {"score": i / 100, "meta": {"lang": "en" if i % 3 else "de"}, "text": text}
        for i, text in enumerate(documents(100))
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_corpus_of_the_rows_that_meet_all_conditions(tmp_path, rows, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    where = ["score>=0.5", "meta.lang=en"]
    settings = {"vocab_size": 320, "valid_fraction": 0, "test_fraction": 0}
    corpus = build_corpus("a", [str(path)], where=where, **settings)
    expected = {r["text"] for r in rows if r["score"] >= 0.5 and r["meta"]["lang"] == "en"}
    assert corpus.n_documents("train") == len(expected)
    assert corpus.n_bytes("train") == sum(len(text.encode()) for text in expected)
    assert describe(corpus)["dropped"]["filtered"] == 100 - len(expected)
    assert f"{100 - len(expected)} rows did not meet" in "\n".join(summary_lines(corpus))
    with pytest.raises(DataError, match="exists with where"):
        build_corpus("a", [str(path)], where=where[:1], **settings)
    with pytest.raises(DataError, match=r"no row has a field 'absent'|no column 'absent', which"):
        build_corpus("b", [str(path)], where=["absent=1"], **settings)


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("single>=0.9", "bc"), ("single=0.1", "a"), ("single>0.9", ""), ("single!=0.9", "a"),
        ("m.single<0.9", "a"), ("m.single=0.9", "bc"), ("half>=0.9", "bc"), ("half=0.1", "a"), ("single<1e300", "abc"),
        ("price=0.10", "a"), ("price>0.1", "bc"), ("big=9007199254740993", "b"), ("a.b>1", "bc"),
    ],
)  # fmt: skip
def test_columns_are_compared_in_their_own_type(tmp_path, condition, kept):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    scores = [0.1, 0.9, 0.9, None]
    prices = [Decimal("0.10"), Decimal("0.90"), Decimal("0.90"), None]
    of_meta = pyarrow.struct([("single", pyarrow.float32())])
    columns = {
        "text": [*"abcd"],
        "single": pyarrow.array(scores, pyarrow.float32()),
        "half": pyarrow.array(np.array([0.1, 0.9, 0.9, np.nan], np.float16)),
        "m": pyarrow.array([*({"single": score} for score in scores[:3]), None], of_meta),
        "price": pyarrow.array(prices, pyarrow.decimal128(9, 2)),
        "big": [9007199254740992, 9007199254740993, 9007199254740994, None],
        "a.b": [1, 2, 3, None],
    }
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    found = read_documents(epath.Path(path), where=RowFilter([condition]))
    assert b"".join(text for text, _ in found).decode() == kept


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = epath.Path(tmp_path / "a.parquet")
    table = pyarrow.table([["a"], ["b"], [1], [2]], names=["text", "text", "n", "n"])
    parquet.write_table(table, path)
    with pytest.raises(DataError, match="has 2 columns 'text': name them apart"):
        list(read_documents(path))
    parquet.write_table(table.select([0, 2, 3]), path)
    assert [text for text, _ in read_documents(path)] == [b"a"]
    with pytest.raises(DataError, match="has 2 columns 'n'"):
        list(read_documents(path, where=RowFilter(["n=1"])))


@pytest.mark.parametrize(
    ("conditions", "why"),
    [
        (["nope=3"], "no row has a field 'nope' (--where nope=3); there are score, meta, text"),
        (["score>0", "meta.nope=3"], "no row has a field 'meta.nope' (--where meta.nope=3); there are meta.lang"),
        (["score>2"], "100 rows, and none meets --where score>2"),
        (["score<0.5", "score>0.6"], "100 rows, and none meets --where score<0.5 score>0.6"),
    ],
)  # fmt: skip
def test_why_no_row_was_kept(tmp_path, rows, capsys, conditions, why):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = refused(capsys, "data", "build", "a", "--input", str(path), "--where", *conditions)
    assert f"the input of corpus a: {why}" in said


def test_the_source_of_a_mixture_of_which_no_row_was_kept_is_named(tmp_path, rows, capsys):
    for name, some in (("a", rows), ("b", [{"text": row["text"] + "b"} for row in rows])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    argv = ("data", "build", "c", "--where", "score>=0", "--input")
    said = refused(capsys, *argv, f"{tmp_path}/a.jsonl=0.5", f"{tmp_path}/b.jsonl=0.5")
    assert f"the input {tmp_path}/b.jsonl of corpus c: no row has a field 'score'" in said


def test_what_is_no_condition_is_one_line(tmp_path, rows, capsys):
    text = write_text(tmp_path / "a.txt", documents(60))
    argv = ("data", "build", "a", "--input", text, "--where")
    assert "'lang' is no condition on rows" in refused(capsys, *argv, "lang")
    assert "is not a number: use = or !=" in refused(capsys, *argv, "lang>=en")
    assert "is text, which has no fields" in refused(capsys, *argv, "lang=en")

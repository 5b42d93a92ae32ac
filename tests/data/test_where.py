"""--where: rows by the values of their fields."""

import json

import pytest

from lmscale.data import DataError, build_corpus, describe
from lmscale.data.describe import summary_lines
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

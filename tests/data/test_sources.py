import bz2
import gzip
import io
import json
import lzma

import pytest
from etils import epath

from lmscale.data import DataError, sources
from lmscale.data.inputs import find_inputs
from lmscale.data.sources import read_documents
from tests.data.prose import documents

DOCUMENTS = [text.strip() for text in documents(5)]
JSONL = "\n".join(json.dumps({"text": text, "id": i}) for i, text in enumerate(DOCUMENTS)) + "\n"
TEXT = "\n\x0c\n".join(DOCUMENTS)


def read(path, **kwargs):
    return [text.decode() for text, _ in read_documents(epath.Path(path), **kwargs)]


@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
@pytest.mark.parametrize("compression", ["", ".gz", ".xz", ".zst"])
def test_every_text_format(tmp_path, kind, compression):
    data = (TEXT if kind == ".txt" else JSONL).encode()
    half = len(data) // 2
    match compression:
        case ".gz":
            data = gzip.compress(data[:half]) + gzip.compress(data[half:])
        case ".xz":
            data = lzma.compress(data)
        case ".zst":
            zstandard = pytest.importorskip("zstandard")
            # Two frames: as `cat a.zst b.zst` gives.
            data = zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    path = tmp_path / f"a{kind}{compression}"
    path.write_bytes(data)
    assert read(path) == DOCUMENTS


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"n": [1, 2, 3, 4, 5], "content": DOCUMENTS}), path)
    assert read(path, text_field="content") == DOCUMENTS
    with pytest.raises(DataError, match="no column 'text'; its columns are n, content"):
        read(path)
    with pytest.raises(DataError, match="row 1, column 'n' is not text but int"):
        read(path, text_field="n")
    parquet.write_table(pyarrow.table({"text": ["one", None, "two"]}), path)
    with pytest.raises(DataError, match="row 2, column 'text' is null, not text"):
        read(path)
    said = []
    assert read(path, on_bad=said.append) == ["one", "two"] and len(said) == 1
    path.write_bytes(b"not parquet")
    with pytest.raises(DataError, match="is not a Parquet file"):
        read(path)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one", ["one"]),
        ("one\n", ["one\n"]),
        ("one\n\x0c\ntwo\n", ["one", "two\n"]),
        ("\x0c\none\n\x0c\n\x0c\ntwo\n\x0c\n", ["", "one", "", "two", ""]),
        ("one\n\x0c", ["one"]),
        ("in\x0cline\n\x0c inside", ["in\x0cline\n\x0c inside"]),
        ("", [""]),
    ],
)
def test_form_feed_lines_separate_documents(tmp_path, monkeypatch, text, expected, chunk):
    monkeypatch.setattr(sources, "_CHUNK", chunk)
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    assert [t for t in read(path) if t] == [t for t in expected if t]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 16, 1 << 20])
@pytest.mark.parametrize(
    ("text", "separator", "expected"),
    [
        # By themselves: a form feed or the end-of-text mark, with either kind of line end.
        ("one\r\n\x0c\r\ntwo\r\n", None, ["one", "two\r\n"]),
        ("one\n<|endoftext|>\ntwo\n<|endoftext|>\n", None, ["one", "two"]),
        ("one\r\n<|endoftext|>\r\n\x0c\r\ntwo", None, ["one", "two"]),
        ("one\n<|endoftext|>\r\ntwo\n\x0c\r", None, ["one", "two"]),
        (
            "in <|endoftext|> line\n<|endoftext|>s\n",
            None,
            ["in <|endoftext|> line\n<|endoftext|>s\n"],
        ),
        # Another line, which may hold signs of a pattern.
        ("one\n***\ntwo\n\x0c\ntwo\n***\n***\nthree", "***", ["one", "two\n\x0c\ntwo", "three"]),
        ("one\n\ntwo\r\n\r\n\r\nthree\n", "", ["one", "two", "three\n"]),
        ("one\nÄnde\ntwo", "Ände\n", ["one", "two"]),
    ],
)
def test_other_lines_separate_documents(tmp_path, monkeypatch, text, separator, expected, chunk):
    monkeypatch.setattr(sources, "_CHUNK", chunk)
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    assert [t for t in read(path, separator=separator) if t] == expected


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.json.xz"])
def test_json_lines_under_json(tmp_path, name):
    pack = {"gz": gzip.compress, "xz": lzma.compress, "json": bytes}[name.split(".")[-1]]
    (tmp_path / name).write_bytes(pack(JSONL.encode()))
    assert read(find_inputs([str(tmp_path / name)])[0]) == DOCUMENTS
    # A folder's plain .json is rarely text.
    (tmp_path / "b.txt").touch()
    found = {path.name for path in find_inputs([str(tmp_path)])}
    assert found == ({"b.txt"} if name == "a.json" else {"b.txt", name})


def test_bad_rows_can_be_left_out(tmp_path):
    rows = [json.dumps({"text": text}) for text in DOCUMENTS]
    rows[2:2] = ['{"text": null}', '{"text": ', "[1]", '{"body": "b"}', '{"text": 3}']
    path = tmp_path / "a.jsonl"
    path.write_bytes("\n".join(rows).encode() + b'\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match="line 3, field 'text' is null, not text"):
        read(path)
    said = []
    assert read(path, on_bad=said.append) == DOCUMENTS
    assert len(said) == 6
    assert all("\n" not in str(bad) and "a.jsonl, line " in str(bad) for bad in said)
    text = tmp_path / "b.txt"
    text.write_bytes(b"one\n\x0c\nna\xefve\n\x0c\ntwo")
    assert read(text, on_bad=said.append) == ["one", "two"]
    assert "document 2" in str(said[-1])


def packed(data, how):
    """Compressed by the library of that format."""
    if how == "zst":
        return pytest.importorskip("zstandard").compress(data)
    return {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "": bytes}[how](data)


def parquet_bytes(documents):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.table({"url": ["u"] * len(documents), "text": documents}), out)
    return out.getvalue()


@pytest.mark.parametrize("how", ["", "gz", "xz", "bz2", "zst"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("content", ["text", "json lines", "json lines with CRLF"])
def test_the_content_says_what_a_file_is(tmp_path, how, mark, content):
    separated = "\n\x0c\n".join(DOCUMENTS).encode()
    lines = [json.dumps({"id": 7, "text": text}) for text in DOCUMENTS]
    end = "\r\n" if "CRLF" in content else "\n"
    data = separated if content == "text" else end.join(lines).encode()
    names = ["a", "a.txt", "part-00000.gz", "a.txt.zst", "a.md"]
    names += [] if content == "text" else ["a.jsonl", "c4-train.00000-of-01024.json.gz", "a.ndjson"]
    for name in names:
        (tmp_path / name).write_bytes(packed(mark + data, how))
        found = find_inputs([str(tmp_path / name)])
        assert read(found[0]) == DOCUMENTS, name


class Remote:
    """What the file of an object store can be relied on to do."""

    def __init__(self, file):
        self.read, self.seek, self.tell = file.read, file.seek, file.tell

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("how", ["", "gz", "zst"])
@pytest.mark.parametrize("chunk", [16, 1 << 20])
def test_a_file_that_can_only_be_read_is_enough(tmp_path, monkeypatch, how, chunk):
    monkeypatch.setattr(sources, "_CHUNK", chunk)
    path = tmp_path / "a.jsonl"
    path.write_bytes(packed(b"\xef\xbb\xbf" + JSONL.encode(), how))

    class Place(type(path)):
        def open(self, *_):
            return Remote(io.BytesIO(path.read_bytes()))

    assert [text.decode() for text, _ in read_documents(Place(path))] == DOCUMENTS


@pytest.mark.parametrize(
    "name", ["a.parquet", "a.pq", "part-00000", "a.bin", "a.txt", "a.jsonl.gz"]
)
def test_parquet_is_found_under_any_name(tmp_path, name):
    (tmp_path / name).write_bytes(parquet_bytes(DOCUMENTS))
    assert read(find_inputs([str(tmp_path / name)])[0]) == DOCUMENTS


def test_a_text_that_only_begins_like_json_is_text(tmp_path):
    text = '{ the text : "text" }\nand more'
    (tmp_path / "a.txt").write_text(text)
    assert read(tmp_path / "a.txt") == [text]
    # Rows that have other fields are text too, unless the name says that they are rows.
    (tmp_path / "a.txt").write_text('{"body": "b"}\n')
    assert read(tmp_path / "a.txt") == ['{"body": "b"}\n']


def test_a_folder_gives_its_files_without_a_suffix_where_they_are_rows(tmp_path):
    rows = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS).encode()
    contents = {"part-0": rows, "part-1": gzip.compress(rows), "part-2": parquet_bytes(DOCUMENTS)}
    contents |= {"LICENSE": b"text", "a.ndjson": rows, "b.pq": contents["part-2"], "_SUCCESS": b""}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    skipped = []
    found = find_inputs([str(tmp_path)], skipped.append)
    assert [path.name for path in found] == ["a.ndjson", "b.pq", "part-0", "part-1", "part-2"]
    assert skipped == ["without a suffix"] * 2
    assert all(read(path) == DOCUMENTS for path in found)


def test_line_ends_stay_as_they_are(tmp_path):
    path = tmp_path / "a.md"
    path.write_bytes(b"\r\na\r\nb\rc\n\n")
    assert read(path) == ["\r\na\r\nb\rc\n\n"]


def test_folders_patterns_and_files(tmp_path):
    for name in ("a.txt", "b/c.jsonl.gz", "b/d.py", "b/e.bin", "f.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(*inputs):
        files = find_inputs([str(tmp_path / name) for name in inputs])
        return [str(file.relative_to(tmp_path)) for file in files]

    assert found(".") == ["a.txt", "b/c.jsonl.gz", "f.parquet"]
    assert found("b/d.py") == ["b/d.py"]
    assert found("**/*.py", "b") == ["b/d.py", "b/c.jsonl.gz"]
    assert found("*.txt", "a.txt", "a.txt") == ["a.txt"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", "é".encode("latin-1"), r"a\.txt is not UTF-8: byte 0xe9 at position 0 of docum"),
        ("a.txt", b"fine\n\x0c\nna\xefve", "at position 2 of document 2"),
        ("a.jsonl", b'{"text": "a"}\n\n{"body": "b"}\n', "line 3 has no field 'text'; .* are body"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'["a"]\n', "line 1 is not a JSON object"),
        ("a.jsonl", b'{"text": 3}\n', "line 1, field 'text' is not text but int"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"line 1, field 'text' .* lone surrogate U\+D800"),
        ("a.jsonl", b'{"text": "\xff"}\n', "line 1 is not UTF-8: byte 0xff"),
        ("a.txt.gz", b"\x1f\x8bnot gzip", "cannot be decompressed"),
        ("a.txt.xz", b"\xfd7zXZ\0not xz", "cannot be decompressed"),
        ("a.txt.bz2", b"BZh9 not bzip2", "cannot be read|cannot be decompressed"),
        ("a.txt", "text".encode("utf-16"), r"is UTF-16, not UTF-8: convert it \(iconv -f UTF-16"),
        ("a.jsonl", "text".encode("utf-32"), "is UTF-32, not UTF-8"),
        (
            "a.json",
            b'\n[ {"text": "a"},\n {"text": "b"}]',
            r"is one JSON array: .*\(jq -c '\.\[\]' a\.json",
        ),
        (
            "a.txt.gz",
            gzip.compress(b"PAR1 and more", mtime=0),
            "is compressed Parquet: decompress it first",
        ),
        ("a.parquet", b"no parquet", "is not a Parquet file"),
        ("a.txt.xz", lzma.compress(b"text " * 100)[:-20], "cannot be decompressed"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", ["gz", "xz", "bz2", "zst"])
@pytest.mark.parametrize("n_frames", [1, 3])
def test_a_compressed_file_that_was_cut_off_is_refused(tmp_path, how, n_frames):
    path = tmp_path / "a.txt"
    data = packed(TEXT.encode(), how)
    last = (n_frames - 1) * len(data)
    for left in (len(data) // 2, len(data) - 1):
        path.write_bytes((data * n_frames)[: last + left])
        with pytest.raises(DataError, match="cannot be decompressed: Compressed file ended before"):
            read(path)
    path.write_bytes(data * n_frames)
    assert "\n\x0c\n".join(read(path)) == TEXT * n_frames


def test_frames_of_zstd_may_be_small_empty_or_to_be_skipped(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    skipped = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    empty = zstandard.compress(b"")
    frames = [zstandard.compress(bytes([byte])) + skipped + empty for byte in TEXT.encode()]
    path = tmp_path / "a.txt.zst"
    path.write_bytes(b"".join(frames))
    assert read(path) == DOCUMENTS
    path.write_bytes(b"".join(frames) + b"no frame")
    with pytest.raises(DataError, match="cannot be decompressed"):
        read(path)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "no input given"),
        (["nowhere.txt"], "nothing matches .*nowhere.txt"),
        (["*.txt"], "nothing matches"),
        (["empty"], "no .txt, .jsonl, .ndjson, .json.gz or .parquet file in the folder"),
        (["a.docx"], r"a\.docx is of an unknown kind: known are .txt"),
        (["a.parquet.gz"], "unknown kind"),
    ],
)
def test_inputs_that_cannot_be_found_are_one_line(tmp_path, inputs, message):
    (tmp_path / "empty").mkdir()
    for name in ("a.docx", "a.parquet.gz"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=message) as error:
        find_inputs([str(tmp_path / name) for name in inputs])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.parquet", "a.txt.zst"])
def test_missing_readers_name_the_extra(tmp_path, monkeypatch, name):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setattr(sources, "zstandard", None)
    (tmp_path / name).write_bytes(b"\x28\xb5\x2f\xfd and more")
    with pytest.raises(DataError, match=r"pip install 'lmscale\[data\]'"):
        read(tmp_path / name)

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from lmscale.data import (
    DataError,
    buckets,
    build,
    build_corpus,
    data_root,
    describe,
    encode,
    open_corpus,
)
from lmscale.data.describe import summary_lines
from lmscale.data.sources import cut
from tests.data.prose import document, documents, write_text
from tests.waiting import PATIENCE

SPLITS = ("train", "valid", "test")
SETTINGS = {"vocab_size": 320, "valid_fraction": 0.1, "test_fraction": 0.1}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    monkeypatch.setenv("LMSCALE_DATA", str(folder))
    return folder


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt", documents(120))


def texts(corpus, split):
    """The documents of a split, decoded."""
    ids = corpus.tokens(split)
    ends = np.flatnonzero(ids == corpus.eod_id)
    starts = [0, *(ends + 1)[:-1]]
    return [corpus.tokenizer.decode(ids[a:b]) for a, b in zip(starts, ends, strict=True)]


def test_every_document_is_in_one_split_and_whole(text):
    corpus = build_corpus("a", [text], **SETTINGS)
    parts = {split: texts(corpus, split) for split in SPLITS}
    assert sorted(chain(*parts.values())) == sorted(documents(120))
    for split, found in parts.items():
        assert found
        assert corpus.n_documents(split) == len(found)
        assert corpus.n_bytes(split) == sum(len(t.encode()) for t in found)
        assert corpus.n_tokens(split) == len(corpus.tokens(split))
        assert corpus.token_bytes[corpus.tokens(split)].sum() == corpus.n_bytes(split)
        assert corpus.tokens(split)[-1] == corpus.eod_id
        ratio = corpus.n_bytes(split) / corpus.n_tokens(split)
        assert corpus.bytes_per_token(split) == ratio
    assert corpus.vocab_size == 320
    assert corpus.tokens("train").dtype == np.uint16
    assert isinstance(corpus.tokens("train"), np.memmap)
    corpus.verify()


def test_order_does_not_depend_on_the_files(tmp_path, text):
    some = documents(120)
    files = [
        write_text(tmp_path / "1.txt", some[60:]),
        write_text(tmp_path / "2.txt", some[:60][::-1]),
    ]
    assert build_corpus("a", [text], **SETTINGS).fingerprint == (
        build_corpus("b", files, **SETTINGS).fingerprint
    )
    other = {**SETTINGS, "valid_fraction": 0.11}
    assert build_corpus("c", [text], **other).fingerprint != open_corpus("a").fingerprint


def test_exact_duplicates_are_dropped(tmp_path):
    some = documents(60)
    path = write_text(tmp_path / "twice.txt", [*some, "", *some[:20], *some[:5]])
    corpus = build_corpus("a", [path], **SETTINGS)
    assert sum(corpus.n_documents(split) for split in SPLITS) == 60
    assert corpus.manifest["dropped"] == {
        "duplicates": 25,
        "empty": 1,
        "bad": 0,
        "bad_by_reason": {},
        "first_bad": None,
    }


def test_documents_keep_their_split_when_text_is_added(tmp_path, text):
    small = build_corpus("small", [text], **SETTINGS)
    more = write_text(tmp_path / "more.txt", documents(80, seed=1))
    large = build_corpus("large", [text, more], **SETTINGS)
    for split in SPLITS:
        assert set(texts(small, split)) <= set(texts(large, split))


def test_the_order_is_random_and_prefixes_are_nested_samples(text):
    corpus = build_corpus("a", [text], **SETTINGS)
    numbers = [int(t.split()[1].split(".")[1]) for t in texts(corpus, "train")]
    assert numbers != sorted(numbers)
    # The first half of the order is a sample of all of the text, not its beginning.
    assert 40 < np.mean(numbers[: len(numbers) // 2]) < 80


def test_other_processes_give_the_same_corpus(text, monkeypatch):
    alone = build_corpus("alone", [text], **SETTINGS)
    monkeypatch.setattr(encode, "_BYTES_PER_PROCESS", 1000)
    monkeypatch.setattr(encode, "n_cores", lambda: 2)
    many = build_corpus("many", [text], **SETTINGS)
    assert many.fingerprint == alone.fingerprint
    for split in SPLITS:
        assert many.n_bytes(split) == alone.n_bytes(split)


def test_a_dead_process_is_an_error_not_a_hang(text, root, monkeypatch):
    monkeypatch.setattr(encode, "_BYTES_PER_PROCESS", 1000)
    monkeypatch.setattr(encode, "n_cores", lambda: 2)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="has died"):
        build_corpus("a", [text], **SETTINGS)
    assert visible(root) == []


def test_small_memory_gives_the_same_corpus(text, monkeypatch):
    expected = build_corpus("a", [text], **SETTINGS).fingerprint
    monkeypatch.setattr(buckets, "_BUFFER_BYTES", 5000)
    assert build_corpus("b", [text], **SETTINGS).fingerprint == expected


def test_rebuilding_returns_what_is_there(text, monkeypatch):
    first = build_corpus("a", [text], **SETTINGS)
    written = (first.path / "manifest.json").stat().mtime
    monkeypatch.setattr(build, "write_corpus", None)
    again = build_corpus("a", [text], **SETTINGS)
    assert again.fingerprint == first.fingerprint
    assert (first.path / "manifest.json").stat().mtime == written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 330}, "vocab_size 320 instead of 330"),
        ({"valid_fraction": 0.2}, "valid_fraction 0.1 instead of 0.2"),
        ({"inputs": True}, "other inputs"),
    ],
)
def test_another_build_under_the_name_is_refused(tmp_path, text, change, message):
    build_corpus("a", [text], **SETTINGS)
    inputs = [text]
    if change.pop("inputs", False):
        inputs.append(write_text(tmp_path / "more.txt", documents(3, seed=9)))
    with pytest.raises(DataError, match=f"{message}: choose another name, or remove") as error:
        build_corpus("a", inputs, **{**SETTINGS, **change})
    assert "\n" not in str(error.value)


def test_any_number_of_bad_rows_is_not_one(text):
    build_corpus("a", [text], skip_bad=True, **SETTINGS)
    with pytest.raises(DataError, match="skip_bad True instead of 1"):
        build_corpus("a", [text], skip_bad=1, **SETTINGS)


def test_a_path_alone_is_one_input(tmp_path, text):
    expected = build_corpus("a", [text], **SETTINGS).fingerprint
    for name, inputs in (("b", text), ("c", Path(text)), ("d", [Path(text)])):
        assert build_corpus(name, inputs, **SETTINGS).fingerprint == expected
    rows = tmp_path / "a.jsonl"
    rows.write_text("".join(json.dumps({"text": t, "n": 1}) + "\n" for t in documents(120)))
    corpus = build_corpus("e", rows, where="n=1", **SETTINGS)
    assert corpus.fingerprint == expected and corpus.manifest["settings"]["where"] == ["n=1"]


@pytest.mark.parametrize("mixed", [False, True])
def test_names_that_are_not_utf8_leave_a_corpus_that_can_be_read(tmp_path, mixed):
    paths = []
    for number in range(2):
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/u%d-caf\xe9" % number))
        try:
            folder.mkdir()
        except OSError:
            pytest.skip("this file system holds names in UTF-8 alone")
        (folder / os.fsdecode(b"a.\xe9")).write_text("of an unknown kind")
        name = folder / os.fsdecode(b"caf\xe9.txt")
        paths.append(write_text(name, documents(60, seed=number)))
    folders = [os.path.dirname(path) for path in paths]
    corpus = build_corpus("a", dict.fromkeys(folders, 1) if mixed else folders, **SETTINGS)
    assert open_corpus("a").fingerprint == corpus.fingerprint
    sources = corpus.manifest["sources"]
    assert {one["file"] for one in sources["files"]} == {"caf\\xe9.txt"}
    assert sources["skipped"] == {".\\xe9": 2}
    if mixed:
        assert corpus.manifest["mixture"][0]["input"].endswith("u0-caf\\xe9")
        build_corpus("a", dict.fromkeys(folders, 1), **SETTINGS)


def test_a_tokeniser_can_be_shared(tmp_path, text):
    first = build_corpus("a", [text], **SETTINGS)
    other = write_text(tmp_path / "other.txt", [f"{t} 日本語" for t in documents(60, seed=5)])
    for source in ("a", str(first.path)):
        second = build_corpus(
            "b", [other], tokenizer_from=source, valid_fraction=0.1, test_fraction=0
        )
        assert second.tokenizer.hash == first.tokenizer.hash
        assert second.vocab_size == 320
        assert second.n_documents("test") == len(second.tokens("test")) == 0
    with pytest.raises(DataError, match="has 320 ids, not 400"):
        build_corpus("c", [other], tokenizer_from="a", vocab_size=400)
    with pytest.raises(DataError, match="is no corpus"):
        build_corpus("c", [other], tokenizer_from="nothing")


def test_one_long_document_can_be_split_into_pieces(tmp_path):
    path = tmp_path / "novel.txt"
    path.write_text("".join(documents(100)))
    # Its pieces stay together unless they are said to be documents.
    with pytest.raises(DataError, match=r"of 1 documents none fell to .* split_pieces"):
        build_corpus("a", [str(path)], cut_documents=800, **SETTINGS)
    corpus = build_corpus("a", [str(path)], cut_documents=800, split_pieces=True, **SETTINGS)
    assert sum(corpus.n_bytes(split) for split in SPLITS) == path.stat().st_size
    pieces = texts(corpus, "train")
    assert max(len(t.encode()) for t in pieces) <= 800
    assert all(t.endswith("\n") for t in pieces)
    with pytest.raises(DataError, match="split_pieces needs cut_documents"):
        build_corpus("b", [str(path)], split_pieces=True, **SETTINGS)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 100])
def test_cutting_keeps_characters_whole(length):
    text = "aé日本😀\nxyz\n\n日本語".encode()
    pieces = list(cut(text, length))
    assert b"".join(pieces) == text
    if length > 3:
        assert all(len(piece) <= length for piece in pieces)
        assert "".join(piece.decode() for piece in pieces) == text.decode()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("../a", {}, "cannot be named '../a'"),
        ("", {}, "cannot be named ''"),
        (".hidden", {}, "cannot be named"),
        ("installed-python", {}, "reserved"),
        ("installed-python-v512", {}, "reserved"),
        ("a", {"valid_fraction": 1.5}, r"valid_fraction must be in \[0, 1\), not 1.5"),
        ("a", {"test_fraction": -0.1}, "test_fraction must be in"),
        ("a", {"valid_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ("a", {"vocab_size": 10}, "vocab_size must be at least 300, not 10"),
        ("a", {"vocab_size": 60_000}, "vocab_size 60000 is too large for this text"),
        ("a", {"sample_bytes": 0}, "sample_bytes must be at least 1"),
        ("a", {"valid_fraction": 1.0}, r"valid_fraction must be in \[0, 1\), not 1.0"),
        ("a", {"cut_documents": 0}, "cut_documents must be at least 4"),
        (
            "a",
            {"cut_documents": 3},
            "cut_documents must be at least 4, the bytes of the longest character",
        ),
        ("a", {"separator": "\udcff"}, "separator is not UTF-8"),
        ("a", {"text_field": "\udcff"}, "text_field is not UTF-8"),
        ("a", {"where": ["a=1", "b=\udcff"]}, "where is not UTF-8"),
        ("a", {"valid_fraction": 1e-6}, "of 120 documents none fell to valid, a share of 1e-06"),
    ],
)
def test_impossible_builds_are_one_line_and_leave_nothing(text, root, name, change, message):
    with pytest.raises(DataError, match=message) as error:
        build_corpus(name, [text], **{**SETTINGS, **change})
    assert "\n" not in str(error.value)
    assert visible(root) == []


def test_empty_text_is_refused(tmp_path, root):
    path = tmp_path / "a.txt"
    path.write_text("\n\x0c\n\x0c\n")
    path.write_bytes(b"\x0c\n\x0c\n")
    with pytest.raises(DataError, match="has no text"):
        build_corpus("a", [str(path)], **SETTINGS)
    assert visible(root) == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, text, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LMSCALE_DATA", str(tmp_path / "file" / "data"))
    with pytest.raises(DataError, match=r"cannot build in .* set LMSCALE_DATA"):
        build_corpus("a", [text], **SETTINGS)
    monkeypatch.setenv("LMSCALE_DATA", "gs://bucket/data")
    with pytest.raises(DataError, match=r"built on a local disk|pip install gcsfs"):
        build_corpus("a", [text], **SETTINGS)


def test_an_interrupted_build_leaves_nothing(text, root, monkeypatch):
    def interrupted(stage, done, total):
        if stage == "encoding":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_corpus("a", [text], progress=interrupted, **SETTINGS)
    assert visible(root) == [] == list(root.glob(".*.building"))
    build_corpus("a", [text], **SETTINGS).verify()


KILLED = """
import sys, time
from lmscale.data import build_corpus

def wait(stage, done, total):
    print(stage, flush=True)
    if stage == sys.argv[2] and done / total >= float(sys.argv[3]):
        print("waiting", flush=True)
        time.sleep(60)

build_corpus("a", [sys.argv[1]], vocab_size=320, valid_fraction=.1, test_fraction=.1, progress=wait)
"""


def killed(text, stage, share=0.0):
    """The stages of a build that is killed in one of them, when that share of it is done."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", KILLED, text, stage, str(share)]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    seen = []
    while (line := child.stdout.readline().strip()) != "waiting":
        assert line, "the build ended before it was killed"
        seen.append(line)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    return list(dict.fromkeys(seen))


def test_a_killed_build_goes_on_where_it_was(text, root):
    expected = build_corpus("whole", [text], **SETTINGS)
    assert killed(text, "looking for copies") == ["reading", "looking for copies"]
    assert killed(text, "encoding", 0.3) == [
        "looking for copies", "learning the tokeniser", "encoding",
    ]  # fmt: skip
    (left,) = root.glob(".a.*.building")
    encoded = {path: path.stat().st_mtime_ns for path in (left / "texts").glob("*.train.0")}
    assert encoded
    seen = []
    corpus = build_corpus("a", [text], progress=lambda *event: seen.append(event), **SETTINGS)
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == ["encoding", "measuring copies"]
    assert seen[0][1] > 0.25 * seen[0][2]
    assert list(root.glob(".a.*.building")) == []
    assert sorted(path.name for path in corpus.path.iterdir()) == sorted(
        path.name for path in expected.path.iterdir()
    )
    for path in expected.path.glob("*.*"):
        if path.name != "manifest.json":
            assert (corpus.path / path.name).read_bytes() == path.read_bytes()
    manifests = [{**c.manifest, "name": "", "integrity": ""} for c in (corpus, expected)]
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize(
    "change", [{"vocab_size": 330}, {"test_fraction": 0.2}, {"input": "other"}]
)
def test_another_build_of_that_name_begins_anew(text, root, tmp_path, change):
    killed(text, "encoding")
    if "input" in change:
        text = write_text(tmp_path / "other.txt", documents(130))
    seen = []
    settings = {**SETTINGS, **{k: v for k, v in change.items() if k != "input"}}
    build_corpus("a", [text], progress=lambda *event: seen.append(event), **settings).verify()
    assert seen[0][0] == "reading"
    assert list(root.glob(".a.*.building")) == []


def test_a_killed_build_leaves_nothing_that_looks_complete(text, root):
    killed(text, "encoding")
    assert len(list(root.glob(".a.*.building"))) == 1
    with pytest.raises(DataError, match="no corpus a"):
        open_corpus("a")
    build_corpus("a", [text], **SETTINGS).verify()
    assert list(root.glob(".a.*.building")) == []


def _build_at_once(text, barrier, results):
    barrier.wait()
    start = time.monotonic()
    corpus = build_corpus("a", [text], **SETTINGS)
    results.put((corpus.fingerprint, time.monotonic() - start))


def test_two_processes_that_build_at_once_get_one_corpus(text, root):
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(2), spawn.Queue()
    processes = [
        spawn.Process(target=_build_at_once, args=(text, barrier, results)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    fingerprints = {results.get(timeout=PATIENCE)[0] for _ in processes}
    for process in processes:
        process.join()
    assert fingerprints == {open_corpus("a").fingerprint}
    assert visible(root) == ["a"]
    open_corpus("a").verify()


def test_losing_a_race_without_locks_returns_the_winner(text, root, monkeypatch):
    winner = build_corpus("winner", [text], **SETTINGS)
    real = build.write_corpus

    def slower(name, folder, source, progress):
        real(name, folder, source, progress)
        winner.path.rename(root / "a")

    monkeypatch.setattr(build, "write_corpus", slower)
    corpus = build_corpus("a", [text], **SETTINGS)
    assert corpus.fingerprint == winner.fingerprint
    assert visible(root) == ["a"]


def test_progress_is_reported_by_stage(text):
    seen = []
    build_corpus("a", [text], progress=lambda *event: seen.append(event), **SETTINGS)
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == [
        "reading",
        "looking for copies",
        "learning the tokeniser",
        "encoding",
        "measuring copies",
    ]
    assert all(0 <= done <= total for _, done, total in seen)


def test_the_manifest_tells_where_the_text_came_from(text):
    corpus = build_corpus("a", [text], **SETTINGS)
    manifest = json.loads((corpus.path / "manifest.json").read_text())
    assert manifest["fingerprint"] == corpus.fingerprint
    assert manifest["sources"]["n_files"] == 1
    assert manifest["sources"]["files"][0]["file"] == "text.txt"
    assert manifest["sources"]["files"][0]["bytes"] == Path(text).stat().st_size
    assert set(manifest["versions"]) == {"python", "sentencepiece", "numpy"}


def visible(root):
    """What `lmscale data list` could take for a corpus."""
    if not root.exists():
        return []
    return sorted(path.name for path in data_root().iterdir() if path.name[0] != ".")


@pytest.mark.parametrize("n", [1, 3, 9])
def test_few_long_documents_are_cut_and_the_corpus_says_so(tmp_path, n):
    """As tinyshakespeare: one text of 100 KB."""
    whole = [document(f"{i}", 900 // n) for i in range(n)]
    corpus = build_corpus("a", [write_text(tmp_path / "a.txt", whole)], vocab_size=320)
    found = {split: texts(corpus, split) for split in SPLITS}
    assert all(len(text.encode()) <= 2048 for split in SPLITS for text in found[split])
    assert found["valid"] and found["test"]
    assert sum(map(len, chain(*found.values()))) == sum(map(len, whole))
    assert describe(corpus)["cut_by_itself"] == {"documents": n, "bytes": 2048}
    assert f"cut: {n} document" in "\n".join(summary_lines(corpus))


def test_documents_are_not_cut_unasked_where_they_are_enough_or_nothing_is_held_out(tmp_path):
    few = write_text(tmp_path / "few.txt", [document(f"{i}", 100) for i in range(3)])
    nothing = build_corpus("nothing", [few], vocab_size=320, valid_fraction=0, test_fraction=0)
    assert nothing.n_documents("train") == 3
    asked = build_corpus("asked", [few], vocab_size=320, cut_documents=5000, split_pieces=True)
    enough = write_text(tmp_path / "enough.txt", [document(f"{i}", 100) for i in range(20)])
    twenty = build_corpus("twenty", [enough], vocab_size=320)
    assert sum(map(twenty.n_documents, SPLITS)) == 20
    assert twenty.n_documents("valid") and twenty.n_documents("test")
    assert all(describe(corpus)["cut_by_itself"] is None for corpus in (nothing, asked, twenty))

"""Inputs that have no end, no content or too much: one line, in bounded time and memory."""

import gzip
import json
import lzma
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

from lmscale.cli import main
from lmscale.data import DataError, build_corpus, open_corpus, sources
from lmscale.data import building as in_building
from lmscale.data.errors import BuildError
from lmscale.data.inputs import checksum, find_inputs
from lmscale.data.sources import read_documents
from tests.data.prose import documents, write_text
from tests.waiting import PATIENCE

SETTINGS = {"vocab_size": 320, "valid_fraction": 0.1, "test_fraction": 0.1}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    monkeypatch.setenv("LMSCALE_DATA", str(folder))
    monkeypatch.setenv("LMSCALE_CACHE", str(tmp_path / "cache"))
    return folder


def build(*arguments):
    return main(["data", "build", "a", "--vocab-size", "320", "--input", *map(str, arguments)])


def one_line(capsys):
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("lmscale data")]
    assert out == "" and "Traceback" not in err
    return line


def special_files(folder):
    os.mkfifo(folder / "pipe.txt")
    os.symlink("/dev/zero", folder / "device.txt")
    os.symlink("nowhere", folder / "dangling.txt")
    os.symlink("loop.txt", folder / "loop.txt")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "socket.txt"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pipe.txt", "is a pipe, not a file of text"),
        ("device.txt", "is a device, not"),
        ("dangling.txt", "is a dangling link, not"),
        ("loop.txt", "is a link in a loop, not"),
        ("socket.txt", "is a socket, not"),
        ("*.txt", "nothing matches .* 1 dangling link"),
    ],
)
def test_what_has_no_end_or_no_content_is_refused(tmp_path, monkeypatch, capsys, name, message):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    (tmp_path / "in").mkdir()
    special_files(Path("in"))
    assert build(f"in/{name}") == 2
    line = one_line(capsys)
    assert re.search(message, line), line


def test_a_folder_says_what_it_does_not_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = Path("in")
    folder.mkdir()
    special_files(folder)
    for name in ("a.pdf", "b.pdf", "c.png", "README"):
        (folder / name).touch()
    assert build(folder) == 2
    line = one_line(capsys)
    assert (
        "no .txt, .jsonl, .ndjson, .json.gz or .parquet file" in line
        and "it holds 2 .pdf, " in line
    )
    write_text(folder / "a.txt", documents(60))
    assert build(folder) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("skipped")]
    assert line.startswith("skipped 9 files of other kinds: 2 .pdf, ")
    assert {".pdf": 2, ".png": 1, "pipe": 1}.items() <= (
        open_corpus("a").manifest["sources"]["skipped"].items()
    )


def test_linked_files_and_folders_are_read_once(tmp_path):
    (tmp_path / "in" / "inner").mkdir(parents=True)
    write_text(tmp_path / "elsewhere.txt", documents(3))
    write_text(tmp_path / "in" / "inner" / "b.txt", documents(3))
    os.symlink(tmp_path / "elsewhere.txt", tmp_path / "in" / "a.txt")
    os.symlink(tmp_path / "in", tmp_path / "in" / "inner" / "back")
    for name in ("in", "in/**/*.txt"):
        found = find_inputs([str(tmp_path / name)])
        assert sorted(path.name for path in found) == ["a.txt", "b.txt"]


def test_a_disk_error_names_the_file(tmp_path, monkeypatch):
    """/proc/self/mem gives an I/O error when it is read from its start."""
    if not os.path.exists("/proc/self/mem"):
        pytest.skip("needs /proc")
    path = tmp_path / "a.txt"
    os.symlink("/proc/self/mem", path)
    for read in (checksum, lambda path: list(read_documents(path))):
        with pytest.raises(DataError, match=r"a\.txt cannot be read: Input/output error"):
            read(epath.Path(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes(5000), "no character that a vocabulary can be learnt from"),
        (b"\xef\xbb\xbf", "has no text"),
    ],
)
def test_text_without_characters(tmp_path, capsys, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    assert build(tmp_path / "a.txt", "--valid-fraction", "0", "--test-fraction", "0") == 2
    assert message in one_line(capsys)


@pytest.mark.parametrize("size", ["1000001", "99999999999999999999"])
def test_a_huge_vocabulary_is_refused(tmp_path, capsys, size):
    write_text(tmp_path / "a.txt", documents(60))
    assert build(tmp_path / "a.txt", "--vocab-size", size) == 2
    assert "vocab_size must be at most 1,000,000" in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "hf://org/set"], "pip install huggingface_hub"),
        (["--input", "https://a.org/b.txt"], "curl -LO"),
        (["--input", "s3://bucket/a.txt"], "pip install s3fs"),
        (["--input", "gs://bucket/a.txt"], "pip install gcsfs"),
        (["--input", "az://bucket/a.txt"], "pip install adlfs"),
        (
            ["--input", "a.txt", "--tokenizer-from", "./tokenizer.json"],
            "give the file of a tokeniser as tokenizer (--tokenizer)",
        ),
        (["--input", "a.txt", "--tokenizer-from", "hf://org/model"], "hf://org/model is not read"),
        (["--input", "a.txt", "--tokenizer-from", "s3://b/c"], "pip install s3fs"),
        (["--input", "a.txt", "--tokenizer-from", "none"], "no corpus"),
        (["--input", "a.txt", "--tokenizer-from", "~nobody-here/x"], "is no corpus"),
        (["--input", "~nobody-here/x"], "nothing matches ~nobody-here/x"),
    ],
)
def test_what_is_not_read_in_place_says_what_is_right(
    tmp_path, monkeypatch, capsys, arguments, message
):
    for package in ("s3fs", "gcsfs", "adlfs", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "a.txt", documents(60))
    Path("tokenizer.json").write_text("{}")
    assert main(["data", "build", "a", *arguments]) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "data" / "a").exists()


@pytest.mark.parametrize("suffix", [".txt.gz", ".jsonl.xz", ".txt.zst"])
def test_a_bomb_is_refused_before_it_takes_memory(tmp_path, suffix):
    zeros, n = bytes(1 << 20), 64
    match suffix[-3:]:
        case ".gz":
            data = gzip.compress(zeros * n, 9)
        case ".xz":
            data = lzma.compress(zeros, preset=0) * n
        case _:
            zstandard = pytest.importorskip("zstandard")
            data = zstandard.compress(zeros) * n
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    with pytest.raises(DataError, match="decompresses to more than 200 times its size"):
        list(read_documents(epath.Path(path), on_bad=lambda bad: None))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz"])
def test_what_is_too_long_is_left_out_without_being_held(tmp_path, monkeypatch, name):
    for limit in ("MAX_DOCUMENT_BYTES", "MAX_ROW_BYTES"):
        monkeypatch.setattr(sources, limit, 1000)
    monkeypatch.setattr(sources, "_CHUNK", 100)
    texts = ["one", "x" * 5000, "y" * 900, "two"]
    if ".jsonl" in name:
        data = "\n".join(json.dumps({"text": text}) for text in texts).encode()
    else:
        data = "\n\x0c\n".join(texts).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    bad = []
    found = [text.decode() for text, _ in read_documents(epath.Path(path), on_bad=bad.append)]
    assert found == ["one", "y" * 900, "two"]
    assert [error.reason for error in bad] == ["too long"]
    assert "longer than 1,000 bytes" in str(bad[0])


def rows(tmp_path, n_good, bad):
    path = tmp_path / "a.jsonl"
    good = [json.dumps({"text": text}) for text in documents(n_good)]
    path.write_bytes("\n".join(good).encode() + b"\n" + b"\n".join(bad))
    return path


BAD = [b'{"text": null}', b"{", b"{", b'{"text": "\xff"}']


@pytest.mark.parametrize(("bound", "code"), [("4", 0), ("3", 2), ("5%", 0), ("0.03", 2), ("0", 2)])
def test_bad_rows_are_skipped_up_to_a_bound(tmp_path, capsys, bound, code):
    path = rows(tmp_path, 96, BAD)
    assert build(path, "--skip-bad", bound) == code
    if code:
        line = one_line(capsys)
        assert ("more than" in line and "a.jsonl, line 97" in line and "not JSON" in line) or (
            bound == "0" and "1 no text" in line
        )
        assert not (tmp_path / "data" / "a").exists()
        return
    assert "bad rows: 2 not JSON, 1 no text, 1 not UTF-8" in capsys.readouterr().out
    dropped = open_corpus("a").manifest["dropped"]
    assert dropped["bad"] == 4
    assert dropped["bad_by_reason"] == {"no text": 1, "not JSON": 2, "not UTF-8": 1}


@pytest.mark.parametrize("bound", ["-1", "100%", "1.5", "nan", "many", "0%"])
def test_a_bound_that_is_none_is_bad_usage(tmp_path, capsys, bound):
    with pytest.raises(SystemExit) as error:
        build(rows(tmp_path, 5, []), f"--skip-bad={bound}")
    assert error.value.code == 2
    assert "must be a whole number of rows, a share" in capsys.readouterr().err


# Builds that are stopped ------------------------------------------------------------------------

STOPPED = """
import sys, time
from lmscale.cli import main
from lmscale.data import assemble

real = assemble.encode_buckets

def encode_buckets(*args):
    print("encoding", flush=True)
    time.sleep(60)

assemble.encode_buckets = encode_buckets
sys.exit(main(["data", "build", "a", "--input", sys.argv[1], "--vocab-size", "320"]))
"""


def stopped(text, number):
    """A build that is sent a signal in its midst: (exit code, what it said)."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.Popen(
        [sys.executable, "-c", STOPPED, text],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "encoding\n"
    child.send_signal(number)
    _, err = child.communicate(timeout=PATIENCE)
    return child.returncode, err


def test_a_build_that_is_stopped_leaves_nothing(tmp_path, root):
    text = write_text(tmp_path / "a.txt", documents(120))
    code, err = stopped(text, signal.SIGTERM)
    assert code == 1 and "Traceback" not in err and "lmscale: interrupted" in err
    assert list(root.iterdir()) == []


def test_what_a_killed_build_leaves_stays_for_a_day_and_is_then_removed(tmp_path, root, capsys):
    text = write_text(tmp_path / "a.txt", documents(120))
    code, _ = stopped(text, signal.SIGKILL)
    assert code == -signal.SIGKILL
    (left,) = root.glob(".*.building")
    build_corpus("b", [text], **SETTINGS)
    assert sorted(path.name for path in root.iterdir()) == sorted([left.name, "b"])
    capsys.readouterr()
    assert main(["data", "list"]) == 0
    assert "the build of a that was killed goes on" in capsys.readouterr().err
    past = time.time() - in_building.SILENT_SECONDS - 60
    os.utime(left, (past, past))
    assert main(["data", "list"]) == 0
    assert "removed what a build of a that was killed had left" in capsys.readouterr().err
    assert [path.name for path in root.iterdir()] == ["b"]
    (root / f".a.{in_building._host()}.{dead_pid()}.building").mkdir()
    capsys.readouterr()
    assert main(["data", "list"]) == 0
    assert "removed what a build of a that was killed had left" in capsys.readouterr().err
    assert [path.name for path in root.iterdir()] == ["b"]


def dead_pid():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_the_folder_of_a_live_build_stays(root):
    root.mkdir()
    final = root / "a"
    with in_building.lock_of(final), in_building.building_folder(final) as own:
        # Its lock is held, even if its process were thought dead.
        disguised = root / f".a.{in_building._host()}.{dead_pid()}.building"
        elsewhere = root / ".a.other-host.1.building"
        silent = root / ".b.other-host.2.building"
        foreign = root / ".mine.building"
        for folder in (disguised, elsewhere, silent, foreign):
            folder.mkdir()
        past = time.time() - in_building.SILENT_SECONDS - 60
        os.utime(silent, (past, past))
        os.utime(foreign, (past, past))
        assert in_building.remove_leftovers(root) == ["b"]
        assert own.exists() and disguised.exists() and elsewhere.exists() and foreign.exists()
    assert in_building.remove_leftovers(root) == ["a"]
    assert not disguised.exists() and elsewhere.exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, root, monkeypatch, capsys):
    text = write_text(tmp_path / "a.txt", documents(120))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lmscale.data.assemble.join_buckets", full)
    with pytest.raises(BuildError, match=r"could not be built in .*: No space left on device"):
        build_corpus("a", [text], **SETTINGS)
    assert build(text) == 1
    assert "No space left on device" in one_line(capsys)
    assert list(root.iterdir()) == []

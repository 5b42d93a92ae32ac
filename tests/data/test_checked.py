"""A corpus is checked against its digests when it is first used, once, wherever it lies."""

import hashlib
import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lmscale.cli import main
from lmscale.data import Corpus, DataError, build_corpus, checked, open_corpus
from lmscale.data.corpus import MANIFEST
from lmscale.files import DamagedError
from lmscale.training.run_folder import RunFolder
from tests.data.prose import documents, write_text
from tests.training.specs import run_spec

SETTINGS = {"vocab_size": 320, "valid_fraction": 0.1, "test_fraction": 0.1}
FILES = ("train.bin", "valid.bin", "test.bin", "tokenizer.model")


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("LMSCALE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LMSCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checked, "_known", set())
    monkeypatch.setattr(checked, "_SETTLED_SECONDS", -1.0)
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A corpus that each test takes a copy of."""
    folder = tmp_path_factory.mktemp("built")
    before = {key: os.environ.get(key) for key in ("LMSCALE_DATA", "LMSCALE_CACHE")}
    os.environ.update(LMSCALE_DATA=str(folder), LMSCALE_CACHE=str(folder))
    try:
        text = write_text(folder / "text.txt", documents(120))
        return Path(build_corpus("a", [text], **SETTINGS).path)
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


@pytest.fixture
def corpus(built, tmp_path):
    shutil.copytree(built, tmp_path / "data" / "a")
    return open_corpus("a")


@pytest.fixture
def reads(monkeypatch):
    """The files that were read whole."""
    found = []
    real = checked._sha256

    def sha256(path):
        found.append(path.name)
        return real(path)

    monkeypatch.setattr(checked, "_sha256", sha256)
    return found


def new_process(monkeypatch):
    """What a process knows when it begins."""
    monkeypatch.setattr(checked, "_known", set())
    return open_corpus("a")


def flip(path, position, bit=0):
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def use(corpus):
    """Reads all that training does."""
    return [corpus.tokenizer, *(corpus.tokens(split) for split in ("train", "valid", "test"))]


def test_a_file_is_read_once_and_then_remembered(corpus, reads, monkeypatch):
    use(corpus)
    assert sorted(reads) == ["test.bin", "train.bin", "valid.bin"]
    use(corpus)
    use(new_process(monkeypatch))
    assert len(reads) == 3
    # Written anew, though with the same content: looked at again.
    path = Path(corpus.path / "valid.bin")
    path.write_bytes(path.read_bytes())
    use(corpus)
    assert reads[3:] == ["valid.bin"]


def test_a_file_written_just_now_is_not_remembered(corpus, reads, monkeypatch):
    monkeypatch.setattr(checked, "_SETTLED_SECONDS", 3600.0)
    use(corpus)
    use(corpus)
    assert len(reads) == 3
    use(new_process(monkeypatch))
    assert len(reads) == 6


@pytest.mark.parametrize("name", FILES)
def test_any_bit_that_flips_is_found(corpus, name, monkeypatch):
    path = Path(corpus.path / name)
    rng = np.random.default_rng(0)
    for _ in range(20):
        position, bit = int(rng.integers(path.stat().st_size)), int(rng.integers(8))
        flip(path, position, bit)
        with pytest.raises(DamagedError) as error:
            use(open_corpus("a"))
        assert str(path) in str(error.value) and "build it again" in str(error.value)
        assert "\n" not in str(error.value)
        flip(path, position, bit)
    use(open_corpus("a"))


def test_damage_with_the_old_time_is_found(corpus):
    """As a restore gives that keeps times: the time of the change itself cannot be set."""
    use(corpus)
    path = Path(corpus.path / "train.bin")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    flip(path, 7)
    os.utime(path, ns=times)
    with pytest.raises(DamagedError, match=r"train.bin is damaged"):
        open_corpus("a").tokens("train")


def test_half_a_split_of_zeros_a_short_and_a_missing_one(corpus):
    path = Path(corpus.path / "train.bin")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    with pytest.raises(DamagedError, match=r"train.bin is damaged: its content is not what was"):
        corpus.tokens("train")
    path.write_bytes(data[:-2])
    with pytest.raises(DamagedError, match=r"train.bin is damaged: it has .* bytes, but manifest"):
        corpus.tokens("train")
    path.unlink()
    with pytest.raises(DamagedError, match=r"train.bin is damaged: it is missing"):
        corpus.tokens("train")
    path.mkdir()
    with pytest.raises((DamagedError, DataError), match=r"train.bin"):
        corpus.tokens("train")
    with pytest.raises(DataError, match="train, valid, test, not 'dev'"):
        corpus.tokens("dev")


def unsealed(text, old, new):
    """A manifest as earlier versions wrote it, without a digest of its own, with a change."""
    manifest = json.loads(text)
    del manifest["digest"]
    changed = json.dumps(manifest).replace(old, new)
    assert old in json.dumps(manifest)
    return changed


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "", "it is empty"),
        (lambda text: text[:-20], "it is no JSON"),
        (lambda text: "[]", "holds a JSON array"),
        (lambda text: text.replace('"tokens": ', '"tokens": 1'), "digest doesn't match"),
        (lambda text: text.replace('"copied"', '"copies"'), "digest doesn't match"),
        (lambda text: unsealed(text, '"splits"', '"split"'), "no 'splits'"),
        (lambda text: unsealed(text, '"valid_fraction": ', '"valid_fraction": 1'), "not what was"),
        (lambda text: unsealed(text, '"<u2"', "2"), "'dtype' is a JSON number"),
        (lambda text: unsealed(text, '"<u2"', '"<f8"'), "its dtype is '<f8'"),
        (lambda text: '{"format": 2}', "no 'tokenizer'"),
        (lambda text: "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_damaged_manifest_is_named(corpus, damage, message, capsys):
    path = Path(corpus.path / MANIFEST)
    path.write_text(damage(path.read_text()))
    with pytest.raises(DamagedError, match=message) as error:
        open_corpus("a")
    assert str(path) in str(error.value)
    assert main(["data", "show", "a"]) == 1
    assert main(["data", "verify", "a"]) == 1
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(str(path) in line for line in lines)


def test_a_manifest_without_a_digest_of_its_own_is_read(corpus):
    """As earlier versions wrote it; the files have their digests there too."""
    path = Path(corpus.path / MANIFEST)
    manifest = json.loads(path.read_text())
    del manifest["digest"]
    path.write_text(json.dumps(manifest))
    use(open_corpus("a"))
    assert main(["data", "verify", "a"]) == 0
    manifest["splits"]["train"]["sha256"] = hashlib.sha256(b"").hexdigest()
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamagedError, match="not what was written"):
        open_corpus("a")


def test_verify_names_every_damaged_file(corpus, capsys):
    assert main(["data", "verify", "a"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and corpus.fingerprint in out
    flip(corpus.path / "train.bin", 3)
    (corpus.path / "valid.bin").unlink()
    assert main(["data", "verify", "a"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert "train.bin is damaged" in first and "valid.bin is damaged: it is missing" in second
    assert main(["data", "verify", "a", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert set(found["damaged"]) == {"train.bin", "valid.bin"}
    assert set(found["files"]) == {MANIFEST, *FILES}


def test_verify_reads_again_what_was_right_before(corpus, reads, capsys):
    use(corpus)
    assert main(["data", "verify", "a"]) == 0
    assert len(reads) == 6


def test_of_many_that_ask_at_once_one_reads(corpus, reads, monkeypatch):
    """Threads stand for processes: each opens the lock anew."""
    real = checked._sha256

    def slow(path):
        time.sleep(0.3)
        return real(path)

    monkeypatch.setattr(checked, "_sha256", slow)
    barrier = threading.Barrier(4)

    def ask():
        barrier.wait()
        corpus.tokens("train")

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == ["train.bin"]


def test_folders_that_cannot_be_written(corpus, tmp_path, monkeypatch, reads):
    """A cache folder below a file can be written by nobody, not even root."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("LMSCALE_CACHE", str(tmp_path / "file" / "cache"))
    before = sorted(path.name for path in Path(corpus.path).iterdir())
    use(corpus)
    use(corpus)
    assert len(reads) == 3
    use(new_process(monkeypatch))
    assert len(reads) == 6
    assert sorted(path.name for path in Path(corpus.path).iterdir()) == before


def test_nothing_is_written_into_the_corpus(corpus):
    before = {path.name: path.stat().st_mtime_ns for path in Path(corpus.path).iterdir()}
    use(corpus)
    assert {path.name: path.stat().st_mtime_ns for path in Path(corpus.path).iterdir()} == before


def test_another_corpus_under_the_name_is_refused(corpus, tmp_path, capsys):
    path = tmp_path / run_spec(corpus).run_id
    RunFolder(path, run_spec(corpus)).create()
    text = write_text(tmp_path / "other.txt", documents(120, seed=9))
    shutil.rmtree(corpus.path)
    other = build_corpus("a", [text], **SETTINGS)
    assert main(["sample", str(path), "--prompt", "law"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "fingerprint" in line]
    assert corpus.fingerprint in line and other.fingerprint in line
    with pytest.raises(DataError, match="was built anew from other"):
        open_corpus("a", fingerprint=corpus.fingerprint)


def test_what_is_no_corpus_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for name, message in (
        (tmp_path / "tokenizer.json", "is a file, not the folder of a corpus"),
        (tmp_path / "empty", "has no manifest.json"),
        ("hf://a/b", "hf://a/b is not read in place .*download it"),
    ):
        with pytest.raises(DataError, match=message):
            Corpus(name)


def test_a_run_trains_nothing_on_a_damaged_corpus(corpus, tmp_path, capsys):
    flip(corpus.path / "test.bin", 11)
    out = tmp_path / "store"
    assert main(["run", "isoflop", "--data", "a", "--out", str(out)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "test.bin is damaged: its content is not what was written" in line
    assert not out.exists()

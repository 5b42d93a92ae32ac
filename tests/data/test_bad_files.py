"""Whatever a file holds: a corpus is built, or one line says what is wrong, and nothing is left.

LMSCALE_BAD_FILES sets how many random files are tried.
"""

import os
import random
import resource
import shutil
import time

import pytest

from lmscale.cli import main
from lmscale.data import open_corpus
from tests.data.bad_files import bad_file

N_FILES = int(os.environ.get("LMSCALE_BAD_FILES", "40"))
#: Of a processor, for one file.
MOST_SECONDS = 10.0
#: Beyond the most that this process had before, as other tests have run in it.
MOST_BYTES = 2 << 30


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def options(rng):
    return rng.choice(
        (
            [],
            ["--skip-bad"],
            ["--skip-bad", "any"],
            ["--skip-bad", "3"],
            ["--skip-bad", "10%"],
            ["--valid-fraction", "0", "--test-fraction", "0"],
            ["--cut-documents", "300", "--split-pieces"],
            ["--cut-documents", "300"],
            ["--separator", ""],
            ["--text-field", "n"],
            ["--vocab-size", "2000"],
        )
    )


def test_a_corpus_is_built_or_one_line_says_why_not(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    pytest.importorskip("zstandard")
    root = tmp_path / "data"
    monkeypatch.setenv("LMSCALE_DATA", str(root))
    monkeypatch.setenv("LMSCALE_CACHE", str(tmp_path / "cache"))
    built, before = 0, peak_bytes()
    for seed in range(N_FILES):
        rng = random.Random(seed)
        suffix, content = bad_file(rng)
        path = tmp_path / f"{seed}{suffix}"
        path.write_bytes(content)
        command = ["data", "build", "a", "--input", str(path), "--vocab-size", "320", *options(rng)]
        busy = time.process_time()
        code = main(command)
        busy = time.process_time() - busy
        out, err = capsys.readouterr()
        where = f"file {seed}: {command}"
        assert busy < MOST_SECONDS, where
        left = [entry.name for entry in root.iterdir()] if root.exists() else []
        if code == 0:
            assert left == ["a"], where
            open_corpus("a").verify()
            assert "vocabulary" in out, where
            built += 1
        else:
            lines = [line for line in err.splitlines() if line.startswith("lmscale data:")]
            assert code == 2 and len(lines) == 1 and out == "" and left == [], (where, err)
            assert err.endswith(f"{lines[0]}\n") and len(lines[0]) < 2000, where
        shutil.rmtree(root, ignore_errors=True)
        path.unlink()
    assert 0 < built < N_FILES
    assert peak_bytes() < before + MOST_BYTES
    print(f"{N_FILES} files, {built} corpora")

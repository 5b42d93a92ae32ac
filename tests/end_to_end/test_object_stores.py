"""Sweeps and corpora in buckets, through the packages that users have and over their real protocols."""

import gzip
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from lmscale.data import build_corpus
from tests.conftest import write_text
from tests.end_to_end.conftest import EXPERIMENT
from tests.end_to_end.object_stores import KINDS, hub, without_keys
from tests.waiting import PATIENCE

pytestmark = pytest.mark.slow
STEPS = 200
ARGUMENTS = ("run", EXPERIMENT, "--data", "tiny", "--steps", STEPS, "--seeds", 0)
OFTEN = ("--checkpoint-seconds", "0.1")


@pytest.fixture(params=KINDS)
def bucket(request):
    yield from KINDS[request.param]()


@pytest.fixture
def lmscale(bucket, environment):
    """Starts `lmscale` with the right to use the bucket; leaves no process behind."""
    started = []

    def start(*args, **variables):
        process = subprocess.Popen(
            [sys.executable, "-m", "lmscale", *map(str, args)],
            env=bucket.environment(environment) | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def finish(lmscale):
    def run(*args, **variables):
        process = lmscale(*args, **variables)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err

    return run


@pytest.fixture(scope="module")
def on_disk(environment, tmp_path_factory):
    """The same runs on this machine's disk: file -> what it says of the training."""
    out = tmp_path_factory.mktemp("disk")
    command = [sys.executable, "-m", "lmscale", *map(str, ARGUMENTS), "--out", str(out)]
    subprocess.run(command, env=environment, check=True, timeout=600, capture_output=True)
    return {
        str(path.relative_to(out)): untimed(path.read_bytes())
        for name in ("result.json", "metrics.jsonl", "spec.json")
        for path in out.glob(f"runs/*/{name}")
    }


def untimed(content):
    """The lines of a file of a run, without the seconds that it took."""
    records = content.decode().splitlines()
    return [re.sub(r'"(seconds|tokens_per_second)": [^,}]+', "", record) for record in records]


def assert_same_runs(bucket, folder, on_disk):
    found = {name: untimed(bucket.read(f"{folder}/{name}")) for name in on_disk}
    assert found == on_disk
    assert not [name for name in bucket.find(folder) if "claims/" in name]


def test_a_killed_sweep_goes_on_from_its_checkpoints(bucket, lmscale, finish, on_disk, tmp_path):
    """Each step of it once failed: Google's objects cannot be appended to, and Orbax knows no s3://."""
    out = f"{bucket.path}/sweep"
    process = lmscale(*ARGUMENTS, *OFTEN, "--out", out)
    while not any(name.endswith("/commit_success.txt") for name in bucket.find("sweep")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert any("claims/" in name for name in bucket.find("sweep"))

    code, _, err = finish(*ARGUMENTS, *OFTEN, "--out", out)
    assert code == 0, err
    assert_same_runs(bucket, "sweep", on_disk)
    statuses = [
        json.loads(bucket.read(f"sweep/{name}"))
        for name in bucket.find("sweep")
        if name.endswith("/status.json")
    ]
    assert [status["status"] for status in statuses] == ["done"] * 2
    files = bucket.find("sweep")
    assert {"report.html", "results.csv", "summary.json"} <= set(files)
    assert not [name for name in files if name.endswith("damage.log")]

    code, said, err = finish("status", "--check", out)
    assert (code, "2 done" in said) == (0, True), (said, err)
    code, said, err = finish("eval", out, "--tokens", 512)
    assert code == 0, err
    run = next(name for name in on_disk if "transformer" in name).rpartition("/")[0]
    code, said, err = finish("sample", f"{out}/{run}", "--prompt", "the", "--tokens", 4)
    assert code == 0 and said.startswith("the"), err
    there = ("--format", "safetensors", "--out", tmp_path / "exported")
    code, said, err = finish("export", f"{out}/{run}", *there)
    assert code == 0 and (tmp_path / "exported" / "model.safetensors").exists(), err
    # It is found, and has no law.
    code, said, err = finish("advise", out, "--compute", 1e12)
    assert code == 2 and "there is no store" not in err and "Traceback" not in err


def test_commands_that_share_a_bucket_train_each_run_once(bucket, lmscale, on_disk):
    """Listings that are remembered would show no claim of the other, or one that is gone for ever."""
    out = f"{bucket.path}/shared"
    processes = [lmscale(*ARGUMENTS, "--out", out, "--shard", shard) for shard in ("0/1", "1/2")]
    for process in processes:
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
    assert_same_runs(bucket, "shared", on_disk)


READER = """
import sys
from etils import epath
from lmscale.files import read_bytes
path, known = epath.Path(sys.argv[1]), set(sys.argv[2:])
print("ready", flush=True)
read = []
while len(read) < 30 or len(set(read)) < 2:
    read.append(read_bytes(path).decode())
assert set(read) == known, set(read) - known
"""


def test_what_another_process_replaces_is_read_as_it_was_or_as_it_is(bucket, environment):
    """To open it and to read it are two requests, and the object was another one at the second."""
    versions = ["short", "longer " * 100]
    bucket.write("status.json", versions[0].encode())
    process = subprocess.Popen(
        [sys.executable, "-c", READER, f"{bucket.path}/status.json", *versions],
        env=bucket.environment(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        for version in itertools.cycle(versions[::-1]):
            bucket.write("status.json", version.encode())
            if process.poll() is not None:
                break
    finally:
        process.kill()
        _, err = process.communicate()
    assert process.returncode == 0, err


def test_a_checkpoint_that_a_kill_left_unfinished_is_not_taken_up(bucket, lmscale, finish, on_disk):
    out = f"{bucket.path}/half"
    process = lmscale(*ARGUMENTS, *OFTEN, "--out", out)
    while not any(name.endswith("/commit_success.txt") for name in bucket.find("half")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # What a kill leaves between the last array and the mark.
    for name in bucket.find("half"):
        if name.endswith("/commit_success.txt"):
            bucket.remove(f"half/{name}")
    code, _, err = finish(*ARGUMENTS, "--out", out)
    assert code == 0, err
    assert_same_runs(bucket, "half", on_disk)


def test_a_changed_checkpoint_is_named_and_its_run_made_again(bucket, lmscale, finish, on_disk):
    """The size of an object says nothing of its content."""
    out = f"{bucket.path}/changed"
    assert finish(*ARGUMENTS, "--out", out)[0] == 0
    arrays = {
        name: n for name, n in bucket.find("changed").items() if "/ocdbt.process_0/d/" in name
    }
    largest = max(arrays, key=arrays.get)
    data = bytearray(bucket.read(f"changed/{largest}"))
    data[len(data) // 2] ^= 0x10
    bucket.write(f"changed/{largest}", bytes(data))
    run = largest.split("/")[1]

    code, said, err = finish("status", "--check", out)
    assert run in said + err and "doesn't match its digest" in said + err
    code, _, err = finish("eval", out, "--tokens", 512)
    assert run in err and "doesn't match its digest" in err and "Traceback" not in err
    bucket.remove(f"changed/runs/{run}/result.json")
    bucket.remove(f"changed/runs/{run}/status.json")
    code, _, err = finish(*ARGUMENTS, "--out", out)
    assert code == 0 and "doesn't match its digest" in err, err
    assert_same_runs(bucket, "changed", on_disk)


def test_a_corpus_is_built_from_a_bucket_as_from_a_disk(bucket, finish, data_root, tmp_path):
    text = write_text(tmp_path / "part.txt", seed=1).read_bytes()
    rows = [{"text": part} for part in write_text(tmp_path / "rows.txt").read_text().split("\n\n")]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    for name, data in {
        "texts/a/part.txt": text,
        "texts/b/part.jsonl.gz": gzip.compress(lines, mtime=0),
    }.items():
        bucket.write(name, data)
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(data)
    for folder in ("texts/", "texts/a/"):
        bucket.mark(folder)

    def build(name, source):
        name = f"{name}-{bucket.scheme}"
        code, _, err = finish("data", "build", name, "--input", source, "--vocab-size", 300)
        assert code == 0, err
        return json.loads((data_root / name / "manifest.json").read_text())["splits"]

    expected = build("disk", tmp_path / "texts")
    assert build("folder", f"{bucket.path}/texts") == expected
    assert build("pattern", f"{bucket.path}/texts/*/part.*") == expected
    for wrong, told in {
        "nothing/here.txt": "nothing/here.txt",
        "texts/**/*": "give the folder",
    }.items():
        wrong = f"{bucket.path}/{wrong}"
        code, _, err = finish("data", "build", "none", "--input", wrong, "--vocab-size", 300)
        assert code == 2 and told in err and "Traceback" not in err


def test_a_corpus_is_built_from_the_hub(environment, data_root, tmp_path):
    pytest.importorskip("huggingface_hub")
    data = {
        f"data/{name}.txt": write_text(tmp_path / str(name), seed=name).read_bytes()
        for name in (3, 4)
    }

    build = [sys.executable, "-m", "lmscale", "data", "build", "hub", "--vocab-size", "300"]
    with hub({**data, "README.md": b"---"}) as address:
        done = subprocess.run(
            [*build, "--input", "hf://datasets/owner/set/data"],
            check=False,
            env={**environment, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert done.returncode == 0, done.stderr
    here = build_corpus("here", [str(tmp_path / name) for name in ("3", "4")], vocab_size=300)
    built = json.loads((data_root / "hub" / "manifest.json").read_text())
    assert built["splits"] == json.loads((here.path / "manifest.json").read_text())["splits"]


def test_a_store_that_does_not_answer_is_told_in_a_line(bucket, finish):
    closed = {
        name: "http://127.0.0.1:9" for name, value in bucket.variables.items() if "http" in value
    }
    code, _, err = finish("status", f"{bucket.path}/none", **closed)
    assert code in (1, 2) and "Traceback" not in err
    assert err.splitlines()[-1].startswith("lmscale status: ")


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
@pytest.mark.parametrize("words", [["status"], [*ARGUMENTS, "--out"]], ids=["status", "run"])
def test_missing_keys_are_told_in_a_line(bucket, environment, words):
    done = subprocess.run(
        [sys.executable, "-m", "lmscale", *map(str, words), f"{bucket.path}/none"],
        check=False,
        env=without_keys(bucket.environment(environment)),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1 and "NoCredentialsError" in done.stderr
    assert len(done.stderr.splitlines()) == 1

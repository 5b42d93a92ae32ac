"""A run has one owner, whoever else wants it, however its owner ends, on every kind of store."""

import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from etils.epath import backend

from lmscale.sweep import ownership
from lmscale.sweep.ownership import Claims, find_claim
from tests.waiting import PATIENCE, wait_until


def holder_of(folder):
    claim = find_claim(folder)
    return claim and claim.holder


def no_links(*arguments):
    raise OSError(errno.ENOTSUP, "Operation not supported")


@pytest.fixture(params=["mounted", "no links", "objects"])
def folder(request, tmp_path, monkeypatch):
    """The folder of a run on each kind of store."""
    if request.param == "objects":
        fsspec = pytest.importorskip("fsspec")
        memory = fsspec.filesystem("memory")
        memory.store.clear()
        monkeypatch.setattr(backend._FileSystemSpecBackend, "fs", lambda self, path: memory)
        monkeypatch.setattr(ownership, "_PAUSE", 0.02)
        from etils import epath

        path = epath.Path("s3://bucket/runs/one")
        monkeypatch.setattr(type(path), "_backend", backend.fsspec_backend, raising=False)
        return path
    if request.param == "no links":
        monkeypatch.setattr(os, "link", no_links)
    return tmp_path


def dead_process():
    """The number of a process that is gone, and whose number is not taken again soon."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def make_claim(folder, **fields):
    """As a process left it; returns its token."""
    claims = Claims()
    assert claims.take(folder) is None
    claims._over.set()
    (path,) = [p for p in _files(folder) if p.name.endswith(".json")]
    values = json.loads(path.read_text()) | fields
    path.write_text(json.dumps(values))
    return values["token"]


def _files(folder):
    if "://" in str(folder):
        return list((folder / "claims").iterdir())
    return list(Path(folder).glob("claim*"))


def test_a_run_has_one_owner_until_it_is_released(folder):
    with Claims() as first, Claims() as second:
        assert first.take(folder) is None
        assert first.take(folder) is None
        other = second.take(folder)
        assert (other.process, other.dead()) == (os.getpid(), False)
        assert first.holds(folder) and not second.holds(folder)
        second.release(folder)
        assert first.holds(folder)
        first.release(folder)
        assert second.take(folder) is None
        assert not first.holds(folder)
        assert holder_of(folder).process == os.getpid()
    assert holder_of(folder) is None
    assert _files(folder) == []


def test_of_many_that_want_a_run_at_once_one_gets_it(folder):
    for _ in range(10):
        claims = [Claims() for _ in range(4)]
        found, barrier = [None] * 4, threading.Barrier(4)

        def want(index, claims=claims, found=found, barrier=barrier):
            barrier.wait()
            found[index] = claims[index].take(folder) is None

        threads = [threading.Thread(target=want, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # On an object store all may have withdrawn, and try again later.
        assert sum(found) <= 1 if "://" in str(folder) else sum(found) == 1
        assert sum(one.holds(folder) for one in claims) == sum(found)
        for one in claims:
            one.close()


def test_a_dead_owner_is_followed_by_one_of_many(folder):
    for _ in range(10):
        make_claim(folder, process=dead_process())
        claims = [Claims() for _ in range(4)]
        threads = [threading.Thread(target=one.take, args=(folder,)) for one in claims]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held = sum(one.holds(folder) for one in claims)
        assert held <= 1 if "://" in str(folder) else held == 1
        for one in claims:
            one.close()
        if "://" in str(folder) and held == 0:
            with Claims() as later:
                assert later.take(folder) is None
        assert _files(folder) == []


def test_another_process_of_that_number_is_not_the_owner(folder):
    make_claim(folder, started="1")
    with Claims() as claims:
        assert claims.take(folder) is None


def test_an_owner_on_another_machine_lives_while_it_is_heard_of(folder):
    make_claim(folder, host="elsewhere", process=dead_process())
    with Claims(silent=0.3) as claims:
        assert str(claims.take(folder)).endswith("on elsewhere")
        assert claims.other(folder).holder.host == "elsewhere"
        time.sleep(0.5)
        assert claims.other(folder) is None
        assert claims.take(folder) is None


def test_claims_are_renewed(folder):
    def sign():
        claim = find_claim(folder)
        return claim.renewed, claim.holder.beat

    with Claims(beat=0.1) as owner, Claims(silent=60.0) as other:
        assert owner.take(folder) is None
        before = sign()
        wait_until(lambda: sign() > before)
        assert other.take(folder) is not None


def test_an_error_of_the_store_ends_no_renewals(folder, monkeypatch):
    class HttpError(Exception):
        """As the packages of object stores raise it: no OSError."""

    def fail(*arguments):
        failed.append(1)
        raise HttpError

    def sign():
        claim = find_claim(folder)
        return claim.renewed, claim.holder.beat

    failed = []
    with Claims(beat=0.05) as owner:
        assert owner.take(folder) is None
        with monkeypatch.context() as patch:
            patch.setattr(owner._held[str(folder)], "renew", fail)
            wait_until(lambda: failed)
        before = sign()
        wait_until(lambda: sign() > before)
        monkeypatch.setattr(owner._held[str(folder)], "remove", fail)
    assert len(failed) > 1


def test_an_owner_that_was_silent_learns_that_it_has_lost_the_run(folder):
    with Claims(beat=1e6) as owner, Claims(silent=0.2) as other:
        assert owner.take(folder) is None
        other.take(folder)
        time.sleep(0.5)
        assert other.take(folder) is None
        assert not owner.holds(folder)
        owner.release(folder)
        assert other.holds(folder)


def test_an_owner_whose_files_have_the_time_of_a_late_clock_keeps_its_run(tmp_path, monkeypatch):
    """As on Lustre: its renewals are ten minutes old for a machine whose clock is right."""
    now = [0.0]
    monkeypatch.setattr(ownership, "clock", lambda: now[0])
    make_claim(tmp_path, host="elsewhere")

    def renew():
        renewals.append(time.time() - 2 * ownership.SILENT_SECONDS + len(renewals))
        os.utime(tmp_path / "claim.json", (0, renewals[-1]))

    renewals = []
    with Claims() as claims:
        for _ in range(20):
            renew()
            assert claims.take(tmp_path) is not None
            now[0] += ownership.BEAT_SECONDS + 1
        # Then it dies, and is taken over after two beats in which it has said nothing.
        assert claims.take(tmp_path) is not None
        now[0] += ownership.BEAT_SECONDS
        assert claims.take(tmp_path) is None


@pytest.mark.parametrize("folder", ["objects"], indirect=True)
@pytest.mark.parametrize("looks", ["at its renewal", "before it writes to the run"])
def test_a_renewal_that_arrives_after_a_takeover_gives_the_run_up(folder, monkeypatch, looks):
    """The request is on its way (packages repeat it for minutes) while another process takes over."""
    monkeypatch.setattr(ownership.Holder, "dead", lambda self: None)
    with Claims(beat=1e6) as owner, Claims(silent=0.2) as other:
        assert owner.take(folder) is None
        held = owner._held[str(folder)]
        write = held._write

        def arrive_late(*, held):
            other.take(folder)
            time.sleep(0.5)
            assert other.take(folder) is None
            write(held=held)

        monkeypatch.setattr(held, "_write", arrive_late)
        if looks == "at its renewal":
            held.renew()
        else:
            arrive_late(held=True)
            assert other.holds(folder)
        assert not owner.holds(folder)
        assert other.holds(folder)
        other._held[str(folder)].renew()
        assert other.holds(folder) and len(_files(folder)) == 1


def test_a_taker_that_comes_late_withdraws(tmp_path):
    """It has judged a claim dead that was taken over, ended and claimed again meanwhile."""
    token = make_claim(tmp_path, process=dead_process())
    late = ownership._Mounted(tmp_path)
    judged = late.chain()
    with Claims() as quick, Claims() as next_one:
        assert quick.take(tmp_path) is None
        quick.release(tmp_path)
        assert next_one.take(tmp_path) is None
        chains = iter([judged])
        late.chain = lambda: next(chains, None) or ownership._Mounted.chain(late)
        assert late.make(lambda claim, now: claim.holder.token == token) is not None
        assert next_one.holds(tmp_path)
    assert _files(tmp_path) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 3}', '{"token": "../../x"}'])
def test_a_damaged_claim_falls_silent(tmp_path, content):
    path = tmp_path / "claim.json"
    path.write_text(content)
    with Claims(beat=0.01) as claims:
        assert claims.take(tmp_path) is not None
        os.utime(path, (0, time.time() - 2 * ownership.SILENT_SECONDS))
        wait_until(lambda: claims.take(tmp_path) is None)
    assert _files(tmp_path) == []


def test_what_a_killed_process_left_of_its_attempt_is_swept_up(tmp_path):
    old, new = tmp_path / "claim-0123456789abcdef.tmp", tmp_path / "claim-fedcba9876543210.tmp"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, time.time() - 2 * ownership.SILENT_SECONDS))
    with Claims() as claims:
        assert claims.take(tmp_path) is None
    # Another may be about to claim the run with the younger.
    assert _files(tmp_path) == [new]


def _take_and_wait(folder, ended, go):
    claims = Claims()
    go.wait()
    ended.put((os.getpid(), claims.take(folder) is None))
    signal.pause()


def test_processes_take_over_from_one_that_was_killed(tmp_path):
    context = multiprocessing.get_context("fork")
    ended, go = context.Queue(), context.Event()
    processes = [
        context.Process(target=_take_and_wait, args=(tmp_path, ended, go), daemon=True)
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    go.set()
    # All have tried before the owner is killed, or one that is late would take over.
    tried = [ended.get(timeout=PATIENCE) for _ in processes]
    (owner,) = [process for process, won in tried if won]
    with Claims() as claims:
        assert claims.take(tmp_path).process == owner
        os.kill(owner, signal.SIGSTOP)
        assert claims.take(tmp_path).process == owner
        os.kill(owner, signal.SIGKILL)
        # Dead at once, also while nobody has waited for it.
        wait_until(lambda: claims.take(tmp_path) is None)
    for process in processes:
        process.kill()
        process.join()


#: More by hand: LMSCALE_TEST_ROUNDS=200.
ROUNDS = int(os.environ.get("LMSCALE_TEST_ROUNDS", "4"))
RUNS, LINES = 12, 5


def _train_all(folders, seed):
    """As a sweep does: claims what is free, writes its lines, then its result."""
    rng = random.Random(seed)
    with Claims() as claims:
        left = list(folders)
        while left:
            rng.shuffle(left)
            folder = left.pop()
            if claims.take(folder) is not None:
                # Its owner may be killed.
                time.sleep(0.002)
                left += [] if (folder / "result").exists() else [folder]
                continue
            if not (folder / "result").exists():
                # What a dead owner has written is written again.
                (folder / "lines").unlink(missing_ok=True)
                for line in range(LINES):
                    with open(folder / "lines", "a") as file:
                        file.write(f"{line} {os.getpid()}\n")
                    time.sleep(rng.uniform(0, 0.002))
                with open(folder / "result", "a") as file:
                    file.write(f"{os.getpid()}\n")
            claims.release(folder)


@pytest.mark.parametrize("count", [2, 4])
def test_in_random_rounds_with_kills_every_run_is_trained_once(tmp_path, count):
    context, rng = multiprocessing.get_context("fork"), random.Random()
    for number in range(ROUNDS):
        folders = [tmp_path / f"{number}-{run}" for run in range(RUNS)]
        for folder in folders:
            folder.mkdir()
        shares = [folders, *(rng.sample(folders, rng.randint(1, RUNS)) for _ in range(count - 1))]
        processes = [
            context.Process(target=_train_all, args=(share, rng.random())) for share in shares
        ]
        for process in processes:
            process.start()
        for process in processes[1:]:
            time.sleep(rng.uniform(0, 0.02))
            process.kill()
        for process in processes:
            process.join(60)
            assert not process.is_alive()
        assert processes[0].exitcode == 0
        for folder in folders:
            (owner,) = (folder / "result").read_text().split()
            lines = (folder / "lines").read_text().splitlines()
            assert lines == [f"{line} {owner}" for line in range(LINES)]
            claim = find_claim(folder)
            # One that was killed before it could release an ended run leaves its claim, which is dead.
            assert claim is None or claim.holder.dead()

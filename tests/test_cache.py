"""What cannot be kept is made again: no cache folder stops a run, and it is said once."""

import errno
import json

import pytest

from lmscale import cache, files
from lmscale.planner.devices import local_devices
from lmscale.planner.packs import make_plan
from lmscale.planner.slots import choices_of
from lmscale.sweep.experiment import Run
from lmscale.sweep.store import Store
from tests.training.specs import run_spec

NAME = "LMSCALE_CACHE can name another folder"


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(cache, "_TOLD", set())
    cache._usable.cache_clear()


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def settle(tmp_path, name="store"):
    (pack,) = make_plan([Run(run_spec(), {})], local_devices(), n_slots=1).packs
    choices = choices_of(Store(tmp_path / name).path, local_devices())
    return choices.settle(pack, None, print) == pack == choices.planned(pack)


def test_a_folder_that_can_be_written_is_used_and_left_clean(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LMSCALE_CACHE", str(tmp_path / "deep" / "cache"))
    assert cache.usable_cache() == tmp_path / "deep" / "cache"
    assert list(cache.usable_cache().iterdir()) == []
    assert settle(tmp_path)
    assert len(list((tmp_path / "deep" / "cache" / "slots").iterdir())) == 1
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path, monkeypatch, capsys):
    # Nobody can make a folder below a file, not even root, who may run these tests.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LMSCALE_CACHE", str(tmp_path / "file" / "cache"))
    assert cache.usable_cache() is None
    assert settle(tmp_path)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "going on without the cache" in error and "Not a directory" in error and NAME in error


def test_a_full_disk_is_done_without(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LMSCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache.os, "fsync", full)
    assert cache.usable_cache() is None
    error = capsys.readouterr().err
    assert "No space left on device" in error and NAME in error
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_disk_that_fills_up_later_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LMSCALE_CACHE", str(tmp_path / "cache"))
    assert cache.usable_cache() is not None
    monkeypatch.setattr(cache, "write_json", full)
    assert settle(tmp_path, "one") and settle(tmp_path, "two")
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert NAME in error


def test_the_store_itself_must_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("LMSCALE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "store").write_text("")
    with pytest.raises(OSError, match="store"):
        settle(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_what_is_damaged_in_the_cache_is_made_again(tmp_path, monkeypatch, content):
    monkeypatch.setenv("LMSCALE_CACHE", str(tmp_path / "cache"))
    assert settle(tmp_path, "one")
    (kept,) = (tmp_path / "cache" / "slots").iterdir()
    whole = kept.read_text()
    kept.write_text(content)
    assert settle(tmp_path, "two")
    assert (
        kept.read_text() == whole == json.dumps(files.seal(files.read_json(kept)), indent=1) + "\n"
    )

"""Remote paths: what is said of those that cannot be used, and that nothing of them is remembered."""

import importlib

import pytest
from etils import epath
from etils.epath import backend

from lmscale import remote
from lmscale.cli.errors import code_and_line
from lmscale.files import append, write_atomically


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("/a/b", False, None),
        ("hf://datasets/a/b", True, None),
        ("hf://datasets/a/b", False, "is not read in place .*download it"),
        ("https://a.org/b", True, "curl -LO"),
        ("gs://", False, "names no folder: give gs://BUCKET/NAME"),
        ("ssh://a/b", False, "gs://, s3://, az:// are"),
    ],
)
def test_what_cannot_be_opened_is_told(path, text, message):
    import re

    found = remote.unreachable(path, text=text)
    assert found is None if message is None else re.search(message, found)


def test_an_object_in_place_of_a_folder_is_not_what_the_folder_holds(monkeypatch):
    """The consoles of object stores make one, and a search through the folder had no end."""
    folder = epath.Path("s3://bucket/texts")
    a, b = folder / "a", folder / "b"
    listed = {folder: [folder, b, a], a: [a / "a"], b: [b / "b"]}
    monkeypatch.setattr(type(folder), "iterdir", lambda self: iter(listed[self]))
    monkeypatch.setattr(type(folder), "exists", lambda self: self == b / "b")
    assert remote.entries(folder) == [a, b]
    assert remote.entries(a) == [] and remote.entries(b) == [b / "b"]


def test_runs_are_trained_where_checkpoints_can_be_written():
    assert remote.no_place_to_train("/a") is None
    assert remote.no_place_to_train("gs://a/b") is None
    assert remote.no_place_to_train("az://a/b") == (
        "checkpoints cannot be written to az://: give a folder of this machine, gs:// or s3://"
    )


@pytest.mark.parametrize("package", ["s3fs", "gcsfs"])
def test_no_listing_is_remembered(package):
    pytest.importorskip(package)
    spec = importlib.import_module("fsspec.config").conf
    for name in remote._NAMES[package]:
        assert spec[name]["use_listings_cache"] is False


def test_an_object_is_written_again_where_it_cannot_grow(monkeypatch):
    """gcsfs takes "a" for "w", and says so in a warning."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    monkeypatch.setattr(backend._FileSystemSpecBackend, "fs", lambda self, path: memory)
    path = epath.Path("s3://bucket/log")
    monkeypatch.setattr(type(path), "_backend", backend.fsspec_backend, raising=False)
    opened = []
    real = type(memory).open
    monkeypatch.setattr(
        type(memory),
        "open",
        lambda self, path, mode="rb", **rest: opened.append(mode) or real(self, path, mode, **rest),
    )
    append(path, "one\n")
    append(path, "two\n")
    assert path.read_text() == "one\ntwo\n"
    write_atomically(path, "three\n")
    append(path, "four\n")
    assert path.read_text() == "three\nfour\n"
    assert not [mode for mode in opened if "a" in mode]


def test_an_error_of_a_store_is_one_line():
    errors = pytest.importorskip("botocore.exceptions")
    code, line = code_and_line(errors.NoCredentialsError())
    assert (code, line) == (
        1,
        "the object store cannot be used: NoCredentialsError: Unable to locate credentials",
    )
    assert remote.store_error(KeyError("a")) is None

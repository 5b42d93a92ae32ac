"""Small files of ours: what is damaged is named, what is written is whole."""

import json

import pytest
from etils import epath

from lmscale import files


def read(tmp_path, content, **options):
    path = epath.Path(tmp_path / "status.json")
    path.write_bytes(content)
    return files.read_json(path, **options)


def test_a_file_that_is_not_there_is_none(tmp_path):
    assert files.read_json(epath.Path(tmp_path / "status.json")) is None


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "it is empty"),
        (b'{"step": 1', "it is no JSON"),
        (b"\xff\xfe\x00", "no text"),
        (b"[1]", "a JSON array, not an object"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"step": NaN}', "it holds NaN"),
        (b"{}", "it has no 'step'"),
        (b'{"step": "3"}', "its 'step' is a JSON string"),
        (b'{"step": true}', "its 'step' is a JSON boolean"),
    ],
)
def test_damage_is_told_in_a_line_with_the_path_and_the_remedy(tmp_path, content, fault):
    with pytest.raises(files.DamagedError) as caught:
        read(tmp_path, content, fields={"step": int}, remedy="delete it")
    message = str(caught.value)
    assert str(tmp_path / "status.json") in message and message.endswith("; delete it")
    assert fault in message and "\n" not in message


def test_a_folder_in_place_of_a_file_is_damage(tmp_path):
    (tmp_path / "status.json").mkdir()
    with pytest.raises(files.DamagedError, match=r"status.json is damaged: it is a folder"):
        files.read_json(epath.Path(tmp_path / "status.json"))


def test_a_file_in_place_of_a_folder_is_damage(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(files.DamagedError, match=r"run is damaged: it is a file"):
        files.read_json(epath.Path(tmp_path / "run" / "status.json"))


def test_a_huge_file_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_JSON", 10)
    with pytest.raises(files.DamagedError, match="larger than 10 bytes"):
        read(tmp_path, b'{"name": "long enough"}')


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    path = epath.Path(tmp_path / "result.json")
    files.write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"loss": 1.0}


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = epath.Path(tmp_path / "result.json")
    files.write_json(path, {"loss": 1.0})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(path, {"loss": 2.0})
    assert json.loads(path.read_text()) == {"loss": 1.0}
    assert [found.name for found in tmp_path.iterdir()] == ["result.json"]


def test_whole_numbers_are_floats_too(tmp_path):
    assert read(tmp_path, b'{"seconds": 3}', fields={"seconds": float}) == {"seconds": 3}


@pytest.mark.parametrize("digest", [None, 3, "", [], "0" * 32])
def test_a_seal_that_is_not_the_contents_own_is_damage(tmp_path, digest):
    with pytest.raises(files.DamagedError, match="its digest doesn't match"):
        read(tmp_path, json.dumps({"step": 1, "digest": digest}).encode())
    sealed = files.seal({"step": 1})
    assert read(tmp_path, json.dumps(sealed).encode()) == {"step": 1}

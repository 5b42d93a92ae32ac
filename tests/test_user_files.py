"""A user's own file is loaded under a name that other processes find, and its faults are told."""

import json
import pickle
import sys

import pytest

from lmscale.parallel.distributed import share_failure
from lmscale.user_files import UserFileError, load_file, load_module, loaded_files, place_of


def test_what_a_file_defines_can_be_sent_to_a_process_that_has_loaded_it(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("class Thing:\n    size = 3\n")
    module = load_file(path)
    assert str(path) in loaded_files()
    sent = pickle.dumps(module.Thing())
    # Another process has no such module until it loads the file.
    del sys.modules[module.__name__]
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(sent)
    load_file(path)
    assert pickle.loads(sent).size == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\ny = x / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("x = 1\n\nif x\n", "line 3: SyntaxError: expected ':'"),
        (
            "import sys\nsys.exit(0)\n",
            "line 2: it calls sys.exit; a file that is loaded must not end the process",
        ),
    ],
)
def test_a_fault_is_one_line_with_the_file_and_the_line(tmp_path, text, says):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserFileError) as error:
        load_file(path)
    assert str(error.value) == f"{path}, {says}"
    assert str(path) not in loaded_files()
    assert not any(name.startswith("lmscale_file_broken") for name in sys.modules)


def test_a_fault_of_a_module_is_one_line_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "module_with_a_fault.py"
    for text, says in (("x = 1\ny = x / 0\n", "line 2: Zero"), ("exit(3)\n", "line 1: it calls")):
        path.write_text(text)
        with pytest.raises(UserFileError) as error:
            load_module("module_with_a_fault")
        assert str(error.value).startswith(f"{path}, {says}")
    path.write_text("import nothing_of_this_name\n")
    with pytest.raises(UserFileError, match="'module_with_a_fault' cannot be imported: No module"):
        load_module("module_with_a_fault")
    path.write_text("x = 1\n")
    assert load_module("module_with_a_fault").x == 1


def test_a_failure_names_the_innermost_line_of_a_users_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import json\ndef fail():\n    json.loads('{')\n")
    module = load_file(path)
    with pytest.raises(json.JSONDecodeError) as error:
        module.fail()
    assert place_of(error.value) == "mine.py:3"
    (reason,), sound = share_failure(error.value)
    assert sound and reason.startswith("JSONDecodeError: Expecting ")
    assert reason.endswith("(mine.py:3)")
    assert share_failure(ValueError("a\nb")) == (["ValueError: a\nb"], True)
    assert place_of(ValueError()) is None and place_of(ValueError(), module.fail) == "mine.py:2"

"""A store knows which code of a user's files its runs were declared with, and says when it is another."""

import json

from lmscale.cli import training
from lmscale.files import write_json
from lmscale.report.page import _facts
from lmscale.studies.results import Results
from lmscale.sweep.dropped import declared_runs
from lmscale.sweep.experiment import load_scales
from lmscale.sweep.own_code import changed_code, code_history
from lmscale.sweep.store import Store
from tests.sweep.test_own_experiment import FILE


def declare(folder, corpus, more=""):
    path = folder / "own.py"
    path.write_text(FILE + more)
    name, _, scales = load_scales(str(path))
    store = Store(folder / "store")
    runs, _ = declared_runs(name, scales["cpu"], corpus)
    store.declare(name, "cpu", scales["cpu"], corpus, runs, "lmscale run own.py")
    return store


def test_a_file_that_was_edited_between_two_runs_of_a_store_is_named(tmp_path, corpus, capsys):
    store = declare(tmp_path, corpus)
    first = store.experiment()["code"]["own.py"]
    assert len(first) == 1
    declare(tmp_path, corpus)
    assert capsys.readouterr().err == ""
    declare(tmp_path, corpus, "\n# Another layer.\n")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("own.py has changed since these runs were declared: what is done stays")
    found = store.experiment()["code"]["own.py"]
    assert found[:1] == first and len(found) == 2
    # Said once, and kept for the page.
    declare(tmp_path, corpus, "\n# Another layer.\n")
    assert capsys.readouterr().err == ""
    facts = dict(_facts(Results.read(store)))
    assert facts["own files"] == f"<code>own.py {found[0]}, then {found[1]}</code>"


def test_stores_of_earlier_versions_are_accepted_silently(tmp_path, corpus, capsys):
    store = declare(tmp_path, corpus)
    values = json.loads((store.path / "experiment.json").read_text())
    for foreign in (None, [], {"own.py": 3}, {"own.py": []}):
        values["code"] = foreign
        values.pop("digest", None)
        write_json(store.path / "experiment.json", values, sealed=True)
        assert changed_code(values) is None and len(code_history(values)["own.py"]) == 1
        declare(tmp_path, corpus, f"\n# {foreign}\n")
    assert capsys.readouterr().err == ""


def test_the_next_commands_name_the_files_that_they_need(tmp_path, corpus):
    store = declare(tmp_path, corpus)
    assert training._files_needed(store) == []
    own = "\nfrom lmscale import studies\n\n@studies.register('own')\ndef study(results): ...\n"
    try:
        store = declare(tmp_path, corpus, own)
        values = store.experiment()
        values["analyses"] = ["own"]
        write_json(store.path / "experiment.json", values, sealed=True)
        assert training._files_needed(store) == [str(tmp_path / "own.py")]
    finally:
        from lmscale.studies import registry

        registry._STUDIES.pop("own")

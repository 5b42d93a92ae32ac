"""Completion in the shell, as bash asks for it: a line in the environment, answers on descriptor 8."""

import os
import subprocess
import sys

import pytest

from lmscale.cli import completion
from lmscale.sweep.experiment import experiment_names

ASK = "import os, sys; sys.argv = ['lmscale']; from lmscale.cli import entry_point; entry_point()"


def completions(line: str, folder) -> set[str]:
    pytest.importorskip("argcomplete")
    answer, ours = os.pipe()
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    # Its descriptors are 8 for answers and 9 for what it logs.
    code = f"import os; os.dup2({ours}, 8); os.dup2(2, 9); {ASK}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, pass_fds=[ours], capture_output=True,
        cwd=folder, check=False,
    )  # fmt: skip
    os.close(ours)
    with os.fdopen(answer) as file:
        found = file.read()
    assert done.returncode == 0, done.stderr
    return {word.strip() for word in found.split("\n") if word.strip()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "answers"),
    [
        ("lmscale ev", {"eval"}),
        ("lmscale fit runs.csv --conv", {"--convention"}),
        ("lmscale fit runs.csv --convention k", {"kaplan"}),
        # The options of an experiment are those of its fields.
        ("lmscale run isoflop --bud", {"--budgets"}),
        ("lmscale run no_such_experiment --bud", set()),
    ],
)
def test_a_line_is_completed(line, answers, tmp_path):
    assert completions(line, tmp_path) == answers


def test_the_value_of_an_option_is_completed(tmp_path):
    (tmp_path / "mine").mkdir()
    assert completions("lmscale run isoflop --out m", tmp_path) == {"mine/"}


def test_experiments_are_completed_with_files_that_are_here(tmp_path):
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "notes.txt").write_text("")
    assert completions("lmscale run m", tmp_path) == {"mine.py", "model_size"}
    assert "isoflop" in experiment_names()


def test_only_a_shell_is_answered(monkeypatch):
    monkeypatch.delenv("_ARGCOMPLETE", raising=False)
    assert not completion.is_asked()
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    assert completion.is_asked()
    # Without the package nothing is completed, and nothing is printed.
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert completion.answer_shell() is None

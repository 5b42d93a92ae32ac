"""Every promise of PROMISES.md is held by a test that exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "PROMISES.md").read_text()
#: A promise begins with its sentence in bold.
PROMISES = [part for part in TEXT.split("\n\n") if part.startswith("**")]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`( \(slow\))?")


def is_slow(tree, function):
    """Whether a test is marked slow, itself or with its file."""
    marks = [ast.unparse(decorator) for decorator in function.decorator_list]
    marks += [
        ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    return any("mark.slow" in mark for mark in marks)


def test_every_promise_names_a_test():
    assert len(PROMISES) > 15
    assert [promise for promise in PROMISES if not NAMED.search(promise)] == []


def test_every_test_that_is_named_exists_and_is_as_slow_as_it_says():
    wrong = []
    for path, name, slow in NAMED.findall(TEXT):
        tree = (
            ast.parse((ROOT / path).read_text()) if (ROOT / path).exists() else ast.Module([], [])
        )
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        if name not in functions:
            wrong.append(f"there is no {path}::{name}")
        elif is_slow(tree, functions[name]) != bool(slow):
            wrong.append(f"{path}::{name} is {'not ' if slow else ''}slow")
    assert wrong == []
    assert len(set(NAMED.findall(TEXT))) > 30


def test_the_readme_leads_there():
    assert "(PROMISES.md)" in (ROOT / "README.md").read_text()

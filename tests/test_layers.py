"""Imports run one way: a room may import the rooms below it, and nothing above (see LAYERS).

Imports inside functions count, because they are dependencies as well; imports for type checkers do not.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import lmscale

ROOT = Path(lmscale.__file__).parent

#: Rooms (packages and modules of lmscale) from the lowest layer to the highest. A room may import
#: those of lower layers. Rooms of one layer do not import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    # These import nothing of ours.
    ("serialize", "compat", "cores", "stopping", "foreign_text", "user_files", "remote"),
    # Fits of numbers, without a run.
    ("laws",),
    # The environment, processes, files and what is said on a terminal.
    ("environment", "parallel", "progress", "terminal"),
    ("files", "wording"),
    ("cache",),
    # What a run is. `models` belongs to the architectures.
    ("architectures", "models"),
    ("optimizers",),
    ("spec",),
    ("flops",),
    ("hparams",),
    # What makes a run's result.
    ("data",),
    ("training",),
    ("planner", "tracking"),
    ("sweep",),
    # What is made of results.
    ("studies", "bench", "export"),
    ("report", "doctor"),
    # The Python interface, which `lmscale/__init__.py` gives out lazily.
    ("interface", "figures"),
    ("cli",),
    ("__main__",),
)
#: Rooms of one layer that form one subject and import each other.
TOGETHER = ({"architectures", "models"},)

LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


@functools.cache
def sources() -> dict[str, ast.Module]:
    """The syntax trees of lmscale's modules by their dotted names, but for the public interface itself."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(("lmscale", *path.relative_to(ROOT).with_suffix("").parts))
        if name != "lmscale.__init__":
            found[name] = ast.parse(path.read_text())
    return found


@functools.cache
def modules() -> dict[str, set[str]]:
    """What every module of lmscale imports, by its dotted name."""
    return {name: set(imported(tree)) for name, tree in sources().items()}


def imported(tree: ast.Module) -> Iterator[str]:
    """The modules that a module imports when it runs."""
    unseen: list[ast.AST] = [tree]
    while unseen:
        node = unseen.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            unseen += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            # `from lmscale import flops` imports a module, `from lmscale.spec import RunSpec` a name.
            many = node.module == "lmscale"
            names = [f"lmscale.{name.name}" for name in node.names] if many else [node.module]
            yield from (name for name in names if name != "lmscale.__version__")
        unseen += ast.iter_child_nodes(node)


def room_of(module: str) -> str:
    return module.split(".")[1]


def edges() -> dict[tuple[str, str], set[str]]:
    """(room, room that it imports) -> the modules that do."""
    found: dict[tuple[str, str], set[str]] = {}
    for name, others in modules().items():
        for other in others:
            if other.startswith("lmscale.") and room_of(other) != room_of(name):
                found.setdefault((room_of(name), room_of(other)), set()).add(name)
    return found


def is_downward(edge: tuple[str, str]) -> bool:
    room, other = edge
    return LEVEL[other] < LEVEL[room] or any(set(edge) <= rooms for rooms in TOGETHER)


def test_every_room_has_a_layer():
    rooms = {room_of(name) for name in modules()}
    assert rooms <= LEVEL.keys(), "say in LAYERS what these may import"


def test_imports_run_one_way():
    upward = {edge: found for edge, found in edges().items() if not is_downward(edge)}
    assert {edge: sorted(found) for edge, found in upward.items()} == {}


def test_the_library_never_imports_experiments():
    for name, others in modules().items():
        assert not any(other.startswith("lmscale_experiments") for other in others), name


def test_no_module_imports_scipy_stats():
    """It alone takes a second, at every start of every command. Functions that need it may import it."""
    for name, tree in sources().items():
        for node in tree.body:
            assert getattr(node, "module", None) != "scipy.stats", name


def test_the_checks_see_what_they_should():
    tree = ast.parse(
        "from typing import TYPE_CHECKING\n"
        "from lmscale import flops\n"
        "if TYPE_CHECKING:\n    from lmscale.sweep import store\n"
        "else:\n    import lmscale.data\n"
        "def f():\n    from lmscale.report.page import Page\n"
    )
    ours = {name for name in imported(tree) if name.startswith("lmscale")}
    assert ours == {"lmscale.flops", "lmscale.data", "lmscale.report.page"}
    assert is_downward(("planner", "training")) and is_downward(("models", "architectures"))
    assert not is_downward(("training", "planner")) and not is_downward(("planner", "sweep"))
    assert not is_downward(("remote", "compat"))

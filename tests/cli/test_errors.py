"""The table of errors and exit codes."""

import errno
import importlib
import os
import pkgutil
import subprocess
import sys

import pytest

import lmscale
from lmscale import optimizers
from lmscale.cli import main
from lmscale.cli.errors import EXIT_CODES, CommandError, code_and_line
from lmscale.files import DamagedError
from lmscale.sweep.fields import FieldError
from tests.waiting import PATIENCE

#: Errors that the code which raises them, or calls it, handles: no command ends with one of them.
HANDLED = {
    "lmscale.parallel.distributed.PeerFailedError",
    "lmscale.parallel.meeting.MeetingError",
}


def errors_of_lmscale():
    """The errors that lmscale defines for what a user or a machine did."""
    for module in pkgutil.walk_packages(lmscale.__path__, "lmscale."):
        if not module.name.endswith("__main__") and ".bench.torch" not in module.name:
            importlib.import_module(module.name)
    waiting, found = [ValueError, RuntimeError], set()
    while waiting:
        for error in waiting.pop().__subclasses__():
            waiting.append(error)
            if error.__module__.startswith("lmscale."):
                found.add(error)
    return found


def test_every_error_of_the_table_exists():
    for name in EXIT_CODES:
        assert issubclass(pkgutil.resolve_name(name), Exception), name


def test_every_error_of_lmscale_is_in_the_table():
    missing = set()
    for error in errors_of_lmscale():
        names = {f"{cls.__module__}.{cls.__qualname__}" for cls in error.__mro__}
        if not names & (set(EXIT_CODES) | HANDLED):
            missing.add(f"{error.__module__}.{error.__qualname__}")
    assert missing == set()


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (CommandError("give a folder"), 2, "give a folder"),
        # By the class that it derives from.
        (FieldError("IsoFLOP", "steps", "must be 1"), 2, "IsoFLOP.steps must be 1"),
        (DamagedError("a.json", "it is empty"), 1, "a.json is damaged: it is empty"),
        (FileNotFoundError(2, "No such file", "a.csv"), 1, "a.csv: No such file"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "xx"), 2, "xx: File name too long"),
        (ValueError("a fault of ours"), 1, None),
        (KeyError("x"), 1, None),
    ],
)
def test_an_error_has_a_code_and_a_line(error, code, line):
    assert code_and_line(error) == (code, line)


def test_a_wrong_variable_of_jax_is_told_in_one_line(tmp_path):
    # Also by the server of worker processes, which imports jax at the same time.
    done = subprocess.run(
        [sys.executable, "-m", "lmscale", "run", "isoflop", "--out", str(tmp_path / "store")],
        env={**os.environ, "JAX_ENABLE_X64": "banana"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith("lmscale run: jax does not start: invalid truth value 'banana'")
    assert "unset or mend" in line and "JAX_ENABLE_X64=banana" in line
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ('optax.scale(constants["rate"])', "lmscale plan: KeyError: 'rate' (lion.py:5)"),
        ("raise_(SystemExit(0))", "lmscale plan: it calls sys.exit (lion.py:2)"),
    ],
)
def test_an_error_of_a_users_file_is_one_line(tmp_path, capsys, monkeypatch, corpus, fault, says):
    monkeypatch.setattr(optimizers, "_REGISTRY", dict(optimizers._REGISTRY))
    path = tmp_path / "lion.py"
    path.write_text(
        "def raise_(error):\n    raise error\n"
        "import optax\nfrom lmscale.optimizers import Optimizer, register\n"
        f"register(Optimizer('lion', lambda model, constants: {fault}, constants=()))\n"
    )
    argv = ["plan", "isoflop", "--data", "tiny", "--optimizer", "lion", "--load", str(path)]
    assert main(argv) == 2
    assert capsys.readouterr().err.splitlines() == [says]
    monkeypatch.setenv("LMSCALE_TRACEBACK", "1")
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)") and err.endswith(f"{says}\n")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ("'adamw', f", "the name 'adamw' is taken by another optimizer"),
        ("'my opt', f", "an optimizer has a name of letters, digits and dashes, not 'my opt'"),
        (
            "'own', f, constants=('beta3',)",
            "the constants of the optimizer own must be some of beta1",
        ),
        ("'own', f, constants='beta1'", "the constants of the optimizer own must be some of beta1"),
    ],
)
def test_an_optimizer_that_cannot_be_is_refused(tmp_path, capsys, fields, says):
    path = tmp_path / "own.py"
    path.write_text(
        "from lmscale.optimizers import Optimizer, register\n"
        f"def f(model, constants): ...\nregister(Optimizer({fields}))\n"
    )
    assert main(["list", "--load", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line and "own.py, line 3" in line

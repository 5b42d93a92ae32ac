"""A law of a user's own: held out like the others, and refused or told in a line where it is wrong."""

import dataclasses

import numpy as np
import pytest

from lmscale import laws
from lmscale.cli import main
from lmscale.laws import FitResult, Law
from lmscale.laws.options import _COMMON, _TAKEN
from lmscale.user_files import UserFileError, load_file

HEAD = """\
import numpy as np
from lmscale.laws import FitResult, Law, Table, register

def line(parameters, *, flops, **_):
    return parameters["a"] - parameters["b"] * np.log(flops)

def found(table, **more):
    runs = Table.read(table).runs("flops", "loss")
    slope, level = np.polyfit(np.log(runs["flops"]), runs["loss"], 1)
    return FitResult(law="own", parameters={"a": level, "b": -slope}, n_used=len(runs), **more)

"""
FIT = "def fit(table, *, bootstrap=1000, level=0.95, seed=0):\n    {}\n"
REGISTER = "register(Law('own', ('flops', 'loss'), 'L', 'me', fit))\n"
#: What a fit does, and what is then said of it.
BAD = {
    "raises": (
        "return table.nothing",
        "AttributeError: 'Table' object has no attribute 'nothing' (ow",
    ),
    "exits": ("raise SystemExit(2)", "the law own failed: it calls sys.exit (own.py:13)"),
    "nothing": ("pass", "the law own returned None: its fit must return a lmscale.laws.FitResult"),
    "parameters": ("return {'a': 1.0}", "the law own returned a dict: its fit must return"),
    "a nan": (
        "return FitResult(law='own', parameters={'a': float('nan')})",
        "the law own gives a = nan: these runs do not determine it",
    ),
    "none": ("return FitResult(law='own', parameters={'a': None})", "the law own gives a = None"),
    "another name": (
        "return FitResult(law='mine', parameters={})",
        "the law own returned a fit of the law 'mine'",
    ),
    "a list": (
        "return FitResult(law='own', parameters=[1.0])",
        "parameters of its FitResult must be a dictionary of name to value",
    ),
    "an interval": (
        "return found(table, intervals={'c': (1.0, 2.0)})",
        "the interval of 'c' must be (low, high) of one of its parameters",
    ),
    "draws": (
        "return found(table, draws={'a': np.ones(3), 'b': np.ones(4)})",
        "its draws must be arrays [draw] of one length",
    ),
}
BAD_DECLARATIONS = {
    "no hint": (
        "seed=0",
        "seed=0, largest=3",
        "the option largest of the law own lacks a type hint",
    ),
    "no default": (
        "seed=0",
        "seed=0, largest: int",
        "largest of the law own lacks a default: write",
    ),
    "at": ("seed=0", "seed=0, at: float = 1.0", "has a name that `lmscale fit` has itself"),
    "law": ("seed=0", "seed=0, law: str = 'x'", "has a name that `lmscale fit` has itself"),
    "two tables": (
        "table, *",
        "table, other, *",
        "takes one table, and options after a *: other is",
    ),
    "no draws": (
        "bootstrap=1000, ",
        "",
        "the fit of the law own lacks the keyword argument bootstrap",
    ),
    "a taken name": (
        "'own'",
        "'power'",
        "the name 'power' is taken by the law of lmscale.laws.power",
    ),
    "all": ("'own'", "'all'", "the name all stands for every law"),
    "a space": ("'own'", "'my own'", "a law has a name of letters, digits and dashes"),
    "needs": ("('flops', 'loss')", "'loss'", "needs must be a tuple of columns"),
}


@pytest.fixture(autouse=True)
def known_laws(monkeypatch):
    monkeypatch.setattr(laws, "LAWS", dict(laws.LAWS))


@pytest.fixture
def table(tmp_path):
    flops = np.repeat(np.geomspace(1e18, 1e22, 10), 3)
    path = tmp_path / "runs.csv"
    rows = [f"{c},{9.0 - 0.12 * np.log(c)}" for c in flops]
    path.write_text("flops,loss\n" + "\n".join(rows) + "\n")
    return path


def own_law(folder, body="return found(table, model=line)", old="", new=""):
    path = folder / "own.py"
    path.write_text(HEAD + (FIT.format(body) + REGISTER).replace(old, new, 1))
    return path


@pytest.mark.parametrize("fault", BAD)
def test_a_fault_of_a_fit_is_one_line(tmp_path, table, capsys, fault):
    body, says = BAD[fault]
    path = own_law(tmp_path, body)
    assert main(["fit", str(table), "--law", "own", "--load", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    # Beside others it is the only one that is missing.
    assert (
        main(["fit", str(table), "--law", "own", "power", "--x", "flops", "--bootstrap", "20"]) == 0
    )
    assert f"own not fitted: {line.removeprefix('lmscale fit: ')}" in capsys.readouterr().out


@pytest.mark.parametrize("fault", BAD_DECLARATIONS)
def test_a_fault_of_a_declaration_is_told_with_its_line(tmp_path, fault):
    old, new, says = BAD_DECLARATIONS[fault]
    with pytest.raises(UserFileError) as error:
        load_file(own_law(tmp_path, old=old, new=new))
    assert says in str(error.value) and "own.py, line 14: FitError: " in str(error.value)


def test_a_law_that_predicts_is_held_out_by_the_columns_that_it_needs(tmp_path, table):
    load_file(own_law(tmp_path))
    held = laws.hold_out(table, "own")
    assert held.along == "flops" and len(held.row) == 2 and held.fit.n_used == 8
    assert held.mean_error < 1e-9
    (line,) = laws.compare(table, ["own"])
    assert line.rms_log_residual < 1e-9 and len(line.held_out.row) == 2
    assert list(line.fit.residuals) == ["row", "flops", "observed", "predicted", "residual"]
    assert line.fit.ranges["flops"] == pytest.approx((1e18, 1e22))
    # The same file again is the same law.
    load_file(own_law(tmp_path))


def test_a_law_that_predicts_nothing_or_wrongly_says_so(tmp_path, table):
    load_file(own_law(tmp_path, "return found(table)"))
    (line,) = laws.compare(table, ["own"])
    assert line.held_out_problem == "the law own predicts no run's loss"
    for model, says in (
        ("lambda parameters, *, params: params", r"failed: TypeError: .*\(own\.py:12\)"),
        ("lambda parameters, **_: np.ones(3)", "predicts no finite loss for each of the largest"),
        ("lambda parameters, *, flops: flops * np.nan", "predicts no finite loss for each"),
    ):
        laws.LAWS.pop("own")
        load_file(own_law(tmp_path, f"return found(table, model={model})"))
        (line,) = laws.compare(table, ["own"])
        assert line.fit is not None
        with pytest.raises(laws.FitError, match=says):
            raise laws.FitError(line.held_out_problem)


def test_a_law_whose_needs_are_words_cannot_be_held_out(tmp_path, table):
    load_file(own_law(tmp_path, old="('flops', 'loss')", new="('compute, and so on', 'loss')"))
    (line,) = laws.compare(table, ["own"])
    assert "names no columns of a table in its needs" in line.held_out_problem


SURFACE = """\
from lmscale import laws

def surface(parameters, *, params, tokens, **_):
    a, b = parameters["A"] / params ** parameters["alpha"], parameters["B"] / tokens ** parameters["beta"]
    return parameters["E"] + a + b

def fit(table, *, bootstrap=1000, level=0.95, seed=0):
    found = laws.fit(table, "parametric", bootstrap=bootstrap, level=level, seed=seed)
    return laws.FitResult(
        law="own", parameters=found.parameters, draws=found.draws, n_used=found.n_used, model=MODEL
    )

laws.register(laws.Law("own", ("params", "tokens", "loss"), "L", "me", fit))
"""


@pytest.fixture
def grid():
    rng = np.random.default_rng(0)
    flops = np.repeat(np.geomspace(1e18, 1e20, 5), 6)
    n = np.tile(np.geomspace(2e7, 2e9, 6), 5)
    d = flops / (6 * n)
    loss = (1.7 + 400 / n**0.34 + 2000 / d**0.36) * np.exp(0.002 * rng.standard_normal(len(n)))
    return {"params": n, "tokens": d, "loss": loss}


@pytest.mark.slow
def test_a_law_in_params_and_tokens_answers_like_one_of_lmscale(tmp_path, grid):
    (tmp_path / "own.py").write_text(SURFACE.replace("MODEL", "surface"))
    load_file(tmp_path / "own.py")
    fits = [laws.fit(grid, law, bootstrap=100) for law in ("own", "parametric")]
    for question in ({"flops": 4e20}, {"flops": 1e20, "inference_tokens": 1e10}, {"loss": 2.9}):
        own, ours = (laws.advise(fit, **question) for fit in fits)
        for name in ("flops", "n_params", "n_tokens", "loss"):
            assert getattr(own, name) == pytest.approx(getattr(ours, name), rel=1e-6)
        assert own.intervals.keys() == ours.intervals.keys()
        for name, (low, high) in own.intervals.items():
            # Back-tests differ: lmscale's law is fitted with fewer starts there.
            assert (low, high) == pytest.approx(ours.intervals[name], rel=0.02)
    with pytest.raises(laws.FitError, match="does not say what repeated tokens are worth"):
        laws.advise(fits[0], flops=1e20, unique_tokens=1e8)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        pytest.param(
            "lambda parameters, *, flops: flops",
            "says nothing on how to split compute",
            marks=pytest.mark.slow,
        ),
        (
            "lambda parameters, *, params, tokens: params.nothing",
            r"AttributeError: .*\(own\.py:\d+\)",
        ),
        (
            "lambda parameters, *, params, tokens: 9 - 0.1 * params**0.1",
            "has no best size at 1e.20",
        ),
        (
            "lambda parameters, *, params, tokens: params * float('nan')",
            "has no best size at 1e.20",
        ),
    ],
    ids=["of compute", "fails", "no minimum", "nan"],
)
def test_a_model_that_gives_no_best_size_is_refused_in_a_line(tmp_path, grid, model, says):
    (tmp_path / "own.py").write_text(SURFACE.replace("MODEL", model))
    load_file(tmp_path / "own.py")
    with pytest.raises(laws.FitError, match=says):
        laws.advise(laws.fit(grid, "own", bootstrap=20), flops=1e20)


@pytest.mark.slow
def test_every_law_that_has_a_model_is_held_out():
    flops = np.repeat(np.geomspace(1e18, 1e20, 4), 4)
    n = np.tile(np.geomspace(1e7, 1e9, 4), 4)
    d = flops / (6 * n)
    loss = 1.7 + 400 / n**0.34 + 2000 / d**0.36
    table = {"params": n, "tokens": d, "loss": loss, "flops": flops}
    for law in ("parametric", "over-training", "kaplan-nd", "isoflop"):
        fit = laws.fit(table, law, bootstrap=0)
        try:
            held = laws.hold_out(table, law, bootstrap=0)
        except laws.FitError as error:
            assert fit.model is None and "predicts no run's loss" in str(error)
        else:
            assert fit.model is not None and len(held.row) >= 2


def test_a_fault_of_a_law_of_lmscale_keeps_its_traceback(monkeypatch, table):
    def broken(*args, **options):
        raise RuntimeError("ours")

    broken.__module__ = "lmscale.laws.power"
    monkeypatch.setitem(laws.LAWS, "power", dataclasses.replace(laws.LAWS["power"], fit=broken))
    with pytest.raises(RuntimeError, match="ours"):
        laws.fit(table, "power")


def test_the_names_of_fit_itself_are_those_that_no_option_may_have():
    import inspect

    from lmscale import interface
    from lmscale.cli.fit import add_arguments
    from lmscale.cli.parser import Parser

    parser = Parser(prog="lmscale fit")
    add_arguments(parser, [])
    own = {a.dest for a in parser._actions if not a.dest.startswith("option_")} - {"table"}
    own |= set(inspect.signature(interface.fit).parameters) | set(
        inspect.signature(laws.fit).parameters
    )
    assert own <= {*_TAKEN, *_COMMON}
    assert isinstance(laws.LAWS["power"], Law) and FitResult(law="x", parameters={}).model is None

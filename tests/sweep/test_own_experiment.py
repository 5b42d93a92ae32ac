"""A user's experiment file with a fault: one line that says what is wrong, before anything is trained."""

import json
import textwrap

import pytest

from lmscale.cli import main
from lmscale.sweep.dropped import declared_runs
from lmscale.sweep.experiment import ExperimentError, experiment_names, load_scales
from lmscale.sweep.result_table import is_column
from lmscale.sweep.store import Store
from tests.experiments.fake_corpus import CORPUS

FILE = """\
from dataclasses import dataclass
import numpy as np
from lmscale.architectures import TransformerSpec
from lmscale.sweep import Experiment, Run, make_run, width_rule

@dataclass(frozen=True, kw_only=True)
class Mine(Experiment):
    analyses = ("curves",)
    steps: int = 40

    def runs(self, corpus):
        model = TransformerSpec.of_shape(2, 8, n_ctx=16, vocab_size=corpus.vocab_size)
        recipe = dict(steps=self.steps, batch_size=4, learning_rate=width_rule())
        recipe |= dict(data=self.data(corpus), evals=self.evals(corpus))
        runs = [Run(make_run(model, seed=s, **recipe), {"family": "mine"}) for s in (0, 1)]
        return runs

SCALES = {"cpu": Mine()}
"""
RETURN = "return runs\n"
#: What of the file is replaced, by what, and what is then said.
BAD_RUNS = {
    "an error": (
        RETURN,
        "return runs[5]\n",
        "own: IndexError: list index out of range (own.py:16)",
    ),
    "a signature": (
        "runs(self, corpus)",
        "runs(self)",
        "takes 1 positional argument but 2 were given",
    ),
    "nothing": (
        RETURN,
        "pass\n",
        "own: runs() returned None: it must return a list of Run(spec, la",
    ),
    "a spec": (
        RETURN,
        "return [runs[0].spec]\n",
        "runs() returned a RunSpec at place 0: put it into",
    ),
    "a text": (
        RETURN,
        "return ['a']\n",
        "runs() returned a str at place 0, where a Run(spec, labels)",
    ),
    "no labels": (
        RETURN,
        "return [Run(runs[0].spec, None)]\n",
        "the labels of the run at place 0 are a NoneType",
    ),
    "a keyword": (
        "batch_size=4",
        "batch_size=4, warmup=3",
        "unexpected keyword argument 'warmup' (own",
    ),
    "a column": ('"family": "mine"', '"loss": 1.0', "the label 'loss' is a column of results.csv"),
    "the status": (
        '"family": "mine"',
        '"status": "x"',
        "the label 'status' is a column of results.cs",
    ),
    "an evaluation": (
        '"family": "mine"',
        '"loss_valid": 1',
        "the label 'loss_valid' is a column of",
    ),
    "an array": (
        '"mine"',
        "np.ones(2)",
        "the label 'family' is a ndarray: it must be a text, a num",
    ),
    "not a number": (
        '"mine"',
        "float('nan')",
        "the label 'family' must be a finite number, not nan",
    ),
    "a list": ('"mine"', "[1]", "the label 'family' is a list: it must be a text, a number"),
    "a family": ('"mine"', "3", "the label family names a curve, as 'deep': 3 is no text"),
    "a budget": (
        '"family": "mine"',
        '"budget": "1e9"',
        "the label budget must be a positive number, not '1e9'",
    ),
    "exit": (RETURN, "raise SystemExit\n", "own: it calls sys.exit (own.py:16)"),
}
BAD_FILES = {
    "a class": (
        "Mine()",
        "Mine",
        "SCALES['cpu'] is the class Mine, not an experiment: write Mine()",
    ),
    "no experiment": (
        "Mine()",
        "3",
        "SCALES['cpu'] is a int: it must be an instance of a class that",
    ),
    "no dataclass": (
        "@dataclass(frozen=True, kw_only=True)\n",
        "",
        "Mine.steps is no field: write @dataclass(frozen=True, kw_only=True) above class Mine",
    ),
    "no type": (
        "    steps: int = 40",
        "    seeds = (0, 1)",
        "Mine.seeds sets a field without its type",
    ),
    "no runs": ("def runs(", "def run(", "Mine has no method runs(self, corpus)"),
    "text": ('("curves",)', '"curves"', "Mine.analyses must be a tuple of names, such as"),
    "a claim": (
        "    steps: int",
        "    claims = ('T.',)\n    steps: int",
        "Mine.claims must be a tuple of finding(..) and published_number(..), not",
    ),
    "a claim of others": (
        "    steps: int",
        "    from lmscale.sweep import finding\n"
        "    claims = (finding('size/gap', 'T.', 'S', at_least=0),)\n    steps: int",
        "a claim is held against size/gap, and size is not among the analyses (curves)",
    ),
}


@pytest.fixture(autouse=True)
def jax_as_it_is(monkeypatch):
    """The tests have started jax with settings of their own; no command starts it again."""
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)


def own_file(folder, old="", new=""):
    assert old in FILE
    path = folder / "own.py"
    path.write_text(FILE.replace(old, new, 1))
    return path


def runs_of(path):
    name, _, scales = load_scales(str(path))
    return declared_runs(name, scales["cpu"], CORPUS)[0]


@pytest.mark.parametrize("fault", BAD_RUNS)
def test_a_fault_of_runs_is_one_line(tmp_path, fault):
    old, new, says = BAD_RUNS[fault]
    with pytest.raises(ExperimentError) as error:
        runs_of(own_file(tmp_path, old, new))
    assert says in str(error.value)
    assert "(own.py" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_fault_of_a_file_is_one_line(tmp_path, fault):
    old, new, says = BAD_FILES[fault]
    with pytest.raises(ExperimentError) as error:
        load_scales(str(own_file(tmp_path, old, new)))
    assert says in str(error.value)


@pytest.mark.parametrize("hint", ["list[int]", "dict", "tuple", "int | str"])
def test_a_field_of_another_type_is_named(tmp_path, capsys, hint):
    path = own_file(tmp_path, "steps: int = 40", f"steps: int = 40\n    more: {hint} = None")
    assert main(["plan", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "own.py, line 19: " in line and "Mine.more has the type " in line


def test_a_fault_of_a_check_is_one_line(tmp_path, capsys):
    check = "def check(self):\n        1 / (self.steps - 41)\n\n    def runs("
    path = own_file(tmp_path, "def runs(", check)
    assert main(["plan", str(path), "--steps", "41"]) == 2
    assert "ZeroDivisionError: division by zero (own.py:12)" in capsys.readouterr().err


@pytest.mark.usefixtures("corpus")
@pytest.mark.parametrize("command", ["plan", "run"])
def test_the_commands_say_it_and_train_nothing(tmp_path, capsys, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for old, new, says in (
        ('("curves",)', '("curve",)', "an analysis 'curve', which is none: did you mean curves?"),
        BAD_RUNS["an error"],
    ):
        path = own_file(tmp_path, old, new)
        assert main([command, str(path), "--data", "tiny"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    assert not (tmp_path / "results").exists()


def test_numbers_of_numpy_are_labels(tmp_path):
    new = '"family": "mine", "n": np.int64(3), "x": np.float32(0.5), "b": np.bool_(True)'
    runs = runs_of(own_file(tmp_path, '"family": "mine"', new))
    assert json.loads(json.dumps(runs[0].labels)) == {"family": "mine", "n": 3, "x": 0.5, "b": True}


def test_a_run_that_is_declared_twice_alike_counts_once(tmp_path):
    name, _, scales = load_scales(str(own_file(tmp_path, RETURN, "return [*runs, *runs]\n")))
    runs, lines = declared_runs(name, scales["cpu"], CORPUS)
    assert len(runs) == 2
    assert lines == ["2 runs declared a second time with the same labels: each counts once"]
    # A run that belongs to two curves has an entry for each.
    new = "return [*runs, *(Run(one.spec, {'family': 'other'}) for one in runs)]\n"
    assert len(runs_of(own_file(tmp_path, RETURN, new))) == 4


@pytest.mark.parametrize("label", ["a/b", "a b", "..", "", "../x"])
def test_a_label_of_an_architecture_is_the_name_of_a_folder(tmp_path, monkeypatch, label):
    from lmscale.architectures import TransformerSpec

    monkeypatch.setattr(TransformerSpec, "label", label)
    with pytest.raises(
        ExperimentError, match=r"TransformerSpec\.label is .*begins the name of a f"
    ):
        runs_of(own_file(tmp_path))


def test_every_column_that_is_no_label_is_known(tmp_path):
    from tests.report import planted_store as planted

    runs = planted.size_runs(layers=(), seeds=(0,))[:1]
    store = planted.plant(tmp_path, runs, analyses=[], law=planted.SizeLaw())
    for column in Store.open(store.path).table():
        assert is_column(column, ["valid"]) == (column not in runs[0].labels), column


def test_the_experiments_of_lmscale_are_sound():
    for name in experiment_names():
        load_scales(name)


def test_a_fault_of_lmscale_keeps_its_traceback(monkeypatch):
    _, _, scales = load_scales("model_size")
    monkeypatch.setattr(type(scales["cpu"]), "runs", lambda self, corpus: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        declared_runs("model_size", scales["cpu"], CORPUS)


def test_the_file_as_it_should_be(tmp_path):
    assert len(runs_of(own_file(tmp_path))) == 2
    assert textwrap.dedent(FILE) == FILE

"""Whatever is given to a flag of a command: it answers, or one line says what is wrong."""

import argparse
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import launch.gke
import launch.local
import launch.slurm
import launch.tpu_pod
from lmscale import cli
from lmscale.spec import SpecError
from tests.property.harness import DEADLINE, TEXTS, VALUES, answer, check, examples
from tests.report.planted_store import isoflop_runs, plant

#: What a command is tried on, beside whatever else.
PLACES = ["nowhere", "store", "empty", "table.csv", "broken.csv", "/", "gs://bucket/x", "s3://b/x"]
PLACES += ["hf://b/x", "https://host/x", "besiroglu2024", "~nobody/x", "store/runs", "x" * 300]
#: Command -> words that it needs or that keep it short, before the random ones.
COMMANDS = {
    "fit": ["--law", "power", "--x", "params", "--bootstrap", "20"],
    "advise": ["--compute", "1e20"],
    "verify": ["--compute", "1e12", "--dry-run"],
    "status": [],
    "eval": [],
    "report": [],
    "sample": ["--prompt", "x"],
    "bench": [],
    "list": [],
    "data list": [],
    "data show": [],
}
#: Commands that compile a law's fit the first time that it is asked for, and the seconds that may take.
FITTING, COMPILING = ("fit", "advise", "verify", "report"), 60
LAUNCHERS = [launch.local, launch.slurm, launch.gke, launch.tpu_pod]


class _Caught(Exception):
    pass


def parser_of(command):
    """The parser that a command's words reach."""

    parser = cli.build_parser(command.split())
    for name in command.split():
        (choices,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        parser = choices.choices[name]
    return parser


def words_of(action):
    """A strategy of what may follow a flag."""
    if action.nargs == 0:
        return st.just([])
    known = [str(choice) for choice in action.choices or ()]
    one = st.one_of(st.sampled_from([*known, *PLACES]), VALUES) if known else VALUES
    most = 3 if action.nargs == "+" else 1
    return st.lists(one, min_size=1, max_size=most)


def command_lines(parser, needed, positional=PLACES):
    """Random words for a parser: its positionals, what it needs, and up to three flags."""
    options = [a for a in parser._actions if a.option_strings and a.dest != "help"]
    flags = [st.tuples(st.sampled_from(a.option_strings), words_of(a)) for a in options]
    some = st.lists(st.one_of(flags), max_size=3) if flags else st.just([])
    count = sum(not a.option_strings for a in parser._actions)
    places = st.lists(st.one_of(st.sampled_from(positional), TEXTS), min_size=count, max_size=count)
    return st.tuples(places, some).map(
        lambda found: [
            *found[0],
            *needed,
            *(word for flag, values in found[1] for word in (flag, *values)),
        ]
    )


@pytest.fixture(autouse=True)
def a_place(tmp_path, monkeypatch, corpus):
    """A folder with a store, a table, and what is neither; nothing is measured or trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)

    def measure(*args, **kwargs):
        raise SpecError("not measured here")

    monkeypatch.setattr("lmscale.bench.paths.measure", measure)
    monkeypatch.setattr("lmscale.bench.sweep.measure_sweep", measure)
    monkeypatch.setattr("lmscale.data.open_corpus", lambda *args, **kwargs: corpus)
    plant(tmp_path / "store", isoflop_runs()[:12], analyses=())
    rows = ["params,tokens,loss"] + [f"{n},{20 * n},{(8.8e13 / n) ** 0.076}" for n in SIZES]
    Path("table.csv").write_text("\n".join(rows))
    Path("broken.csv").write_text('a,"b\n1,x')
    Path("empty").mkdir()


SIZES = [1e6, 3e6, 1e7, 3e7, 1e8]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_with_flags_of_any_value_answers_or_is_refused_in_a_line(command):
    parser = parser_of(command)

    @examples(6)
    @given(words=command_lines(parser, COMMANDS[command]))
    def tried(words):
        # A report is written where there is a store to report on.
        folder = Path.cwd() if command != "report" else Path("empty")
        check([*command.split(), *words], folder, COMPILING if command in FITTING else DEADLINE)

    tried()


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda module: module.__name__)
def test_a_launcher_with_flags_of_any_value_says_what_it_would_do_or_refuses(launcher):
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", _raise_caught),
        pytest.raises(_Caught) as found,
    ):
        launcher.main([])
    parser = found.value.args[0]

    @examples(6)
    @given(words=command_lines(parser, ["--dry-run"], ["isoflop", "x.py"]))
    def tried(words):
        needed = {
            a.option_strings[0]: "gs://bucket/x"
            for a in parser._actions
            if a.required and a.option_strings
        }
        given_words = [part for pair in needed.items() for part in pair]
        code, out, err = answer([*given_words, *words], launcher.main)
        assert code in (0, 2), (code, words, err)
        if code == 2:
            assert out == "", (words, out)
            assert len(err.strip().splitlines()) == 1, (words, err)

    tried()


def _raise_caught(self, argv=None, namespace=None):
    raise _Caught(self)

"""Runs on corpora that hold less than one sequence of text are refused before they are trained."""

from types import SimpleNamespace

import pytest

from lmscale.data import DataError, build_corpus
from lmscale.data.unbuilt import UnbuiltCorpus
from lmscale.spec import EvalSpec
from lmscale.sweep.enough_text import check_enough_text
from tests.cli.answers import refused
from tests.conftest import write_text
from tests.training.specs import run_spec


def corpus_of(name="mine", **tokens):
    return SimpleNamespace(name=name, fingerprint=f"print-of-{name}", n_tokens=tokens.__getitem__)


def check(corpus, *others, **fields):
    spec = run_spec(corpus, **fields)
    by_name = {other.name: other for other in others}
    check_enough_text([spec], corpus, by_name.__getitem__)


def test_a_sequence_is_a_context_and_a_target():
    # The context of these runs is 16.
    check(corpus_of(train=17, valid=17))
    with pytest.raises(
        DataError, match=r"^the valid split of mine has 16 tokens, and a context of 16"
    ):
        check(corpus_of(train=17, valid=16))
    with pytest.raises(
        DataError, match=r"the train split of mine has 0 tokens, .* with more text$"
    ):
        check(corpus_of(train=0, valid=17))


def test_other_evaluation_sets_are_looked_at():
    corpus = corpus_of(train=100, valid=100)
    books = corpus_of("books", test=3)
    evals = (EvalSpec(name="b", corpus="books", fingerprint=books.fingerprint, split="test"),)
    with pytest.raises(
        DataError, match=r"the test split of books has 3 tokens, .*--test-fraction$"
    ):
        check(corpus, books, evals=evals)


def test_a_corpus_that_is_not_built_is_not_looked_at():
    unbuilt = UnbuiltCorpus("installed-python-v300", 300)
    check_enough_text([run_spec(unbuilt)], unbuilt, None)


@pytest.mark.parametrize("command", [("run",), ("run", "--dry-run"), ("plan",)])
def test_the_commands_say_so_in_a_line(command, capsys, data_root, tmp_path, monkeypatch):
    """They planned all runs, each of which then failed."""
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)
    monkeypatch.chdir(tmp_path)
    if not (data_root / "noval").exists():
        text = write_text(tmp_path / "text.txt")
        build_corpus("noval", [str(text)], vocab_size=300, valid_fraction=0, test_fraction=0)
    line = refused(capsys, *command, "isoflop", "--data", "noval")
    assert "the valid split of noval has 0 tokens" in line

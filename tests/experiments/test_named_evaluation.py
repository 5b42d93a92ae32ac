"""--eval NAME=CORPUS: further evaluation sets of any experiment."""

import pytest

from lmscale.data import DataError, build_corpus
from lmscale.sweep.experiment import experiment_names, load_scales
from lmscale.sweep.fields import FieldError
from tests.data.prose import documents, write_text


@pytest.fixture(scope="module")
def books(corpus, tmp_path_factory):
    """Text in the tokens of `tiny`, all of it held out for validation but a few for test."""
    text = write_text(tmp_path_factory.mktemp("text") / "books.txt", documents(60, seed=9))
    return build_corpus("books", [text], tokenizer_from="tiny", valid_fraction=0.5, test_fraction=0)


@pytest.mark.parametrize("name", experiment_names())
def test_every_run_of_every_experiment_is_evaluated_on_them(corpus, books, name):
    plain = load_scales(name)[2]["cpu"]
    # Experiments with sets of their own, without them.
    own = {"transfer": {"eval_corpora": ()}, "lstm_vs_transformer": {"position_tokens": 0}}
    changes = own.get(name, {})
    experiment = type(plain)(**{**vars(plain), **changes, "eval": ("b=books", "self=tiny")})
    sets = {spec.name: spec for spec in experiment.runs(corpus)[-1].spec.evals}
    assert {"valid", "b", "self"} <= sets.keys()
    assert sets["b"].corpus == "books" and sets["b"].fingerprint == books.fingerprint
    assert sets["b"].split == "valid" and sets["b"].tokens == plain.eval_tokens
    assert {spec.name for spec in type(plain)(**{**vars(plain), **changes}).evals(corpus)} == {
        "valid"
    }


def test_names_that_cannot_be_are_refused():
    experiment = load_scales("isoflop")[2]["cpu"]
    for value in ("books", "=books", "a b=books", "../x=books", "a="):
        with pytest.raises(FieldError, match="must be NAME=CORPUS"):
            type(experiment)(**{**vars(experiment), "eval": (value,)})


def test_a_set_in_other_tokens_is_refused(corpus, tmp_path):
    text = write_text(tmp_path / "a.txt", documents(60, seed=3))
    build_corpus("other-tokens", [text], vocab_size=310, valid_fraction=0.5, test_fraction=0)
    experiment = load_scales("isoflop")[2]["cpu"]
    experiment = type(experiment)(**{**vars(experiment), "eval": ("a=other-tokens",)})
    with pytest.raises(DataError, match="has another tokeniser than tiny"):
        experiment.runs(corpus)

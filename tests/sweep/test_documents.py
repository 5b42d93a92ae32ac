"""`--mask-documents`: every run of an experiment with masked documents, and what it does not go with."""

import dataclasses

import numpy as np
import pytest

from lmscale.data.unbuilt import UnbuiltCorpus
from lmscale.serialize import SpecError
from lmscale.spec import EvalSpec
from lmscale.sweep.dropped import declared_runs
from lmscale.sweep.experiment import experiment_names, load_scales
from lmscale.sweep.store import StoreError
from lmscale.training.batch_source import check_separator
from lmscale.training.evaluation import load_eval_set
from tests.sweep.earlier import store_without_field
from tests.training.specs import TRANSFORMER

SMALL = dataclasses.replace(
    load_scales("isoflop")[2]["cpu"], budgets=(2e9, 1e10), sizes=(1536.0, 3456.0)
)


def runs_of(experiment, corpus, masked):
    experiment = dataclasses.replace(experiment, mask_documents=masked)
    return declared_runs("some", experiment, corpus)[0]


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_masks_all_of_its_runs_and_changes_nothing_else(name, monkeypatch):
    experiment = load_scales(name)[2]["cpu"]
    corpus = UnbuiltCorpus("installed-python-v512", experiment.vocab_size)
    crossing, masked = (runs_of(experiment, corpus, masked) for masked in (False, True))
    assert crossing
    pairs = list(zip(crossing, masked, strict=True))
    renamed = {one.spec.run_id: other.spec.run_id for one, other in pairs}
    assert renamed.keys().isdisjoint(renamed.values())
    for one, other in pairs:
        assert one.spec.model.document_separator is None
        assert other.spec.model.document_separator == corpus.eod_id
        start = one.spec.start
        if start is not None:
            start = dataclasses.replace(start, run=renamed[start.run])
        model = dataclasses.replace(one.spec.model, document_separator=corpus.eod_id)
        assert other.spec == dataclasses.replace(one.spec, model=model, start=start)
        assert other.labels == one.labels


def test_a_built_corpus_has_the_separator_of_one_that_is_not_built(corpus):
    assert corpus.eod_id == UnbuiltCorpus("any", 512).eod_id


def test_masked_runs_do_not_join_those_of_an_earlier_version(tmp_path, corpus):
    """Whose declaration does not have the field."""
    runs = runs_of(SMALL, corpus, False)
    store = store_without_field(tmp_path / "store", "mask_documents", SMALL, corpus, runs)
    masked = dataclasses.replace(SMALL, mask_documents=True)
    with pytest.raises(StoreError, match="mask_documents: False there, True here"):
        store.declare(
            "isoflop", "cpu", masked, corpus, runs_of(SMALL, corpus, True), "run", extend=True
        )


def test_a_corpus_with_another_separator_is_refused_in_a_line(corpus):
    model = dataclasses.replace(TRANSFORMER, document_separator=corpus.eod_id + 1)
    says = (
        rf"masks documents by the token id {corpus.eod_id + 1} \(document_separator\), but in tiny "
        f"documents end with {corpus.eod_id}: use a corpus with the same tokeniser"
    )
    with pytest.raises(SpecError, match=says):
        check_separator(model, corpus)
    evaluation = EvalSpec(name="valid", corpus=corpus.name, fingerprint=corpus.fingerprint)
    with pytest.raises(SpecError, match=says):
        load_eval_set(evaluation, corpus, model, 4)
    own = dataclasses.replace(TRANSFORMER, document_separator=corpus.eod_id)
    windows = load_eval_set(evaluation, corpus, own, 4).windows
    crossing = load_eval_set(evaluation, corpus, TRANSFORMER, 4).windows
    np.testing.assert_array_equal(windows, crossing)

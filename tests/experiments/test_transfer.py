"""Every run is evaluated on the training text first, then on the others."""

from types import SimpleNamespace

import pytest
from lmscale_experiments import transfer

from tests.experiments.fake_corpus import CORPUS


@pytest.fixture(autouse=True)
def corpora(monkeypatch):
    def fake(name, training):
        return SimpleNamespace(name=f"{name}-{training.name}", fingerprint="f" * 16)

    monkeypatch.setattr(transfer, "evaluation_corpus", fake)


@pytest.mark.parametrize("scale", transfer.SCALES)
def test_the_sets_and_the_steps(scale):
    experiment = transfer.SCALES[scale]
    specs = [run.spec for run in experiment.runs(CORPUS)]
    assert len(specs) == len({spec.hash for spec in specs})
    assert len(specs) == len(experiment.sizes) * len(experiment.seeds)
    for spec in specs:
        names = [evaluation.name for evaluation in spec.evals]
        assert names == ["valid", "prose", "c", "stubs", "tables"]
        assert spec.evals[1].corpus == "installed-prose-text"
        assert len(spec.eval_steps) == experiment.evaluations
        assert spec.eval_steps[-1] == round(spec.steps / 2**0.5)


def test_a_users_own_text_takes_its_name():
    experiment = transfer.Transfer(
        sizes=(1e4,), steps=100, n_ctx=32, batch_size=2, eval_corpora=("books",)
    )
    (run,) = experiment.runs(CORPUS)
    assert [e.name for e in run.spec.evals] == ["valid", "books"]

"""A planned grid against the results of an earlier one."""

import numpy as np
import pytest

from lmscale import flops
from lmscale.architectures import transformer_ladder
from lmscale.sweep.centering import badly_centered, plan_centering
from lmscale.sweep.experiment import Run
from lmscale.sweep.store import Store
from tests.report import planted_store as planted

LATER = (81e12, 243e12)


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=5)
    return planted.plant(tmp_path_factory.mktemp("prior"), runs, analyses=["isoflop"])


def later(off: float) -> list[Run]:
    """Five sizes a budget, in a range of 16, about `off` times the planted optimum."""
    shared = {"n_ctx": planted.N_CTX, "vocab_size": planted.VOCAB}
    ladder = transformer_ladder([3e3 * 1.25**i for i in range(50)], **shared)
    sizes = {model: flops.n_params(model, "standard") for model in ladder}

    def models(budget):
        center = off * planted.Law().best_size(budget)
        targets = center * np.geomspace(1 / 4, 4, 5)
        return [min(sizes, key=lambda m: abs(np.log(sizes[m] / t))) for t in targets]

    return planted.isoflop_grid(
        LATER,
        models,
        data=planted.DATA,
        evals=planted.EVALS,
        batch_size=4,
        learning_rate=planted.width_rule(),
    )


def test_budgets_are_judged_by_the_stores_law(prior, tmp_path):
    nowhere = Store(tmp_path)
    assert badly_centered(later(1.0), prior, nowhere) == []
    lines = badly_centered(later(5.0), prior, nowhere)
    assert len(lines) == 2
    assert lines[0].startswith("transformer, budget 8.1e+13: the prior's best size is")
    assert "too large; train smaller models" in lines[0]
    (family,) = plan_centering(later(5.0), prior).items()
    assert family[0] == "transformer"
    for centering, budget in zip(family[1], LATER, strict=True):
        assert centering.n_opt == pytest.approx(planted.Law().best_size(budget), rel=0.2)


def test_the_stores_own_results_speak_of_what_is_still_to_train(prior, tmp_path):
    # Nothing to train, or nothing known: nothing is said.
    done = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=5)
    assert badly_centered(done, None, prior) == []
    assert badly_centered(later(5.0), None, Store(tmp_path / "empty")) == []
    assert len(badly_centered([*done, *later(5.0)], None, prior)) == 2


def test_published_laws_speak_for_transformers_only(tmp_path):
    runs = planted.isoflop_runs(lstm=True, seeds=(0,), sizes=5)
    assert set(plan_centering(runs, "besiroglu2024")) == {"transformer"}
    unlabelled = [Run(run.spec, {"family": "transformer"}) for run in runs]
    assert plan_centering(unlabelled, "besiroglu2024") == {}

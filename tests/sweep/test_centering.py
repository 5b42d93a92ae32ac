"""A planned grid against the results of an earlier one."""

import json
from collections.abc import Sequence

import numpy as np
import pytest

from lmscale import flops
from lmscale.architectures import transformer_ladder
from lmscale.files import write_json
from lmscale.sweep.centering import badly_centered, plan_centering
from lmscale.sweep.experiment import Run
from lmscale.sweep.store import Store
from tests.report import planted_store as planted

LATER = (81e12, 243e12)
LAW = planted.Law()


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=5)
    return planted.plant(tmp_path_factory.mktemp("prior"), runs, analyses=["isoflop"])


def later(
    off: float,
    budgets: Sequence[float] = LATER,
    convention: str = "standard",
    span: float = 4.0,
    law: planted.Law = LAW,
) -> list[Run]:
    """Five sizes a budget, in a range of span^2, about `off` times the planted optimum."""
    shared = {"n_ctx": planted.N_CTX, "vocab_size": planted.VOCAB}
    ladder = transformer_ladder([3e3 * 1.25**i for i in range(50)], **shared)
    sizes = {model: flops.n_params(model, convention) for model in ladder}

    def models(budget):
        center = off * law.best_size(budget)
        targets = center * np.geomspace(1 / span, span, 5)
        return [min(sizes, key=lambda m: abs(np.log(sizes[m] / t))) for t in targets]

    return planted.isoflop_grid(
        budgets,
        models,
        convention=convention,
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


def test_a_store_is_counted_as_its_budgets_are(tmp_path):
    """Counted with the head, models of the size that is best without it seem to be larger than that."""

    law = planted.Law(A=30.0, B=200.0)

    def loss(spec):
        n = flops.n_params(spec.model, "kaplan")
        return law.E + law.A * n**-law.alpha + law.B * spec.n_tokens**-law.beta

    runs = later(1.0, (1e11, 3e11, 9e11, 27e11), "kaplan", 2.5, law)
    store = planted.plant(tmp_path, runs, analyses=["isoflop"], law=loss, noise=0.0005)
    declared = json.loads((store.path / "experiment.json").read_text())
    declared["fields"]["convention"] = "kaplan"
    write_json(store.path / "experiment.json", declared, sealed=True)
    grid = later(1.0, (81e11,), "kaplan", 2.5, law)
    ((budget,),) = plan_centering(grid, Store(store.path)).values()
    assert budget.n_opt == pytest.approx(law.best_size(81e11), rel=0.15)


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

"""Loss against size by depth: a planted collapse comes back, and the paper's points are read."""

import numpy as np
import pandas as pd
import pytest

from lmscale.spec import TransformerSpec
from lmscale.studies import Results, families
from lmscale.studies.families import LEAST_DEPTH, collapse, kaplan_models, single_layer_shift
from lmscale.sweep import Run, make_run, width_rule
from tests.report import planted_store as planted

SINGLE = 0.04


def runs(depths=(1, 2, 3, 6), widths=(8, 16, 32, 64), seeds=(0, 1, 2), positions="learned"):
    return [
        Run(
            make_run(
                TransformerSpec(
                    n_layer=n,
                    d_model=width,
                    n_ctx=planted.N_CTX,
                    vocab_size=planted.VOCAB,
                    positions=positions,
                ),
                steps=1000,
                data=planted.DATA,
                evals=planted.EVALS,
                batch_size=4,
                learning_rate=width_rule(),
                seed=seed,
            ),
            {"family": f"transformer, {n} layer{'s' * (n > 1)}"},
        )
        for n in depths
        for width in widths
        for seed in seeds
    ]


def law(spec):
    return planted.SizeLaw()(spec) * (1 + SINGLE * (spec.model.n_layer == 1))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("families")
    planted.plant(path, runs(), analyses=["families"], law=law, noise=0.005)
    return families.study(Results.read(path))


def test_depths_collapse_without_embeddings_only(found):
    ratio = found.estimates["collapse"]
    assert ratio.value > 3
    low, high = ratio.interval
    assert 1.5 < low < ratio.value < high
    assert (ratio.n, ratio.seeds) == (12, 3)
    assert found.collapse.including / found.collapse.without == pytest.approx(ratio.value)


@pytest.mark.parametrize(("positions", "rows"), [("learned", planted.N_CTX), ("rotary", 0)])
def test_embeddings_are_counted_as_the_model_has_them(tmp_path, positions, rows):
    """Rotary positions have no table; one was counted."""
    chosen = runs(depths=(2,), widths=(8, 16), seeds=(0,), positions=positions)
    planted.plant(tmp_path, chosen, analyses=["families"], law=law)
    for model, run in zip(families.study(Results.read(tmp_path)).models, chosen, strict=True):
        has = (planted.VOCAB + rows) * run.spec.model.d_model
        assert families.n_total(model) == model.n_params + has


def test_the_shift_of_a_single_layer_comes_back(found):
    shift = found.estimates["single_layer"]
    low, high = shift.interval
    assert low < SINGLE < high
    assert shift.value == pytest.approx(SINGLE, abs=0.005)
    # One of the four lies below the sizes of the deeper ones.
    assert shift.n == 3


def test_the_exponent_is_not_judged_on_unfinished_training(found):
    fit = found.fits["depth 2 and more/kaplan"]
    low, high = fit.intervals["alpha_N"]
    assert low < planted.SizeLaw().alpha < high
    assert fit.n_used == 36
    alpha = found.estimates["alpha_N"]
    assert alpha.interval == (low, high)
    assert "tokens a parameter" in alpha.undecided_because


def test_few_models_decide_nothing_and_say_why(tmp_path):
    planted.plant(tmp_path, runs(depths=(1, 2), seeds=(0,)), analyses=["families"], law=law)
    found = families.study(Results.read(tmp_path))
    assert found.fit.failure == "4 models of two or more layers, and 5 are needed"
    assert found.seed_noise is None
    assert all(one.value is None and one.undecided_because for one in found.estimates.values())


def test_the_papers_own_points_collapse():
    paper = kaplan_models()
    found = collapse(paper[paper["n_layer"] >= LEAST_DEPTH])
    assert found.ratio.n == 31
    assert found.without == pytest.approx(0.018, abs=0.001)
    assert found.ratio.value == pytest.approx(2.45, abs=0.05)
    assert found.ratio.interval[0] > 1.5
    shift = single_layer_shift(paper)
    assert shift.n == 6
    assert 0 < shift.interval[0] < shift.value < shift.interval[1]


def test_depths_that_separate_either_way_do_not_collapse():
    """Where loss follows the count with embeddings, the ratio is below 1."""
    n_layer, width = (axis.ravel() for axis in np.meshgrid([2, 3, 6], [8, 16, 32, 64]))
    n_params = 12.0 * n_layer * width**2
    models = pd.DataFrame({"n_params": n_params, "n_total": n_params + 1000 * width})
    models["loss"] = (1e13 / models["n_total"]) ** 0.08
    assert collapse(models).ratio.interval[1] < 1


def test_a_single_layer_away_from_the_middle_of_the_line_has_the_error_of_its_slope():
    """2,000 tables; without it the interval held the shift in 90% of them."""
    single = [(1, width) for width in (64, 72, 80, 88)]
    shapes = [*single, (2, 40), (2, 128), (3, 128), (3, 160), (6, 128), (12, 256)]
    models = pd.DataFrame(shapes, columns=["n_layer", "width"])
    models["n_params"] = 12.0 * models["n_layer"] * models["width"] ** 2
    models["n_total"] = models["n_params"] + 512 * models["width"]
    line = 1.5 - 0.07 * np.log(models["n_params"]) + np.log1p(SINGLE) * (models["n_layer"] == 1)
    rng, inside = np.random.default_rng(0), []
    for _ in range(2000):
        drawn = np.exp(line + 0.01 * rng.standard_normal(len(line)))
        low, high = single_layer_shift(models.assign(loss=drawn)).interval
        inside.append(low <= SINGLE <= high)
    assert 0.93 <= np.mean(inside) <= 0.97

"""A sweep's recipe, read off its runs."""

import dataclasses

import pytest

from lmscale import flops
from lmscale.architectures import lstm_shape, transformer_ladder, transformer_shape
from lmscale.files import write_json
from lmscale.laws.result import FitError
from lmscale.sweep.experiment import Run
from lmscale.sweep.grids import isoflop_grid
from lmscale.sweep.recipe import PowerRule, read_recipe
from lmscale.sweep.recommend import recommend
from tests.report.planted_store import DATA, EVALS, N_CTX, VOCAB, Law, isoflop_runs, plant

BUDGETS = (1e11, 3e11, 9e11, 27e11)
SHARED = {"n_ctx": N_CTX, "vocab_size": VOCAB}
LADDER = transformer_ladder(
    [24.0 * w**2 for w in range(8, 100, 8)], n_layer=2, init_std=0.08, **SHARED
)
#: A planted law whose best sizes lie on the ladder.
LAW = Law(A=30.0, B=200.0)


def rate(model, n_tokens, batch_tokens):
    return 0.3 * flops.n_params(model, "kaplan") ** -0.3 * n_tokens**-0.1


def grid(**fields):
    """Runs of fixed depth whose rate falls with N and D."""
    recipe = {
        "models": LADDER, "data": DATA, "evals": EVALS, "batch_size": 2, "learning_rate": rate,
        "warmup_fraction": 0.03, "final_fraction": 0.2, "weight_decay": 0.01,
    } | fields  # fmt: skip
    return isoflop_grid(BUDGETS, **recipe)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("recipe") / "store", grid(), analyses=(), law=LAW)


def test_a_recipe_followed_exactly_is_recovered_exactly(store):
    recipe = read_recipe(store)
    assert recipe.n_exact == recipe.n_runs == len(grid())
    assert recipe.rate.powers == pytest.approx({"N": -0.3, "D": -0.1}, abs=1e-4)
    assert recipe.rate.c == pytest.approx(0.3, rel=1e-3)
    model = recipe.shape(24.0 * 144**2)
    assert (model.n_layer, model.d_model, model.init_std) == (2, 144, 0.08)
    run = recipe.for_tokens(model, 5e6, seed=3)
    assert run.batch_size == 2 and run.seed == 3 and run.evals == EVALS and run.data == DATA
    assert run.schedule.warmup_steps == -(-3 * run.steps // 100)
    assert run.schedule.final_fraction == 0.2 and run.optimizer.weight_decay == 0.01
    assert run.optimizer.peak_lr == pytest.approx(rate(model, run.n_tokens, 0), rel=1e-4)


def test_advice_of_a_store_is_a_run_by_its_recipe(tmp_path):
    store = plant(tmp_path / "store", grid(), analyses=(), law=LAW, noise=0.0)
    advice = recommend(store, flops=5.4e12)
    assert advice.model["n_layer"] == 2 and advice.model["init_std"] == 0.08
    assert advice.batch_tokens == 2 * N_CTX and advice.run["schedule"]["final_fraction"] == 0.2
    assert advice.n_params == pytest.approx(LAW.best_size(5.4e12), rel=0.2)
    assert "2 layers at every size" in advice.recipe and "StepLaw" not in advice.recipe
    size = flops.n_params(
        transformer_shape(24.0 * advice.model["d_model"] ** 2, n_layer=2, **SHARED), "kaplan"
    )
    tokens = advice.run["steps"] * advice.batch_tokens
    assert advice.learning_rate == pytest.approx(0.3 * size**-0.3 * tokens**-0.1, rel=1e-3)


def test_a_batch_that_grows_and_an_initialisation_by_width_are_followed(tmp_path):
    def grown(run):
        batch = max(1, round(0.02 * run.spec.n_tokens**0.5))
        steps = round(run.spec.n_tokens / (batch * N_CTX))
        model = dataclasses.replace(run.spec.model, init_std=0.5 * run.spec.model.d_model**-0.5)
        warmup = dataclasses.replace(run.spec.schedule, warmup_steps=min(10, steps))
        spec = dataclasses.replace(
            run.spec, batch_size=batch, steps=steps, model=model, schedule=warmup
        )
        return Run(spec, run.labels)

    recipe = read_recipe(
        plant(tmp_path / "store", [grown(run) for run in grid()], analyses=(), law=LAW)
    )
    assert recipe.batch.powers["D"] == pytest.approx(0.5, abs=0.02)
    model = recipe.shape(24.0 * 144**2)
    assert model.init_std == pytest.approx(0.5 * 144**-0.5)
    assert recipe.for_tokens(model, 1e8).batch_size == pytest.approx(200, rel=0.1)
    assert recipe.for_tokens(model, 1e8).schedule.warmup_steps == 10


def test_best_factors_of_a_search_give_a_rule_through_them(tmp_path):
    store = plant(tmp_path / "store", grid(lr_factors=(0.5, 1.0, 2.0)), analyses=(), law=LAW)
    recipe = read_recipe(store)
    # The planted best factor is 1 everywhere.
    assert recipe.n_runs == len(grid()) and recipe.rate.exact


def test_ladders_by_size_and_of_lstms_are_recognised(tmp_path):
    def rate(model, n_tokens, batch_tokens):
        width = model.d_hidden if model.kind == "lstm" else model.d_model
        return 0.006 * (32 / width) ** 0.5

    store = plant(tmp_path / "store", isoflop_runs(seeds=(0,), learning_rate=rate), analyses=())
    by_size = read_recipe(store)
    assert by_size.ladder == "depth and width by size" and by_size.n_exact == by_size.n_runs
    # The rule follows the width, which is no power of N where the depth varies.
    assert by_size.rate.exact and by_size.rate.powers == pytest.approx({"width": -0.5}, abs=1e-4)
    assert by_size.shape(2e6) == transformer_shape(2e6, **SHARED)
    lstm = read_recipe(store, "lstm")
    assert lstm.n_exact == lstm.n_runs
    assert lstm.shape(3e5) == lstm_shape(3e5, n_layer=1, d_embed=32, **SHARED)


def test_shapes_of_no_known_ladder_are_scaled_in_width(tmp_path):
    wide = [
        dataclasses.replace(model, d_ff=3 * model.d_model, n_head=model.d_model // 8)
        for model in LADDER
    ]
    recipe = read_recipe(plant(tmp_path / "store", grid(models=wide), analyses=(), law=LAW))
    model = recipe.shape(4 * flops.n_params(wide[-1], "kaplan"))
    assert model.d_model == 2 * wide[-1].d_model and model.n_layer == 2
    assert model.d_ff == 3 * model.d_model and model.d_attn // model.n_head == 8


def test_runs_without_a_common_recipe_say_so(tmp_path):
    runs = grid()
    other = dataclasses.replace(
        runs[0].spec, schedule=dataclasses.replace(runs[0].spec.schedule, name="linear")
    )
    store = plant(tmp_path / "store", [Run(other, runs[0].labels), *runs[1:]], analyses=(), law=LAW)
    with pytest.raises(FitError, match="differ in schedule, optimizer or precision"):
        read_recipe(store)
    advice = recommend(store, flops=5e12)
    assert advice.learning_rate is None and advice.recipe.startswith("no recipe is known")


def test_a_learning_rate_study_beside_it_serves_where_it_covers(tmp_path):
    store = plant(tmp_path / "sweep", grid(), analyses=(), law=LAW)
    study = plant(tmp_path / "study", grid()[:1], analyses=(), law=LAW)
    fit = {
        "parameters": {"c": 0.5, "x": -0.25, "y": -0.1, "z": 0.1},
        "ranges": {"params": [1e3, 1e6], "tokens": [1e5, 1e7], "batch_tokens": [128, 4096]},
    }
    write_json(study.path / "fits.json", {"learning_rate/transformer/kaplan": fit})
    recipe = read_recipe(store)
    model = recipe.shape(2e5)
    size = flops.n_params(model, "kaplan")
    covered = recipe.for_tokens(model, 5e6)
    expected = 0.5 * size**-0.25 * covered.n_tokens**-0.1 * covered.batch_tokens**0.1
    assert covered.optimizer.peak_lr == pytest.approx(expected, rel=1e-5)
    assert "the study study, whose range covers it" in recipe.describe(covered)
    beyond = recipe.for_tokens(model, 5e7)
    assert beyond.optimizer.peak_lr == pytest.approx(rate(model, beyond.n_tokens, 0), rel=1e-4)


def test_a_second_variable_must_earn_its_place():
    cases = [{"N": n, "width": n**0.5, "D": d} for n in (1e4, 1e5) for d in (1e6, 1e7)]
    constant = PowerRule.fitted([0.003] * 4, cases)
    assert constant.powers == {} and constant.exact
    noisy = PowerRule.fitted([0.01, 0.011, 0.0052, 0.005], cases)
    assert list(noisy.powers) == ["N"] and noisy.powers["N"] < -0.2


def test_beyond_thirty_times_the_largest_budget_a_store_gives_no_point(store):
    with pytest.raises(
        FitError, match="times the largest run of this law, which is trusted up to 30"
    ):
        recommend(store, flops=40 * BUDGETS[-1])
    assert recommend(store, flops=40 * BUDGETS[-1], extrapolate=True).extrapolation > 30
    assert recommend(store, flops=20 * BUDGETS[-1]).n_params > 0


@pytest.mark.slow
def test_a_model_that_is_not_of_the_advised_size_is_warned_of(store):
    far = recommend(store, flops=1e5, extrapolate=True)
    (warning,) = (text for text in far.warnings if "nearest model of the ladder" in text)
    assert f"times the advised {far.n_params:.3g}" in warning
    near = recommend(store, flops=2 * BUDGETS[-1])
    assert not any("nearest model" in text for text in near.warnings)
    with pytest.raises(FitError, match="trusted down to 1/30"):
        recommend(store, flops=BUDGETS[0] / 40)
    assert recommend(store, flops=BUDGETS[0] / 20).over_smallest == pytest.approx(1 / 20, rel=0.05)


def test_a_published_rule_serves_only_where_its_range_holds_the_case():
    inside = recommend("besiroglu2024", flops=1e20)
    assert inside.recipe.startswith("StepLaw (Li et al. 2025)") and inside.learning_rate < 0.01
    beyond = recommend("besiroglu2024", flops=2e22)
    assert beyond.learning_rate is None and beyond.batch_tokens is None
    assert "the fitted range of no published rule" in beyond.recipe

import pytest

from lmscale.flops import training_flops
from lmscale.spec import DataSpec, LSTMSpec, TransformerSpec
from lmscale.sweep.grids import (
    SharedRecipe,
    default_rule,
    isoflop_grid,
    make_run,
    product,
    width_rule,
)
from tests.fake_corpus import fake_corpus

DATA = DataSpec(corpus="none", fingerprint="none")
MODELS = [
    TransformerSpec(n_layer=1, d_model=d, n_head=1, n_ctx=16, vocab_size=100) for d in (8, 16, 32)
]


def grid(**changes):
    options = {
        "budgets": (1e9, 4e9),
        "models": MODELS,
        "data": DATA,
        "evals": (),
        "batch_size": 2,
        "learning_rate": width_rule(),
        **changes,
    }
    return isoflop_grid(**options)


@pytest.mark.parametrize("convention", ["kaplan", "standard", "chinchilla", "exact"])
def test_every_cell_spends_its_budget(convention):
    runs = grid(convention=convention)
    assert len(runs) == 6
    for run in runs:
        spent = training_flops(run.spec, convention)
        # To the nearest step.
        assert abs(spent - run.labels["budget"]) <= 0.51 * spent / run.spec.steps


def test_cells_that_are_too_short_are_left_out():
    assert len(grid(min_steps=10**5)) == 0


def test_a_search_multiplies_the_rule_and_keeps_the_cell():
    runs = grid(lr_factors=(0.5, 2.0), seeds=(0, 1))
    assert len(runs) == 6 * 4
    first = runs[0].spec
    assert {r.spec.optimizer.peak_lr / first.optimizer.peak_lr for r in runs[:4]} == {1.0, 4.0}
    assert {r.labels["lr_factor"] for r in runs} == {0.5, 2.0}
    assert len({r.spec.hash for r in runs}) == len(runs)


def test_models_may_depend_on_the_budget():
    runs = grid(models=lambda budget: MODELS[:1] if budget < 2e9 else MODELS[1:])
    assert [r.spec.model.d_model for r in runs] == [8, 16, 32]


def test_warmup_is_a_share_of_the_run():
    options = {"data": DATA, "evals": (), "batch_size": 2, "learning_rate": width_rule(0.01)}
    run = make_run(MODELS[2], steps=200, warmup_fraction=0.1, **options)
    assert run.schedule.warmup_steps == 20
    assert run.optimizer.peak_lr == pytest.approx(0.01)


def test_product_varies_the_last_name_fastest():
    assert list(product(a=(1, 2), b="xy"))[:3] == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
    ]


def test_a_shared_recipe_changes_the_optimizer_of_large_models_only():
    recipe = SharedRecipe(
        steps=100,
        n_ctx=16,
        batch_size=2,
        warmup_fraction=0.2,
        final_fraction=0.0,
        optimizer="adam",
        large_optimizer="adafactor",
    )
    small = TransformerSpec(n_layer=1, d_model=64, n_head=1, n_ctx=16, vocab_size=100)
    large = TransformerSpec(n_layer=6, d_model=4288, n_ctx=16, vocab_size=100)
    corpus = fake_corpus(100)
    specs = [recipe.spec(corpus, model, seed=3) for model in (small, large)]
    assert [spec.optimizer.name for spec in specs] == ["adam", "adafactor"]
    for spec in specs:
        assert (spec.steps, spec.batch_size, spec.seed) == (100, 2, 3)
        assert (spec.schedule.warmup_steps, spec.schedule.final_fraction) == (20, 0.0)
        assert spec.data.fingerprint == corpus.fingerprint and spec.evals[0].name == "valid"
    assert recipe.spec(corpus, small, steps=50).schedule.warmup_steps == 10


def test_each_architecture_has_its_own_rule():
    rule = width_rule()
    shared = {"n_layer": 1, "n_ctx": 16, "vocab_size": 100}
    lstms = [LSTMSpec(d_hidden=d, **shared) for d in (20, 256, 1024)]
    # Measured: the best rate of an LSTM does not depend on its width, a Transformer's falls. What is
    # wider than measured must not get the rate of the narrow ones.
    assert [rule(m, 0, 0) for m in lstms] == [0.0095, 0.0095, 0.0095 / 2]
    transformers = [TransformerSpec(d_model=d, n_head=1, **shared) for d in (32, 128)]
    assert [rule(m, 0, 0) for m in transformers] == pytest.approx([0.006, 0.003])
    assert default_rule("float32")(lstms[0], 0, 0) == 0.0095


@pytest.mark.parametrize(
    ("d_model", "best"), [(22, 0.0092), (36, 0.0059), (40, 0.0061), (56, 0.0036)]
)
def test_the_transformers_rule_is_near_the_best_rates_that_were_measured(d_model, best):
    """See the docstring of `width_rule`; a factor of 1.3 costs about 0.01 nats."""
    model = TransformerSpec(n_layer=1, d_model=d_model, n_head=1, n_ctx=256, vocab_size=512)
    assert 1 / 1.35 < width_rule()(model, 0, 0) / best < 1.35

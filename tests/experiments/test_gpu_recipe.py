"""The scale gpu of every experiment follows one recipe."""

import functools
import math
from itertools import groupby

import pytest
from lmscale_experiments import transfer

from lmscale.architectures import init_by_width
from lmscale.flops import n_params
from lmscale.planner.devices import parse_devices
from lmscale.planner.packs import make_plan
from lmscale.spec import LSTMSpec
from lmscale.sweep.epochs import epochs_of_specs
from lmscale.sweep.experiment import experiment_names, load_scales
from lmscale.sweep.gpu_recipe import GPU_RECIPE, MIN_STEPS, TOKENS_PER_PARAM, batch_for
from lmscale.sweep.grids import width_rule
from tests.experiments.fake_corpus import of_tokens

#: Text of this size is enough for all of them.
CORPUS = of_tokens(GPU_RECIPE["vocab_size"], 200_000_000)
ALL = pytest.mark.parametrize("name", experiment_names())
#: Grids of sizes and tokens; `learning_rate` has horizons in the place of budgets.
GRIDS = ("cooldown", "isoflop", "learning_rate", "reconcile")
#: They vary the batch, or hold it against Kaplan's fixed one.
OWN_BATCHES = ("batch_size", "learning_rate", "reconcile", "repeat", "cooldown")


@pytest.fixture(autouse=True)
def other_text(monkeypatch):
    monkeypatch.setattr(transfer, "evaluation_corpus", lambda name, corpus: of_tokens(4096, 1))


@functools.cache
def runs_of(name):
    experiment = load_scales(name)[2]["gpu"]
    return experiment, experiment.runs(CORPUS)


@ALL
def test_every_run_has_enough_updates_and_text_and_the_recipes_fields(name):
    experiment, runs = runs_of(name)
    specs = [run.spec for run in runs]
    assert min(spec.steps for spec in specs) >= MIN_STEPS
    assert {key: getattr(experiment, key) for key in GPU_RECIPE} == GPU_RECIPE
    epochs = epochs_of_specs(specs, CORPUS.n_tokens("train"))
    assert experiment.repeats_text == (name in ("dataset_size", "repeat"))
    assert (epochs.line("text") is None) or experiment.repeats_text
    # Those too take no more whole text than there is.
    assert epochs.needed <= CORPUS.n_tokens("train")
    for spec in specs:
        if not isinstance(spec.model, LSTMSpec):
            assert spec.model.init_std == init_by_width(spec.model.d_model)


@ALL
def test_ladders_have_heads_that_the_flash_kernel_takes_as_they_are(name):
    _, runs = runs_of(name)
    widths = {run.spec.model.attention_width for run in runs} - {None}
    # `shape` is about widths of heads; there the kernel pads.
    assert all(width % 8 == 0 for width in widths) or name == "shape"


@ALL
def test_rates_go_with_the_width_and_batches_with_the_tokens(name):
    experiment, runs = runs_of(name)
    for run in runs:
        spec, labels = run.spec, run.labels
        if name not in OWN_BATCHES:
            assert 0.5 <= spec.batch_size / batch_for(spec.n_tokens, spec.model.n_ctx) <= 2
        # Never a multiple of the batch that is best for so many tokens, but where it is the question.
        elif name != "batch_size" and name != "learning_rate":
            assert spec.batch_size <= 2 * batch_for(spec.n_tokens, spec.model.n_ctx)
        if name not in ("batch_size", "learning_rate", "reconcile"):
            factor = labels.get("lr_factor", labels.get("lr_multiple", 1.0))
            rate = width_rule(experiment.base_lr)(spec.model, spec.n_tokens, spec.batch_tokens)
            # A constant rate is half to three quarters of a cosine's peak.
            assert 0.24 <= spec.optimizer.peak_lr / (factor * rate) <= 1.01
    by_profile = sorted(
        (
            (str(r.labels.get("budget")), r.labels["family"], r.spec.optimizer.peak_lr)
            for r in runs
            if r.labels.get("lr_factor", 1.0) == 1.0 and "budget" in r.labels
        ),
    )
    for _, profile in groupby(by_profile, key=lambda row: row[:2]):
        rates = [rate for *_, rate in profile]
        assert max(rates) / min(rates) < 4


@pytest.mark.parametrize("name", GRIDS)
def test_grids_train_for_one_to_a_hundred_tokens_a_parameter(name):
    _, runs = runs_of(name)
    low, high = TOKENS_PER_PARAM
    for spec in (run.spec for run in runs):
        assert low <= spec.n_tokens / n_params(spec.model, "standard") <= high


#: Hours of an H100 that a study takes by plan, where it is more than one. Small models wait for memory and for
#: launches of kernels, LSTMs most: counted by FLOPs alone each of these was below an hour.
HOURS = {
    "learning_rate": 1.4,
    "reconcile": 1.4,
    "recurrent_transformer": 1.4,
    "lstm_vs_transformer": 3.5,
}


@ALL
def test_a_study_takes_an_hour_of_an_h100_or_little_more(name):
    _, runs = runs_of(name)
    assert make_plan(runs, parse_devices("h100")).seconds < 3600 * HOURS.get(name, 1.0)


def test_the_rule_is_searched_at_the_middle_of_each_budget():
    _, runs = runs_of("isoflop")
    for budget in {run.labels["budget"] for run in runs}:
        mine = [run for run in runs if run.labels["budget"] == budget]
        sizes = sorted({n_params(run.spec.model, "standard") for run in mine})
        searched = {
            n_params(run.spec.model, "standard") for run in mine if run.labels["lr_factor"] != 1.0
        }
        assert searched == {sizes[len(sizes) // 2]}
        assert sorted(run.labels["lr_factor"] for run in mine) == [0.5] + len(sizes) * [1.0] + [2.0]


@pytest.mark.parametrize("n_ctx", [512, 1024])
def test_batches_grow_as_the_square_root_of_the_tokens(n_ctx):
    for exponent in (7, 7.5, 8, 8.5, 9):
        tokens = 10**exponent
        batch = batch_for(tokens, n_ctx) * n_ctx
        assert tokens / batch >= MIN_STEPS
        assert abs(math.log2(batch / (2 * math.sqrt(tokens)))) <= 1
    assert [batch_for(4**i * 2**22, n_ctx) * n_ctx for i in range(4)] == [4096, 8192, 16384, 32768]
    assert batch_for(MIN_STEPS * n_ctx, n_ctx) == 1
    with pytest.raises(ValueError, match=f"are fewer than 1000 sequences of {n_ctx} tokens"):
        batch_for(MIN_STEPS * n_ctx - 1, n_ctx)


def test_initial_weights_of_narrow_models_are_wider():
    assert init_by_width(64) == 0.0625
    assert init_by_width(100) == 0.05
    assert init_by_width(625) == init_by_width(4096) == 0.02

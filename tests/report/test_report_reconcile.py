"""What the page makes of the five steps, on runs of a planted law."""

import dataclasses
import math

import numpy as np
import pytest

from lmscale import flops
from lmscale.report import analyse
from lmscale.spec import RunSpec
from lmscale.studies.results import Results
from lmscale.sweep import load_scales
from tests.fake_corpus import fake_corpus
from tests.report import planted_store as planted

LAW = planted.Law()
#: Tokens over which the planted fixed warmup costs something, and how much.
WARMUP, COST = 1e5, 0.1


def declared(seeds):
    """The experiment's own runs, where the planted law has its optimum among the sizes."""
    experiment = dataclasses.replace(
        load_scales("reconcile")[2]["cpu"],
        sizes=tuple(1.2e4 * 1.9**i for i in range(7)),
        budgets=(1e11, 1.7e11, 3e11, 5.2e11, 9e11),
        kaplan_budgets=(4e10, 7.5e10, 1.5e11, 2.7e11, 5e11),
        spread=3.5,
        tokens_per_param=1.0,
        n_layer=None,
        n_ctx=planted.N_CTX,
        fixed_warmup=WARMUP,
        fixed_cosine=1e9,
        seeds=seeds,
    )
    return experiment, experiment.runs(fake_corpus(planted.VOCAB))


def loss(spec: RunSpec, tokens: float, noise: float, warming: bool = False) -> float:
    """The planted law; the fixed warmup costs short runs most; a seed moves all its runs alike."""
    n = flops.n_params(spec.model, "standard")
    value = LAW.E + LAW.A * n**-LAW.alpha + LAW.B * tokens**-LAW.beta
    value += COST * math.exp(-tokens / WARMUP) * warming
    of_seed = np.random.default_rng([spec.seed, spec.model.d_model]).standard_normal()
    own = np.random.default_rng(int(spec.hash, 16)).standard_normal()
    return value + noise * (of_seed + 0.1 * own)


def study(path, seeds=(0, 1, 2), noise=0.003):
    experiment, runs = declared(seeds)
    store = planted.plant(
        path, runs, analyses=["reconcile"], law=lambda s: loss(s, s.n_tokens, noise), noise=0.0
    )
    read = Results.read(store)
    fields = {**read.experiment["fields"], **vars(experiment)}
    for run in runs:
        spec, warming = run.spec, run.labels["family"] == "step 1 and 2"
        read.ended[spec.run_id]["evaluations"] = [
            {
                "step": step,
                "tokens": step * spec.batch_tokens,
                "eval": {"valid": {"loss": loss(spec, step * spec.batch_tokens, noise, warming)}},
            }
            for step in spec.eval_steps
        ]
    return dataclasses.replace(read, experiment={**read.experiment, "fields": fields})


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    return study(tmp_path_factory.mktemp("reconcile"))


@pytest.fixture(scope="module")
def section(seeds):
    return analyse("reconcile", seeds)


@pytest.mark.slow
def test_the_finding_is_the_change_over_all_steps(section):
    assert section.conclusive and section.finding.startswith("Counted and scheduled as Kaplan did")
    assert "seeds drawn alike" in section.measures["change_5"].what
    assert "Lower the exponent, as in Porian et al. 2024" in section.details[0]


def test_the_paper_stands_beside(section):
    (grid,) = section.grids
    assert [row[4].split(" ")[0] for row in grid.rows] == [
        "0.835",
        "0.706",
        "0.602",
        "0.571",
        "0.497",
    ]
    assert {chart.name for chart in section.charts} == {"reconcile", "reconcile-profiles"}


def test_one_seed_has_its_intervals_taken_as_independent(seeds):
    one = seeds.table[seeds.table["seed"] == 0].reset_index(drop=True)
    section = analyse("reconcile", dataclasses.replace(seeds, table=one))
    assert "taken as independent" in section.measures["change_3"].what


def test_a_step_without_results_is_told(seeds):
    table = seeds.table[seeds.table["family"] != "step 5"].reset_index(drop=True)
    section = analyse("reconcile", dataclasses.replace(seeds, table=table))
    assert "step 5: no run of it has ended well yet" in section.finding
    assert not section.conclusive

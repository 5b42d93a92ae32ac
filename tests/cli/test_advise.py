"""`lmscale advise`: what it reads, what it refuses, what it prints."""

import json

import numpy as np
import pytest

from lmscale.architectures import transformer_ladder
from lmscale.laws.chinchilla import chinchilla_loss, optimal_allocation
from lmscale.sweep.grids import isoflop_grid
from tests.cli.answers import answer, refused
from tests.report.planted_store import DATA, EVALS, plant
from tests.sweep.test_recipe import BUDGETS, LAW, SHARED, grid, rate

EPOCH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = plant(tmp_path_factory.mktemp("store"), grid(), analyses=(), law=LAW)
    store.write_table()
    return store


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Four budgets of five sizes on Besiroglu's surface, and rows of another mode."""
    lines = ["size,D,final_loss,mode"]
    for c in np.geomspace(1e18, 1e20, 4):
        for n in optimal_allocation(EPOCH, c).n_params * np.geomspace(0.25, 4, 5):
            loss = chinchilla_loss(EPOCH, params=n, tokens=c / (6 * n))
            lines += [f"{n:.6g},{c / (6 * n):.6g},{loss:.6f},train", f"{n:.6g},1e9,9,eval"]
    path = tmp_path_factory.mktemp("table") / "runs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
def test_a_table_advises_like_a_law_fitted_to_it(capsys, table):
    reading = ("--columns", "params=size", "--where", "mode == train")
    code, out, _ = answer(capsys, "advise", table, *reading, "--compute", 1e21, "--json")
    advice = json.loads(out)
    assert code == 0 and advice["law"] == "isoflop"
    assert advice["n_params"] == pytest.approx(optimal_allocation(EPOCH, 1e21).n_params, rel=0.1)
    assert advice["learning_rate"] is None and advice["batch_tokens"] is None
    assert "does not say by which recipe" in advice["recipe"]
    low, high = advice["intervals"]["loss"]
    assert low < optimal_allocation(EPOCH, 1e21).loss < high
    code, out, _ = answer(
        capsys, "advise", table, *reading, "--law", "parametric", "--compute", 1e21, "--json"
    )
    assert code == 0 and json.loads(out)["law"] == "parametric"


@pytest.mark.slow
def test_a_store_and_its_results_advise_alike(capsys, store):
    compute = ("--compute", 2 * BUDGETS[-1], "--json")
    found = [
        json.loads(answer(capsys, "advise", source, *compute)[1])
        for source in (store.path, store.path / "results.csv")
    ]
    assert found[0] == found[1]
    assert set(found[0]) >= {
        "flops", "n_params", "n_tokens", "loss", "intervals", "model", "batch_tokens",
        "learning_rate", "warnings",
    }  # fmt: skip
    code, out, _ = answer(capsys, "advise", store.path, "--compute", 2 * BUDGETS[-1])
    assert code == 0 and "the sweep's own recipe: 2 layers at every size" in out
    assert "2 layers, d_model" in out and "intervals:" in out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("advise", "besiroglu2024", "--compute", 5.76e23), "take the extrapolation with --extrapolate"),
        (("advise", "olmo-ladder2024", "--compute", 2.5e23), "128 times the largest run"),
        (("advise", "nowhere.csv", "--compute", 1e20), "no store, no table and no published law"),
        (("advise", "besiroglu2024", "--law", "isoflop", "--compute", 1e20), "leave --law"),
        (("advise", "besiroglu2024", "--where", "N > 1", "--compute", 1e20), "leave --law"),
        (("advise", "besiroglu2024"), "--compute"),
        (("advise", "besiroglu2024", "--family", "lstm", "--compute", 1e20), "leave --law, --family"),
        (("advise", "besiroglu2024", "--compute", 1), "trusted down to 1/30"),
        (("advise", "besiroglu2024", "--loss", 5), "trusted down to 1/30"),
        (("advise", "besiroglu2024", "--compute", -1), "argument --compute: must be a positive number"),
        (("advise", "besiroglu2024", "--compute", "5 PB"), "as 1e21, 3 EFLOPs or 5 PF-days, not '5 PB'"),
        (("advise", "besiroglu2024", "--loss", 0), "argument --loss: must be a positive number"),
        (("advise", "besiroglu2024", "--compute", 1e20, "--unique-tokens", "nan"), "--unique-tokens: must"),
        (("advise", "besiroglu2024", "--compute", 1e20, "--inference-tokens", -1), "not negative"),
        (("advise", "chinchilla-approach1", "--loss", 2), "ask by compute"),
    ],
)  # fmt: skip
def test_bad_questions_are_one_line(capsys, argv, says):
    assert says in refused(capsys, *argv)


def test_an_extrapolation_that_is_asked_for_is_given(capsys):
    code, out, err = answer(
        capsys, "advise", "besiroglu2024", "--compute", 5.76e23, "--extrapolate"
    )
    assert code == 0 and "7.22e+10" in out and "192 times the largest run" in err
    assert "no recipe is known" in out and "peak learning rate" not in out


def test_a_family_is_of_a_store(capsys, table):
    reading = ("--columns", "params=size", "--family", "lstm")
    assert "choose its rows with --where" in refused(
        capsys, "advise", table, *reading, "--compute", 1e21
    )


def test_compute_may_have_a_unit(capsys):
    found = [
        answer(capsys, "advise", "besiroglu2024", "--compute", compute, "--json")[1]
        for compute in ("5 PF-days", 5 * 8.64e19, "432 EFLOPs")
    ]
    assert json.loads(found[0])["flops"] == 4.32e20
    assert found[0] == found[1] == found[2]


def test_compute_with_serving_is_said_to_hold_it(capsys):
    argv = ("advise", "besiroglu2024", "--compute", 1e21, "--inference-tokens", "1T")
    advice = json.loads(answer(capsys, *argv, "--json")[1])
    serving = 2 * advice["n_params"] * 1e12
    assert advice["inference_flops"] == pytest.approx(serving)
    code, out, err = answer(capsys, *argv)
    header = out.splitlines()[0]
    assert code == 0 and "of training and serving (6 N D + 2 N D_inference" in header
    assert f"takes {serving:.3g}, {serving / 1e21:.0%})" in header
    # 2 x would cost 1.34e21 to serve.
    assert "0.5 x the parameters" in out and "2 x the parameters" not in out.replace("0.25 x", "")
    assert "2 x and 4 x the parameters cannot be served within this budget" in err
    text = " ".join(answer(capsys, "advise", "--help")[1].split())
    assert "pays for training and serving, 6 N D + 2 N D_inference" in text


@pytest.mark.slow
def test_a_loss_that_was_given_has_no_interval_but_its_compute_has(capsys, store):
    for source, loss in (("besiroglu2024", 2.2), (store.path, 3.0)):
        advice = json.loads(answer(capsys, "advise", source, "--loss", loss, "--json")[1])
        low, high = advice["intervals"]["flops"]
        assert low < advice["flops"] < high and "loss" not in advice["intervals"]
        out = answer(capsys, "advise", source, "--loss", loss)[1].splitlines()
        assert out[0].startswith(f"for {advice['flops']:.3g} FLOPs [{low:.3g}, {high:.3g}], by")
        (line,) = (line for line in out if "loss (nats per token)" in line)
        assert line.split()[-1] == f"{loss:.4g}"


def test_where_intervals_come_from_is_said_once(capsys):
    _, out, err = answer(capsys, "advise", "besiroglu2024", "--compute", 1e21)
    assert (out + err).count("joined by the correlation") == 1
    # A law without any says why there.
    _, out, err = answer(capsys, "advise", "kaplan2020", "--compute", 1e19)
    assert "the paper publishes no error" in err


@pytest.mark.parametrize("widths", [(16, 24, 40, 64, 96), range(8, 100, 8)], ids=["few", "many"])
def test_a_convention_by_which_budgets_fall_apart_is_one_short_line(capsys, tmp_path, widths):
    """Budgets a factor of 9 apart do not meet in another count; many sizes leave many warnings."""
    ladder = transformer_ladder([24.0 * w**2 for w in widths], n_layer=2, init_std=0.08, **SHARED)
    runs = isoflop_grid(
        (1e11, 9e11, 81e11), models=ladder, data=DATA, evals=EVALS, batch_size=2,
        learning_rate=rate, warmup_fraction=0.03, final_fraction=0.2, weight_decay=0.01,
    )  # fmt: skip
    store = plant(tmp_path / "store", runs, analyses=(), law=LAW)
    store.write_table()
    argv = ("advise", store.path, "--compute", 1e13)
    line = refused(capsys, *argv, "--convention", "kaplan")
    assert len(line) < 350
    assert "counted as kaplan" in line and "do not cost the same" in line
    assert "--convention standard" in line and "`lmscale report` restates" in line
    assert answer(capsys, *argv, "--convention", "standard")[0] == 0


def test_a_table_without_profiles_is_one_line_that_can_be_read(capsys, tmp_path):
    lines = ["params,tokens,loss"]
    for c in np.geomspace(1e18, 1e20, 12):
        for n in optimal_allocation(EPOCH, c).n_params * np.array([0.5, 1.0, 2.0]):
            loss = chinchilla_loss(EPOCH, params=n, tokens=c / (6 * n))
            lines.append(f"{n:.6g},{c / (6 * n):.6g},{loss:.6f}")
    path = tmp_path / "thin.csv"
    path.write_text("\n".join(lines) + "\n")
    line = refused(capsys, "advise", path, "--law", "isoflop", "--compute", 1e20)
    assert len(line) < 350 and "no budget has 4 sizes (of 12 budgets, the most has 3)" in line

"""L(N, S_min): a planted law comes back, and what cannot be told is said."""

import math

import pytest

from lmscale.report import analyse
from lmscale.report.learning_curves import evaluations, ladder
from tests.report import planted_curves as planted

BATCH = (planted.LAW["B_star"], planted.LAW["alpha_B"])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("learning")
    return planted.plant(path, planted.ladder_runs(), analyses=["learning"], critical_batch=BATCH)


def test_the_planted_constants_come_back(study):
    section = analyse("learning", study)
    for name in ("alpha_S", "alpha_N"):
        measure = section.measures[name]
        assert measure.value == pytest.approx(planted.LAW[name], rel=0.02)
        low, high = measure.interval
        assert low < measure.value < high
    assert section.conclusive and not section.warnings
    assert section.fits["transformer/kaplan"].n_used == 7 * 3 * 30
    assert section.charts[0].png.startswith(b"\x89PNG")


def test_the_papers_critical_batch_stands_in_with_a_warning(tmp_path):
    runs = planted.ladder_runs(planted.SIZES[:3], seeds=(0,))
    section = analyse("learning", planted.plant(tmp_path, runs, analyses=["learning"]))
    assert any("lmscale run batch_size" in warning for warning in section.warnings)


def test_curves_that_are_no_such_law_are_called_so(tmp_path):
    """Curves that cross in the wrong order leave large residuals."""

    def wrong(spec, steps):
        return 3 + spec.model.d_model / 100 * (1 + 0.1 * (steps > 400))

    runs = planted.ladder_runs(planted.SIZES[:4], seeds=(0,))
    section = analyse("learning", planted.plant(tmp_path, runs, analyses=["learning"], law=wrong))
    assert not section.conclusive
    assert any("stray from the law" in w or "not positive" in w for w in section.warnings)


def test_no_curves_no_law(tmp_path):
    runs = planted.ladder_runs(planted.SIZES[:2], seeds=(0,))
    study = planted.planted.plant(
        tmp_path, runs, analyses=["learning"], status=lambda index, run: "pending"
    )
    assert "No run has evaluations" in analyse("learning", planted.Study.read(study)).finding


def test_evaluations_begin_where_the_warmup_ends():
    records = [{"step": s, "lr": min(1.0, s / 50)} for s in range(10, 110, 10)]
    records += [{"step": s, "eval": {"valid": {"loss": 5 - s / 100}}} for s in (20, 50, 100)]
    steps, losses = evaluations(records)
    assert list(steps) == [50, 100] and list(losses) == [4.5, 4.0]


def test_the_ladder_counts_compute_by_the_step(study):
    found = ladder(study)
    assert [round(size.n_params) for size in found.sizes] == [round(n) for n in planted.SIZES]
    size = found.sizes[0]
    assert size.flops_per_step["kaplan"] == pytest.approx(6 * size.n_params * size.batch_tokens)
    assert found.n_seeds == 3 and found.measured_batch
    draws = found.drawn_losses(200)
    assert draws[0].shape == (200, 30)
    assert math.isclose(draws[0].mean(), size.losses.mean(), rel_tol=1e-3)

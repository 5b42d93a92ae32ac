"""The search for the learning rate: the best factor of a cell, and whether it is at an edge."""

import math

import pytest

from lmscale.studies.rate_search import searched_cells, study
from lmscale.studies.results import Results
from lmscale.sweep import Run, lstm_shape, make_run, transformer_ladder, width_rule
from tests.report import planted_store as planted

FACTORS = (0.5, 1.0, 2.0)
SIZES = (1e4, 3e4, 1e5)


def searched(path, *, best, factors=FACTORS, seeds=(0, 1), status=lambda index, run: "done"):
    """A store whose losses are lowest at the factor `best[kind]`; the planted penalty is about 1."""
    shared = {"n_ctx": planted.N_CTX, "vocab_size": planted.VOCAB}
    models = [("transformer", m) for m in transformer_ladder(SIZES, n_layer=2, **shared)]
    models += [("lstm, 1 layer", lstm_shape(s, n_layer=1, d_embed=32, **shared)) for s in SIZES]
    recipe = {"steps": 400, "data": planted.DATA, "evals": planted.EVALS, "batch_size": 4}
    runs = [
        Run(
            make_run(m, seed=seed, lr_factor=f, learning_rate=width_rule(), **recipe),
            {"family": family, "lr_factor": f},
        )
        for family, m in models
        for f in factors
        for seed in seeds
    ]
    rule = width_rule()

    def law(spec):
        factor = spec.optimizer.peak_lr / rule(spec.model, 0, 0)
        away = math.log(factor / best[spec.model.kind])
        return planted.SizeLaw()(spec) + 0.05 * (away**2 - math.log(factor) ** 2)

    names = ["size", "position", "families", "rate_search"]
    return Results.read(
        planted.plant(path, runs, analyses=names, law=law, noise=1e-4, status=status)
    )


def test_every_cell_has_its_best_factor_inside(tmp_path):
    found = study(searched(tmp_path, best={"transformer": 1.0, "lstm": 1.0}))
    assert [cell.family for cell in found.cells] == ["transformer"] * 3 + ["lstm, 1 layer"] * 3
    for cell in found.cells:
        assert tuple(cell.losses) == FACTORS and set(cell.done.values()) == {2}
        assert cell.best == 1.0 and not cell.edge
        # A factor of two away from the best: 0.05 ln(2)^2.
        assert cell.neighbours == pytest.approx([0.05 * math.log(2) ** 2] * 2, abs=0.002)


@pytest.mark.parametrize(("best", "edge"), [(0.25, "lowest"), (8.0, "highest")])
def test_a_best_rate_at_the_edge_is_told(tmp_path, best, edge):
    results = searched(tmp_path, best={"transformer": 1.0, "lstm": best})
    assert {cell.edge for cell in searched_cells(results, "transformer")} == {""}
    cells = searched_cells(results, "lstm, 1 layer")
    assert [cell.edge for cell in cells] == [edge] * 3
    assert all(len(cell.neighbours) == 1 for cell in cells)


def test_a_rate_that_was_lost_counts_as_tried(tmp_path):
    """The first cell's highest factor loses both of its seeds, its middle factor one."""
    results = searched(
        tmp_path,
        best={"transformer": 1.0, "lstm": 1.0},
        status=lambda index, run: "diverged" if index in (3, 4, 5) else "done",
    )
    cell = searched_cells(results)[0]
    assert cell.lost == {0.5: 0, 1.0: 1, 2.0: 2} and cell.done == {0.5: 2, 1.0: 1, 2.0: 0}
    assert cell.best == 1.0 and not cell.edge


def test_one_factor_is_no_search(tmp_path):
    best = {"transformer": 1.0, "lstm": 1.0}
    assert not study(searched(tmp_path, best=best, factors=(1.0,))).cells

"""Points of a figure tell their run on the page, and the figures' own files stay as they are drawn."""

from __future__ import annotations

import html
import re

import pytest

from lmscale.report import style
from lmscale.report.figures import plot_cells, plot_points
from lmscale.report.notes import annotate, cell_note, run_note, seeds_note, with_notes
from lmscale.report.registry import analyse
from lmscale.studies.cells import Cell
from lmscale.studies.results import Results
from tests.report import planted_store as planted

ROW = {"run": "transformer-2x24-b2-s3989-seed3-6c6d7822a5fe", "params_kaplan": 13824.0}
ROW |= {"tokens": 1021184, "peak_lr": 0.005512, "loss": 3.77697, "seed": 3}


def chart_of(draw):
    with style.canvas(3, 3) as figure:
        draw(figure.subplots())
        return style.render(figure, name="f", caption="", alt="")


def notes_in(svg):
    return [html.unescape(text) for text in re.findall(r'class="point" data-note="([^"]*)"', svg)]


def test_a_run_is_told_in_a_line():
    assert run_note(ROW) == (
        "transformer-2x24-b2: N = 13.8k, D = 1.02M, peak LR 0.0055, loss 3.777, seed 3"
    )
    cell = Cell((4.0, 5.0), (0, 1), ROW, ("a-b1-s5-seed0-0123456789ab", "x"))
    assert cell_note(cell) == (
        "a-b1: N = 13.8k, D = 1.02M, peak LR 0.0055, mean loss 4.5 of 4 (seed 0) and 5 (seed 1)"
    )
    assert cell_note(Cell((4.0,), (7,), ROW, ("a",))).endswith("loss 4, seed 3")
    assert seeds_note(1500.0, [1.0, 2.0]) == "at 1.5k: 1.5, the mean of 1 and 2"
    assert seeds_note(1500.0, [1.0]) == "at 1.5k: 1"


def test_each_point_has_its_own_note_where_it_was_drawn():
    look = {"color": style.INK, "marker": "o"}
    x, y = [3.0, 1.0, 2.0], [30.0, 10.0, 20.0]
    texts = ["three", 'one <&> "1"', "two"]
    chart = chart_of(lambda axes: plot_points(axes, x, y, look, notes=texts))
    svg = style.inline(chart)
    assert notes_in(svg) == texts
    places = re.findall(r'data-note="[^"]*"[^>]* x="([\d.]+)"', svg)
    order = sorted(range(3), key=lambda k: float(places[k]))
    assert [texts[k] for k in order] == [texts[1], texts[2], texts[0]]
    # What one puts into a paper is the plain drawing.
    assert "data-note" not in chart.svg


def test_a_scatter_and_a_line_without_markers_have_notes_too():
    def draw(axes):
        annotate(axes.scatter([1, 2], [3, 4], c=[0.1, 0.9]), ["a", "b"])
        annotate(axes.plot([1, 2], [3, 4])[0], ["the whole line"])

    assert sorted(notes_in(style.inline(chart_of(draw)))) == ["a", "b", "the whole line"]


def test_no_point_gets_the_note_of_another():
    """matplotlib leaves out points that lie outside of the figure."""
    look = {"color": style.INK, "marker": "o"}

    def draw(axes):
        plot_points(axes, [1, 2, 3], [1, 2, float("nan")], look, notes=["a", "b", "c"])

    chart = chart_of(draw)
    assert notes_in(style.inline(chart)) == []
    assert with_notes(chart.svg, {"absent": ["x"]}) == (chart.svg, 0)


def test_cells_bring_their_notes():
    cells = [
        Cell((4.0,), (k,), {**ROW, "params_kaplan": n}, (f"r{k}",)) for k, n in ((0, 1e3), (1, 1e4))
    ]
    look = {"color": style.INK, "marker": "o"}
    svg = style.inline(chart_of(lambda axes: plot_cells(axes, cells, look)))
    assert [note.split(",")[0] for note in notes_in(svg)] == ["r0: N = 1k", "r1: N = 10k"]


@pytest.mark.slow
def test_every_run_of_a_profile_is_told(tmp_path):
    runs = planted.isoflop_runs(lstm=False, seeds=(0, 1), sizes=5)
    results = Results.read(planted.plant(tmp_path, runs, analyses=["isoflop"]))
    triptych = analyse("isoflop", results).charts[0]
    told = notes_in(style.inline(triptych))
    assert sorted(told) == sorted(run_note(row) for row in results.table.to_dict("records"))

"""`--style paper`: figures a column or two wide, in 8 points, without titles, as PDF and SVG."""

from __future__ import annotations

import re

import pytest
from matplotlib.text import Text

from lmscale.report import style
from tests.cli.answers import answer, refused
from tests.report import planted_store as planted


def drawn(width, draw, panels=1, **share):
    with style.canvas(width, 3.0) as figure:
        draw(figure, figure.subplots(1, panels, squeeze=False, **share)[0])
        return style.render(figure, name="f", caption="", alt="")


def titled(figure, panels):
    for k, axes in enumerate(panels):
        axes.plot([1, 2], [1, 2], label="a line")
        axes.set(xlabel="x", ylabel=f"y{k}")
        axes.set_title(f"panel {k}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", title="lines")


@pytest.mark.parametrize(("width", "inches"), [(3.5, 3.25), (4.4, 3.25), (7.0, 6.75), (10.6, 6.75)])
def test_a_figure_is_as_wide_as_columns_are(width, inches):
    with style.paper():
        chart = drawn(width, titled)
    assert chart.figure.get_figwidth() == pytest.approx(inches)
    points = float(re.search(r'<svg [^>]*width="([\d.]+)pt"', chart.svg).group(1))
    assert points == pytest.approx(72 * inches)
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", chart.pdf).group(1)
    assert float(box) == pytest.approx(72 * inches)


def test_type_is_8_points_and_titles_are_gone():
    with style.paper():
        chart = drawn(10.6, titled, panels=2)
    texts = [text for text in chart.figure.findobj(Text) if text.get_text()]
    assert {text.get_fontsize() for text in texts} == {8.0}
    assert not any("panel" in text.get_text() for text in texts)
    assert "panel 0" in {text.get_text() for text in drawn(10.6, titled, 2).figure.findobj(Text)}


def test_titles_stay_where_nothing_else_tells_panels_apart():
    def alike(figure, panels):
        for k, axes in enumerate(panels):
            axes.set_title(f"family {k}")
        panels[0].set_ylabel("loss")

    with style.paper():
        chart = drawn(7.0, alike, panels=2, sharex=True, sharey=True)
    assert [axes.get_title(loc="left") for axes in chart.figure.axes] == ["family 0", "family 1"]


@pytest.mark.parametrize("of_a_panel", [False, True])
def test_legends_fit_the_column(of_a_panel):
    def many(figure, panels):
        lines = [panels[0].plot([1, 2], [1, k])[0] for k in range(9)]
        labels = [f"a long name {k}" for k in range(9)]
        if of_a_panel:
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}
            panels[0].legend(lines, labels, ncols=9, **place)
        else:
            figure.legend(lines, labels, loc="outside upper center", ncols=9)

    with style.paper():
        figure = drawn(3.5, many).figure
    legend = figure.axes[0].get_legend() or figure.legends[0]
    extent = legend.get_window_extent()
    assert extent.x0 >= 0 and extent.x1 <= figure.bbox.width
    assert figure.axes[0].get_window_extent().height > 0.25 * figure.bbox.height


def test_equal_figures_give_equal_bytes_and_pages_have_no_pdf():
    with style.paper():
        once, again = drawn(7.0, titled), drawn(7.0, titled)
    assert once.pdf == again.pdf and once.svg == again.svg and once.pdf.startswith(b"%PDF")
    assert drawn(7.0, titled).pdf == b"" and drawn(7.0, titled).figure.get_figwidth() == 7.0


def test_the_command_writes_the_figures_beside_those_of_the_page(tmp_path, capsys):
    runs = planted.size_runs(layers=(), seeds=(0,))
    store = planted.plant(tmp_path / "store", runs, analyses=["curves"])
    code, out, err = answer(capsys, "report", store.path, "--style", "paper")
    assert code == 0, err
    (path,) = out.split()
    assert path.endswith("store/figures/paper/curves.pdf")
    names = {p.name for p in (store.path / "figures" / "paper").iterdir()}
    assert names == {"curves.pdf", "curves.svg"} and not (store.path / "report.html").exists()
    line = refused(capsys, "report", store.path, "--style", "paper", "--watch")
    assert "--watch keeps the page fresh" in line

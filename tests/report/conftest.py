"""How much of a figure the tests of sections draw."""

from __future__ import annotations

from typing import Any

import pytest

from lmscale.report import style
from lmscale.report.notes import noted_artists
from lmscale.report.section import Chart


def _sketch(figure: Any, *, name: str, caption: str, alt: str) -> Chart:
    """The chart with every artist drawn once, but nothing laid out or written, in a fifth of the time."""
    notes = noted_artists(figure)
    figure.set_layout_engine(None)
    figure.draw_without_rendering()
    return Chart(
        name=name, caption=caption, alt=alt, svg="<svg></svg>", png=b"", notes=notes, figure=figure
    )


@pytest.fixture
def drawn():
    """For a test of a section whose figures are laid out and written in full."""


@pytest.fixture(autouse=True)
def sketched(request, monkeypatch):
    """What a section says needs no files of its figures. One test of each section makes them: the one
    that asks for `drawn`, or the first of those that share a section made for their module."""
    if request.path.name.startswith("test_report_") and "drawn" not in request.fixturenames:
        monkeypatch.setattr(style, "render", _sketch)

"""The report of a store: one page that a person enjoys, its figures, and its fits."""

from lmscale.report.front import write_front
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.study import Study
from lmscale.report.write import analyse, analysis_names, write_report

__all__ = [
    "Chart",
    "Grid",
    "KeyNumber",
    "Measure",
    "Section",
    "Study",
    "analyse",
    "analysis_names",
    "write_front",
    "write_report",
]

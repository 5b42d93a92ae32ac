"""The report of a store: one page that a person enjoys, its figures, and its fits."""

from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.study import Study
from lmscale.report.write import ANALYSES, write_report

__all__ = ["ANALYSES", "Chart", "Grid", "KeyNumber", "Measure", "Section", "Study", "write_report"]

"""The report of a store: one page that a person enjoys, its figures, and its fits.

A file of your own brings its figure with `register`: a section beside the study that it registers with
`lmscale.studies.register`.
"""

from lmscale.report.front import write_front
from lmscale.report.registry import AnalysisError, analyse, register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.summary import Summary, read_summary
from lmscale.report.write import write_paper_figures, write_report

__all__ = [
    "AnalysisError",
    "Chart",
    "Grid",
    "KeyNumber",
    "Measure",
    "Section",
    "Summary",
    "analyse",
    "read_summary",
    "register",
    "write_front",
    "write_paper_figures",
    "write_report",
]
